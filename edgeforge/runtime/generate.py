"""Generation: a prompt's ids in, one new id at a time out. Knows no text."""

import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Literal

from .errors import UnusableBundle
from .sampling import Sampler, Sampling
from .session import Decoder, shared_prefix

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOptions:
    """`max_new_tokens` None: as many as fit the context. An id of `eos_token_ids` ends the text and is not yielded."""

    sampling: Sampling
    eos_token_ids: tuple[int, ...] = ()
    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise UnusableBundle(f"max_new_tokens must be at least 1, not {self.max_new_tokens}")

    def limit(self, room: int) -> int:
        """How many new ids there may be, where the context has room for `room`."""
        return room if self.max_new_tokens is None else min(room, self.max_new_tokens)


def generate(
    decoder: Decoder,
    prompt: Sequence[int],
    options: GenerationOptions,
    *,
    vocab_size: int,
    cancel: threading.Event | None = None,
) -> Generator[int, None, FinishReason]:
    """Yield new ids; the generator's return value says why it ended.

    The first step computes the prompt, except for what the cache already holds of it. Prompt and new ids together are
    never longer than the context. Setting `cancel` ends it before the next id.
    """
    sampler = Sampler(options.sampling, prompt, vocab_size)
    limit = options.limit(decoder.context_length - len(prompt))
    shared = shared_prefix(decoder.cached_ids, prompt)
    decoder.rewind(shared)
    pending = prompt[shared:]
    for _ in range(limit):
        if cancel is not None and cancel.is_set():
            return "cancelled"
        token = sampler.choose(decoder.append(pending))
        if token in options.eos_token_ids:
            return "stop"
        yield token
        pending = (token,)
    return "length"
