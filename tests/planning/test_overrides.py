"""Another backend for a shipped target: what it cannot hold falls to what it can, and an engine loads its files."""

import pytest

from edgeforge.hardware import ENGINES, available_targets, load_target
from edgeforge.planning import apply_overrides

ONE_CARD = [name for name in available_targets() if load_target(name).cards == 1]
SERVERS = ["a100-80gb", "l4", "l40s", "h100", "h100x8", "h200", "b200"]


@pytest.mark.parametrize("name", ONE_CARD)
def test_every_single_device_can_have_an_onnx_bundle_of_its_arithmetics_width(name: str) -> None:
    target = apply_overrides(load_target(name), backend="onnx")
    width = "f32" if target.profile.kind == "cpu" else "f16"
    assert (target.engine, target.scheme, target.group_size) == ("onnxruntime", "w4a16", 128)
    assert (target.activations, target.kv_cache) == (width, width)


@pytest.mark.parametrize("name", SERVERS)
@pytest.mark.parametrize("backend", ["modelopt", "compressed-tensors", "tensorrt-llm", "trtllm-engine"])
def test_a_servers_backends_name_an_engine_that_loads_what_they_write(name: str, backend: str) -> None:
    target = apply_overrides(load_target(name), backend=backend)
    assert ENGINES[target.engine].loads(backend, target.scheme)


def test_the_targets_engine_stays_where_it_loads_the_scheme() -> None:
    assert apply_overrides(load_target("h100"), engine="vllm").engine == "vllm"
    assert apply_overrides(load_target("h100"), backend="compressed-tensors", scheme="fp8-dynamic").engine == (
        "tensorrt-llm"
    )
    assert apply_overrides(load_target("h100"), backend="compressed-tensors").engine == "vllm"
