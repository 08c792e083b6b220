"""A target runs where its hardware and its engine are; only engine files are not built anywhere."""

from dataclasses import replace

import pytest

from edgeforge.cli.machine import Tool
from edgeforge.cli.obstacles import Here, build_obstacle_for, obstacle_for
from edgeforge.hardware import load_target
from edgeforge.hardware.capabilities import ENGINES
from edgeforge.runtime.gpu import Gpu


def gpu(name: str, capability: str, gib: int) -> Gpu:
    # An L4 with ECC shows 23,034 of its 24,576 MiB.
    return Gpu(name=name, compute_capability=capability, memory_bytes=int(gib * 0.938 * 2**30), driver="580.82")


ADA, SMALL_ADA, H100 = gpu("RTX 4090", "8.9", 24), gpu("RTX 4060", "8.9", 8), gpu("H100", "9.0", 80)
H200 = gpu("H200", "9.0", 141)
ORIN = Gpu(name="Orin (nvgpu)", compute_capability="8.7", memory_bytes=0, driver="540.4.0")
CPU = {"onnxruntime": "1.32.0"}
CUDA = {"onnxruntime-gpu": "1.31.0"}
TRT = {"tensorrt-llm": "1.2.1"}
VLLM = {"vllm": "0.33.0"}
LLM_BUILD = Tool(name="llm_build", path="/usr/bin/llm_build", version=None)


def here(
    packages: dict[str, str],
    gpus: tuple[Gpu, ...] = (),
    *,
    tools: tuple[Tool, ...] = (),
    processor: str = "x86_64",
    board: str | None = None,
    memory_gib: float = 61.4,
) -> Here:
    named = {tool.name: tool for tool in tools}
    memory = int(memory_gib * 2**30)
    return Here(packages=packages, tools=named, gpus=gpus, processor=processor, board=board, memory_bytes=memory)


def assert_says(found: str | None, obstacle: str | None) -> None:
    if obstacle is None:
        assert found is None
    else:
        assert found is not None
        assert obstacle in found


@pytest.mark.parametrize(
    ("target", "machine", "obstacle"),
    [
        ("cpu-x86-64", here(CPU), None),
        ("cpu-x86-64", here(CUDA), None),
        ("cpu-x86-64", here({}), "edgeforge[cpu]"),
        ("cpu-x86-64", here(CPU, processor="AMD64"), None),
        ("cpu-x86-64", here(CPU, processor="aarch64"), "another processor: x86-64"),
        ("cpu-arm64", here(CPU, processor="arm64"), None),
        ("cpu-arm64", here(CPU), "another processor: arm64"),
        ("rtx4090", here(CUDA, (ADA,)), None),
        ("rtx4090", here(CUDA), "compute capability 8.9"),
        ("rtx4090", here(CPU, (ADA,)), "edgeforge[gpu]"),
        ("rtx4090", here(CUDA, (SMALL_ADA,)), "26 GB"),
        ("rtx4060-8gb", here(CUDA, (ADA,)), None),
        ("h100", here(TRT, (ADA,)), "compute capability 9.0"),
        ("h100", here(TRT, (H100,)), None),
        ("h100", here(TRT, (H200,)), None),
        ("h100", here(VLLM, (H100,)), None),
        ("h100", here(CUDA, (H100,)), "needs TensorRT-LLM or vLLM: python -m pip install tensorrt-llm or vllm"),
        ("h200", here(TRT, (H100,)), "151 GB"),
        ("h100x4", here(TRT, (H100,)), "needs 4 such GPUs, here is 1"),
        ("h100x2", here(TRT, (ADA, H100, H100)), None),
        ("a100-80gb", here(VLLM, (gpu("A100", "8.0", 80),)), "needs TensorRT-LLM: "),
    ],
)
def test_a_target_runs_where_its_hardware_and_its_engine_are(target: str, machine: Here, obstacle: str | None) -> None:
    assert_says(obstacle_for(load_target(target), machine), obstacle)


AGX = "NVIDIA Jetson AGX Orin Developer Kit"
THOR = "NVIDIA Jetson AGX Thor Developer Kit"
NX = "NVIDIA Jetson Orin NX Engineering Reference Developer Kit"


@pytest.mark.parametrize(
    ("target", "machine", "obstacle"),
    [
        ("jetson-agx-orin-64gb", here({}, (ORIN,), tools=(LLM_BUILD,), board=AGX), None),
        ("jetson-agx-orin-64gb", here({}, (ORIN,), board=AGX), "no llm_build on the PATH"),
        ("jetson-agx-orin-64gb", here({}, (ORIN,), tools=(LLM_BUILD,), board=NX), "jetson-agx-orin-64gb"),
        ("jetson-agx-orin-64gb", here({}, tools=(LLM_BUILD,), board=AGX, memory_gib=30), "jetson-agx-orin-64gb"),
        ("jetson-orin-nx-16gb", here(CUDA, board=NX, memory_gib=15.3), None),
        ("jetson-orin-nx-16gb", here(CPU, board=NX, memory_gib=15.3), "Jetson build of onnxruntime-gpu"),
        ("jetson-orin-nano-8gb", here(CUDA, board=NX, memory_gib=15.3), "jetson-orin-nano-8gb"),
        ("jetson-orin-nx-16gb", here(CUDA, (ADA,)), "jetson-orin-nx-16gb"),
        (
            "jetson-thor",
            here({}, tools=(LLM_BUILD,), board="NVIDIA Jetson AGX Thor Developer Kit", memory_gib=122),
            None,
        ),
    ],
)
def test_a_jetson_target_runs_on_its_board(target: str, machine: Here, obstacle: str | None) -> None:
    assert_says(obstacle_for(load_target(target), machine), obstacle)


def engine_target() -> object:
    return replace(load_target("h100"), backend="trtllm-engine", engine="tensorrt")


def trtllm_build(version: str | None) -> tuple[Tool, ...]:
    return (Tool(name="trtllm-build", path="/opt/trt/bin/trtllm-build", version=version),)


@pytest.mark.parametrize(
    ("machine", "obstacle"),
    [
        (here({}, (H100,), tools=trtllm_build("1.2.1")), None),
        (here({}, (H100,), tools=trtllm_build("0.21.0")), None),
        (here({}, (H100,), tools=trtllm_build(None)), None),
        (here({}, (H100,)), "needs trtllm-build of TensorRT-LLM 1.2.1 or older"),
        (here({}, (H100,), tools=trtllm_build("1.3.0")), "this is 1.3.0"),
        (here({}, (ADA,), tools=trtllm_build("1.2.1")), "compute capability 9.0"),
        (here({}, tools=trtllm_build("1.2.1")), "compute capability 9.0"),
    ],
)
def test_an_engine_is_built_where_trtllm_build_and_its_gpu_are(machine: Here, obstacle: str | None) -> None:
    found = build_obstacle_for(engine_target(), machine)
    assert_says(found, obstacle)
    if obstacle is not None:
        assert_says(found, "a script that builds the engine on the device")


@pytest.mark.parametrize("target", ["cpu", "h100x8", "jetson-thor", "rtx5090", "b200"])
def test_everything_else_is_built_anywhere(target: str) -> None:
    assert build_obstacle_for(load_target(target), here({})) is None


@pytest.mark.parametrize(("version", "runs"), [("1.2.1", True), ("1.0.0", True), ("1.3.0", False)])
def test_an_engine_runs_in_the_versions_that_had_engines(version: str, runs: bool) -> None:
    found = obstacle_for(engine_target(), here({"tensorrt-llm": version}, (H100,)))
    assert (found is None) is runs


def test_every_engine_of_the_tables_is_known_here() -> None:
    for name in ENGINES:
        target = replace(load_target("h100"), engine=name)
        assert obstacle_for(target, here({}, (H100,))) is not None
