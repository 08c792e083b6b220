"""inspect: tells a checkpoint from its headers alone, in words and as JSON."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from tiny_bundle import make_engine_bundle

from edgeforge.cli.inspect import by_dtype, inspect, stored_bytes
from edgeforge.errors import UnusableInput


@pytest.mark.parametrize(
    ("dtype", "parameters", "expected"),
    [("F32", 10, 40), ("BF16", 10, 20), ("Q4_1", 64, 40), ("Q6_K", 256, 210), ("Q8_0", 33, 68), ("IQ2_XS", 10, None)],
)
def test_stored_sizes_are_those_of_the_format(dtype: str, parameters: int, expected: int | None) -> None:
    assert stored_bytes(dtype, parameters) == expected


class Tensor:
    """A header without a file: reading it would fail."""

    def __init__(self, dtype: str, *shape: int) -> None:
        self.name = "t"
        self.dtype = dtype
        self.shape = shape
        self.grid = None

    def rows(self, start: int, stop: int) -> object:
        raise AssertionError("inspect reads headers only")

    stored_codes = rows


def test_tensors_are_summed_by_type_largest_first() -> None:
    summary = by_dtype([Tensor("F32", 4), Tensor("Q4_1", 32, 64), Tensor("F32", 2, 3), Tensor("F32")])  # type: ignore[list-item]
    assert [(s.dtype, s.tensors, s.parameters, s.stored_bytes) for s in summary] == [
        ("Q4_1", 1, 2048, 1280),
        ("F32", 3, 11, 44),
    ]


def test_a_checkpoint_is_told_in_full(stories: Path) -> None:
    document = json.loads(CliRunner().invoke(inspect, [str(stories), "--json", "--tensors"]).stdout)
    assert document["kind"] == "checkpoint"
    assert document["parameters"] == 260_032
    assert document["architecture"]["num_key_value_heads"] == 4
    assert document["dtypes"][0]["dtype"] == "F32"
    assert sum(dtype["parameters"] for dtype in document["dtypes"]) == 260_032
    assert {"name": "model.norm.weight", "dtype": "F32", "shape": [64]} in document["tensors"]


def test_a_checkpoint_reads_well(stories: Path) -> None:
    result = CliRunner().invoke(inspect, [str(stories)])
    assert result.exit_code == 0, result.output
    assert "260,032" in result.stdout
    assert "8 heads, 4 KV heads, head size 8" in result.stdout
    assert "tied embeddings" in result.stdout


def test_the_demo_gguf_says_how_it_is_stored(demo_gguf: Path) -> None:
    document = json.loads(CliRunner().invoke(inspect, [str(demo_gguf), "--json"]).stdout)
    assert document["parameters"] == 134_515_008
    assert document["source"]["precision"] == "Q4_1"
    stored = {dtype["dtype"]: dtype["stored_bytes"] for dtype in document["dtypes"]}
    assert sum(stored.values()) < demo_gguf.stat().st_size < sum(stored.values()) + 4_000_000


def test_weights_are_not_read(stories: Path, tmp_path: Path) -> None:
    """A sparse file as long as its header says serves as well as the real one."""
    import os
    import shutil
    import struct

    copy = tmp_path / "sparse"
    shutil.copytree(stories, copy)
    weights = copy / "model.safetensors"
    real = weights.read_bytes()
    header = struct.unpack("<Q", real[:8])[0]
    weights.write_bytes(real[: 8 + header])
    os.truncate(weights, len(real))
    assert CliRunner().invoke(inspect, [str(copy)]).exit_code == 0


def test_what_is_no_model_is_said(tmp_path: Path) -> None:
    result = CliRunner().invoke(inspect, [str(tmp_path / "absent")])
    assert isinstance(result.exception, UnusableInput)


def test_a_bundle_for_another_engine_is_told(tmp_path: Path) -> None:
    versions = {"tensorrt_llm": "1.2.1"}
    bundle = make_engine_bundle(
        tmp_path / "b",
        backend="trtllm-engine",
        engine="tensorrt",
        state="to-be-built",
        tensor_parallel=4,
        compute_capability="9.0",
        script="build-on-device.sh",
        versions=versions,
    )
    document = json.loads(CliRunner().invoke(inspect, [str(bundle), "--json"]).stdout)
    assert (document["engine"]["name"], document["engine"]["versions"]) == ("tensorrt", versions)
    result = CliRunner().invoke(inspect, [str(bundle)])
    assert result.exit_code == 0, result.output
    assert (
        "tensorrt for compute capability 9.0, 4 GPUs, built with tensorrt_llm 1.2.1; "
        "to be built on the device by build-on-device.sh\n"
    ) in result.stdout
    assert "None" not in result.stdout
