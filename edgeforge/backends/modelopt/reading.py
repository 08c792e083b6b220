"""Reads a unified checkpoint back: the weights that the engine's kernels multiply with, and the scales of inputs."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike, NDArray

from edgeforge.backends import InputScales
from edgeforge.backends.huggingface.layout import side
from edgeforge.backends.huggingface.stored import StoredTensors, StoredWeights, open_weights, stored_inputs
from edgeforge.backends.modelopt.layout import cache_names, tensors
from edgeforge.backends.nibbles import unpack_columns, unpack_rows
from edgeforge.model.architecture import Linear
from edgeforge.planning import BuildPlan
from edgeforge.quantization.fp8 import cast_e4m3

Floats = NDArray[np.float32]
FLOATS: Mapping[str, DTypeLike] = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}


def read_back(plan: BuildPlan, directory: Path) -> StoredWeights:
    """The weights under Hugging Face's names. UnusableInput for files that are not as the plan says."""
    return open_weights(plan, StoredTensors(directory, tensors(plan)), _rows)


def read_inputs(plan: BuildPlan, directory: Path) -> InputScales:
    """Static input scales, pre-quant scales that are not ones, and those of an FP8 cache."""
    stored = StoredTensors(directory, tensors(plan))
    scales = {}
    for linear in plan.architecture.linears():
        name = side(linear, "pre_quant_scale")
        if name in stored and ((scale := stored.floats(name, 0, linear.in_features)) != 1).any():
            scales[linear.name] = scale
    return replace(stored_inputs(plan, stored, cache_names), pre_quant_scales=scales)


def _rows(plan: BuildPlan, stored: StoredTensors, linear: Linear, start: int, stop: int) -> Floats:
    """float32 [stop - start, K]: what the kernel makes of the rows, up to the rounding of its own products."""
    scheme = plan.schemes[linear.name]
    scale_name = side(linear, "weight_scale")
    if scheme.granularity == "tensor":
        scales = np.full((stop - start, 1), stored.scalar(scale_name))
    else:
        scales = stored.floats(scale_name, start, stop).reshape(stop - start, scheme.groups(linear.in_features))
    scales = scales.astype(_held_as(plan)).astype(np.float32)
    if scheme.code_format == "e4m3":
        return stored.floats(linear.name, start, stop) * scales
    if scheme.code_format == "e2m1":
        nibbles = unpack_columns(stored.rows(linear.name, start, stop).view(np.uint8))
        codes = nibbles.view(ml_dtypes.float4_e2m1fn).astype(np.float32)
        return _scaled(codes, scales * stored.scalar(side(linear, "weight_scale_2")))
    pairs = stored.rows(linear.name, start // 2, -(-stop // 2)).view(np.uint8)
    codes = unpack_rows(pairs)[start % 2 :][: stop - start].astype(np.float32)
    if plan.target.scheme == "w4a8":
        return _as_e4m3(codes, scales, stored.scalar(side(linear, "weight_scale_2")))
    return _scaled(codes, scales)


def _held_as(plan: BuildPlan) -> DTypeLike:
    """The type in which the engine holds the stored float32 scales.

    TensorRT-LLM: that of the activations for int4, float16 for its FP8 products (_torch/modules/linear.py). Edge-LLM:
    float16 but for NVFP4 (experimental/builder/core/weights.py).
    """
    if plan.target.engine == "edge-llm" and plan.target.scheme in ("w4a16", "fp8"):
        return np.float16
    return {"w4a16": FLOATS[plan.target.activations], "w4a8": np.float16}.get(plan.target.scheme, np.float32)


def _as_e4m3(codes: Floats, scales: Floats, tensor_scale: np.float32) -> Floats:
    """W4A8's weights as its kernel multiplies them: e4m3 numbers under the matrix's scale."""
    held = (scales / tensor_scale).astype(np.float16).astype(np.float32)
    numbers = cast_e4m3(_scaled(codes, held)).astype(np.float32)
    return np.asarray(numbers * tensor_scale, np.float32)


def _scaled(codes: Floats, scales: Floats) -> Floats:
    """[n, K] times [n, G], each scale over its group."""
    groups = codes.reshape(*scales.shape, codes.shape[1] // scales.shape[1])
    return np.asarray((groups * scales[:, :, None]).reshape(codes.shape))
