"""Speculation: cheap guesses at the next tokens, which the model checks all in one run.

Prompt lookup is by Saxena (2023, github.com/apoorvumang/prompt-lookup-decoding), draft models by Leviathan et al.
(arXiv 2211.17192). A guess is certain to its guesser, so that their rejection sampling comes down to this: choose a
token as ever, and go on while it is the guessed one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from .errors import UnusableBundle
from .slots import KEPT_ROWS, shared_prefix

if TYPE_CHECKING:
    from .model import Model
    from .session import Decoder

# How many of the text's last tokens are looked up, the more the better the guess.
LOOKED_UP = (4, 3, 2)


class Guesser(Protocol):
    def guess(self, ids: Sequence[int], count: int) -> list[int]:
        """At most `count` tokens that may follow `ids`, a text that grows from call to call."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Speculation:
    """How tokens are guessed, at most `tokens` at a time.

    draft None: prompt lookup. What followed the text's last few tokens where they stood before is guessed to follow
    again; good for answers that repeat their prompt. Else a smaller model of the same vocabulary guesses.
    """

    draft: "Model | None" = None
    tokens: int = 8

    def __post_init__(self) -> None:
        if not 1 <= self.tokens < KEPT_ROWS:
            raise UnusableBundle(f"speculation guesses 1 to {KEPT_ROWS - 1} tokens at a time, not {self.tokens}")

    def guesser(self) -> Guesser:
        """One for a text of its own."""
        return PromptLookup() if self.draft is None else DraftModel(self.draft.new_decoder())


class PromptLookup:
    """Remembers where each run of a few tokens stood last."""

    def __init__(self) -> None:
        self._followed_at: dict[tuple[int, ...], int] = {}
        self._known = 0

    def guess(self, ids: Sequence[int], count: int) -> list[int]:
        self._learn(ids)
        for length in LOOKED_UP:
            at = self._followed_at.get(tuple(ids[-length:]))
            if at is not None:
                return list(ids[at : at + count])
        return []

    def _learn(self, ids: Sequence[int]) -> None:
        """Note what precedes each new token, all but the text's end."""
        if len(ids) < self._known:  # the context slid
            self._followed_at.clear()
            self._known = 0
        for at in range(self._known, len(ids)):
            for length in LOOKED_UP:
                if at >= length:
                    self._followed_at[tuple(ids[at - length : at])] = at
        self._known = len(ids)


class DraftModel:
    """Has a model of its own continue the text, greedily."""

    def __init__(self, decoder: "Decoder") -> None:
        self._decoder = decoder

    def guess(self, ids: Sequence[int], count: int) -> list[int]:
        known = min(shared_prefix(self._decoder.cached_ids, ids), len(ids) - 1)
        self._decoder.rewind(known)
        guesses: list[int] = []
        pending = ids[known:]
        while len(guesses) < min(count, self._decoder.context_length - len(ids)):
            guesses.append(int(self._decoder.append(pending).argmax()))
            pending = guesses[-1:]
        return guesses
