"""The layout that transformers reads: shards known from the plan, tensors aligned, configs that keep their keys."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgeforge.backends import Origin, load
from edgeforge.backends.huggingface import layout
from edgeforge.backends.huggingface.configs import config, generation_config
from edgeforge.backends.huggingface.layout import TensorSpec, shards
from edgeforge.backends.huggingface.writing import rounded, write_shards
from edgeforge.model.architecture import hf_config
from edgeforge.model.checkpoint import GenerationDefaults
from edgeforge.planning import draft_plan
from edgeforge.quantization.calibration import EMPTY
from tests.backends.handmade import TIED, TINY, json_of, plan_for, read, read_file, write
from tests.planning.shapes import LLAMA_70B, LLAMA_405B

BACKENDS = ("modelopt", "compressed-tensors")


def spec(name: str, dtype: str, *shape: int) -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def test_one_file_where_one_suffices() -> None:
    assert list(shards([spec("a", "F32", 2), spec("b", "U8", 3)])) == ["model.safetensors"]


def test_a_file_ends_before_the_tensor_that_would_take_it_past_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "SHARD_BYTES", 100)
    tensors = [
        spec("a", "U8", 60),
        spec("b", "U8", 40),
        spec("c", "U8", 1),
        spec("large", "U8", 500),
        spec("d", "U8", 1),
    ]
    found = {file: [tensor.name for tensor in group] for file, group in shards(tensors).items()}
    assert found == {
        "model-00001-of-00004.safetensors": ["a", "b"],
        "model-00002-of-00004.safetensors": ["c"],
        "model-00003-of-00004.safetensors": ["large"],
        "model-00004-of-00004.safetensors": ["d"],
    }


@pytest.mark.parametrize("architecture", [LLAMA_70B, LLAMA_405B], ids=["70B", "405B"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_large_models_are_cut_into_files_of_at_most_five_gigabytes(backend, architecture) -> None:  # type: ignore[no-untyped-def]
    plan = draft_plan(architecture, plan_for(backend, "fp8").target)
    names = load(backend).files(plan).weights
    assert architecture.parameter_count / 5e9 < len(names) < 1.2 * architecture.parameter_count / 5e9
    assert names[0] == f"model-00001-of-{len(names):05}.safetensors"


@pytest.mark.parametrize("scheme", ["fp8", "w4a16", "bf16"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_shards_hold_what_one_file_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str, scheme: str
) -> None:
    plan = plan_for(backend, scheme)
    write(plan, tmp_path / "one")
    monkeypatch.setattr(layout, "SHARD_BYTES", 60_000)
    write(plan, tmp_path / "several", step=64, threads=3)
    one, several = read(tmp_path / "one"), read(tmp_path / "several")
    assert set(one) == set(several)
    assert all(one[name].tobytes() == several[name].tobytes() for name in one)
    index, files = json_of(tmp_path / "several" / layout.INDEX_FILE), load(backend).files(plan).weights
    assert len(files) > 2
    assert sorted(path.name for path in (tmp_path / "several").glob("*.safetensors")) == list(files)
    assert index["metadata"] == {"total_size": sum(tensor.nbytes for tensor in several.values())}
    assert index["weight_map"] == {name: file for file in files for name in read_file(tmp_path / "several" / file)}
    assert not (tmp_path / "one" / layout.INDEX_FILE).exists()


@pytest.mark.parametrize("scheme", ["fp8", "w4a16", "fp8-dynamic"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_tensor_is_aligned_to_its_type(tmp_path: Path, backend: str, scheme: str) -> None:
    """torch refuses to view bytes that are not, so that transformers could not read the file."""
    write(plan_for(backend, scheme), tmp_path)
    end = 0
    for tensor in read(tmp_path).values():
        assert end % tensor.itemsize == 0
        end += tensor.nbytes


@pytest.mark.parametrize("backend", BACKENDS)
def test_pieces_in_any_order_from_several_threads_give_the_same_bytes(tmp_path: Path, backend: str) -> None:
    for scheme in ("fp8", "w4a16", "fp8-dynamic", "bf16"):
        plan = plan_for(backend, scheme)
        for step, threads in ((1 << 20, 1), (8, 3), (24, 2)):
            write(plan, tmp_path / scheme / f"{step}", step=step, threads=threads)
        first, *others = ({p.name: p.read_bytes() for p in f.iterdir()} for f in (tmp_path / scheme).iterdir())
        assert all(other == first for other in others)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_tied_head_is_stored_once(tmp_path: Path, backend: str) -> None:
    write(plan_for(backend, "fp8", TIED), tmp_path / "tied")
    write(plan_for(backend, "fp8", replace(TIED, tie_word_embeddings=False)), tmp_path / "untied")
    assert set(read(tmp_path / "untied")) - set(read(tmp_path / "tied")) == {"lm_head.weight"}


@pytest.mark.parametrize("backend", BACKENDS)
def test_missing_rows_are_told(tmp_path: Path, backend: str) -> None:
    plan = plan_for(backend, "bf16")
    with pytest.raises(ValueError, match="rows missing"), load(backend).sink(plan, EMPTY, tmp_path):
        pass


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_another_scheme_are_refused(tmp_path: Path, backend: str) -> None:
    contents = write(plan_for(backend, "w4a16"), tmp_path / "first")
    with pytest.raises(ValueError, match="the plan stores"):
        write(plan_for(backend, "fp8"), tmp_path / "second", contents=contents)


def test_left_out_tensors_keep_their_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the calibration does not know must not change the names of files, which the plan gives."""
    monkeypatch.setattr(layout, "SHARD_BYTES", 8)
    tensors = [spec("a", "F32", 1), spec("b", "F32", 1), spec("c", "F32", 1)]
    with write_shards(tmp_path, tensors, left_out={"b"}) as shard_writer:
        assert "b" not in shard_writer
        for name in "ac":
            shard_writer.write_floats(name, 0, np.ones(1, np.float32))
    assert list(read_file(tmp_path / "model-00001-of-00002.safetensors")) == ["a"]
    assert json_of(tmp_path / layout.INDEX_FILE)["metadata"] == {"total_size": 8}


def test_values_beyond_the_stored_type_are_errors() -> None:
    for word, largest, beyond in (("F16", 65519.0, 65520.0), ("BF16", 3.3895e38, 3.3962e38)):
        assert np.isfinite(rounded(np.array([largest, -largest], np.float32), word).astype(np.float32)).all()
        for sign in (1, -1):
            with pytest.raises(FloatingPointError, match="too large"):
                rounded(np.array([0, sign * beyond], np.float32), word)
    assert rounded(np.array([3.4e38], np.float32), "F32")[0] == np.float32(3.4e38)


def test_config_keeps_every_key_of_the_authors_in_its_place() -> None:
    original = {"_name": "x", **hf_config(TINY, dtype="float32"), "their_own": {"key": [1, None]}, "use_cache": True}
    plan = plan_for("modelopt", "fp8")
    written = config(plan, Origin(config=original, generation=GenerationDefaults()), {"quant_method": "m"})
    assert list(written) == [*original, "quantization_config"]
    assert written == {**original, "torch_dtype": "bfloat16", "quantization_config": {"quant_method": "m"}}
    assert "quantization_config" not in config(plan, Origin(config=original, generation=GenerationDefaults()), None)


def test_both_names_of_the_type_are_set() -> None:
    """transformers writes `dtype` since 4.56; TensorRT-LLM and Edge-LLM know torch_dtype."""
    original = {key: value for key, value in hf_config(TINY, dtype="x").items() if key != "torch_dtype"} | {
        "dtype": "x"
    }
    written = config(plan_for("modelopt", "f16"), Origin(config=original, generation=GenerationDefaults()), None)
    assert (written["dtype"], written["torch_dtype"]) == ("float16", "float16")


def test_generation_config_says_what_the_authors_say() -> None:
    plan = plan_for("modelopt", "bf16")
    generation = GenerationDefaults(do_sample=True, temperature=0.6)
    assert generation_config(plan, Origin(config={}, generation=generation)) == {
        "eos_token_id": [2, 3],
        "do_sample": True,
        "temperature": 0.6,
    }
    one = replace(plan, architecture=replace(TINY, bos_token_id=1, eos_token_ids=(2,)))
    written = generation_config(one, Origin(config={}, generation=GenerationDefaults()))
    assert written == {"bos_token_id": 1, "eos_token_id": 2}
