"""From logits to a token: small functions that compose, each float32 [V] -> float32 [V], none changes its argument.

The semantics, the order (repetition penalty, temperature, top-k, top-p, min-p) and the edge cases are those of
transformers' logits processors, which the tests compare them with. A token that is ruled out has logit -inf; what a
constraint rules out is so before everything else.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import UnusableBundle

Logits = NDArray[np.float32]
Mask = NDArray[np.bool_]
GREEDY_BELOW = 1e-4  # dividing by less would leave float32's range


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen. A temperature under 0.0001 is greedy; the neutral values switch a step off."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, holds, what in (
            ("temperature", self.temperature >= 0, "at least 0"),
            ("top_k", self.top_k >= 0, "at least 0 (0 switches it off)"),
            ("top_p", 0 < self.top_p <= 1, "more than 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 and 1"),
            ("repetition_penalty", self.repetition_penalty > 0, "more than 0"),
            ("seed", self.seed is None or self.seed >= 0, "at least 0"),
        ):
            if not holds:
                raise UnusableBundle(f"{name} must be {what}, not {getattr(self, name)}")


class Sampler:
    """Chooses tokens one after another: holds the random generator and the tokens seen so far."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int], vocab_size: int) -> None:
        self._sampling = sampling
        self._random = np.random.default_rng(sampling.seed)
        self._seen = np.zeros(vocab_size, np.bool_)
        self._seen[np.asarray(prompt, np.int64)] = True

    def choose(self, logits: Logits, allowed: Mask | None = None) -> int:
        """The next token for logits [V], which then counts as seen; one of `allowed` [V], where that is given."""
        logits = self.processed(logits, allowed)
        token = greedy(logits) if self._sampling.temperature < GREEDY_BELOW else sample(logits, self._random)
        self._seen[token] = True
        return token

    def processed(self, logits: Logits, allowed: Mask | None = None) -> Logits:
        """Logits [V] whose softmax is what `choose` draws from, or whose largest it takes where it is greedy."""
        options = self._sampling
        if allowed is not None:
            logits = mask(logits, allowed)
        if options.repetition_penalty != 1.0:
            logits = repetition_penalty(logits, np.flatnonzero(self._seen), options.repetition_penalty)
        if options.temperature < GREEDY_BELOW:
            return logits
        logits = temperature(logits, options.temperature)
        logits = top_k(logits, options.top_k) if options.top_k else logits
        logits = top_p(logits, options.top_p) if options.top_p < 1.0 else logits
        return min_p(logits, options.min_p) if options.min_p else logits


@dataclass(frozen=True, slots=True, kw_only=True)
class Logprob:
    """A token, and the natural logarithm of its probability."""

    token: int
    logprob: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Logprobs:
    """How likely the model held a chosen token, and which ones it held likeliest, in order."""

    chosen: Logprob
    likeliest: tuple[Logprob, ...]


def logprobs(logits: Logits, token: int, count: int) -> Logprobs:
    """Of softmax(logits [V]), in float64: that of `token`, and the `count` likeliest; of equals the lower id first.

    Of raw logits, it is what the model says, whatever sampling and constraints make of it.
    """
    normal = logits.astype(np.float64) - float(logits.max())
    normal -= np.log(np.exp(normal).sum())
    likeliest: list[int] = []
    if count:
        least = max(logits.size - count, 0)
        candidates = np.flatnonzero(normal >= np.partition(normal, least)[least])
        likeliest = candidates[np.argsort(-normal[candidates], kind="stable")][:count].tolist()
    return Logprobs(
        chosen=Logprob(token=token, logprob=float(normal[token])),
        likeliest=tuple(Logprob(token=each, logprob=float(normal[each])) for each in likeliest),
    )


def greedy(logits: Logits) -> int:
    """The most likely token; of equals the first."""
    token = int(logits.argmax())
    if np.isnan(logits[token]):  # argmax stops at the first NaN
        raise UnusableBundle("the model computed NaN instead of logits", hint="run `edgeforge verify` on the bundle")
    return token


def sample(logits: Logits, random: np.random.Generator) -> int:
    """A token drawn from softmax(logits), in float64."""
    candidates = np.flatnonzero(logits > -np.inf)
    if not candidates.size:
        raise UnusableBundle("the model computed NaN instead of logits", hint="run `edgeforge verify` on the bundle")
    cumulative = np.cumsum(np.exp(logits[candidates].astype(np.float64) - logits.max()))
    position = np.searchsorted(cumulative, random.random() * cumulative[-1], side="right")
    return int(candidates[min(int(position), candidates.size - 1)])


def mask(logits: Logits, allowed: Mask) -> Logits:
    """Rule out what is not in `allowed` [V]; UnusableBundle where that is everything."""
    if not allowed.any():
        raise UnusableBundle("the constraint allows no token at all, not even the end of the text")
    return np.where(allowed, logits, np.float32(-np.inf))


def repetition_penalty(logits: Logits, seen: NDArray[np.int64], penalty: float) -> Logits:
    """Logits of seen tokens divided by the penalty if positive, multiplied if negative (CTRL, arXiv 1909.05858)."""
    result = logits.copy()
    score = result[seen]
    result[seen] = np.where(score < 0, score * np.float32(penalty), score / np.float32(penalty))
    return result


def temperature(logits: Logits, value: float) -> Logits:
    """Logits divided by the temperature: under 1 sharper, over 1 flatter."""
    return logits / np.float32(value)


def top_k(logits: Logits, k: int) -> Logits:
    """Keep the k largest, and whatever equals the k-th."""
    if k >= logits.size:
        return logits
    threshold = np.partition(logits, logits.size - k)[logits.size - k]
    return np.where(logits < threshold, np.float32(-np.inf), logits)


def top_p(logits: Logits, p: float) -> Logits:
    """Keep the fewest most likely tokens whose probability sums to at least p (nucleus, arXiv 1904.09751)."""
    probabilities = _softmax(logits)
    # Tokens this unlikely sum to at most 1 - p all together: they go unsorted, which spares most of the work.
    small = probabilities < min((1.0 - p) / logits.size, float(probabilities.max()))
    candidates = np.flatnonzero(~small)
    ascending = candidates[np.argsort(probabilities[candidates])]
    below = probabilities[small].sum() + np.cumsum(probabilities[ascending]) <= np.float32(1.0 - p)
    result = np.where(small, np.float32(-np.inf), logits)
    result[ascending[:-1][below[:-1]]] = -np.inf  # the most likely token always stays
    return result


def min_p(logits: Logits, p: float) -> Logits:
    """Keep tokens at least p times as likely as the most likely one (arXiv 2407.01082)."""
    probabilities = _softmax(logits)
    return np.where(probabilities < np.float32(p) * probabilities.max(), np.float32(-np.inf), logits)


def _softmax(logits: Logits) -> Logits:
    weights = np.exp(logits - logits.max())
    return np.asarray(weights / weights.sum(), np.float32)
