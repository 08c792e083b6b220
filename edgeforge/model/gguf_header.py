"""The header of a GGUF file: its metadata and its table of tensors, read without touching a weight.

Written from the specification (ggml's docs/gguf.md, versions 2 and 3). The `gguf` package's own reader keeps two
arrays per string (1.9 s and 150 MB for a 49,152-word vocabulary, ten times that for Llama 3's) and maps the whole
file; tests hold this one against it.
"""

import hashlib
import struct
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from edgeforge.errors import UnusableInput
from edgeforge.model.folder import ReadableFile, open_file
from edgeforge.model.positional import Scratch

Value: TypeAlias = bool | int | float | str | list[bool] | list[int] | list[float] | list[str]
Metadata: TypeAlias = Mapping[str, Value]

# GGUF value types that are a single number: type id -> struct letter (docs/gguf.md, `gguf_metadata_value_type`).
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_DEFAULT_ALIGNMENT = 32
MAX_HEADER_BYTES = 64 << 20
"""A vocabulary of 128,256 tokens with its merges takes 8 MB. Lists of it take several times as much in memory."""
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """One row of the tensor table.

    `shape` has the outermost dimension first (the file stores the innermost first); `dtype` is ggml's name of the type;
    `offset` counts bytes from the start of the file.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """Everything a GGUF file says before its weights. `tensors` are in the order of their bytes."""

    metadata: Metadata
    tensors: tuple[StoredTensor, ...]
    fingerprint: str


def read_header(path: Path) -> Header:
    """Read and check the header of `path`; every tensor's bytes are known to lie inside the file, apart from each
    other.

    Raises UnusableInput with one sentence that names the file: not GGUF, an old version, truncated, overlapping
    offsets.
    """
    return header_of(open_file(path, Scratch()), path.name)


def header_of(file: ReadableFile, name: str) -> Header:
    """The same of an open file, which messages call `name`."""
    reader = _Reader(file=file, name=name, size=file.size_bytes)
    tensor_count, metadata_count = reader.preamble()
    metadata: dict[str, Value] = {}
    for _ in range(metadata_count):
        key = reader.string()
        metadata[key] = reader.value(reader.number("I"))
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise UnusableInput(f"{name} is damaged: its alignment of {alignment!r} is not a power of two")
    entries = [reader.tensor() for _ in range(tensor_count)]
    start = -(-reader.at // alignment) * alignment
    tensors = tuple(sorted((_placed(entry, start, name) for entry in entries), key=lambda t: t.offset))
    _check_extents(tensors, reader.size, name)
    return Header(metadata=metadata, tensors=tensors, fingerprint=reader.fingerprint(start))


class _Reader:
    """A cursor over the header that never believes a length the file is too short for.

    `at` counts bytes from the start of the file. What was read is kept: it is hashed at the end.
    """

    def __init__(self, *, file: ReadableFile, name: str, size: int) -> None:
        self.name = name
        self.size = size
        self.at = 0
        self._file = file
        self._known = bytearray()

    def take(self, count: int) -> bytes:
        end = self.at + count
        if end > self.size:
            raise UnusableInput(
                f"{self.name} is truncated: it ends inside its header, after {self.size:,} bytes",
                hint="download it again and compare its size with the publisher's",
            )
        self._know(end)
        data = bytes(self._known[self.at : end])
        self.at = end
        return data

    def _know(self, end: int) -> None:
        if end > MAX_HEADER_BYTES:
            raise UnusableInput(f"{self.name} is damaged: its header takes more than {MAX_HEADER_BYTES:,} bytes")
        if end > len(self._known):
            count = min(max(end - len(self._known), _CHUNK_BYTES), self.size - len(self._known))
            self._known += self._file.read(len(self._known), count)

    def fingerprint(self, header_bytes: int) -> str:
        """sha256 over the header and the file's size: it changes with any name, shape, type, metadata or length."""
        end = min(header_bytes, self.size)
        self._know(end)
        digest = hashlib.sha256(memoryview(self._known)[:end])
        digest.update(self.size.to_bytes(8, "little"))
        return f"sha256:{digest.hexdigest()}"

    def number(self, letter: str) -> int:
        value: int = struct.unpack("<" + letter, self.take(struct.calcsize("<" + letter)))[0]
        return value

    def string(self) -> str:
        data = self.take(self.number("Q"))
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise UnusableInput(f"{self.name} is damaged: a text in its header is not UTF-8: {data[:40]!r}") from None

    def preamble(self) -> tuple[int, int]:
        """Check magic and version; return (tensors, metadata pairs)."""
        magic = self.take(min(4, self.size))
        if magic != b"GGUF":
            raise UnusableInput(f"{self.name} is not a GGUF file: it starts with {magic!r} instead of b'GGUF'")
        version = self.number("I")
        if version & 0xFFFF == 0 and version:
            raise UnusableInput(f"{self.name} is a big-endian GGUF file, which EdgeForge does not read")
        if version not in (2, 3):
            raise UnusableInput(
                f"{self.name} is GGUF version {version}; EdgeForge reads versions 2 and 3",
                hint="convert the model again with a current llama.cpp",
            )
        return self.number("Q"), self.number("Q")

    def value(self, kind: int) -> Value:
        if kind in _NUMBERS:
            letter = "<" + _NUMBERS[kind]
            scalar: bool | int | float = struct.unpack(letter, self.take(struct.calcsize(letter)))[0]
            return scalar
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            raise UnusableInput(f"{self.name} is damaged: its header has a value of the unknown type {kind}")
        element, count = self.number("I"), self.number("Q")
        if element == _STRING:
            return self._many(count, self.string)
        if element not in _NUMBERS:
            raise UnusableInput(f"{self.name} is damaged: its header has an array of the unknown type {element}")
        size = struct.calcsize("<" + _NUMBERS[element])
        return list(struct.unpack(f"<{count}{_NUMBERS[element]}", self.take(size * count)))

    def _many(self, count: int, read: Callable[[], str]) -> list[str]:
        if 8 * count > self.size:  # each string is at least its 8 bytes of length: a list this long cannot be there
            self.take(self.size + 1)
        return [read() for _ in range(count)]

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """(name, shape outermost first, type id, offset from the start of the weights)."""
        name = self.string()
        dimensions = self.number("I")
        if dimensions > 4:
            raise UnusableInput(f"{self.name} is damaged: its tensor {name} claims {dimensions} dimensions")
        shape = tuple(reversed([self.number("Q") for _ in range(dimensions)]))
        return name, shape, self.number("I"), self.number("Q")


def _placed(entry: tuple[str, tuple[int, ...], int, int], start: int, file_name: str) -> StoredTensor:
    name, shape, kind, offset = entry
    try:
        dtype = GGMLQuantizationType(kind)
    except ValueError:
        raise UnusableInput(
            f"{file_name} stores {name} in ggml type {kind}, which this gguf package does not know",
            hint="pip install --upgrade gguf, or quantize the model to a type in EdgeForge's list",
        ) from None
    block, block_bytes = GGML_QUANT_SIZES[dtype]
    if not shape or shape[-1] % block:
        raise UnusableInput(
            f"{file_name} is damaged: {name} {list(shape)} does not divide into {dtype.name} blocks of {block}"
        )
    elements = 1
    for length in shape:
        elements *= length
    size_bytes = elements // block * block_bytes
    return StoredTensor(name=name, shape=shape, dtype=dtype.name, offset=start + offset, size_bytes=size_bytes)


def _check_extents(tensors: tuple[StoredTensor, ...], size: int, file_name: str) -> None:
    end, previous = 0, "the header"
    for tensor in tensors:
        if tensor.offset < end:
            raise UnusableInput(f"{file_name} is damaged: the bytes of {tensor.name} overlap those of {previous}")
        end, previous = tensor.offset + tensor.size_bytes, tensor.name
    if end > size:
        raise UnusableInput(
            f"{file_name} is truncated: it has {size:,} bytes where its header asks for {end:,}",
            hint="download it again and compare its size with the publisher's",
        )
    twice, times = Counter(tensor.name for tensor in tensors).most_common(1)[0] if tensors else ("", 0)
    if times > 1:
        raise UnusableInput(f"{file_name} is damaged: it holds {twice} more than once")
