"""Speculation: cheap guesses at the next tokens, which the model checks all in one run."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import UnusableBundle

if TYPE_CHECKING:
    from .model import Model

# Rows of logits that are bound for one run: the token that is certain, and as many guesses.
MOST_GUESSES = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Speculation:
    """How tokens are guessed, at most `tokens` at a time.

    draft None: prompt lookup. What followed the text's last few tokens where they stood before is guessed to follow
    again; good for answers that repeat their prompt. Else a smaller model of the same vocabulary guesses.
    """

    draft: "Model | None" = None
    tokens: int = 8

    def __post_init__(self) -> None:
        if not 1 <= self.tokens <= MOST_GUESSES:
            raise UnusableBundle(f"speculation guesses 1 to {MOST_GUESSES} tokens at a time, not {self.tokens}")
