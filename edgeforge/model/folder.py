"""Where a checkpoint's files lie: a directory of this machine, or one behind a URL (`edgeforge.model.remote`).

Whoever reads checkpoints knows these two protocols and nothing of disks or networks.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgeforge.errors import UnusableInput
from edgeforge.model.positional import PositionalFile, Scratch

MAX_SMALL_BYTES = 256 << 20
"""What is read whole, such as tokenizer.json (Llama 3's: 17 MB), is no larger; weights under such a name would be."""
AT_ONCE = 8

T = TypeVar("T")
R = TypeVar("R")


class ReadableFile(Protocol):
    """An open file read by position, from any thread. Reading raises UnusableInput where it ends too early."""

    @property
    def size_bytes(self) -> int: ...

    def read(self, offset: int, size_bytes: int) -> bytes:
        """Just these bytes: a header, a sample."""
        ...

    def read_into(self, buffer: NDArray[np.generic], offset: int) -> None:
        """Fill the contiguous `buffer` with weights from byte `offset`."""
        ...

    def stream(self, offset: int, size_bytes: int) -> Iterator[NDArray[np.uint8]]:
        """Weights in pieces of at most positional.BLOCK_BYTES, each valid until the next."""
        ...

    def announce(self, offset: int, size_bytes: int) -> None:
        """These bytes will be read soon."""
        ...


class Folder(Protocol):
    """A directory of files, and how messages call it (`str`). Missing and unreadable files raise UnusableInput."""

    @property
    def name(self) -> str:
        """The last part of its path."""
        ...

    def names(self) -> Sequence[str]:
        """Its files in alphabetical order."""
        ...

    def has(self, name: str) -> bool: ...

    def read(self, name: str) -> bytes:
        """A small file, whole; UnusableInput above MAX_SMALL_BYTES."""
        ...

    def open(self, name: str) -> ReadableFile: ...

    def keep(self, size_bytes: int) -> None:
        """So many bytes of weights are read again soon after the first time."""
        ...


class LocalFolder:
    """A directory of this machine; see `Folder`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._scratch = Scratch()

    def __str__(self) -> str:
        return str(self._path)

    @property
    def name(self) -> str:
        return self._path.name

    def names(self) -> Sequence[str]:
        return sorted(path.name for path in self._path.iterdir() if path.is_file())

    def has(self, name: str) -> bool:
        try:
            return (self._path / name).is_file()
        except OSError as error:  # a name that is too long for the file system, a folder that may not be read
            raise UnusableInput(f"{self._path / name} cannot be read: {error.strerror}") from None

    def read(self, name: str) -> bytes:
        path = self._path / name
        try:
            check_small(str(path), path.stat().st_size)
            return path.read_bytes()
        except FileNotFoundError:
            raise UnusableInput(f"{path} does not exist") from None
        except OSError as error:
            raise UnusableInput(f"{path} cannot be read: {error.strerror}") from None

    def open(self, name: str) -> PositionalFile:
        return open_file(self._path / name, self._scratch)

    def keep(self, size_bytes: int) -> None:
        """The operating system's cache does."""


def open_file(path: Path, scratch: Scratch) -> PositionalFile:
    """The file at `path`; UnusableInput where there is none, or none that can be read."""
    try:
        return PositionalFile(path, scratch)
    except FileNotFoundError:
        raise UnusableInput(f"{path} does not exist") from None
    except OSError as error:
        raise UnusableInput(f"{path} cannot be read: {error.strerror}") from None


def check_small(where: str, size_bytes: int) -> None:
    """UnusableInput where a file that is read whole is too large for that."""
    if size_bytes > MAX_SMALL_BYTES:
        raise UnusableInput(f"{where} has {size_bytes:,} bytes, where at most {MAX_SMALL_BYTES:,} make sense")


def side_by_side(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """The function's results in order, a few calls at once: a file behind a network answers late, not slowly."""
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="read") as pool:
        return list(pool.map(function, items))


def largest_part(sizes: Mapping[str, int]) -> int:
    """Bytes of the largest decoder layer, or of a larger tensor outside them; `sizes` in bytes by Hugging Face's names.

    A scale for a whole matrix is found by reading it, and those fused with it, once before they are quantized.
    """
    parts: dict[str, int] = {}
    for name, size in sizes.items():
        layer = ".".join(name.split(".")[:3]) if name.startswith("model.layers.") else name
        parts[layer] = parts.get(layer, 0) + size
    return max(parts.values(), default=0)
