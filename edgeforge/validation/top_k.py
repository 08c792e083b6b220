"""What is kept of the reference's answers, and the divergence from that: 600 bytes a token instead of 200,000.

Of a next-token distribution p are kept its TOP_K likeliest tokens, the mass P of all others (the tail), and DRAWN
tokens of the tail, drawn in proportion to p with a fixed seed; each with its logit, beside the logarithm of the sum of
exponentials, so that log p is as exact as the logits were. With Q the candidate's mass on the same tail,

    D(p || q) = sum_top p (log p - log q) + P log(P / Q) + P D(p / P || q / Q)

Without the last term this is a lower bound (the log-sum inequality), and a poor one: SmolLM2-135M spreads its mass, and
of the divergence of a 4-bit build (round-to-nearest, of the shuffled demo, on WikiText-2) 16 tokens of 49,152 miss
28.4 %, 64 miss 16.4 %, 256 miss 8.2 %, 1,024 miss 3.2 %. The drawn tokens estimate the last term as the mean of
r - 1 - log r, r = (q / Q) / (p / P), which is never negative and right on average, since r is 1 on average (J.
Schulman, Approximating KL Divergence, 2020). A single token's divergence is then off by about a tenth of the mean,
either way, and the mean over n tokens by a tenth / sqrt(n) of itself: 0.3 % of 1,024. How large the divergence is does
not matter: the standard deviation of a token's error was 0.099 of the mean for the shuffled demo at 4 bits (0.34 nats),
0.089 at 8 bits (0.0073), 0.082 for the demo (0.0035), 0.072 in float16 (1.5e-5) and 0.069 in float32 (1.4e-11). What
matters is how much of the divergence lies in the tail, about a fifth in all of these: of stories260k, whose 512 tokens
leave little of one, the mean is 0.002 % off.

Shape letters: S scored tokens, V vocabulary, K tokens kept (top, then drawn).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeforge.validation.statistics import BLOCK_ELEMENTS, TokenValues, join, shifted

TOP_K = 64
DRAWN = 32
SEED = 20_261_126
TOKEN_ERROR = 0.1  # standard deviation of a token's error, over the mean divergence
SMALLEST = 1e-300  # a mass below float64's numbers; its logarithm is -691 rather than infinite

Logits = NDArray[np.float32]
Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """The reference's answers at S scored tokens.

    ids uint16 or uint32 [S, K], logits float32 [S, K]: the `top_k` likeliest in any order, then drawn ones (none where
    the top is the vocabulary). log_sum float64 [S]: of all V exponentials. tail float64 [S]: P. nll float64 [S]: of
    the true next token. top int64 [S]: the likeliest token, the lowest id of a tie.
    """

    top_k: int
    ids: NDArray[np.unsignedinteger]
    logits: Logits
    log_sum: Values
    tail: Values
    nll: Values
    top: NDArray[np.int64]

    @property
    def bytes_per_token(self) -> float:
        """What a scored token takes."""
        arrays = (self.ids, self.logits, self.log_sum, self.tail, self.nll, self.top)
        return sum(array.nbytes for array in arrays) / len(self.top)


def kept_note(vocabulary: int, tokens: int) -> str:
    """What a report over so many scored tokens says of it."""
    if vocabulary <= TOP_K:
        return "Divergence was computed from whole distributions."
    return (
        f"Divergence was computed from the reference's {TOP_K} likeliest tokens at each position, the mass of all "
        f"others and {DRAWN} tokens drawn from them. Drawing moves a mean over {tokens:,} tokens by about "
        f"{100 * TOKEN_ERROR / math.sqrt(tokens):.2g} % of itself, either way."
    )


def keep(logits: Logits, targets: NDArray[np.int64], *, top_k: int = TOP_K, drawn: int = DRAWN) -> Kept:
    """What is kept of logits [S, V], where `targets` [S] really came next. Raises NonFiniteLogitsError."""
    rows, vocabulary = logits.shape
    top_k = min(top_k, vocabulary)
    drawn = drawn if top_k < vocabulary else 0
    places: Values = np.random.default_rng(SEED).random((rows,))
    step = max(1, BLOCK_ELEMENTS // vocabulary)
    blocks = [
        _keep_block(logits[at : at + step], targets[at : at + step], places[at : at + step], top_k, drawn, at)
        for at in range(0, rows, step)
    ]
    return Kept(
        top_k=top_k,
        ids=np.concatenate([block.ids for block in blocks]),
        logits=np.concatenate([block.logits for block in blocks]),
        log_sum=np.concatenate([block.log_sum for block in blocks]),
        tail=np.concatenate([block.tail for block in blocks]),
        nll=np.concatenate([block.nll for block in blocks]),
        top=np.concatenate([block.top for block in blocks]),
    )


def _keep_block(logits: Logits, targets: NDArray[np.int64], places: Values, top_k: int, drawn: int, start: int) -> Kept:
    x, top = shifted(logits, "reference", start)
    rows = np.arange(len(targets))
    log_sum = np.log(np.exp(x).sum(axis=1))
    nll = log_sum - x[rows, targets]
    p = np.exp(np.subtract(x, log_sum[:, None], out=x), out=x)
    vocabulary = logits.shape[1]
    ids = np.argpartition(logits, vocabulary - top_k, axis=1)[:, vocabulary - top_k :]
    np.put_along_axis(p, ids, 0.0, axis=1)
    tail = p.sum(axis=1)
    if drawn:
        ids = np.concatenate([ids, _draw(p, places, drawn)], axis=1)
    return Kept(
        top_k=top_k,
        ids=ids.astype(np.uint16 if vocabulary <= 1 << 16 else np.uint32),
        logits=np.take_along_axis(logits, ids, axis=1),
        log_sum=log_sum + logits[rows, top],
        tail=tail,
        nll=nll,
        top=top,
    )


def _draw(tail: Values, places: Values, drawn: int) -> NDArray[np.int64]:
    """`drawn` ids a row, in proportion to tail [S, V]: at even steps through its running sum, from a random place."""
    running = np.cumsum(tail, axis=1)
    total = np.nextafter(running[:, -1:], 0.0)
    at = np.minimum((places[:, None] + np.arange(drawn)) / drawn * running[:, -1:], total)
    ids = np.stack([np.searchsorted(row, where, side="right") for row, where in zip(running, at, strict=True)])
    within: NDArray[np.int64] = np.minimum(ids, tail.shape[1] - 1)
    return within  # only of a tail without mass, which weighs nothing


def compare_kept(kept: Kept, candidate: Logits, targets: NDArray[np.int64]) -> TokenValues:
    """Per-token values of the candidate's logits [S, V], block by block. Raises NonFiniteLogitsError, ValueError."""
    rows, vocabulary = candidate.shape
    if kept.top.shape != (rows,) or targets.shape != (rows,):
        raise ValueError(f"answers to {len(kept.top)} tokens, logits {candidate.shape} for {targets.shape} tokens")
    step = max(1, BLOCK_ELEMENTS // vocabulary)
    return join(
        [_compare_block(kept, candidate[at : at + step], targets[at : at + step], at) for at in range(0, rows, step)]
    )


def _compare_block(kept: Kept, candidate: Logits, targets: NDArray[np.int64], start: int) -> TokenValues:
    part = slice(start, start + len(targets))
    y, y_top = shifted(candidate, "candidate", start)
    ids = kept.ids[part].astype(np.int64)
    y_kept, y_target = np.take_along_axis(y, ids, axis=1), y[np.arange(len(y)), targets]
    exponentials = np.exp(y, out=y)
    y_log_sum = np.log(exponentials.sum(axis=1))
    np.put_along_axis(exponentials, ids[:, : kept.top_k], 0.0, axis=1)
    log_q_tail = np.log(np.maximum(exponentials.sum(axis=1), SMALLEST)) - y_log_sum
    log_p = kept.logits[part] - kept.log_sum[part, None]
    log_q = y_kept - y_log_sum[:, None]
    divergence = _top_and_tail(log_p, log_q, kept.tail[part], log_q_tail, kept.top_k)
    return TokenValues(
        reference_nll=kept.nll[part],
        candidate_nll=y_log_sum - y_target,
        kl_divergence=np.maximum(divergence, 0.0),  # never negative but for rounding
        same_top=kept.top[part] == y_top,
    )


def _top_and_tail(log_p: Values, log_q: Values, tail: Values, log_q_tail: Values, top_k: int) -> Values:
    """D [S] from log-probabilities of what was kept, log_p and log_q [S, K], and both masses of the tail."""
    p, q = log_p[:, :top_k], log_q[:, :top_k]
    top = (np.exp(p) * (p - q)).sum(axis=1)
    log_tail = np.log(np.maximum(tail, SMALLEST))
    within = log_tail - log_q_tail
    if log_p.shape[1] > top_k:
        log_r = (log_q - log_p)[:, top_k:] + within[:, None]
        within = within + (np.exp(log_r) - 1 - log_r).mean(axis=1)
    divergence: Values = top + np.where(tail > 0, tail * within, 0.0)
    return divergence
