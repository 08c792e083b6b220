"""A file read by position, so that any number of threads share it."""

import contextlib
import os
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeforge.errors import UnusableInput

# Half a mebibyte stays in a core's second-level cache between the read and the widening that follows it.
BLOCK_BYTES = 1 << 19


class Scratch(threading.local):
    """One buffer per thread, shared by all files: a fresh one would cost more in page faults than the read itself."""

    def __init__(self) -> None:
        self.block = np.empty(BLOCK_BYTES, np.uint8)


class PositionalFile:
    """An open file without a cursor, closed with its last user. Bytes are read into buffers, never mapped.

    (Mapped pages would count as this process's resident memory.)
    """

    def __init__(self, path: Path, scratch: Scratch) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._scratch = scratch
        weakref.finalize(self, os.close, self._descriptor)

    def __str__(self) -> str:
        return str(self._path)

    @property
    def size_bytes(self) -> int:
        """As the file is now."""
        return os.fstat(self._descriptor).st_size

    def read(self, offset: int, size_bytes: int) -> bytes:
        """The bytes from `offset`; UnusableInput where the file ends before them."""
        buffer = np.empty(size_bytes, np.uint8)
        self.read_into(buffer, offset)
        return buffer.tobytes()

    def read_into(self, buffer: NDArray[np.generic], offset: int) -> None:
        """Fill the contiguous `buffer` from byte `offset`; UnusableInput where the file ends before it is full."""
        view = buffer.reshape(-1).view(np.uint8).data
        while view:
            count = os.preadv(self._descriptor, [view], offset)
            if count == 0:
                raise UnusableInput(f"{self._path} is shorter than when it was opened")
            view, offset = view[count:], offset + count

    def announce(self, offset: int, size_bytes: int) -> None:
        """Tell the system that these bytes will be read soon, so that it fetches them meanwhile."""
        if hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError):  # advice; some file systems take none
                os.posix_fadvise(self._descriptor, offset, size_bytes, os.POSIX_FADV_WILLNEED)

    def stream(self, offset: int, size_bytes: int) -> Iterator[NDArray[np.uint8]]:
        """The bytes from `offset` in pieces of at most BLOCK_BYTES, each valid until the next."""
        for at in range(0, size_bytes, BLOCK_BYTES):
            yield self.scratch(offset + at, min(BLOCK_BYTES, size_bytes - at))

    def scratch(self, offset: int, size_bytes: int) -> NDArray[np.uint8]:
        """uint8 [size_bytes], at most BLOCK_BYTES, from byte `offset`; valid until this thread's next call."""
        block = self._scratch.block[:size_bytes]
        self.read_into(block, offset)
        return block
