"""Which engine runs a bundle: the one its manifest names, or the other if that loads it; what is missing is said in one
sentence with exit code 7, before anything is imported.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from engine_fakes import install_gpus, install_metadata
from tiny_bundle import make_engine_bundle

from edgeforge import runtime
from edgeforge.hardware.capabilities import ENGINES
from edgeforge.runtime.choice import LOADS, choose
from edgeforge.runtime.errors import MissingRequirement, UnusableBundle
from edgeforge.runtime.gpu import Gpu

H100 = Gpu(name="NVIDIA H100 80GB HBM3", compute_capability="9.0", memory_bytes=80 << 30, driver="580.82.07")
L4 = Gpu(name="NVIDIA L4", compute_capability="8.9", memory_bytes=24 << 30, driver="580.82.07")
TRT, VLLM = "tensorrt-llm", "vllm"
BUILT = {
    "backend": "trtllm-engine",
    "engine": "tensorrt",
    "compute_capability": "9.0",
    "versions": {"tensorrt_llm": "1.2.1", "tensorrt": "10.14", "cuda": "13.0", "driver": "580.65.06"},
}


def chosen(bundle: Path, installed: Mapping[str, str], gpus: tuple[Gpu, ...] = (H100, H100)) -> tuple[str, str]:
    return choose(bundle, runtime.read_manifest(bundle), installed.get, lambda: gpus)


def refusal(bundle: Path, installed: Mapping[str, str], gpus: tuple[Gpu, ...] = (H100, H100)) -> tuple[str, str]:
    with pytest.raises(MissingRequirement) as caught:
        chosen(bundle, installed, gpus)
    assert caught.value.exit_code == 7
    return caught.value.message, caught.value.hint or ""


@pytest.mark.parametrize(
    ("backend", "scheme", "named", "installed", "expected"),
    [
        ("modelopt", "fp8", TRT, {TRT: "1.2.1", VLLM: "0.33.0"}, (TRT, "1.2.1")),
        ("modelopt", "fp8", TRT, {VLLM: "0.33.0"}, (VLLM, "0.33.0")),
        ("modelopt", "fp8", TRT, {TRT: "0.21.0", VLLM: "0.33.0"}, (VLLM, "0.33.0")),
        ("modelopt", "fp8", VLLM, {TRT: "1.2.1", VLLM: "0.33.0"}, (VLLM, "0.33.0")),
        ("modelopt", "nvfp4", TRT, {VLLM: "0.33.0"}, (VLLM, "0.33.0")),
        ("modelopt", "w4a16", TRT, {TRT: "1.3.0rc15", VLLM: "0.33.0"}, (TRT, "1.3.0rc15")),
        ("compressed-tensors", "w4a16", VLLM, {TRT: "1.2.1", VLLM: "0.33.0"}, (VLLM, "0.33.0")),
        ("compressed-tensors", "fp8-dynamic", VLLM, {TRT: "1.2.1"}, (TRT, "1.2.1")),
    ],
)
def test_the_engine_named_comes_first_and_the_other_if_it_loads_such_files(
    tmp_path: Path, backend: str, scheme: str, named: str, installed: Mapping[str, str], expected: tuple[str, str]
) -> None:
    bundle = make_engine_bundle(tmp_path / "b", backend=backend, scheme=scheme, engine=named)
    assert chosen(bundle, installed) == expected


@pytest.mark.parametrize(
    ("backend", "scheme", "named", "installed", "said", "hint"),
    [
        ("modelopt", "fp8", TRT, {}, "needs TensorRT-LLM 1.0 or vLLM 0.16 or newer", "pip install 'tensorrt-llm>=1.0'"),
        ("modelopt", "fp8", TRT, {TRT: "0.21.0"}, "TensorRT-LLM 1.0 (this is 0.21.0) or vLLM 0.16", "tensorrt-llm"),
        ("modelopt", "w4a16", TRT, {}, "needs TensorRT-LLM 1.0 or newer", "tensorrt-llm"),
        (
            "modelopt",
            "w4a16",
            TRT,
            {VLLM: "0.33.0"},
            "vLLM 0.33.0 is installed, and does not load scheme w4a16 of modelopt",
            "tensorrt-llm",
        ),
        ("modelopt", "w4a8", TRT, {VLLM: "0.33.0"}, "does not load scheme w4a8 of modelopt", "tensorrt-llm"),
        (
            "compressed-tensors",
            "w4a16",
            VLLM,
            {TRT: "1.2.1"},
            "needs vLLM 0.16 or newer; TensorRT-LLM 1.2.1 is installed, and does not load scheme w4a16",
            "pip install 'vllm>=0.16'",
        ),
        ("compressed-tensors", "fp8", VLLM, {TRT: "1.2.1"}, "does not load scheme fp8 of compressed-tensors", "vllm"),
    ],
)
def test_what_to_install_is_said_and_why_what_is_there_does_not_do(
    tmp_path: Path, backend: str, scheme: str, named: str, installed: Mapping[str, str], said: str, hint: str
) -> None:
    bundle = make_engine_bundle(tmp_path / "b", backend=backend, scheme=scheme, engine=named)
    message, cure = refusal(bundle, installed)
    assert said in message
    assert hint in cure


def test_the_manifest_may_ask_for_a_newer_version(tmp_path: Path) -> None:
    bundle = make_engine_bundle(tmp_path / "b", scheme="w4a16", packages={"tensorrt-llm": ">=1.2"})
    message, hint = refusal(bundle, {TRT: "1.1.0"})
    assert "TensorRT-LLM 1.2 (this is 1.1.0)" in message
    assert "tensorrt-llm>=1.2" in hint
    assert chosen(bundle, {TRT: "1.2.1"}) == (TRT, "1.2.1")


def test_a_checkpoint_runs_on_any_gpu_but_not_without_one(tmp_path: Path) -> None:
    bundle = make_engine_bundle(tmp_path / "b")
    assert chosen(bundle, {TRT: "1.2.1"}, (L4,)) == (TRT, "1.2.1")
    assert "needs 1 NVIDIA GPU, and nvidia-smi finds none" in refusal(bundle, {TRT: "1.2.1"}, ())[0]


def test_parallel_files_need_their_gpus(tmp_path: Path) -> None:
    bundle = make_engine_bundle(tmp_path / "b", tensor_parallel=4)
    assert "needs 4 NVIDIA GPUs, and nvidia-smi finds 2" in refusal(bundle, {TRT: "1.2.1"})[0]


def test_a_built_engine_loads_in_its_own_version_on_its_own_gpu(tmp_path: Path) -> None:
    bundle = make_engine_bundle(tmp_path / "b", **BUILT, tensor_parallel=2)
    assert chosen(bundle, {TRT: "1.2.1"}) == ("tensorrt", "1.2.1")


@pytest.mark.parametrize(
    ("installed", "gpus", "said"),
    [
        ({TRT: "1.2.1"}, (L4,), "built for GPUs of compute capability 9.0, and this NVIDIA L4 has 8.9"),
        ({}, (L4,), "compute capability 9.0"),
        ({TRT: "1.2.0"}, (H100,), "built with TensorRT-LLM 1.2.1, and this is 1.2.0"),
        ({TRT: "1.3.0rc15"}, (H100,), "built with TensorRT-LLM 1.2.1, and this is 1.3.0rc15"),
        ({VLLM: "0.33.0"}, (H100,), "needs TensorRT-LLM 1.2.1, which built it"),
        ({TRT: "1.2.1"}, (), "needs 1 NVIDIA GPU, and nvidia-smi finds none"),
    ],
)
def test_a_built_engine_is_refused_elsewhere(
    tmp_path: Path, installed: Mapping[str, str], gpus: tuple[Gpu, ...], said: str
) -> None:
    message, hint = refusal(make_engine_bundle(tmp_path / "b", **BUILT), installed, gpus)
    assert said in message
    assert hint


def test_an_older_driver_than_the_engine_was_built_with_is_refused_and_a_newer_one_is_not(tmp_path: Path) -> None:
    bundle = make_engine_bundle(tmp_path / "b", **BUILT)
    old = Gpu(name="NVIDIA H100", compute_capability="9.0", memory_bytes=80 << 30, driver="575.57.08")
    assert (
        "built with driver 580.65.06, and this machine has the older 575.57.08"
        in refusal(bundle, {TRT: "1.2.1"}, (old,))[0]
    )
    new = Gpu(name="NVIDIA H100", compute_capability="9.0", memory_bytes=80 << 30, driver="590.1")
    assert chosen(bundle, {TRT: "1.2.1"}, (new,)) == ("tensorrt", "1.2.1")


def test_every_gpu_that_the_engine_takes_is_looked_at(tmp_path: Path) -> None:
    bundle = make_engine_bundle(tmp_path / "b", **BUILT, tensor_parallel=2)
    assert "NVIDIA L4 has 8.9" in refusal(bundle, {TRT: "1.2.1"}, (H100, L4))[0]
    assert chosen(bundle, {TRT: "1.2.1"}, (H100, H100, L4)) == ("tensorrt", "1.2.1")


def test_an_engine_that_is_still_to_be_built_names_its_script(tmp_path: Path) -> None:
    script = "build-on-device.sh"
    bundle = make_engine_bundle(tmp_path / "b", **BUILT, state="to-be-built", script=script)
    message, hint = refusal(bundle, {TRT: "1.2.1"})
    assert "still to be built" in message
    assert str(bundle / script) in hint


def test_edge_llm_bundles_run_on_the_device(tmp_path: Path) -> None:
    bundle = make_engine_bundle(tmp_path / "b", engine="edge-llm", state="to-be-built", script="build-on-device.sh")
    message, hint = refusal(bundle, {TRT: "1.2.1", VLLM: "0.33.0"})
    assert "C++ program on the device" in message
    assert f"sh {bundle / 'build-on-device.sh'}" in hint


def test_a_checkpoint_of_the_older_format_alone_is_no_engine(tmp_path: Path) -> None:
    bundle = make_engine_bundle(tmp_path / "b", **{**BUILT, "backend": "tensorrt-llm"})
    with pytest.raises(UnusableBundle, match="and no engine"):
        chosen(bundle, {TRT: "1.2.1"})


def test_the_processor_runs_no_such_bundle(tmp_path: Path) -> None:
    with pytest.raises(UnusableBundle, match="NVIDIA GPUs only"):
        runtime.load(make_engine_bundle(tmp_path / "b"), device="cpu")


def test_what_is_missing_is_said_before_anything_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing tensorrt_llm fails where there is no driver, and takes its time where there is one."""
    bundle = make_engine_bundle(tmp_path / "b", **BUILT)
    monkeypatch.setitem(sys.modules, "tensorrt_llm", None)
    install_metadata(monkeypatch, tmp_path / "site", "tensorrt_llm", "1.2.1")
    install_gpus(monkeypatch, tmp_path / "bin", "NVIDIA L4, 8.9, 23034, 580.82.07")
    with pytest.raises(MissingRequirement, match=r"compute capability 9\.0, and this NVIDIA L4 has 8\.9"):
        runtime.load(bundle)


def test_the_toolchain_builds_for_an_engine_only_what_the_runtime_loads_in_it() -> None:
    floats = {"f16", "bf16"}
    for name, facts in ENGINES.items():
        if name in LOADS:
            built = {pair for pair in facts.runs if pair[0] != "tensorrt-llm"}
            spelled = {(b, s) for b, scheme in built for s in (floats if scheme == "float" else {scheme})}
            assert spelled <= LOADS[name], name
