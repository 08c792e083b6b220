"""One generation that is computed together with others: its text so far, its sampler, what nobody has read yet."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from .generate import FinishReason, GenerationOptions, Token, TokenLogprob
from .sampling import Sampler, logprobs
from .speculate import Guesser

# A reader that is so many tokens behind is not computed for.
AHEAD = 64
# What a sliding context keeps of the text's beginning: attention leans on the first few tokens (arXiv 2309.17453).
FIRST_KEPT = 4


class Request:
    """A `generate.Generation` that a `batch.Batch` computes.

    `ids` is the prompt and what was chosen after it; `slot` holds their keys and values, while there is one. `outcome`
    says why there will be no more tokens, or what went wrong.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        options: GenerationOptions,
        cancel: threading.Event,
        *,
        advance: Callable[["Request"], None],
        context_length: int,
        vocab_size: int,
    ) -> None:
        self.ids = list(prompt)
        self.slot: int | None = None
        self.is_enlisted = False
        self.has_begun = False
        self.reused_tokens = 0
        self.outcome: FinishReason | Exception | None = None
        self._options = options
        self._context_length = context_length
        self._advance = advance
        self._cancel = cancel
        self._given_up = False
        self._deadline = None if options.timeout_s is None else time.monotonic() + options.timeout_s
        self._unread: deque[Token] = deque()
        self._sampler = Sampler(options.sampling, prompt, vocab_size)
        self._count = 0
        self._limit = options.max_new_tokens
        if options.overflow == "error":
            self._limit = options.limit(context_length - len(prompt))
        self._guesser: Guesser | None = None
        self._guesses = 0

    def poll(self) -> Token | FinishReason | None:
        if self._limit == 0:
            return "length"
        told = self._told()
        if told is None:
            self._advance(self)
            told = self._told()
        return told

    def cancel(self) -> None:
        self._given_up = True

    def begin(self, *, known: int) -> None:
        """Its prompt is read from now on, but for `known` tokens."""
        self.has_begun = True
        if self._count == 0:
            self.reused_tokens = known

    @property
    def is_behind(self) -> bool:
        """Whether its reader has enough to read."""
        return len(self._unread) >= AHEAD

    def settle(self) -> None:
        """Find out whether it was cancelled, or its time is over."""
        if self.outcome is None:
            if self._given_up or self._cancel.is_set():
                self.outcome = "cancelled"
            elif self._deadline is not None and time.monotonic() > self._deadline:
                self.outcome = "timeout"

    def slide(self) -> bool:
        """Where the context is full, and the caller has it slide: forget the text between its first tokens and its
        newer half. Returns whether it did.
        """
        if len(self.ids) < self._context_length or self._options.overflow == "error":
            return False
        first = min(FIRST_KEPT, self._context_length // 4)
        self.ids = [*self.ids[:first], *self.ids[first - self._context_length // 2 :]]
        return True

    def guess(self) -> list[int]:
        """Tokens that may come next, as many as are worth checking; none without speculation."""
        speculation = self._options.speculation
        room = self._context_length - len(self.ids) - 1  # one token comes without a guess
        if self._limit is not None:
            room = min(room, self._limit - self._count - 1)
        if speculation is None or room < 1:
            return []
        if self._guesser is None:
            self._guesser, self._guesses = speculation.guesser(), speculation.tokens
        return self._guesser.guess(self.ids, min(self._guesses, room))

    def take(self, logits: NDArray[np.float32], guesses: Sequence[int]) -> None:
        """Choose the next tokens, with logits [1 + guesses, V] after the last token and after each guess.

        A chosen token that was guessed has its successor's logits already. Tokens are chosen as they would be one by
        one, so that greedy answers are the same and sampled ones have the same distribution.
        """
        taken = 0
        for row, guess in zip(logits, [*guesses, None], strict=True):
            if self._choose(row) != guess:
                break
            taken += 1
        if guesses and self._options.speculation is not None:
            grown = 2 * taken if taken == len(guesses) else taken + 1
            self._guesses = min(grown, self._options.speculation.tokens)

    def _choose(self, logits: NDArray[np.float32]) -> int | None:
        constraint = self._options.constraint
        token = self._sampler.choose(logits, None if constraint is None else constraint.mask())
        if token in self._options.eos_token_ids:
            self.outcome = "stop"
            return None
        self.ids.append(token)
        self._count += 1
        self._unread.append(Token(id=token, logprob=self._logprob(logits, token)))
        if constraint is not None:
            constraint.accept(token)
            if constraint.finished:
                self.outcome = "stop"
        if self._count == self._limit:
            self.outcome = "length"
        return None if self.outcome is not None else token

    def _logprob(self, logits: NDArray[np.float32], token: int) -> TokenLogprob | None:
        if self._options.logprobs is None:
            return None
        told = logprobs(logits, token, self._options.logprobs)
        alternatives = tuple((each.token, each.logprob) for each in told.likeliest)
        return TokenLogprob(token_id=token, logprob=told.chosen.logprob, alternatives=alternatives)

    def _told(self) -> Token | FinishReason | None:
        self.settle()
        if self.outcome == "cancelled":
            return self.outcome
        if self._unread:
            return self._unread.popleft()
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome
