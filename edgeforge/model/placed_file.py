"""A file at its final size whose parts are known before they are written: rows come in any order, from any thread."""

import hashlib
import os
import threading
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """Bytes [offset, offset + size) of `file`, a name in the folder of weights, and their SHA-256 in hex."""

    file: str
    offset: int
    size: int
    sha256: str


class PlacedFile:
    """An open file and its slots, (byte offset, size) by name. It knows how much of each is still missing.

    What an earlier process wrote is told with `keep`. Bytes count once: a slot that gets more than its size, or less,
    fails `check_complete`.
    """

    def __init__(self, descriptor: int, name: str, slots: Mapping[str, tuple[int, int]]) -> None:
        self._descriptor = descriptor
        self._name = name
        filled = {slot: place for slot, place in slots.items() if place[1]}  # an empty one shares its offset
        self._starts = sorted((offset, slot) for slot, (offset, _) in filled.items())
        self._missing_bytes = {slot: size for slot, (_, size) in filled.items()}
        self._lock = threading.Lock()

    def write(self, array: NDArray[np.generic], offset: int) -> Extent:
        """Put the contiguous `array` at byte `offset`, inside one slot."""
        view = array.reshape(-1).view(np.uint8).data
        extent = Extent(file=self._name, offset=offset, size=len(view), sha256=hashlib.sha256(view).hexdigest())
        while view:
            written = os.pwrite(self._descriptor, view, offset)
            view, offset = view[written:], offset + written
        self.keep(extent)
        return extent

    def keep(self, extent: Extent) -> None:
        """These bytes are in the file."""
        if not extent.size:
            return
        _, slot = self._starts[bisect_right(self._starts, extent.offset, key=lambda start: start[0]) - 1]
        with self._lock:
            self._missing_bytes[slot] -= extent.size

    def check_complete(self) -> None:
        """Raise ValueError where some rows were not written, or written twice."""
        unfinished = [slot for slot, size in self._missing_bytes.items() if size]
        if unfinished:
            raise ValueError(
                f"rows missing or written twice in {', '.join(unfinished[:4])} ({len(unfinished)} tensors)"
            )


@contextmanager
def file_of_size(path: Path, size_bytes: int) -> Iterator[int]:
    """A descriptor of the file at `path`, made or made to be of that size; what was in it stays. OSError where the disk
    is too small.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        if hasattr(os, "posix_fallocate") and size_bytes:
            os.posix_fallocate(descriptor, 0, size_bytes)  # a full disk shows here, and rows are written faster
        os.ftruncate(descriptor, size_bytes)
        yield descriptor
    finally:
        os.close(descriptor)
