"""genai_config.json says what the graph is and what the model's authors recommend."""

import json
from dataclasses import replace

import pytest
from built import Build

from edgeforge.backends.onnx.genai import genai_config
from edgeforge.hardware import load_target
from edgeforge.model.architecture import LlamaArchitecture
from edgeforge.model.checkpoint import GenerationDefaults
from edgeforge.planning import draft_plan
from tests.planning.shapes import SMOLLM2

NOTHING_SAID = GenerationDefaults()


def config(
    architecture: LlamaArchitecture = SMOLLM2,
    generation: GenerationDefaults = NOTHING_SAID,
    *,
    target: str = "cpu",
    provider: str = "CPUExecutionProvider",
) -> tuple[dict[str, object], dict[str, object]]:
    """(model, search)"""
    plan = draft_plan(architecture, load_target(target))
    content = genai_config(plan, generation, provider, "model.onnx")
    model, search = content["model"], content["search"]
    assert isinstance(model, dict)
    assert isinstance(search, dict)
    return model, search


@pytest.mark.parametrize(
    ("bos", "eos", "expected"),
    [
        (1, (2,), {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}),
        (128000, (128001, 128009), {"bos_token_id": 128000, "eos_token_id": [128001, 128009], "pad_token_id": 128001}),
        (None, (2,), {"eos_token_id": 2, "pad_token_id": 2}),
        (1, (), {"bos_token_id": 1, "pad_token_id": 1}),
        (0, (0,), {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}),
    ],
)
def test_special_tokens_are_the_checkpoints(bos: int | None, eos: tuple[int, ...], expected: dict[str, object]) -> None:
    model, _ = config(replace(SMOLLM2, bos_token_id=bos, eos_token_ids=eos))
    assert {key: value for key, value in model.items() if key.endswith("_token_id")} == expected


def test_it_is_greedy_where_nobody_recommends_anything() -> None:
    _, search = config()
    assert search == {"do_sample": False, "max_length": 4096, "past_present_share_buffer": True}


def test_the_authors_recommendations_are_kept() -> None:
    said = GenerationDefaults(do_sample=True, temperature=0.6, top_k=40, top_p=0.9, repetition_penalty=1.1)
    _, search = config(generation=said)
    assert search["do_sample"] is True
    assert (search["temperature"], search["top_k"], search["top_p"]) == (0.6, 40, 0.9)
    assert search["repetition_penalty"] == 1.1


def test_shared_caches_are_as_long_as_the_context() -> None:
    model, search = config(replace(SMOLLM2, max_position_embeddings=2048))
    assert model["context_length"] == search["max_length"] == 2048
    assert search["past_present_share_buffer"] is True


@pytest.mark.parametrize(
    ("target", "provider", "options"),
    [("cpu", "CPUExecutionProvider", []), ("rtx4090", "CUDAExecutionProvider", ["cuda"])],
)
def test_the_device_is_the_targets(target: str, provider: str, options: list[str]) -> None:
    model, _ = config(target=target, provider=provider)
    decoder = model["decoder"]
    assert isinstance(decoder, dict)
    found = decoder["session_options"]["provider_options"]
    assert [name for entry in found for name in entry] == options


def test_the_file_of_a_bundle_tells_the_model_and_nothing_of_the_machine(demo_int4: Build) -> None:
    text = (demo_int4.bundle / "model" / "genai_config.json").read_text(encoding="utf-8")
    decoder = json.loads(text)["model"]["decoder"]
    a = demo_int4.checkpoint.architecture
    assert decoder["filename"] == "model.onnx"
    assert (decoder["hidden_size"], decoder["head_size"]) == (a.hidden_size, a.head_dim) == (576, 64)
    assert (decoder["num_attention_heads"], decoder["num_key_value_heads"]) == (9, 3)
    assert decoder["num_hidden_layers"] == 30
    assert str(demo_int4.bundle) not in text
