"""NVFP4: e2m1 codes in blocks of 16, each with an e4m3 scale, under one float32 scale for the whole fused matrix.

    t = max |w| / (6 * 448)        s = e4m3(max |block| / (6 t))        q = e2m1(w / (s t))        half to even

Steps, order and corners are those of nvidia-modelopt 0.47 (quantization/qtensor/nvfp4_tensor.py, NVFP4QTensor), all in
float32, so the bytes are its: a block of zeros has scale 1, scales are kept within [2^-9, 448], the smallest positive
e4m3 number and the largest, and a weight of -0 is +0. It leaves a matrix of zeros to 0 / 0; here t is 1 then.
"""

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from edgeforge.quantization.arithmetic import group_amax, scale_for
from edgeforge.quantization.minifloat import E2M1, E4M3, round_to_minifloat
from edgeforge.quantization.scheme import QuantizationScheme, QuantizedTensor

BLOCK = 16
LARGEST = E2M1.largest * E4M3.largest
SMALLEST_BLOCK_SCALE = np.float32(2.0**-9)


def quantize_nvfp4(weights: NDArray[np.float32], scheme: QuantizationScheme, amax: float) -> QuantizedTensor:
    """Round float32 [n, K] to NVFP4. `amax` is max |w| of the whole fused matrix; weights beyond it saturate.

    Raises ValueError for NaN, infinity, and rows that are not whole blocks.
    """
    if scheme.group_size != BLOCK or weights.shape[1] % BLOCK:
        raise ValueError(f"NVFP4 needs rows of whole blocks of {BLOCK}, not {weights.shape[1]} weights")
    tensor_scale = scale_for(amax, LARGEST)
    scales = _block_scales(group_amax(weights, BLOCK), tensor_scale)
    blocks = weights.reshape(-1, BLOCK) + np.float32(0)  # -0 becomes +0.
    codes = round_to_minifloat(blocks, E2M1, (scales * tensor_scale).reshape(-1, 1)).reshape(weights.shape)
    return QuantizedTensor(
        scheme=scheme, codes=codes.view(ml_dtypes.float4_e2m1fn), scales=scales, tensor_scale=tensor_scale
    )


def _block_scales(block_amax: NDArray[np.float32], tensor_scale: np.float32) -> NDArray[np.float32]:
    """The e4m3 block scales' values, float32 [n, G]."""
    scales = block_amax / (np.float32(E2M1.largest) * tensor_scale)
    scales[scales == 0] = 1
    codes = round_to_minifloat(np.maximum(scales, SMALLEST_BLOCK_SCALE), E4M3)
    return np.asarray(codes.view(ml_dtypes.float8_e4m3fn), np.float32)


def input_scale(amax: float) -> np.float32:
    """The scale of a linear's input: max |x| / (6 * 448). Block scales are found while it runs."""
    return scale_for(amax, LARGEST)
