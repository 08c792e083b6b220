"""What a sink needs of the calibration, checked: scales folded into norms, static input scales, scales of the cache."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edgeforge.backends.huggingface.layout import norm_names
from edgeforge.errors import UsageError
from edgeforge.model.architecture import Linear
from edgeforge.planning import BuildPlan, block_name, fused_blocks
from edgeforge.quantization import fp8, nvfp4
from edgeforge.quantization.calibration import Calibration

HINT = "give a scales file that has it with --calibration FILE, or leave --calibration out to measure it"


def norm_scales(plan: BuildPlan, calibration: Calibration) -> dict[str, NDArray[np.float32]]:
    """By a norm's name: what its weights are multiplied by, since the linears behind it share a pre-quant scale."""
    scales = {}
    for block in fused_blocks(plan.architecture):
        layer = block[0].layer
        if layer is None or block_name(block[0].role) not in ("qkv", "gate_up"):
            continue
        shared = _shared(block, calibration)
        if shared is not None:
            attention, feed_forward = norm_names(layer)
            scales[attention if block[0].role == "q" else feed_forward] = shared
    return scales


def _shared(block: Sequence[Linear], calibration: Calibration) -> NDArray[np.float32] | None:
    found = [calibration.pre_quant_scales.get(linear.name) for linear in block]
    first = found[0]
    if all(scale is None for scale in found):
        return None
    if first is None or not all(scale is not None and np.array_equal(scale, first) for scale in found):
        names = ", ".join(linear.name for linear in block)
        raise UsageError(
            f"the calibration's pre-quant scales of {names} differ, and they share an input",
            hint="a scales file must give them one scale",
        )
    return first


def check_no_own_scales(plan: BuildPlan, calibration: Calibration) -> None:
    """UsageError where o or down has a pre-quant scale and the format has no place for one."""
    for linear in plan.architecture.linears():
        if linear.role in ("o", "down") and linear.name in calibration.pre_quant_scales:
            raise UsageError(
                f"the calibration has a pre-quant scale for {linear.name}, and scheme {plan.target.scheme} of backend "
                f"{plan.target.backend} cannot store one",
                hint="use --backend modelopt with --scheme w4a16 or w4a8, or a scales file without it",
            )


def input_scales(plan: BuildPlan, calibration: Calibration) -> dict[str, np.float32]:
    """The static scale of each quantized linear's input, equal where linears share an input; without those unknown."""
    scales: dict[str, np.float32] = {}
    for block in fused_blocks(plan.architecture):
        scheme = plan.schemes[block[0].name]
        amax = calibration.shared_input([linear.name for linear in block])
        if scheme.activations == "static" and amax is not None:
            scale = nvfp4.input_scale(amax) if scheme.code_format == "e2m1" else fp8.input_scale(amax)
            scales |= dict.fromkeys((linear.name for linear in block), scale)
    return scales


def check_inputs_known(plan: BuildPlan, scales: Mapping[str, np.float32], hint: str = HINT) -> None:
    """UsageError where a static input scale is unknown."""
    for name, scheme in plan.schemes.items():
        if scheme.activations == "static" and name not in scales:
            raise UsageError(
                f"scheme {scheme.name} needs the largest input of {name}, and the calibration does not have it",
                hint=hint,
            )


def cache_scales(plan: BuildPlan, calibration: Calibration) -> list[tuple[np.float32, np.float32]]:
    """(keys, values) of every layer for an FP8 cache, else nothing. UsageError where the calibration lacks one."""
    if plan.target.kv_cache != "fp8":
        return []
    layers = plan.architecture.num_hidden_layers
    if len(calibration.keys) != layers or len(calibration.values) != layers:
        raise UsageError(
            f"kv_cache fp8 needs the largest keys and values of {layers} layers, and the calibration has "
            f"{min(len(calibration.keys), len(calibration.values))}",
            hint=f"{HINT}; or use --kv-cache {plan.target.activations}",
        )
    pairs = zip(calibration.keys, calibration.values, strict=True)
    return [(fp8.kv_cache_scale(key, "fp8"), fp8.kv_cache_scale(value, "fp8")) for key, value in pairs]
