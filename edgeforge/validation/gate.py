"""The gate: is the candidate as good as its target demands, told with a stated confidence.

For each limit the one-sided confidence bounds of the measured figure decide (the ratio's on the log scale, where it
is a mean): *fail* when even the lower bound exceeds the limit, *pass* when the upper bound keeps it, *undecided*
between the two, which means too few tokens to tell. The worst check is the gate's verdict.

The tokens of one chunk share their subject and are not independent: on 20 chunks of WikiText-2 the spread between
chunks made the error of the mean divergence 2.3 times what counting tokens says (SmolLM2-135M, INT4). So a bound
takes the wider of two margins: over tokens with the normal quantile, and over chunk means with Student's t.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeforge.errors import UnusableInput
from edgeforge.validation.statistics import TokenValues, mean, student_t_quantile

Verdict = Literal["pass", "undecided", "fail"]
POWER = 0.8  # how likely the items that a check asks for are to tell, if things are as measured
FEWEST_TOKENS = 100  # llama.cpp, too, does "not wish to do statistics on so few values"


class Limits(Protocol):
    """What a target demands; `edgeforge.hardware.Gate` satisfies it."""

    @property
    def max_mean_kl_divergence(self) -> float: ...
    @property
    def max_perplexity_ratio(self) -> float: ...
    @property
    def max_accuracy_loss(self) -> float: ...
    @property
    def confidence(self) -> float: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One figure against its limit: `lower_bound` and `upper_bound` are one-sided, each at the gate's confidence.

    `items_needed`: about how many scored tokens (of a task: items) would tell, where these were too few.
    """

    figure: str
    value: float
    limit: float
    lower_bound: float
    upper_bound: float
    verdict: Verdict
    items_needed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult:
    """Every check, and the worst of their verdicts."""

    confidence: float
    checks: tuple[Check, ...]
    verdict: Verdict


def judge(values: TokenValues, chunk_size: int, limits: Limits) -> GateResult:
    """Hold the figures against the limits; `values` are of whole chunks of `chunk_size` scored tokens each, in order.

    Raises UnusableInput for a confidence outside [0.5, 1).
    """
    check_confidence(limits.confidence)
    enough = len(values) >= FEWEST_TOKENS and len(values) >= 2 * chunk_size
    kl, margin = _mean_and_margin(values.kl_divergence, chunk_size, limits.confidence)
    divergence = (kl, max(kl - margin, 0.0), kl + margin)
    log_ratio, margin = _mean_and_margin(values.log_ratio, chunk_size, limits.confidence)
    ratio = (_exp(log_ratio), _exp(log_ratio - margin), _exp(log_ratio + margin))
    checks = (
        _check("mean_kl_divergence", divergence, limits.max_mean_kl_divergence, enough),
        _check("perplexity_ratio", ratio, limits.max_perplexity_ratio, enough),
    )
    return GateResult(confidence=limits.confidence, checks=checks, verdict=_worst(checks))


def combine(gate: GateResult, checks: Sequence[Check]) -> GateResult:
    """The gate with more checks, such as those of tasks: again the worst of all verdicts."""
    every = (*gate.checks, *checks)
    return replace(gate, checks=every, verdict=_worst(every))


def check_confidence(confidence: float) -> None:
    """UnusableInput for a confidence outside [0.5, 1)."""
    if not 0.5 <= confidence < 1.0:
        raise UnusableInput(
            f"the gate's confidence is {confidence}, it must lie between 0.5 and 1", hint="0.95 is usual"
        )


def verdict_of(lower_bound: float, upper_bound: float, limit: float, enough: bool) -> Verdict:
    """The two one-sided tests; `enough`: whether there was so much that bounds mean something."""
    if enough and lower_bound > limit:
        return "fail"
    return "pass" if enough and upper_bound <= limit else "undecided"


def about(items: float, *, more_than: int, most: int) -> int | None:
    """A number of items as exact as such a forecast is: rounded up to two digits. None where it exceeds `most`."""
    if items > most:
        return None
    needed = max(math.ceil(items), more_than + 1)
    unit: int = 10 ** max(0, len(str(needed)) - 2)
    return -(-needed // unit) * unit


def _worst(checks: Sequence[Check]) -> Verdict:
    order: tuple[Verdict, ...] = ("pass", "undecided", "fail")
    return max((check.verdict for check in checks), key=order.index)


def _mean_and_margin(values: NDArray[np.float64], chunk_size: int, confidence: float) -> tuple[float, float]:
    """The mean of values [n], and how far its one-sided bound lies from it."""
    over_tokens = mean(values)
    margin = NormalDist().inv_cdf(confidence) * over_tokens.standard_error
    chunks = len(values) // chunk_size
    if chunks > 1:
        over_chunks = mean(values.reshape(chunks, chunk_size).mean(axis=1))
        margin = max(margin, student_t_quantile(confidence, chunks - 1) * over_chunks.standard_error)
    return over_tokens.value, margin


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))


def _check(figure: str, measured: tuple[float, float, float], limit: float, enough: bool) -> Check:
    value, lower, upper = measured
    verdict = verdict_of(lower, upper, limit, enough)
    return Check(figure=figure, value=value, limit=limit, lower_bound=lower, upper_bound=upper, verdict=verdict)
