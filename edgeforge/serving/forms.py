"""What the two endpoints share: a form reads a request, opens its answers, and tells them as OpenAI's objects."""

import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from edgeforge.runtime.constraint import Constraint
from edgeforge.runtime.model import Model
from edgeforge.runtime.stream import Chunk, Stream
from edgeforge.serving.problems import Refusal
from edgeforge.serving.requests import AnswerRequest
from edgeforge.serving.responses import Answer, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """The model behind the interface: the name it goes by, and a fingerprint of its files."""

    model: Model
    name: str
    fingerprint: str
    started: int = field(default_factory=lambda: int(time.time()))


class Form(Protocol):
    """One request to one endpoint. `open` may take long and blocks; the others do not."""

    @property
    def answers(self) -> int:
        """How many answers are asked for."""
        ...

    @property
    def answers_per_prompt(self) -> int: ...

    @property
    def request(self) -> AnswerRequest: ...

    @property
    def is_constrained(self) -> bool:
        """Whether answers are held to a form, which may turn out too complex to follow."""
        ...

    def open(self, *, timeout_s: float) -> list[Stream]:
        """The answers, not yet begun. Raises Refusal and BundleError for what cannot be answered."""
        ...

    def take(self, index: int, chunk: Chunk) -> Iterator[Answer]:
        """The objects that a stream tells for a chunk of answer `index`; also remembers it for `whole`."""
        ...

    def whole(self, usage: Usage) -> Answer:
        """The object of a request that is not streamed."""
        ...

    def closing(self, usage: Usage) -> Answer:
        """A stream's last object, with the usage."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What every object of one request has in common."""

    id: str
    created: int
    model: str
    fingerprint: str

    @staticmethod
    def of(served: Served, prefix: str) -> "Head":
        return Head(
            id=f"{prefix}{secrets.token_hex(12)}",
            created=int(time.time()),
            model=served.name,
            fingerprint=served.fingerprint,
        )


def open_stream(
    model: Model,
    request: AnswerRequest,
    ids: Sequence[int],
    *,
    number: int,
    max_new_tokens: int | None,
    logprobs: int | None,
    constraint: Constraint | None,
    timeout_s: float,
) -> Stream:
    """Answer `number` (0 ... n - 1) to a prompt, as the request wants it."""
    return model.generate(
        ids,
        max_new_tokens=max_new_tokens,
        temperature=request.temperature,
        top_k=request.top_k,
        top_p=request.top_p,
        min_p=request.min_p,
        repetition_penalty=request.repetition_penalty,
        seed=None if request.seed is None else (request.seed + number) % 2**64,
        stop=_stops(request),
        logprobs=logprobs,
        constraint=constraint,
        timeout_s=timeout_s,
    )


def check_length(model: Model, ids: Sequence[int], *, param: str) -> None:
    """Raises Refusal for a prompt that the context cannot hold."""
    if len(ids) > model.context_length:
        raise Refusal(
            400,
            f"this model's context is {model.context_length} tokens, and the prompt has {len(ids)}",
            param=param,
            code="context_length_exceeded",
        )


def ended(chunk: Chunk) -> Literal["stop", "length"] | None:
    """Why the answer ended, in OpenAI's words: what was cut short, by whatever, is `length`."""
    if chunk.finish_reason is None:
        return None
    return "stop" if chunk.finish_reason == "stop" else "length"


def _stops(request: AnswerRequest) -> tuple[str, ...]:
    match request.stop:
        case None:
            return ()
        case str(one):
            return (one,)
        case many:
            return tuple(many)
