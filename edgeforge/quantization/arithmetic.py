"""What the quantizers share: each group's extremes, the scales that follow, and rounding to integers.

Every step is one IEEE operation per element, so scales and codes are the same on every machine.
"""

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

SMALLEST_SCALE = np.float32(2.0**-126)
"""The smallest normal float32. Graphics processors take smaller scales for zero."""
ROUND_TO_INTEGER = np.float32(1.5 * 2**23)
"""Adding it leaves no fraction bits: the float's low bytes are the rounded integer in two's complement."""
SCALE_TYPES = {"f16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}


def pad_to_groups(weights: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """[N, K] with zeros after each row, up to the next multiple of `size`."""
    short = -weights.shape[1] % size
    return np.pad(weights, ((0, 0), (0, short))) if short else np.ascontiguousarray(weights)


def extremes(padded: NDArray[np.float32], size: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(min(w, 0), max(w, 0)) of each group of `size`, float32 [N, G]. Raises ValueError for NaN and infinity.

    Found on the bits, where numpy is five times faster than on floats: as signed integers the positive floats are the
    largest, in their order, and as unsigned ones the negative floats are, the most negative first; NaN beats both.
    """
    starts = np.arange(0, padded.size, size)
    flat = np.ascontiguousarray(padded).reshape(-1)
    most_positive = np.maximum.reduceat(flat.view(np.int32), starts).view(np.float32)
    most_negative = np.maximum.reduceat(flat.view(np.uint32), starts).view(np.float32)
    low = np.minimum(most_negative, np.float32(0)).reshape(padded.shape[0], -1)
    high = np.maximum(most_positive, np.float32(0)).reshape(padded.shape[0], -1)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ValueError("the weights contain NaN or infinity")
    return low, high


def group_amax(weights: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """max |w| of each group of `size`, which divides K; float32 [N, G]. Raises ValueError for NaN and infinity."""
    low, high = extremes(weights, size)
    return np.maximum(high, -low)


def scale_for(amax: float, largest: float, scale_dtype: str = "f32") -> np.float32:
    """The scale of a whole matrix, input or cache, as in `scales_for`. ValueError for an amax that is no magnitude."""
    if not 0 <= amax <= float(np.finfo(np.float32).max):
        raise ValueError(f"{amax} is not the largest magnitude of finite numbers")
    return np.float32(scales_for(np.array([amax], np.float32), largest, scale_dtype)[0])


def scales_for(amax: NDArray[np.float32], largest: float, scale_dtype: str = "f32") -> NDArray[np.float32]:
    """amax / largest in float32, as its type stores it: the largest magnitude gets the largest code.

    1 where nothing is to be scaled (amax is zero, or so small that the scale would be subnormal), as nvidia-modelopt
    0.47 exports it (TensorQuantizer.export_amax): the codes are zero then, and no consumer divides by zero.
    """
    scales = as_stored(amax / np.float32(largest), scale_dtype)
    return np.where(scales >= SMALLEST_SCALE, scales, np.float32(1))


def as_stored(scales: NDArray[np.float32], scale_dtype: str) -> NDArray[np.float32]:
    """The scales rounded to the type they are stored in (f32, f16, bf16). Raises ValueError where it overflows."""
    if scale_dtype == "f32":
        return scales
    with np.errstate(over="ignore", under="ignore"):
        stored = scales.astype(SCALE_TYPES[scale_dtype]).astype(np.float32)
    if not np.isfinite(stored).all():
        raise ValueError(f"a scale is too large for {SCALE_TYPES[scale_dtype]}")
    return stored


def round_to_codes(steps: NDArray[np.float32], zero_points: NDArray[np.int8] | None, bits: int) -> NDArray[np.int8]:
    """Signed codes int8 [N, G, size] of `steps` = w / s (overwritten), half to even, plus zero points [N, G]."""
    half = 2 ** (bits - 1)
    steps += ROUND_TO_INTEGER
    if bits == 4:
        codes = steps.view(np.int32).astype(np.int8)
        if zero_points is not None:
            codes += zero_points[:, :, None]
        return np.clip(codes, -half, half - 1, out=codes)
    wide = steps.view(np.int32).astype(np.int16)
    if zero_points is not None:
        wide += zero_points[:, :, None]
    return np.clip(wide, -half, half - 1, out=wide).astype(np.int8)
