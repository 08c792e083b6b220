"""What a generation is asked for, and what it yields: token ids, no text."""

from dataclasses import dataclass
from typing import Literal, Protocol

from .constraint import Constraint
from .errors import UnusableBundle
from .sampling import Sampling
from .speculate import Speculation

FinishReason = Literal["stop", "length", "cancelled", "timeout"]
Overflow = Literal["error", "slide"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """How likely the model held a token: natural logarithms, of its raw distribution (before temperature, penalties and
    constraints).

    `alternatives`: the likeliest tokens as (id, log-probability), in order; the chosen one may be among them.
    """

    token_id: int
    logprob: float
    alternatives: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A new token; `logprob` where it was asked for."""

    id: int
    logprob: TokenLogprob | None = None


class Generation(Protocol):
    """One generation on its way. Computes when it is asked for tokens; any thread may ask or cancel."""

    @property
    def reused_tokens(self) -> int:
        """How many tokens of the prompt were known before."""
        ...

    def poll(self) -> Token | FinishReason | None:
        """The next token, or why there is none. None: not yet; what one step computes was computed."""
        ...

    def cancel(self) -> None:
        """No more tokens: what it holds goes to others."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOptions:
    """`max_new_tokens` None: until the text or the context ends. An id of `eos_token_ids` ends the text and is not
    yielded. `logprobs`: how many alternatives a token, None for no log-probabilities at all. `timeout_s` counts from
    the call. `overflow`: what happens where the context is full.
    """

    sampling: Sampling
    eos_token_ids: tuple[int, ...] = ()
    max_new_tokens: int | None = None
    logprobs: int | None = None
    constraint: Constraint | None = None
    timeout_s: float | None = None
    speculation: Speculation | None = None
    overflow: Overflow = "error"

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise UnusableBundle(f"max_new_tokens must be at least 1, not {self.max_new_tokens}")
        if self.logprobs is not None and self.logprobs < 0:
            raise UnusableBundle(f"logprobs must be at least 0, not {self.logprobs}")
        if self.timeout_s is not None and not self.timeout_s > 0:
            raise UnusableBundle(f"timeout_s must be more than 0, not {self.timeout_s}")
        if self.overflow not in ("error", "slide"):
            raise UnusableBundle(f"overflow must be error or slide, not {self.overflow}")

    def limit(self, room: int) -> int:
        """How many new ids there may be, where the context has room for `room`."""
        return room if self.max_new_tokens is None else min(room, self.max_new_tokens)
