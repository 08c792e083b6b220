"""The part of remote files that is at hand: blocks fetched ahead of their readers, kept until they are read again.

Blocks lie in one temporary file without a name, whose pages the operating system keeps as long as it has room for
them: the process's own memory holds only what is on its way. The file has a fixed number of slots; the block that was
not looked at for longest gives way.
"""

import os
import tempfile
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from edgeforge.errors import OutOfResources

BLOCK_BYTES = 8 << 20
"""AWS advises ranges of 8 to 16 MB and a connection for each 85 to 90 MB/s (S3 User Guide, Performance guidelines)."""
CONNECTIONS = 8
AHEAD_BLOCKS = 16
"""How far fetching goes ahead of reading: 128 MB, a tenth of a second at a gigabyte each."""


class Fetched(Protocol):
    """A file whose bytes take a while to come."""

    @property
    def size_bytes(self) -> int: ...

    def fetch(self, start: int, stop: int) -> bytes:
        """Exactly the bytes [start, stop), or an exception."""
        ...


@dataclass(slots=True, eq=False)
class _Block:
    """`slot` and `failure` are set when `done` is; while it has users it stays where it is."""

    done: threading.Event = field(default_factory=threading.Event)
    slot: int = -1
    failure: BaseException | None = None
    users: int = 0
    order: int = 0


_Key = tuple[Fetched, int]


class Window:
    """Blocks of several files. Reading and announcing are safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks: OrderedDict[_Key, _Block] = OrderedDict()
        self._wanted: deque[_Key] = deque()
        self._fetchers = 0
        self._begun = 0  # blocks whose fetching began
        self._reached = 0  # the latest of those that a reader came to
        self._free: list[int] = []
        self._slots = 0
        self._least = AHEAD_BLOCKS + 2 * CONNECTIONS
        self._capacity = self._least
        self._descriptor: int | None = None

    def keep(self, size_bytes: int) -> None:
        """So many bytes stay at hand besides those that are fetched ahead."""
        with self._lock:
            self._capacity = max(self._capacity, self._least + -(-size_bytes // BLOCK_BYTES))

    def announce(self, file: Fetched, offset: int, size_bytes: int) -> None:
        """Fetch these bytes after those announced before, a little ahead of the readers."""
        with self._lock:
            known = set(self._wanted)
            keys = ((file, number) for number in _numbers(offset, size_bytes))
            self._wanted.extend(key for key in keys if key not in self._blocks and key not in known)
            self._start_fetchers()

    def read(self, file: Fetched, offset: int, view: memoryview) -> None:
        """Fill `view` from byte `offset` of the file; raises what fetching raised."""
        while view:
            number, within = divmod(offset, BLOCK_BYTES)
            part = view[: BLOCK_BYTES - within]
            with self._held((file, number)) as slot:
                _read_fully(self._opened(), part, slot * BLOCK_BYTES + within)
            view, offset = view[len(part) :], offset + len(part)

    @contextmanager
    def _held(self, key: _Key) -> Iterator[int]:
        """The slot of a block, which stays in it meanwhile."""
        with self._lock:
            block, fresh = self._blocks.get(key), False
            if block is None:
                block, fresh = self._begin(key), True
            block.users += 1
            self._blocks.move_to_end(key)
            self._reached = max(self._reached, block.order)
            self._start_fetchers()
        try:
            if fresh:
                self._fetch(key, block)
            block.done.wait()
            if block.failure is not None:
                raise block.failure
            yield block.slot
        finally:
            with self._lock:
                block.users -= 1

    def _begin(self, key: _Key) -> _Block:
        """The lock is held."""
        if key in self._wanted:
            self._wanted.remove(key)
        self._begun += 1
        block = self._blocks[key] = _Block(order=self._begun)
        return block

    def _start_fetchers(self) -> None:
        """The lock is held. Fetchers end when there is nothing to do, and never keep a process from ending."""
        room = self._reached + AHEAD_BLOCKS - self._begun - self._fetchers
        for _ in range(min(len(self._wanted), CONNECTIONS - self._fetchers, room)):
            self._fetchers += 1
            threading.Thread(target=self._fetch_ahead, name="fetch", daemon=True).start()

    def _fetch_ahead(self) -> None:
        while True:
            with self._lock:
                if not self._wanted or self._begun - self._reached >= AHEAD_BLOCKS:
                    self._fetchers -= 1
                    return
                key = self._wanted[0]
                block = self._begin(key)
            self._fetch(key, block)

    def _fetch(self, key: _Key, block: _Block) -> None:
        """Never raises: whoever waits for the block does."""
        file, number = key
        start = number * BLOCK_BYTES
        try:
            content = file.fetch(start, min(start + BLOCK_BYTES, file.size_bytes))
            with self._lock:
                slot = self._slot()
            try:
                _write_fully(self._opened(), content, slot * BLOCK_BYTES)
            except BaseException:
                with self._lock:
                    self._free.append(slot)
                raise
            block.slot = slot
        except BaseException as failure:
            block.failure = failure
            with self._lock:
                del self._blocks[key]
        finally:
            block.done.set()

    def _slot(self) -> int:
        """A slot to write to; the lock is held. More than the capacity are made where readers hold all of them."""
        if self._free:
            return self._free.pop()
        if self._slots >= self._capacity:
            for key, block in self._blocks.items():
                if block.slot >= 0 and not block.users:
                    del self._blocks[key]
                    return block.slot
        self._slots += 1
        return self._slots - 1

    def _opened(self) -> int:
        with self._lock:
            if self._descriptor is None:
                try:
                    with tempfile.TemporaryFile() as file:
                        self._descriptor = os.dup(file.fileno())
                except OSError as error:
                    raise _no_room(error) from error
                weakref.finalize(self, os.close, self._descriptor)
            return self._descriptor


def _numbers(offset: int, size_bytes: int) -> range:
    return range(offset // BLOCK_BYTES, -(-(offset + size_bytes) // BLOCK_BYTES))


def _read_fully(descriptor: int, view: memoryview, offset: int) -> None:
    while view:
        count = os.preadv(descriptor, [view], offset)
        view, offset = view[count:], offset + count


def _write_fully(descriptor: int, content: bytes, offset: int) -> None:
    view = memoryview(content)
    try:
        while view:
            count = os.pwrite(descriptor, view, offset)
            view, offset = view[count:], offset + count
    except OSError as error:
        raise _no_room(error) from error


def _no_room(error: OSError) -> OutOfResources:
    return OutOfResources(
        f"what was fetched of the model cannot be kept in {tempfile.gettempdir()}: {error.strerror}",
        hint="free some space, or set TMPDIR to a folder on a larger disk",
    )
