"""Round-to-nearest: each group's scale comes from its own extremes, each weight goes to the nearest code.

Asymmetric, b bits (Jacob et al., arXiv 1712.05877, eq. 3, with the range made to contain zero so that zero is exact):

    s = (max(w, 0) - min(w, 0)) / (2^b - 1)      z = round(-min(w, 0) / s) - 2^(b-1)      q = clamp(round(w / s) + z)

Symmetric: the smallest scale that clips nothing, using the extra negative code where the largest weight is negative:

    s = max(max(w) / (2^(b-1) - 1), -min(w) / 2^(b-1))      q = clamp(round(w / s))

Defined corners: a group of zeros, or one so small that its scale would be subnormal, is stored as exact zeros (scale
0); a group of one element is a group; NaN and infinity raise ValueError. Rounding is half to even.
Every step is one IEEE operation per element, so the codes are the same on every machine.
"""

import numpy as np
from numpy.typing import NDArray

from edgeforge.quantization.arithmetic import SMALLEST_SCALE, as_stored, extremes, pad_to_groups, round_to_codes
from edgeforge.quantization.scheme import QuantizationScheme, QuantizedTensor


def quantize(weights: NDArray[np.float32], scheme: QuantizationScheme) -> QuantizedTensor:
    """Round float32 [N, K] to `scheme`. Raises ValueError for NaN, infinity, or a scale its type cannot hold."""
    if scheme.group_size is None or scheme.offset:
        raise ValueError(f"round-to-nearest does not make scheme {scheme}")
    low, high = extremes(pad_to_groups(weights, scheme.group_size), scheme.group_size)
    scales = scales_of(low, high, scheme)
    zero_points = None if scheme.symmetric else zero_points_of(low, scales, scheme.bits)
    return round_to_grid(weights, scheme, scales, zero_points)


def round_to_grid(
    weights: NDArray[np.float32],
    scheme: QuantizationScheme,
    scales: NDArray[np.float32],
    zero_points: NDArray[np.int8] | None,
) -> QuantizedTensor:
    """Each weight of float32 [N, K] to the nearest code, under given scales and zero points [N, G]."""
    out_features, in_features = weights.shape
    padded = pad_to_groups(weights, scheme.group_size or in_features)
    # Not times a reciprocal: bfloat16 weights make many exact ties, and only the quotient, as fast, leaves them ties.
    steps = padded.reshape(*scales.shape, -1) / _divisors(scales)[:, :, None]
    codes = round_to_codes(steps, zero_points, scheme.bits).reshape(out_features, -1)[:, :in_features]
    return QuantizedTensor(scheme=scheme, codes=np.ascontiguousarray(codes), scales=scales, zero_points=zero_points)


def scales_of(low: NDArray[np.float32], high: NDArray[np.float32], scheme: QuantizationScheme) -> NDArray[np.float32]:
    """s of groups that span [low, high], float32 [N, G], as its type stores it; 0 where it would be subnormal."""
    half = 2 ** (scheme.bits - 1)
    if scheme.symmetric:
        scales: NDArray[np.float32] = np.maximum(high / np.float32(half - 1), low / np.float32(-half))
    else:
        # Halved first: the difference of two finite floats may overflow.
        scales = np.asarray((high / 2 - low / 2) / (half - 0.5), np.float32)
    scales = as_stored(scales, scheme.scale_dtype)
    return np.where(scales < SMALLEST_SCALE, np.float32(0), scales)


def zero_points_of(low: NDArray[np.float32], scales: NDArray[np.float32], bits: int) -> NDArray[np.int8]:
    """z of groups that begin at `low`, int8 [N, G]."""
    half = 2 ** (bits - 1)
    return np.asarray(np.clip(np.rint(-low / _divisors(scales)) - half, -half, half - 1), np.int8)


def _divisors(scales: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.where(scales != 0, scales, np.float32(np.inf))
