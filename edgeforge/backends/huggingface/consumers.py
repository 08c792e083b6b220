"""What the engines that load Hugging Face directories need: their packages, and the shapes that their kernels take."""

from collections.abc import Iterator, Mapping
from typing import cast

from edgeforge.backends import Requirements
from edgeforge.errors import UnusableInput, UsageError
from edgeforge.hardware import ENGINES, SCHEMES, runnable_schemes
from edgeforge.planning import BuildPlan
from edgeforge.runtime.records import EngineName, EngineRecord

PACKAGES: Mapping[str, Mapping[str, str]] = {
    "tensorrt-llm": {"tensorrt-llm": ">=1.0"},
    "vllm": {"vllm": ">=0.16"},
    "edge-llm": {},  # a C++ program on the device
}
DEVICE_SCRIPT = "build-on-device.sh"
# TensorRT-LLM: fpA_intB_gemm_template.h throws for others before Hopper, fpA_intB_launcher_sm90.inl wants multiples of
# its tile, which is 64 wide for 16-bit inputs and 128 for FP8 ones. Edge-LLM: its plugins guide, of both INT4 plugins.
# vLLM: MARLIN_SUPPORTED_GROUP_SIZES of marlin_utils.py.
GROUP_SIZES: Mapping[tuple[str, str], tuple[int, ...]] = {
    ("tensorrt-llm", "w4a16"): (64, 128),
    ("tensorrt-llm", "w4a8"): (128,),
    ("edge-llm", "w4a16"): (128,),
    ("vllm", "w4a16"): (32, 64, 128),
}
EDGE_LLM_TILE = 64


def requirements(plan: BuildPlan) -> Requirements:
    """The engine and its package. Edge-LLM's engine is built on the device, by a script in the bundle."""
    target = plan.target
    is_built_there = target.engine == "edge-llm"
    record = EngineRecord(
        name=cast(EngineName, target.engine),
        tensor_parallel=target.tensor_parallel,
        pipeline_parallel=target.pipeline_parallel,
        compute_capability=None,
        state="to-be-built" if is_built_there else "ready",
        script=DEVICE_SCRIPT if is_built_there else None,
        versions={},
    )
    return Requirements(packages=PACKAGES[target.engine], engine=record)


def check_groups(plan: BuildPlan) -> None:
    """UsageError for a group size that the engine's kernel lacks; UnusableInput where cards would split a group."""
    sizes = {size for scheme in plan.schemes.values() if (size := scheme.group_size) is not None}
    for size in sizes:
        _check_size(plan, size)
        _check_cards(plan, size)


def _check_size(plan: BuildPlan, size: int) -> None:
    target = plan.target
    known = GROUP_SIZES.get((target.engine, target.scheme), (size,))
    if size in known:
        return
    possible = [each for each in known if not any(row % each for row in _rows(plan))]
    raise UsageError(
        f"the kernels of {target.engine} for scheme {target.scheme} take groups of {' or '.join(map(str, known))}, "
        f"and this model would get groups of {size}",
        hint=f"use --group-size {possible[-1]}"
        if possible
        else f"rows of {min(_rows(plan))} weights do not divide into them; use {' or '.join(_without_groups(plan))}",
    )


def _without_groups(plan: BuildPlan) -> Iterator[str]:
    """What the target could use instead, as the user would type it."""
    target, profile = plan.target, plan.target.profile
    for name in runnable_schemes(profile.compute_capability, target.backend, target.engine, profile.formats):
        if SCHEMES[name].granularity != "group":
            yield f"--scheme {name}"
    yield "--backend onnx"


def _check_cards(plan: BuildPlan, size: int) -> None:
    """o and down are split along their rows, so each card's part must be whole groups."""
    cards = plan.target.tensor_parallel
    for linear in plan.architecture.linears():
        if linear.role in ("o", "down") and linear.in_features % (cards * size):
            raise UnusableInput(
                f"{linear.name} has rows of {linear.in_features} weights, which {cards} cards cannot split into whole "
                f"groups of {size}",
                hint="use fewer cards with --tensor-parallel, or smaller groups with --group-size",
            )


def check_tiles(plan: BuildPlan) -> None:
    """UnusableInput for a linear whose rows are not whole tiles of Edge-LLM's INT4 plugin (int4_gemm of 0.11)."""
    if plan.target.engine != "edge-llm" or plan.target.scheme != "w4a16":
        return
    for linear in plan.architecture.linears():
        if linear.role != "lm_head" and linear.out_features % EDGE_LLM_TILE:
            raise UnusableInput(
                f"{linear.name} has {linear.out_features} rows, and Edge-LLM's int4 kernels take multiples of "
                f"{EDGE_LLM_TILE}",
                hint="use --backend onnx",
            )


def check_cache(plan: BuildPlan) -> None:
    """UsageError for an FP8 cache whose scales would not be read: vLLM looks for them by the weights' quantization, and
    Edge-LLM 0.11's exporter only beside FP8 and NVFP4 weights (tensorrt_edgellm/config.py, _parse_quant).
    """
    target = plan.target
    if target.kv_cache != "fp8":
        return
    readable = {"vllm": not SCHEMES[target.scheme].is_float, "edge-llm": target.scheme in ("fp8", "nvfp4")}
    if not readable.get(target.engine, True):
        engine = ENGINES[target.engine].title
        raise UsageError(
            f"an FP8 cache beside weights in {target.scheme} is not something that {engine} reads scales for",
            hint=f"use --kv-cache {target.activations}, or --scheme fp8",
        )


def _rows(plan: BuildPlan) -> Iterator[int]:
    return (linear.in_features for linear in plan.architecture.linears() if linear.role != "lm_head")
