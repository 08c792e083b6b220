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

Row = NDArray[np.float32]


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


def continuation(context: Sequence[int], following: Sequence[int], *, max_length: int) -> Continuation:
    """As lm-eval's transformers backend cuts what is too long: from the left, the model sees `max_length` tokens."""
    ids = tuple([*context, *following][-(max_length + 1) :])
    return Continuation(ids=ids, count=min(len(following), len(ids) - 1))


def likelihoods(model: Model, requests: Sequence[Continuation], answered: Callable[[int, Likelihood], None]) -> None:
    """Calls `answered` with each request's number and result, in the order in which they are computed."""
    order = sorted(range(len(requests)), key=lambda number: requests[number].ids)
    for _, alike in groupby(order, key=lambda number: requests[number].inputs):
        numbers = list(alike)
        longest = max(requests[number].count for number in numbers)
        rows = _rows(model, requests[numbers[0]].inputs, longest)
        for number in numbers:
            answered(number, _likelihood(rows, requests[number]))


def _rows(model: Model, inputs: tuple[int, ...], count: int) -> Row:
    """float32 [count, V]: what the model expects after each of the last `count` inputs."""
    if count > 1:
        return model.score(inputs, first=len(inputs) - count)
    # The generation graph has logits for the last token only, which saves the rest of a prompt's: V values a token.
    decoder = model.decoder
    shared = _shared(decoder.cached_ids, inputs)
    decoder.rewind(shared)
    return decoder.append(inputs[shared:])[np.newaxis]


def _likelihood(rows: Row, request: Continuation) -> Likelihood:
    total, greedy = 0.0, True
    for row, token in _targets(rows, request):
        largest = float(row.max())
        total += float(row[token]) - largest - float(np.log(np.exp(row - largest).sum(dtype=np.float64)))
        greedy = greedy and int(row.argmax()) == token
    return Likelihood(log_probability=total, is_greedy=greedy)


def _targets(rows: Row, request: Continuation) -> Iterator[tuple[Row, int]]:
    yield from zip(rows[len(rows) - request.count :], request.ids[-request.count :], strict=True)


def _shared(cached: Sequence[int], inputs: Sequence[int]) -> int:
    """How many of the first inputs the cache holds, never the last, whose logits are wanted."""
    for position, (have, want) in enumerate(zip(cached, inputs[:-1], strict=False)):
        if have != want:
            return position
    return min(len(cached), len(inputs) - 1)
