"""FP8: e4m3 codes with one float32 scale per matrix or per row (Micikevicius et al., arXiv 2209.05433).

    s = max |w| / 448        q = e4m3(w / s)        saturating, half to even

The maximum is over the whole fused matrix (granularity "tensor") or over the row ("channel"). The quotient is one
float32 division, as nvidia-modelopt 0.47 (export/quant_utils.py, to_quantized_weight) and compressed-tensors 0.20
(quantization/lifecycle, _quantize) compute it for float32 weights, so the bytes are theirs. From a bfloat16 weight and
a scale for the matrix, ModelOpt divides in bfloat16 and rounds twice; ours are then nearer, and differ in some codes.
"""

from typing import Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from edgeforge.quantization.arithmetic import group_amax, scale_for, scales_for
from edgeforge.quantization.minifloat import E4M3, ONE, round_to_minifloat
from edgeforge.quantization.scheme import QuantizationScheme, QuantizedTensor

NAN_CODE = 0x7F
INT8_LARGEST = 127


def quantize_fp8(
    weights: NDArray[np.float32], scheme: QuantizationScheme, amax: float | None = None
) -> QuantizedTensor:
    """Round float32 [n, K] to e4m3. `amax` is max |w| of the whole fused matrix; a scale per channel needs none.

    A matrix or row of zeros gets the scale 1. Weights beyond `amax` saturate. Raises ValueError for NaN and infinity.
    """
    row_amax = group_amax(weights, weights.shape[1])
    if scheme.granularity == "channel":
        scales = scales_for(row_amax, E4M3.largest, scheme.scale_dtype)
        return QuantizedTensor(scheme=scheme, codes=_e4m3(weights, scales), scales=scales)
    if amax is None:
        raise ValueError("a scale for the whole matrix needs its largest magnitude")
    scale = np.array([[scale_for(amax, E4M3.largest, scheme.scale_dtype)]])
    return QuantizedTensor(scheme=scheme, codes=_e4m3(weights, scale), scales=np.repeat(scale, len(weights), axis=0))


def cast_e4m3(values: NDArray[np.float32]) -> NDArray[np.generic]:
    """float8_e4m3fn, shaped like `values`: clamped to +-448 and rounded half to even. NaN stays NaN, sign and all."""
    with np.errstate(invalid="ignore"):  # raised by signalling NaNs
        codes = _e4m3(values.reshape(-1, 1), ONE).reshape(values.shape)
    unknown = np.isnan(values)
    if unknown.any():
        signs = np.signbit(values[unknown]).astype(np.uint8) << 7
        codes.view(np.uint8)[unknown] = signs | NAN_CODE
    return codes


def _e4m3(values: NDArray[np.float32], scales: NDArray[np.float32]) -> NDArray[np.generic]:
    return round_to_minifloat(values, E4M3, scales).view(ml_dtypes.float8_e4m3fn)


def input_scale(amax: float) -> np.float32:
    """The scale of a linear's input, for e4m3 activations: max |x| / 448 (of fp8 and w4a8)."""
    return scale_for(amax, E4M3.largest)


def kv_cache_scale(amax: float, kv_cache: Literal["fp8", "int8"]) -> np.float32:
    """The scale of one layer's keys or values: max |x| / 448 for an fp8 cache, max |x| / 127 for an int8 one."""
    return scale_for(amax, E4M3.largest if kv_cache == "fp8" else INT8_LARGEST)
