"""Searched scales: round-to-nearest under the scale (and zero point) of each group that leave the least squared error.

    s, z = argmin sum_k h_k (w_k - s c_k)^2        c = q - z,  q = clamp(round(w / s) + z)

h is the importance of each input channel: with h = E[x_k^2] the sum is the layer's squared output error, correlations
between channels apart; without data h = 1. Candidates are round-to-nearest's own range and shrunk ones (some clipped
weights for a finer step: the grid of AWQ's clip search, arXiv 2306.00978), each with the scale that fits its codes
best and the error which that leaves, in closed form:

    s = a / b        error = sum h w^2 - a^2 / b        a = sum h w c,  b = sum h c^2

The first sum is the same for all, so the largest a^2 / b wins. No group ends worse than it began, but for the rounding
of scales to their type. Groups lie along the last axis of the scratch arrays, a block of them at a time, so that each
step is one long loop in the core's cache.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeforge.quantization.arithmetic import SMALLEST_SCALE, as_stored, pad_to_groups
from edgeforge.quantization.rtn import round_to_grid, scales_of, zero_points_of
from edgeforge.quantization.scheme import QuantizationScheme, QuantizedTensor

Array = NDArray[np.float32]

SHRINKS = {4: (1.0, 0.9), 6: (1.0,), 8: (1.0,)}
"""Of the range, by bits: what three times rounding's time allows. On normal weights in groups of 32 they leave 0.90 of
rounding's error (symmetric; 0.94 asymmetric, 0.96 at 8 bits); 25 factors from 1.1 to 0.6 leave 0.87 (0.90, 0.85)."""
BLOCK = 1 << 17
"""Weights at once: a few arrays of 512 KB stay in a core's cache, and Python's own time does not count."""
LARGEST = {"f32": float(np.finfo(np.float32).max), "f16": 65504.0, "bf16": float.fromhex("0x1.fep127")}
NOISE = np.float32(1e-5)
"""Relative changes of a scale that are no more than the rounding of the sums; weights on a grid stay on it."""


def quantize(
    weights: Array,
    scheme: QuantizationScheme,
    importance: Array | None = None,
    *,
    shrinks: Sequence[float] | None = None,
    negative_scales: bool = False,
) -> QuantizedTensor:
    """Round float32 [N, K] to `scheme` with searched scales; `importance` float32 [K], finite and not negative.

    `negative_scales` lets symmetric groups whose largest weight is positive use the extra code -8 for it (as ggml's
    Q4_0 does), for consumers that only multiply by the scale. Raises ValueError as `rtn.quantize` does.
    """
    if scheme.group_size is None or scheme.offset or scheme.code_format != "int":
        raise ValueError(f"the search for scales does not make scheme {scheme}")
    size, factors = scheme.group_size, SHRINKS[scheme.bits] if shrinks is None else shrinks
    padded = pad_to_groups(weights, size)
    shape = (len(padded), padded.shape[1] // size)
    scales, zero_points = np.empty(shape, np.float32), np.empty(shape, np.float32)
    rows = min(max(1, BLOCK // max(1, padded.shape[1])), max(1, len(padded)))
    scratch = np.empty((3, size, rows * shape[1]), np.float32)
    h = (
        None
        if importance is None
        else _as_columns(np.tile(pad_to_groups(_relative(importance), size), (rows, 1)), size)
    )
    for start in range(0, len(padded), rows):
        here = slice(start, start + rows)
        columns = _as_columns(padded[here], size)
        used = scratch[:, :, : columns.shape[1]]
        groups = _Groups(columns=columns, importance=None if h is None else h[:, : columns.shape[1]], scratch=used)
        found = _best(groups, scheme, _candidates(groups, scheme, factors, negative_scales))
        scales[here], zero_points[here] = (values.reshape(-1, shape[1]) for values in found)
    return round_to_grid(weights, scheme, scales, None if scheme.symmetric else zero_points.astype(np.int8))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Groups:
    """A block of groups, one per column: weights, importance (None: all alike), both float32 [size, M]; 3 such."""

    columns: Array
    importance: Array | None
    scratch: Array


def _as_columns(rows: Array, size: int) -> Array:
    """[n, K] to [size, n * G], a group per column."""
    return np.ascontiguousarray(rows.reshape(-1, size).T)


def _relative(importance: Array) -> Array:
    """[1, K] with the largest 1, so that sums stay finite; ValueError where something is no importance."""
    if not (np.isfinite(importance).all() and (importance >= 0).all()):
        raise ValueError("the importance of a channel is negative, NaN or infinite")
    return np.asarray(importance[None] / max(importance.max(initial=0), SMALLEST_SCALE), np.float32)


def _candidates(
    groups: _Groups, scheme: QuantizationScheme, factors: Sequence[float], negative_scales: bool
) -> Iterator[tuple[Array, Array]]:
    """(scales, zero points), float32 [M] each; the first are round-to-nearest's. ValueError for NaN and infinity."""
    low = np.minimum(groups.columns.min(axis=0, initial=0), np.float32(0))
    high = np.maximum(groups.columns.max(axis=0, initial=0), np.float32(0))
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ValueError("the weights contain NaN or infinity")
    nothing = np.zeros_like(low)
    for factor in np.asarray(factors, np.float32):
        scales = scales_of(low * factor, high * factor, scheme)
        if not scheme.symmetric:
            yield scales, zero_points_of(low * factor, scales, scheme.bits).astype(np.float32)
        else:
            yield scales, nothing
            if negative_scales:
                yield -scales_of(-high * factor, -low * factor, scheme), nothing


def _best(
    groups: _Groups, scheme: QuantizationScheme, candidates: Iterator[tuple[Array, Array]]
) -> tuple[Array, Array]:
    """The scales and zero points [M] that leave the least error."""
    scales, zeros = next(candidates)
    units: Array = np.where(scales > 0, scales, np.float32(np.inf))  # a group without a scale keeps none
    a, b = _fit(groups, scheme, scales, zeros)
    best = _explained(a, b, scales, units)
    for other_scales, other_zeros in candidates:
        other_a, other_b = _fit(groups, scheme, other_scales, other_zeros)
        explained = _explained(other_a, other_b, other_scales, units)
        better = explained > best
        scales, zeros = np.where(better, other_scales, scales), np.where(better, other_zeros, zeros)
        a, b, best = np.where(better, other_a, a), np.where(better, other_b, b), np.maximum(explained, best)
    return _refitted(scales, a, b, scheme), zeros


def _fit(groups: _Groups, scheme: QuantizationScheme, scales: Array, zeros: Array) -> tuple[Array, Array]:
    """a / s = sum h (w / s) c and b = sum h c^2 of each group, float32 [M]."""
    steps, codes, weighted = groups.scratch
    half = np.float32(2 ** (scheme.bits - 1))
    np.multiply(groups.columns, np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0), out=steps)
    np.rint(steps, out=codes)
    if scheme.symmetric:
        np.clip(codes, -half, half - 1, out=codes)
    else:
        np.maximum(codes, -half - zeros, out=codes)
        np.minimum(codes, half - 1 - zeros, out=codes)
    weighted = codes if groups.importance is None else np.multiply(codes, groups.importance, out=weighted)
    a: Array = np.einsum("km,km->m", steps, weighted)
    b: Array = np.einsum("km,km->m", codes, weighted)
    return a, b


def _explained(a: Array, b: Array, scales: Array, units: Array) -> Array:
    """a^2 / b, what the codes at their best scale explain of the weights' square, in squared units."""
    return np.divide(np.square(a * (scales / units)), b, out=np.zeros_like(b), where=b > 0)


def _refitted(scales: Array, a: Array, b: Array, scheme: QuantizationScheme) -> Array:
    """The scale that fits each group's codes best, as it is stored, or the given one where that rounding costs more.

    With r = s' / s the error grows by s^2 (r - 1) ((r + 1) b - 2 a).
    """
    ratio = np.divide(a, b, out=np.ones_like(a), where=b > 0)
    limit = LARGEST[scheme.scale_dtype]
    fitting = as_stored(
        np.clip(scales * ratio.astype(np.float64), -limit, limit).astype(np.float32), scheme.scale_dtype
    )
    r = np.divide(fitting, scales, out=np.ones_like(a), where=scales != 0)
    better = ((r - 1) * ((r + 1) * b - 2 * a) < 0) & (np.abs(r - 1) > NOISE) & (np.abs(fitting) >= SMALLEST_SCALE)
    return np.where(better, fitting, scales)
