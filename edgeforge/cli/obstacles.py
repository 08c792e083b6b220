"""Why a target's bundle cannot run on this machine, or its engine cannot be built on it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeforge.cli.machine import Tool, at_least
from edgeforge.runtime.choice import LOADS, PROGRAMS
from edgeforge.runtime.gpu import Gpu
from edgeforge.runtime.requirements import numbers

if TYPE_CHECKING:
    from edgeforge.hardware import HardwareProfile, Target

LAST_TRTLLM_BUILD = "1.2.1"
# nvidia-smi shows what the driver leaves of a card's memory; with ECC it is a sixteenth less than what is sold.
MEMORY_SHOWN = 0.9
# What platform.machine() says where a target for one kind of processor runs.
PROCESSORS = {"cpu-x86-64": ("x86_64", "amd64"), "cpu-arm64": ("aarch64", "arm64", "armv8l")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """This machine, as far as running and building depend on it.

    packages    the usable ones, with their versions
    tools       programs on the PATH, by name
    processor   as platform.machine() calls it
    board       a Jetson's model name, None elsewhere; memory_bytes is its memory
    """

    packages: Mapping[str, str]
    tools: Mapping[str, Tool]
    gpus: tuple[Gpu, ...]
    processor: str
    board: str | None
    memory_bytes: int


def obstacle_for(target: "Target", here: Here) -> str | None:
    """Why a bundle for `target` does not run here, or None when it does."""
    return _hardware_obstacle(target, here) or _engine_obstacle(target, here)


def build_obstacle_for(target: "Target", here: Here) -> str | None:
    """Why `target` is not built to the end here, or None when it is. Everything but a TensorRT engine is built
    anywhere.
    """
    if target.backend != "trtllm-engine":
        return None
    tool = here.tools.get("trtllm-build")
    instead = "without it the bundle carries the checkpoint and a script that builds the engine on the device"
    if tool is None:
        return f"needs trtllm-build of TensorRT-LLM {LAST_TRTLLM_BUILD} or older; {instead}"
    if tool.version is not None and numbers(tool.version) > numbers(LAST_TRTLLM_BUILD):
        return f"needs trtllm-build of TensorRT-LLM {LAST_TRTLLM_BUILD} or older, this is {tool.version}; {instead}"
    missing = _gpu_obstacle(target, here.gpus)
    return None if missing is None else f"{missing}; {instead}"


def _hardware_obstacle(target: "Target", here: Here) -> str | None:
    profile = target.profile
    if profile.kind == "cpu":
        processors = PROCESSORS.get(profile.name)
        if processors is not None and here.processor.lower() not in processors:
            return f"needs another processor: {profile.name.removeprefix('cpu-')}"
        return None
    if profile.kind == "soc":
        enough = here.memory_bytes >= MEMORY_SHOWN * profile.memory_bytes
        return None if enough and _is_board(profile, here.board) else f"needs the board {profile.name}"
    return _gpu_obstacle(target, here.gpus)


def _is_board(profile: "HardwareProfile", board: str | None) -> bool:
    """Whether a Jetson's model name has the words of the profile's: jetson-agx-orin-64gb is a Jetson AGX Orin."""
    if board is None:
        return False
    words = [word for word in profile.name.split("-") if not word.endswith("gb")]
    return all(word in board.lower() for word in words)


def _gpu_obstacle(target: "Target", gpus: tuple[Gpu, ...]) -> str | None:
    profile = target.profile
    alike = [gpu for gpu in gpus if gpu.compute_capability == profile.compute_capability]
    if not alike:
        return f"needs a GPU of compute capability {profile.compute_capability}"
    # 0: unified memory, of which nvidia-smi tells nothing
    large = [gpu for gpu in alike if not 0 < gpu.memory_bytes < MEMORY_SHOWN * profile.memory_bytes]
    if not large:
        return f"needs a GPU with {profile.memory_bytes / 1e9:.0f} GB"
    return None if len(large) >= target.cards else f"needs {target.cards} such GPUs, here {_are(len(large))}"


def _engine_obstacle(target: "Target", here: Here) -> str | None:
    match target.engine:
        case "onnxruntime" if target.profile.kind == "cpu":
            usable = {"onnxruntime", "onnxruntime-gpu"} & here.packages.keys()
            return None if usable else "needs onnxruntime: python -m pip install 'edgeforge[cpu]'"
        case "onnxruntime" if target.profile.kind == "soc":
            return None if "onnxruntime-gpu" in here.packages else "needs a Jetson build of onnxruntime-gpu"
        case "onnxruntime":
            needed = "needs onnxruntime-gpu: python -m pip install 'edgeforge[gpu]'"
            return None if "onnxruntime-gpu" in here.packages else needed
        case "edge-llm":
            return None if "llm_build" in here.tools else "needs TensorRT Edge-LLM: no llm_build on the PATH"
        case "tensorrt":
            found = here.packages.get("tensorrt-llm")
            needed = f"needs TensorRT-LLM up to {LAST_TRTLLM_BUILD}: python -m pip install 'tensorrt-llm<=1.2.1'"
            return None if found is not None and at_least(LAST_TRTLLM_BUILD, found) else needed
    able = [facts for program, facts in PROGRAMS.items() if (target.backend, target.scheme) in LOADS[program]]
    if any(facts.package in here.packages for facts in able):
        return None
    titles = " or ".join(facts.title for facts in able)
    return f"needs {titles}: python -m pip install {' or '.join(facts.package for facts in able)}"


def _are(count: int) -> str:
    return "is 1" if count == 1 else f"are {count}"
