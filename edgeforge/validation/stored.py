"""Bundles for engines that are not on this machine: the weights as stored, run by the reference forward pass.

What the engine rounds on its way is rounded here as it does: inputs of linears to e4m3 or NVFP4 with the scales that
the files carry, keys and values as the cache stores them. Its bfloat16 or float16 arithmetic is not imitated.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeforge.backends import InputScales, load_readable
from edgeforge.hardware import ENGINES
from edgeforge.model.checkpoint import Weights
from edgeforge.model.forward import Tap, cache_names
from edgeforge.planning import BuildPlan, fused_blocks
from edgeforge.quantization import activations
from edgeforge.quantization.scheme import QuantizationScheme

Array = NDArray[np.float32]
Rounding = Callable[[Array], Array]


def open_stored(plan: BuildPlan, model: Path) -> tuple[Weights, Tap]:
    """The weights in a bundle's model/, and what the engine does to what flows. UnusableInput where files are wrong."""
    backend = load_readable(plan.target.backend)
    return backend.read_back(plan, model), tap_of(plan, backend.read_inputs(plan, model))


def tap_of(plan: BuildPlan, scales: InputScales) -> Tap:
    """Rounds inputs and caches as the plan's engine does, with the scales of its files."""
    roundings = {**_of_inputs(plan, scales), **_of_caches(plan, scales)}

    def tap(name: str, x: Array) -> Array:
        return roundings[name](x) if name in roundings else x

    return tap


def note(plan: BuildPlan) -> str:
    """What a report says of such a candidate."""
    return (
        f"{ENGINES[plan.target.engine].title} did not run: EdgeForge's own float32 forward pass read the stored "
        f"weights, and rounded what the engine stores in fewer bits than {plan.target.activations}; the engine's own "
        f"{plan.target.activations} arithmetic is not simulated."
    )


def _of_inputs(plan: BuildPlan, scales: InputScales) -> Mapping[str, Rounding]:
    """By the name that the forward pass calls a shared input."""
    found = {}
    for block in fused_blocks(plan.architecture):
        names = [linear.name for linear in block]
        known = [scales.inputs[name] for name in names if name in scales.inputs]
        # Engines multiply the linears of a block as one, with the largest of their scales.
        rounding = _of_input(plan.schemes[names[0]], max(known) if known else None)
        factors = scales.pre_quant_scales.get(names[0])
        if rounding is not None or factors is not None:
            found[names[0]] = partial(_multiplied_and_rounded, factors, rounding)
    return found


def _of_input(scheme: QuantizationScheme, scale: float | None) -> Rounding | None:
    if scheme.activations == "none":
        return None
    if scheme.activations == "dynamic":
        return activations.round_e4m3_tokens
    if scale is None:  # TensorRT-LLM finds it as it goes
        return activations.round_e4m3_tensor
    return partial(activations.round_nvfp4 if scheme.code_format == "e2m1" else activations.round_e4m3, scale=scale)


def _multiplied_and_rounded(factors: Array | None, rounding: Rounding | None, x: Array) -> Array:
    x = x if factors is None else x * factors
    return x if rounding is None else rounding(x)


def _of_caches(plan: BuildPlan, scales: InputScales) -> Mapping[str, Rounding]:
    rounds = {"fp8": activations.round_e4m3, "int8": activations.round_int8}.get(plan.target.kv_cache)
    if rounds is None:
        return {}
    found = {}
    for layer, both in enumerate(zip(scales.keys, scales.values, strict=True)):
        for name, scale in zip(cache_names(layer), both, strict=True):
            found[name] = partial(rounds, scale=scale)
    return found
