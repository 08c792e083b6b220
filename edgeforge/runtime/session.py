"""One sequence at a time: token ids in, logits of the last token out (`SlotDecoder`), or of every token (`Scorer`)."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .errors import UnusableBundle
from .slots import PREFILL_CHUNK, Caches, check_room, shared_prefix


class Decoder(Protocol):
    """What one needs to know of a model to step through it: ids go in, logits come out, the cache can be cut back."""

    @property
    def context_length(self) -> int: ...
    @property
    def cached_ids(self) -> Sequence[int]:
        """The tokens whose keys and values are in the cache."""
        ...

    def append(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Feed ids (at least one); logits float32 [V] of the last, valid until the next call."""
        ...

    def rewind(self, length: int) -> None:
        """Forget everything but the first `length` tokens."""
        ...


class SlotDecoder:
    """A `Decoder` over the first slot of caches that nobody else uses."""

    def __init__(self, caches: Caches) -> None:
        self._caches = caches

    @property
    def context_length(self) -> int:
        return self._caches.positions

    @property
    def cached_ids(self) -> Sequence[int]:
        return self._caches.ids[0]

    def append(self, ids: Sequence[int]) -> NDArray[np.float32]:
        check_room(len(self.cached_ids) + len(ids), self.context_length)
        if not ids:
            raise UnusableBundle("there are no tokens to run the model on", hint="give it a text that is not empty")
        for start in range(0, len(ids), PREFILL_CHUNK):
            logits = self._caches.feed(0, [ids[start : start + PREFILL_CHUNK]])
        last: NDArray[np.float32] = logits[0, 0]
        return last

    def rewind(self, length: int) -> None:
        self._caches.rewind(0, length)


class Scorer:
    """Logits of every token, for measuring. The cache stays between calls, for those that need not all rows."""

    def __init__(self, caches: Caches) -> None:
        self._caches = caches

    def score(self, ids: Sequence[int], first: int = 0) -> NDArray[np.float32]:
        """float32 [T - first, V]: row t holds the logits for token first + t + 1. At most context_length ids.

        Of the tokens before `first`, those that the last call began with, too, are not computed again.
        """
        check_room(len(ids), self._caches.positions)
        known = shared_prefix(self._caches.ids[0], ids[:first])
        self._caches.rewind(0, known)
        for start in range(known, first, PREFILL_CHUNK):
            self._caches.feed(0, [ids[start : min(start + PREFILL_CHUNK, first)]])
        rows: NDArray[np.float32] = self._caches.feed(0, [ids[first:]], len(ids) - first, own=True)[0]
        return rows
