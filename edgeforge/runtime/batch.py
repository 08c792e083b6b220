"""Continuous batching: sequences that join and leave at any token, computed together by whoever waits for one of them.

There is no thread behind it. A reader whose next token is not there takes a step for all: a piece of the oldest prompt
that is not read yet, then one token for every sequence. The others wait for the step's end, and read. Who comes when
all slots are taken waits in order; a sequence whose reader is far behind gives its slot up, and is computed on when it
is asked for again.
"""

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from .prefix import PrefixTree
from .request import Request
from .slots import PREFILL_CHUNK, Caches, Slots, shared_prefix

# Of a prompt, where others wait for their next token meanwhile.
SHARED_PREFILL_CHUNK = 128
# Of a prompt, the last tokens are computed though they be known: the last one's logits are needed, and it is not run
# alone, but in one run with others as if nothing were known.
KEPT_BACK = 2


class Batch:
    """As many sequences at once as `caches` has slots.

    onnxruntime's kernels round a run of one token otherwise than a run of several, whose results do not depend on how
    many they are. Int8 activations make that a visible difference. `exact`: no run of a single token, so that an answer
    is the same, bit for bit, whatever was known before, was guessed, or is computed beside it. Each step then feeds a
    sequence's last two tokens, and sequences are not computed in one run.
    """

    def __init__(self, caches: Caches, prefix_cache_bytes: int, *, exact: bool) -> None:
        self._caches = caches
        self._exact = exact
        # Keys and values can be kept and shared where they can be copied.
        self._slots = caches if isinstance(caches, Slots) and caches.copies else None
        self._tree = PrefixTree(prefix_cache_bytes)
        self._arrived: deque[Request] = deque()
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []
        self._is_stepping = False
        self._stepped = threading.Condition()

    def advance(self, request: Request) -> None:
        """Take a step, in which `request` takes part when it is its turn; or wait until another's step is over."""
        with self._stepped:
            if not request.is_enlisted:
                request.is_enlisted = True
                self._arrived.append(request)
            if self._is_stepping:
                self._stepped.wait()
                return
            self._is_stepping = True
        try:
            self._step()
        finally:
            with self._stepped:
                self._is_stepping = False
                self._stepped.notify_all()

    def _step(self) -> None:
        while self._arrived:
            self._waiting.append(self._arrived.popleft())
        for request in (*self._running, *self._waiting):
            request.settle()
        self._running = [request for request in self._running if request.outcome is None]
        self._waiting = deque(request for request in self._waiting if request.outcome is None)
        self._admit()
        self._read_a_prompt()
        self._decode()
        self._running = [request for request in self._running if request.outcome is None]

    # who has which slot

    def _admit(self) -> None:
        while self._waiting:
            slot = self._free_slot(self._waiting[0].ids)
            if slot is None:
                return
            request = self._waiting.popleft()
            request.slide()
            request.slot = slot
            with _blaming(request):
                self._cut(slot, shared_prefix(self._caches.ids[slot], request.ids[:-KEPT_BACK]))
                self._running.append(request)

    def _free_slot(self, ids: Sequence[int]) -> int | None:
        """The free slot whose tokens `ids` begin with; one that was in use before rather than more memory."""
        taken = {request.slot for request in self._running}
        held = self._caches.ids
        free = [slot for slot in range(len(held)) if slot not in taken]
        if not free:
            behind = next((request for request in self._running if request.is_behind), None)
            if behind is None:
                return None
            free = [self._give_up(behind)]
        if self._slots is not None:
            free = [slot for slot in free if held[slot]] or free[:1]
        return max(free, key=lambda slot: (shared_prefix(held[slot], ids), -len(held[slot])))

    def _give_up(self, request: Request) -> int:
        """Take the slot from a request, which comes again when its reader does."""
        slot, request.slot = _slot(request), None
        request.is_enlisted = request.has_begun = False
        self._running.remove(request)
        return slot

    def _cut(self, slot: int, kept: int) -> None:
        """Forget what follows a slot's first `kept` tokens; the tree remembers it."""
        slots, ids = self._slots, self._caches.ids[slot]
        if slots is not None and len(ids) > kept:
            self._tree.insert(ids, lambda start, stop: slots.read(slot, start, stop))
        self._caches.rewind(slot, kept)

    def _recall(self, request: Request, slot: int) -> None:
        """Copy what another slot or the tree knows of a prompt that is about to be read, beyond what its slot has."""
        if self._slots is not None:
            slots, wanted, kept = self._slots, request.ids[:-KEPT_BACK], len(self._slots.ids[slot])
            shares = [shared_prefix(ids, wanted) for ids in slots.ids]
            pieces = self._tree.find(wanted)
            known = sum(len(ids) for ids, _ in pieces)
            if max(shares) > max(kept, known):
                slots.copy(shares.index(max(shares)), slot, kept, max(shares))
            elif known > kept:
                at = 0
                for ids, values in pieces:
                    skipped = max(len(slots.ids[slot]) - at, 0)
                    if skipped < len(ids):
                        slots.write(slot, ids[skipped:], values[:, :, skipped:])
                    at += len(ids)
        request.begin(known=len(self._caches.ids[slot]))

    def _close_ranks(self, slots: Slots, requests: Sequence[Request]) -> None:
        """Move the sequences that are decoded together side by side: one run computes a range of slots."""
        taken = {_slot(request) for request in self._running}
        while True:
            last = max(requests, key=_slot)
            inner = range(min(map(_slot, requests)), _slot(last))
            hole = next((slot for slot in inner if slot not in taken), None)
            if hole is None:
                return
            self._cut(hole, 0)
            slots.copy(_slot(last), hole, 0, len(slots.ids[_slot(last)]))
            slots.rewind(_slot(last), 0)
            taken = taken - {_slot(last)} | {hole}
            last.slot = hole

    # computing

    def _missing(self, request: Request) -> list[int]:
        """The tokens that must be fed before the next one can be chosen; more than one: its prompt is not read yet."""
        held = self._caches.ids[_slot(request)]
        if request.slide():
            self._caches.rewind(_slot(request), shared_prefix(held, request.ids[:-1]))
        if len(held) >= len(request.ids):  # a step was interrupted behind the run
            self._caches.rewind(_slot(request), len(request.ids) - 1)
        return request.ids[len(held) :]

    def _read_a_prompt(self) -> None:
        """A piece of the oldest prompt that is not read yet; its first token, where that was the last piece."""
        for request in self._running:
            if len(self._missing(request)) > 1:
                with _blaming(request):
                    self._read_a_piece(request)
                return

    def _read_a_piece(self, request: Request) -> None:
        if not request.has_begun:
            self._recall(request, _slot(request))
        missing = self._missing(request)
        size = PREFILL_CHUNK if len(self._running) == 1 else SHARED_PREFILL_CHUNK
        piece = missing[: size - (len(missing) == size + 1)]  # no last piece of a single token
        logits = self._feed(request, piece)
        if len(piece) == len(missing):
            request.take(logits, ())

    def _decode(self) -> None:
        """A token for every sequence that has its prompt read; more where guesses come true."""
        together = []
        for request in self._running:
            if request.outcome is not None or request.is_behind or len(self._missing(request)) > 1:
                continue
            guesses: list[int] = []
            with _blaming(request):
                guesses = request.guess() if self._caches.rows > 1 else []
                if guesses or self._exact:
                    self._verify(request, guesses)
            if not guesses and not self._exact and request.outcome is None:
                together.append(request)
        if together:
            with _blaming(*together):
                self._decode_together(together)

    def _verify(self, request: Request, guesses: Sequence[int]) -> None:
        """Compute what follows the last token and each guess, in a run of its own."""
        tokens = request.ids[-1:]
        if not guesses:
            tokens = request.ids[-2:]
            self._caches.rewind(_slot(request), len(request.ids) - len(tokens))
        request.take(self._feed(request, [*tokens, *guesses], 1 + len(guesses)), guesses)
        self._caches.rewind(_slot(request), len(request.ids) - 1)

    def _decode_together(self, requests: Sequence[Request]) -> None:
        if self._slots is not None:
            self._close_ranks(self._slots, requests)
        by_slot = {_slot(request): request for request in requests}
        first, last = min(by_slot), max(by_slot)
        rows = [by_slot[slot].ids[-1:] if slot in by_slot else [] for slot in range(first, last + 1)]
        logits = self._caches.feed(first, rows)
        for slot, request in by_slot.items():
            with _blaming(request):
                request.take(logits[slot - first], ())

    def _feed(self, request: Request, tokens: Sequence[int], wanted: int = 1) -> NDArray[np.float32]:
        """Logits float32 [wanted, V] of the last tokens."""
        logits: NDArray[np.float32] = self._caches.feed(_slot(request), [tokens], wanted)[0]
        return logits


def _slot(request: Request) -> int:
    assert request.slot is not None, "it runs"
    return request.slot


@contextmanager
def _blaming(*requests: Request) -> Iterator[None]:
    """What goes wrong inside ends these requests, and is raised where they are read: whoever steps, steps for all."""
    try:
        yield
    except Exception as error:
        for request in requests:
            request.outcome = error
