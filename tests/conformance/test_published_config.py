"""The config pair that NVIDIA published for Llama 3.1 70B in FP8: ours for that architecture has another producer."""

from pathlib import Path

import pytest
from raw_files import read_json
from written import chosen

from edgeforge.backends import Origin, load
from edgeforge.model.architecture import architecture_from_config
from edgeforge.model.checkpoint import GenerationDefaults
from edgeforge.planning import draft_plan

PRODUCER = ("_name_or_path", "transformers_version")
"""What config.json tells of the machine and the program that wrote it."""


@pytest.fixture(scope="module")
def published(test_data: Path) -> tuple[dict[str, object], dict[str, object]]:
    """config.json, hf_quant_config.json"""
    prefix = test_data / "configs" / "nvidia--Llama-3.1-70B-Instruct-FP8"
    return read_json(Path(f"{prefix}_config.json")), read_json(Path(f"{prefix}_hf_quant_config.json"))


def test_both_files(published: tuple[dict[str, object], dict[str, object]], tmp_path: Path) -> None:
    """Written for the original's config.json, which is the published one: theirs has nothing of quantization in it.

    Ours says it there too, as ModelOpt's releases since do, which is what vLLM and transformers read.
    """
    config, described = published
    plan = draft_plan(architecture_from_config(config), chosen("modelopt", "fp8", kv_cache="fp8"))
    load("modelopt").finish(plan, Origin(config=config, generation=GenerationDefaults()), tmp_path)
    ours = read_json(tmp_path / "hf_quant_config.json")
    assert set(ours) == set(described)
    assert ours["quantization"] == described["quantization"]
    assert ours["producer"] != described["producer"]
    written = read_json(tmp_path / "config.json")
    embedded = written.pop("quantization_config")
    assert isinstance(embedded, dict) and embedded["quant_algo"] == "FP8"
    for key in PRODUCER:
        written.pop(key, None)
    assert written == {key: value for key, value in config.items() if key not in PRODUCER}
