"""The gate: is the candidate as good as its target demands, told with a stated confidence.

For each limit the one-sided confidence bounds of the measured figure decide (normal approximation; the ratio's on the
log scale, where it is a mean): *fail* when even the lower bound exceeds the limit, *pass* when the upper bound keeps
it, *undecided* between the two, which means too few tokens to tell. The worst check is the gate's verdict.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, Protocol

from edgeforge.errors import UnusableInput
from edgeforge.validation.statistics import Summary

Verdict = Literal["pass", "undecided", "fail"]
FEWEST_TOKENS = 100  # llama.cpp, too, does "not wish to do statistics on so few values"


class Limits(Protocol):
    """What a target demands; `edgeforge.hardware.Gate` satisfies it."""

    @property
    def max_mean_kl_divergence(self) -> float: ...
    @property
    def max_perplexity_ratio(self) -> float: ...
    @property
    def confidence(self) -> float: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One figure against its limit: `lower_bound` and `upper_bound` are one-sided, each at the gate's confidence."""

    figure: str
    value: float
    limit: float
    lower_bound: float
    upper_bound: float
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult:
    """Every check, and the worst of their verdicts."""

    confidence: float
    checks: tuple[Check, ...]
    verdict: Verdict


def judge(summary: Summary, limits: Limits) -> GateResult:
    """Hold the measured figures against the limits; raises UnusableInput for a confidence outside [0.5, 1)."""
    if not 0.5 <= limits.confidence < 1.0:
        raise UnusableInput(
            f"the gate's confidence is {limits.confidence}, it must lie between 0.5 and 1", hint="0.95 is usual"
        )
    z = NormalDist().inv_cdf(limits.confidence)
    kl = summary.mean_kl_divergence
    kl_bounds = (kl.value, max(kl.value - z * kl.standard_error, 0.0), kl.value + z * kl.standard_error)
    log = summary.log_perplexity_ratio
    margin = z * log.standard_error
    ratio_bounds = (_exp(log.value), _exp(log.value - margin), _exp(log.value + margin))
    enough = summary.scored_tokens >= FEWEST_TOKENS
    checks = (
        _check("mean_kl_divergence", kl_bounds, limits.max_mean_kl_divergence, enough),
        _check("perplexity_ratio", ratio_bounds, limits.max_perplexity_ratio, enough),
    )
    order: tuple[Verdict, ...] = ("pass", "undecided", "fail")
    worst = max((check.verdict for check in checks), key=order.index)
    return GateResult(confidence=limits.confidence, checks=checks, verdict=worst)


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))


def _check(figure: str, measured: tuple[float, float, float], limit: float, enough: bool) -> Check:
    value, lower, upper = measured
    verdict: Verdict = "undecided"
    if enough and lower > limit:
        verdict = "fail"
    elif enough and upper <= limit:
        verdict = "pass"
    return Check(figure=figure, value=value, limit=limit, lower_bound=lower, upper_bound=upper, verdict=verdict)
