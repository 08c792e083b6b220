"""Is the candidate as good as the reference on the same items: differences, intervals, and tests against a limit.

Both models answered the same n items, so what counts is each item's difference; how hard the items are cancels.
A limit is held as two one-sided tests, each wrong at most 1 - confidence of the time where the truth is the limit
itself: "the loss is at least the limit" refuted is a *pass*, "at most" refuted a *fail*, neither *undecided*, with
the number of items that would tell with a probability of POWER if the true loss is the measured one.

Scores that are right or wrong (0 or 1) have score bounds (`proportions`), all others the studentized bootstrap
(`resampling`). Where fewer than FEW_DIFFERENCES items differ, no resampling can know how the next one would: then a
bound is at least as far as the score bound of no flips among n, z^2 / (n + z^2) times the scores' range.

Items are taken as independent draws. A sample stratified by subject varies less than that, so its bounds are safe.
"""

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from edgeforge.validation import proportions, resampling
from edgeforge.validation.findings import Interval
from edgeforge.validation.gate import POWER, Check, about, check_confidence, verdict_of
from edgeforge.validation.proportions import mcnemar

__all__ = ["difference", "judge_loss", "judge_ratio", "mcnemar", "ratio"]

Values = NDArray[np.float64]
Bounds = tuple[float, float]

FEWEST_ITEMS = 30  # below that, skewed scores defeat every bootstrap; flips have bounds that hold for any number
FEW_DIFFERENCES = 10
MOST_ITEMS = 100_000  # no public benchmark has as many: the loss lies on the limit


def difference(reference: Values, candidate: Values, *, confidence: float, seed: int = 0) -> tuple[float, Interval]:
    """The mean of candidate - reference [n] and its two-sided interval. ValueError for no or unlike scores."""
    loss, low, high = _loss(reference, candidate, (1 + confidence) / 2, seed)
    return 0.0 - loss, Interval(low=0.0 - high, high=0.0 - low)  # never the -0.0 that -x makes of nothing


def ratio(
    reference_nll: Values, candidate_nll: Values, weights: Values, *, confidence: float, seed: int = 0
) -> tuple[float, Interval]:
    """The perplexities' ratio exp(sum(candidate - reference) / sum(weights)) and its two-sided interval.

    Negative log-likelihoods [n] in nats of items that have `weights` [n] tokens (or words, or bytes).
    """
    log, low, high = _log_ratio(reference_nll, candidate_nll, weights, (1 + confidence) / 2, seed)
    return _exp(log), Interval(low=_exp(low), high=_exp(high))


def judge_loss(figure: str, reference: Values, candidate: Values, *, limit: float, confidence: float) -> Check:
    """The mean of reference - candidate [n], higher scores being better, must be at most `limit`.

    ValueError for no or unlike scores, UnusableInput for a confidence outside [0.5, 1).
    """
    check_confidence(confidence)
    loss, low, high = _loss(reference, candidate, confidence, seed=0)
    n = len(reference)
    flips = _flips(reference, candidate)
    enough = flips is not None or n >= FEWEST_ITEMS
    verdict = verdict_of(low, high, limit, enough)
    needed = None
    if verdict == "undecided" and flips is not None:
        lost, gained = flips
        items = proportions.items_to_tell(lost, gained, n, limit=limit, confidence=confidence, power=POWER)
        needed = about(items, more_than=n, most=MOST_ITEMS)
    elif verdict == "undecided":
        needed = _items_by_spread(reference - candidate, np.ones(n), limit, confidence)
    return Check(
        figure=figure,
        value=loss,
        limit=limit,
        lower_bound=low,
        upper_bound=high,
        verdict=verdict,
        items_needed=needed,
    )


def judge_ratio(
    figure: str, reference_nll: Values, candidate_nll: Values, weights: Values, *, limit: float, confidence: float
) -> Check:
    """The ratio of perplexities (see `ratio`) must be at most `limit`; it is judged on the log scale."""
    check_confidence(confidence)
    log, low, high = _log_ratio(reference_nll, candidate_nll, weights, confidence, seed=0)
    verdict = verdict_of(_exp(low), _exp(high), limit, len(weights) >= FEWEST_ITEMS)
    needed = None
    if verdict == "undecided":
        needed = _items_by_spread(candidate_nll - reference_nll, weights, math.log(limit), confidence)
    return Check(
        figure=figure,
        value=_exp(log),
        limit=limit,
        lower_bound=_exp(low),
        upper_bound=_exp(high),
        verdict=verdict,
        items_needed=needed,
    )


def _loss(reference: Values, candidate: Values, confidence: float, seed: int) -> tuple[float, float, float]:
    """The mean of reference - candidate and its one-sided bounds."""
    _check(reference, candidate)
    n = len(reference)
    loss = float(np.mean(reference - candidate))
    flips = _flips(reference, candidate)
    if flips is not None:
        return loss, *proportions.score_bounds(*flips, n, confidence=confidence)
    differences = reference - candidate
    low, high = resampling.bounds(differences, np.ones(n), confidence=confidence, seed=seed)
    if np.count_nonzero(differences) < FEW_DIFFERENCES:
        square = NormalDist().inv_cdf(confidence) ** 2
        span = float(np.ptp(np.concatenate([reference, candidate])))
        margin = span * square / (n + square)
        low, high = min(low, loss - margin), max(high, loss + margin)
    return loss, low, high


def _log_ratio(
    reference: Values, candidate: Values, weights: Values, confidence: float, seed: int
) -> tuple[float, float, float]:
    """sum(candidate - reference) / sum(weights) and its one-sided bounds."""
    _check(reference, candidate)
    if weights.shape != reference.shape or not (weights > 0).all():
        raise ValueError(f"weights {weights.shape} of {len(reference)} items, all of which must be positive")
    differences = candidate - reference
    log = float(differences.sum()) / float(weights.sum())
    return log, *resampling.bounds(differences, weights, confidence=confidence, seed=seed)


def _check(reference: Values, candidate: Values) -> None:
    if reference.ndim != 1 or reference.shape != candidate.shape or not len(reference):
        raise ValueError(f"scores {reference.shape} and {candidate.shape} are no pairs")
    if not (np.isfinite(reference).all() and np.isfinite(candidate).all()):
        raise ValueError("scores must be finite")


def _flips(reference: Values, candidate: Values) -> tuple[int, int] | None:
    """How many items were lost and gained; None where scores are more than right or wrong."""
    both = np.stack([reference, candidate])
    if not ((both == 0) | (both == 1)).all():
        return None
    return int(np.count_nonzero(reference > candidate)), int(np.count_nonzero(candidate > reference))


def _items_by_spread(values: Values, weights: Values, limit: float, confidence: float) -> int | None:
    """How many items would tell, by the spread of a ratio of sums: (z_confidence + z_power)^2 spread^2 / gap^2."""
    n = len(values)
    estimate = resampling.ratio_of_sums(values, weights)
    gap = abs(limit - estimate.value)
    if gap == 0:
        return None
    normal = NormalDist()
    quantiles = normal.inv_cdf(confidence) + normal.inv_cdf(POWER)
    items = max(FEWEST_ITEMS, n * (quantiles * estimate.standard_error / gap) ** 2)
    return about(items, more_than=n, most=MOST_ITEMS)


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))
