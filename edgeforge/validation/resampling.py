"""Bounds on a ratio of sums, sum(values) / sum(weights), over items that were drawn: the studentized bootstrap.

Items are drawn again with replacement, always with both models' answers (so the pairs stay together), and each draw's
estimate is measured in its own standard errors: t* = (r* - r) / s*. The quantiles of t* take the place of Student's
(Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 12). What tasks and texts give is skewed, and
there a one-sided bound is where methods differ. How often the upper bound at 95 % lay below the truth, 60 items of a
gamma distribution of shape 0.3 (1,500 draws): Student's t 11 %, percentile 11 %, BCa 8 %, this 6 %; of a log-normal
one 13, 13, 10 and 8 %; of a normal one 4, 4, 5 and 4 %.

The error of a ratio of sums is that of its residuals, values - r weights. Shape letters: n items, B draws.
"""

import math
from collections.abc import Iterable, Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from edgeforge.validation.statistics import Estimate

Values = NDArray[np.float64]

DRAWS = 4_999  # leaves a bound's confidence uncertain by 0.3 points at 95 %
BLOCK_ELEMENTS = 1 << 18  # items drawn at once
FEW_ITEMS = 128


def ratio_of_sums(values: Values, weights: Values) -> Estimate:
    """sum(values) / sum(weights) of values [n], weights [n], and its standard error (0 for one item)."""
    n, total = len(values), float(weights.sum())
    ratio = float(values.sum()) / total
    residuals = values - ratio * weights
    square = float(np.dot(residuals, residuals)) * n / (n - 1) if n > 1 else 0.0
    return Estimate(value=ratio, standard_error=math.sqrt(square) / total)


def bounds(values: Values, weights: Values, *, confidence: float, seed: int = 0) -> tuple[float, float]:
    """The lower and the upper bound of sum(values) / sum(weights), each one-sided at `confidence`.

    The same arguments give the same bounds. Values without any spread leave none: the caller must know whether that
    is certainty.
    """
    estimate = ratio_of_sums(values, weights)
    if estimate.standard_error == 0.0:
        return estimate.value, estimate.value
    drawn = _studentized(values, weights, estimate, seed)
    low, high = np.quantile(drawn, (1 - confidence, confidence))
    return estimate.value - float(high) * estimate.standard_error, estimate.value - float(low) * estimate.standard_error


def _studentized(values: Values, weights: Values, estimate: Estimate, seed: int) -> Values:
    """t* [B]. A draw without spread (the same item every time) is measured in the sample's own standard error.

    How often each item was drawn, times a few sums, is all that a draw is: with e = values - r weights and d = r* - r,
    sum(e - d w)^2 = sum e^2 - 2 d sum e w + d^2 sum w^2.
    """
    n = len(values)
    e = values - estimate.value * weights
    sums = np.stack([weights, e, e * e, e * weights, weights * weights], axis=1)  # [n, 5]
    drawn = np.concatenate([counts @ sums for counts in _drawn(n, seed)])
    total, over, square, cross, weight_square = drawn.T
    shift = over / total
    spread = np.maximum(square - 2 * shift * cross + shift * shift * weight_square, 0.0)
    errors = np.sqrt(spread * (n / (n - 1))) / total
    flat = errors <= 1e-6 * estimate.standard_error
    t: Values = shift / np.where(flat, estimate.standard_error, errors)
    return t


def _drawn(n: int, seed: int) -> Iterable[Values]:
    """Blocks [b, n] of DRAWS rows: how often each of n items came up."""
    return _few_drawn(n, seed) if n <= FEW_ITEMS else _counts(n, seed)


@lru_cache(maxsize=4)
def _few_drawn(n: int, seed: int) -> tuple[Values, ...]:
    """Of few items, kept for the next figure of as many."""
    return tuple(_counts(n, seed))


def _counts(n: int, seed: int) -> Iterator[Values]:
    random = np.random.default_rng(seed)
    step = max(1, BLOCK_ELEMENTS // n)
    for start in range(0, DRAWS, step):
        rows = min(step, DRAWS - start)
        items = random.integers(0, n, (rows, n)) + n * np.arange(rows)[:, None]
        yield np.bincount(items.reshape(-1), minlength=rows * n).reshape(rows, n).astype(np.float64)
