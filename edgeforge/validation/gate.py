"""The gate: is the candidate as good as its target demands, told with a stated confidence.

For each limit the one-sided confidence bounds of the measured figure decide (the ratio's on the log scale, where it
is a mean): *fail* when even the lower bound exceeds the limit, *pass* when the upper bound keeps it, *undecided*
between the two, which means too few tokens to tell, and then how many would. The worst check is the gate's verdict.

The tokens of one chunk share their subject and are not independent: on 20 chunks of WikiText-2 the spread between
chunks made the error of the mean divergence 2.3 times what counting tokens says (SmolLM2-135M, INT4). So a bound is
the widest of three: over tokens with the normal quantile, over chunk means with Student's t and, from FEWEST_DRAWN
chunks on, over chunk means with the studentized bootstrap, which sees their skewness. (Student's upper bound alone is
too low where a few chunks are much harder than the rest: of gamma-distributed chunks 6 to 8 % misses instead of the
stated 5, and 4 to 6 % with the bootstrap.)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeforge.errors import UnusableInput
from edgeforge.validation.resampling import bounds
from edgeforge.validation.statistics import TokenValues, mean, student_t_quantile

Values = NDArray[np.float64]
Verdict = Literal["pass", "undecided", "fail"]
POWER = 0.8  # how likely the items that a check asks for are to tell, if things are as measured
MOST_TOKENS = 10_000_000  # who needs more has a figure that lies on its limit
NEARLY_NORMAL = 200  # chunks of which Student's t is within 0.5 % of the normal quantile
FEWEST_DRAWN = 8  # chunks: of fewer, some draws are all of one, and a bound from them is far out
ERROR_OF_CHUNKS = 2.3  # times that over tokens, where a single chunk cannot show it (see above)
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
    kl, ratio = limits.max_mean_kl_divergence, limits.max_perplexity_ratio
    divergence = _measure(values.kl_divergence, chunk_size, limits.confidence, limit=kl)
    log_ratio = _measure(values.log_ratio, chunk_size, limits.confidence, limit=math.log(ratio))
    checks = (
        Check(
            figure="mean_kl_divergence",
            value=divergence.value,
            limit=kl,
            lower_bound=max(divergence.lower, 0.0),
            upper_bound=divergence.upper,
            verdict=divergence.verdict,
            items_needed=divergence.tokens_needed,
        ),
        Check(
            figure="perplexity_ratio",
            value=_exp(log_ratio.value),
            limit=ratio,
            lower_bound=_exp(log_ratio.lower),
            upper_bound=_exp(log_ratio.upper),
            verdict=log_ratio.verdict,
            items_needed=log_ratio.tokens_needed,
        ),
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """A mean over tokens, its one-sided bounds, what they say, and how many tokens would say more."""

    value: float
    lower: float
    upper: float
    verdict: Verdict
    tokens_needed: int | None


def _measure(values: Values, chunk_size: int, confidence: float, *, limit: float) -> _Measured:
    over_tokens = mean(values)
    value, error = over_tokens.value, over_tokens.standard_error
    margin = NormalDist().inv_cdf(confidence) * error
    lower, upper = value - margin, value + margin
    chunks = len(values) // chunk_size
    if chunks > 1:
        low, high, chunk_error = _over_chunks(values.reshape(chunks, chunk_size).mean(axis=1), confidence)
        lower, upper, error = min(lower, low), max(upper, high), max(error, chunk_error)
    else:
        error *= ERROR_OF_CHUNKS
    verdict = verdict_of(lower, upper, limit, enough=len(values) >= FEWEST_TOKENS and chunks > 1)
    needed = None
    if verdict == "undecided" and value != limit:
        wanted = chunk_size * _chunks_to_tell(error * math.sqrt(chunks) / abs(value - limit), confidence)
        needed = about(max(wanted, FEWEST_TOKENS), more_than=len(values), most=MOST_TOKENS)
    return _Measured(value=value, lower=lower, upper=upper, verdict=verdict, tokens_needed=needed)


def _over_chunks(means: Values, confidence: float) -> tuple[float, float, float]:
    """The bounds of the mean of chunk means, and its standard error."""
    estimate = mean(means)
    margin = student_t_quantile(confidence, len(means) - 1) * estimate.standard_error
    lower, upper = estimate.value - margin, estimate.value + margin
    if len(means) >= FEWEST_DRAWN:
        low, high = bounds(means, np.ones(len(means)), confidence=confidence)
        lower, upper = min(lower, low), max(upper, high)
    return lower, upper, estimate.standard_error


def _chunks_to_tell(spread: float, confidence: float) -> int:
    """About how many chunks tell on which side of a limit their mean lies, with a probability of POWER.

    `spread`: their standard deviation over the distance to the limit. (t + z_power)^2 spread^2, where Student's t
    depends on the number of chunks itself.
    """
    power = NormalDist().inv_cdf(POWER)
    chunks = 2
    for _ in range(8):
        quantile = student_t_quantile(confidence, min(chunks, NEARLY_NORMAL) - 1)
        chunks = max(2, math.ceil(min(((quantile + power) * spread) ** 2, MOST_TOKENS + 1)))
    return chunks


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))
