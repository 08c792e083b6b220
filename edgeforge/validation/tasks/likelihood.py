"""Log-likelihoods of continuations, from a bundle's logits.

Requests are taken in the order of their tokens, so that those that begin alike follow one another and only what differs
is computed. Those that differ in their last token alone (the letters of a multiple choice) share one row of logits.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from edgeforge.runtime.model import Model

# Bounds the logits of a long text, V values a row, and attention's square beside them.
BLOCK_ROWS = 512

Rows = NDArray[np.float32]  # [R, V]


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuation:
    """The last `count` of `ids` [T], whose likelihood after those before them is asked; 1 <= count < T."""

    ids: tuple[int, ...]
    count: int

    @property
    def inputs(self) -> tuple[int, ...]:
        return self.ids[:-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Likelihood:
    """The sum of log-probabilities in nats, and whether each token was the likeliest."""

    log_probability: float
    is_greedy: bool


NOTHING = Likelihood(log_probability=0.0, is_greedy=True)


def continuation(context: Sequence[int], following: Sequence[int], *, max_length: int) -> Continuation:
    """As lm-eval's transformers backend cuts what is too long: from the left, the model sees `max_length` tokens."""
    ids = tuple([*context, *following][-(max_length + 1) :])
    return Continuation(ids=ids, count=min(len(following), len(ids) - 1))


def likelihoods(model: Model, requests: Sequence[Continuation], answered: Callable[[int, Likelihood], None]) -> None:
    """Calls `answered` with each request's number and result, in the order in which they are computed."""
    order = sorted(range(len(requests)), key=lambda number: requests[number].ids)
    for inputs, alike in groupby(order, key=lambda number: requests[number].inputs):
        found = dict.fromkeys(alike, NOTHING)
        longest = max(requests[number].count for number in found)
        for start, rows in _rows(model, inputs, longest):
            for number, so_far in found.items():
                found[number] = _with(so_far, rows, start, requests[number])
        for number, likelihood in found.items():
            answered(number, likelihood)


def _rows(model: Model, inputs: tuple[int, ...], count: int) -> Iterator[tuple[int, Rows]]:
    """What the model expects after each of the last `count` inputs: blocks of logits, each behind its first input's
    place.
    """
    if count > 1:
        for start in range(len(inputs) - count, len(inputs), BLOCK_ROWS):
            yield start, model.score(inputs[: start + BLOCK_ROWS], first=start)
        return
    # The generation graph has logits for the last token only, which saves the rest of a prompt's: V values a token.
    decoder = model.decoder
    shared = _shared(decoder.cached_ids, inputs)
    decoder.rewind(shared)
    yield len(inputs) - 1, decoder.append(inputs[shared:])[np.newaxis]


def _with(so_far: Likelihood, rows: Rows, start: int, request: Continuation) -> Likelihood:
    """The sum with those of the rows that the request asks for."""
    total, greedy = so_far.log_probability, so_far.is_greedy
    skipped = max(0, len(request.inputs) - request.count - start)
    for row, token in zip(rows[skipped:], request.ids[start + skipped + 1 :], strict=False):
        largest = float(row.max())
        total += float(row[token]) - largest - float(np.log(np.exp(row - largest).sum(dtype=np.float64)))
        greedy = greedy and int(row.argmax()) == token
    return Likelihood(log_probability=total, is_greedy=greedy)


def _shared(cached: Sequence[int], inputs: Sequence[int]) -> int:
    """How many of the first inputs the cache holds, never the last, whose logits are wanted."""
    for position, (have, want) in enumerate(zip(cached, inputs[:-1], strict=False)):
        if have != want:
            return position
    return min(len(cached), len(inputs) - 1)
