"""W4A8: symmetric int4 codes in groups, multiplied as e4m3 numbers with e4m3 inputs (W4A8_AWQ).

    s = max |group| / 7        q = clamp(round(w / s), -8, 7)        t = max |w| / 448

t, over the whole fused matrix, is no part of the value: the kernel multiplies e4m3(q s / t), and what comes out by t.
s is as nvidia-modelopt 0.47 has it (export/quant_utils.py, pack_int4_in_uint8 and get_weight_scaling_factor), not the
smaller one of rtn.py that uses the code -8: with it |q s / t| stays within 448. Scales are never zero, and never more
than 64 t: a group of zeros gets the matrix's own, where ModelOpt writes 1. TensorRT-LLM divides the scales by t in
float16 (_torch/modules/linear.py, W4A8_AWQ_LinearMethod), where 1 / t overflows once max |w| is under 0.007, and
infinity times the code 0 is NaN.
"""

import numpy as np
from numpy.typing import NDArray

from edgeforge.quantization.arithmetic import SMALLEST_SCALE, as_stored, group_amax, round_to_codes, scale_for
from edgeforge.quantization.minifloat import E4M3
from edgeforge.quantization.scheme import QuantizationScheme, QuantizedTensor

BITS = 4
LARGEST = 7


def quantize_w4a8(weights: NDArray[np.float32], scheme: QuantizationScheme, amax: float) -> QuantizedTensor:
    """Round float32 [n, K] to int4 with a scale per group. `amax` is max |w| of the whole fused matrix.

    Raises ValueError for NaN, infinity, rows that are not whole groups, and a scale its type cannot hold.
    """
    size = scheme.group_size
    if size is None or weights.shape[1] % size:
        raise ValueError(f"W4A8 needs rows of whole groups of {size}, not {weights.shape[1]} weights")
    scales = group_amax(weights, size) / np.float32(LARGEST)
    scales = as_stored(np.where(scales >= SMALLEST_SCALE, scales, scale_for(amax, LARGEST)), scheme.scale_dtype)
    steps = weights.reshape(*scales.shape, size) / scales[:, :, None]
    codes = round_to_codes(steps, None, BITS).reshape(weights.shape)
    return QuantizedTensor(scheme=scheme, codes=codes, scales=scales, tensor_scale=scale_for(amax, E4M3.largest))
