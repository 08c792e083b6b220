"""The header of a safetensors file, checked: eight bytes of length, JSON that lists the tensors, bytes end to end.

Format: https://github.com/huggingface/safetensors#format. What the reference reader refuses is refused here too, in a
sentence that names the file.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeGuard

from edgeforge.errors import UnusableInput
from edgeforge.model import fields
from edgeforge.model.folder import ReadableFile, open_file
from edgeforge.model.positional import Scratch

MAX_HEADER_BYTES = 100_000_000  # the reference implementation's own limit
MOST_DIMENSIONS = 64  # torch's and numpy's own limit
ITEM_BYTES: Mapping[str, int] = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """One tensor of a file. `start` counts bytes from the beginning of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """A file's tensors in file order, the raw JSON bytes that list them, and the file's size."""

    entries: tuple[TensorEntry, ...]
    raw: bytes
    file_bytes: int


def read_header(path: Path) -> Header:
    """Read and check the header of `path`; UnusableInput where it is not a whole safetensors file."""
    return header_of(open_file(path, Scratch()), str(path))


def header_of(file: ReadableFile, where: str) -> Header:
    """The same of an open file, which messages call `where`."""
    file_bytes = file.size_bytes
    length = int.from_bytes(file.read(0, 8), "little") if file_bytes >= 8 else MAX_HEADER_BYTES + 1
    if length > MAX_HEADER_BYTES:
        raise UnusableInput(f"{where} is not a safetensors file")
    if length > file_bytes - 8:
        raise UnusableInput(f"{where} is truncated: its header should be {length} bytes and {file_bytes - 8} are there")
    raw = file.read(8, length)
    listed = fields.parse_json(raw, f"{where}, its header,")
    entries = [_entry(where, name, value, 8 + length) for name, value in listed.items() if name != "__metadata__"]
    entries.sort(key=lambda entry: (entry.start, entry.start + entry.size_bytes))
    _check_bytes(where, entries, 8 + length, file_bytes)
    return Header(entries=tuple(entries), raw=raw, file_bytes=file_bytes)


def _entry(file: str, name: str, value: object, data_start: int) -> TensorEntry:
    where = f"{file}: the header's entry for {name}"
    if not isinstance(value, dict):
        raise UnusableInput(f"{where} is not an object")
    dtype, shape, offsets = value.get("dtype"), value.get("shape"), value.get("data_offsets")
    if (
        not isinstance(dtype, str)
        or not _whole_numbers(shape)
        or not _whole_numbers(offsets)
        or len(offsets) != 2
        or len(shape) > MOST_DIMENSIONS
    ):
        raise UnusableInput(f"{where} lacks a valid dtype, shape or data_offsets")
    begin, end = offsets
    size = end - begin
    expected = math.prod(shape) * ITEM_BYTES.get(dtype, 0)
    if size < 0 or (dtype in ITEM_BYTES and size != expected):
        raise UnusableInput(
            f"{where} gives bytes {begin} to {end} to a {dtype} tensor of shape {list(shape)}, which takes {expected}"
        )
    return TensorEntry(name=name, dtype=dtype, shape=tuple(shape), start=data_start + begin, size_bytes=size)


def _whole_numbers(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)


def _check_bytes(where: str, entries: list[TensorEntry], data_start: int, file_bytes: int) -> None:
    """Entries in file order must tile the data exactly."""
    for before, entry in pairwise(entries):
        if entry.start < before.start + before.size_bytes:
            raise UnusableInput(f"{where}: the bytes of {entry.name} overlap those of {before.name}")
    stop, last = data_start, "the header"
    for entry in entries:
        if entry.start > stop:
            raise UnusableInput(
                f"{where}: {entry.start - stop} bytes between {last} and {entry.name} belong to no tensor"
            )
        stop, last = entry.start + entry.size_bytes, entry.name
        if stop > file_bytes:
            raise UnusableInput(
                f"{where} is truncated: {entry.name} ends at byte {stop} and the file has {file_bytes}",
                hint="fetch the file again",
            )
    if stop < file_bytes:
        raise UnusableInput(f"{where}: {file_bytes - stop} bytes after {last} belong to no tensor")
