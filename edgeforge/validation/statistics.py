"""How far a candidate's next-token distributions are from the reference's: per-token values and their averages.

Everything here is a pure function of arrays. Each scored token gives four numbers: the negative log-likelihood of the
true next token under either model, the Kullback-Leibler divergence of the two distributions in nats, D(reference ||
candidate) = sum_v p_v (log p_v - log q_v), and whether both models rank the same token first (the lowest id wins a
tie). Averages and standard errors over tokens are llama.cpp's (tools/perplexity/perplexity.cpp,
`mean_and_uncertainty`, `covariance`): the error of a mean is sqrt((mean(x^2) - mean(x)^2) / (n - 1)), perplexity =
exp(mean nll) takes the delta method, and the ratio of two perplexities is paired, so that the difficulty of the text
cancels. llama.cpp keeps the reference's log-probabilities as 16-bit numbers and leaves out p < e^-16; here they are
whole.

Shape letters: S scored tokens, V vocabulary, n all scored tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

# Logits handled at once, in elements: three float64 temporaries of this size fit the cache levels of a small machine.
BLOCK_ELEMENTS = 1 << 19


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenValues:
    """One entry per scored token: float64 [n] negative log-likelihoods and divergence in nats, bool [n] agreement."""

    reference_nll: NDArray[np.float64]
    candidate_nll: NDArray[np.float64]
    kl_divergence: NDArray[np.float64]
    same_top: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.kl_divergence)

    @property
    def log_ratio(self) -> NDArray[np.float64]:
        """float64 [n]: its mean is the logarithm of the perplexities' ratio."""
        return self.candidate_nll - self.reference_nll

    def part(self, start: int, stop: int) -> "TokenValues":
        """Tokens start .. stop - 1."""
        return TokenValues(
            reference_nll=self.reference_nll[start:stop],
            candidate_nll=self.candidate_nll[start:stop],
            kl_divergence=self.kl_divergence[start:stop],
            same_top=self.same_top[start:stop],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A figure with its standard error (0 for a single observation, whose spread is unknown)."""

    value: float
    standard_error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The averages over all scored tokens."""

    scored_tokens: int
    perplexity: Estimate
    reference_perplexity: Estimate
    perplexity_ratio: Estimate
    mean_kl_divergence: Estimate
    same_top_token: Estimate


class NonFiniteLogitsError(ValueError):
    """A model answered with NaN or infinity. `who` is "reference" or "candidate", `row` the first such scored token."""

    def __init__(self, who: str, row: int) -> None:
        super().__init__(f"the {who}'s logits are not finite at scored token {row}")
        self.who = who
        self.row = row


def compare_logits(
    reference: NDArray[np.float32], candidate: NDArray[np.float32], targets: NDArray[np.int64]
) -> TokenValues:
    """Per-token values of float32 logits [S, V] and the true next tokens [S]; computed in float64, block by block.

    Raises NonFiniteLogitsError, and ValueError where the shapes differ.
    """
    if reference.shape != candidate.shape or reference.shape[:1] != targets.shape:
        raise ValueError(f"logits {reference.shape} and {candidate.shape} for {targets.shape} tokens")
    rows, vocabulary = reference.shape
    step = max(1, BLOCK_ELEMENTS // vocabulary)
    blocks = [
        _compare_block(
            reference[start : start + step], candidate[start : start + step], targets[start : start + step], start
        )
        for start in range(0, rows, step)
    ]
    return join(blocks)


def _compare_block(
    reference: NDArray[np.float32], candidate: NDArray[np.float32], targets: NDArray[np.int64], start: int
) -> TokenValues:
    x, x_top = shifted(reference, "reference", start)
    y, y_top = shifted(candidate, "candidate", start)
    rows = np.arange(len(targets))
    x_target, y_target = x[rows, targets], y[rows, targets]
    y_log_sum = np.log(np.exp(y).sum(axis=1))
    p = np.exp(x)
    x_sum = p.sum(axis=1)
    x_log_sum = np.log(x_sum)
    # D = sum_v p_v (x_v - y_v) / sum p - log sum exp x + log sum exp y; einsum spares one more temporary
    np.subtract(x, y, out=x)
    divergence = np.einsum("sv,sv->s", p, x) / x_sum - x_log_sum + y_log_sum
    return TokenValues(
        reference_nll=x_log_sum - x_target,
        candidate_nll=y_log_sum - y_target,
        kl_divergence=np.maximum(divergence, 0.0),  # never negative but for rounding (about 1e-15)
        same_top=x_top == y_top,
    )


def shifted(logits: NDArray[np.float32], who: str, start: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """float64 logits less their row's largest, and where that lies."""
    top = logits.argmax(axis=1)
    largest = logits[np.arange(len(logits)), top]
    finite = np.isfinite(largest) & np.isfinite(logits.min(axis=1))
    if not finite.all():
        raise NonFiniteLogitsError(who, start + int(np.argmin(finite)))
    return np.subtract(logits, largest[:, None], dtype=np.float64), top.astype(np.int64)


def join(parts: Sequence[TokenValues]) -> TokenValues:
    """The values of all parts, in order."""
    return TokenValues(
        reference_nll=np.concatenate([part.reference_nll for part in parts]),
        candidate_nll=np.concatenate([part.candidate_nll for part in parts]),
        kl_divergence=np.concatenate([part.kl_divergence for part in parts]),
        same_top=np.concatenate([part.same_top for part in parts]),
    )


def mean(values: NDArray[np.float64]) -> Estimate:
    """The average of values [n] and its standard error, n >= 1."""
    n = len(values)
    spread = math.sqrt(float(np.var(values)) / (n - 1)) if n > 1 else 0.0
    return Estimate(value=float(np.mean(values)), standard_error=spread)


def exponential(log: Estimate) -> Estimate:
    """exp of an estimate, by the delta method: se(exp x) = exp(x) se(x)."""
    value = math.exp(min(log.value, 600.0))  # a model that bad has no perplexity worth an OverflowError
    return Estimate(value=value, standard_error=value * log.standard_error)


def summarize(values: TokenValues) -> Summary:
    """The averages over all scored tokens, each with its standard error."""
    return Summary(
        scored_tokens=len(values),
        perplexity=exponential(mean(values.candidate_nll)),
        reference_perplexity=exponential(mean(values.reference_nll)),
        perplexity_ratio=exponential(mean(values.log_ratio)),
        mean_kl_divergence=mean(values.kl_divergence),
        same_top_token=mean(values.same_top.astype(np.float64)),
    )


@lru_cache(maxsize=512)
def student_t_quantile(probability: float, degrees: int) -> float:
    """Where Student's t with a whole number of degrees of freedom reaches a probability in [0.5, 1).

    The distribution function is a finite sum in theta = atan(t / sqrt(degrees)) (Abramowitz & Stegun 26.7.3, 26.7.4).
    """
    low, high = 0.0, math.pi / 2
    for _ in range(80):
        middle = (low + high) / 2
        if 0.5 + _student_t_area(middle, degrees) / 2 < probability:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees) * math.tan(low)


def _student_t_area(theta: float, degrees: int) -> float:
    """The probability between -t and t."""
    odd = degrees % 2
    square = math.cos(theta) ** 2
    term = math.cos(theta) if odd else 1.0
    total = 0.0
    for k in range(1 + odd, degrees, 2):
        total += term
        term *= square * k / (k + 1)
    total *= math.sin(theta)
    return 2 / math.pi * (theta + total) if odd else total
