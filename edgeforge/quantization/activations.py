"""What engines do to activations while they run, as float32 in and float32 out: rounded, and multiplied back.

The last axis is a linear's input K, or a cache's head_dim. Values beyond a fixed scale's reach saturate. What is not
finite stays as it is, so that it is found in the logits.
"""

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from edgeforge.quantization.arithmetic import scale_for
from edgeforge.quantization.fp8 import cast_e4m3, quantize_fp8
from edgeforge.quantization.minifloat import E4M3
from edgeforge.quantization.nvfp4 import BLOCK, LARGEST, quantize_nvfp4
from edgeforge.quantization.scheme import QuantizationScheme, dequantize

Array = NDArray[np.float32]

E4M3_VALUES: Array = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
PER_TOKEN = QuantizationScheme(name="fp8-dynamic", bits=8, code_format="e4m3", granularity="channel")
BLOCKS = QuantizationScheme(name="nvfp4", bits=4, code_format="e2m1", group_size=BLOCK)


def round_e4m3(x: Array, scale: float) -> Array:
    """Static: e4m3(x / s) s, one scale for all."""
    scale32 = np.float32(scale)
    values: Array = E4M3_VALUES[cast_e4m3(x / scale32).view(np.uint8)]
    return values * scale32


def round_e4m3_tensor(x: Array) -> Array:
    """Dynamic, one scale for all: what max |x| gives."""
    amax = np.float32(np.abs(x).max())
    return round_e4m3(x, float(scale_for(float(amax), E4M3.largest))) if np.isfinite(amax) else x


def round_e4m3_tokens(x: Array) -> Array:
    """Dynamic, x [T, K] with a scale for each row."""
    return dequantize(quantize_fp8(x, PER_TOKEN)) if np.isfinite(x).all() else x


def round_nvfp4(x: Array, scale: float) -> Array:
    """x [T, K] as e2m1 in blocks of 16 with e4m3 scales found on the way, under one fixed scale for all."""
    return dequantize(quantize_nvfp4(x, BLOCKS, scale * LARGEST)) if np.isfinite(x).all() else x


def round_int8(x: Array, scale: float) -> Array:
    """Static: int8(x / s) s."""
    scale32 = np.float32(scale)
    steps: Array = np.clip(np.rint(x / scale32), -128, 127)
    return steps * scale32
