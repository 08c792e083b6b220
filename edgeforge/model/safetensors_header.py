"""The header of a safetensors file, checked: eight bytes of length, JSON that lists the tensors, bytes end to end.

Format: https://github.com/huggingface/safetensors#format. What the reference reader refuses is refused here too, in a
sentence that names the file.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeGuard

from edgeforge.errors import UnusableInput
from edgeforge.model import fields

MAX_HEADER_BYTES = 100_000_000  # the reference implementation's own limit
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
    try:
        with path.open("rb") as file:
            file_bytes = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if file_bytes < 8 or length > MAX_HEADER_BYTES:
                raise UnusableInput(f"{path} is not a safetensors file")
            raw = file.read(length)
    except FileNotFoundError:
        raise UnusableInput(f"{path} does not exist") from None
    except OSError as error:
        raise UnusableInput(f"{path} cannot be read: {error.strerror}") from None
    if len(raw) < length:
        raise UnusableInput(f"{path} is truncated: its header should be {length} bytes and {len(raw)} are there")
    listed = fields.parse_json(raw, f"{path}, its header,")
    entries = [_entry(path, name, value, 8 + length) for name, value in listed.items() if name != "__metadata__"]
    entries.sort(key=lambda entry: (entry.start, entry.start + entry.size_bytes))
    _check_bytes(path, entries, 8 + length, file_bytes)
    return Header(entries=tuple(entries), raw=raw, file_bytes=file_bytes)


def _entry(path: Path, name: str, value: object, data_start: int) -> TensorEntry:
    where = f"{path}: the header's entry for {name}"
    if not isinstance(value, dict):
        raise UnusableInput(f"{where} is not an object")
    dtype, shape, offsets = value.get("dtype"), value.get("shape"), value.get("data_offsets")
    if not isinstance(dtype, str) or not _whole_numbers(shape) or not _whole_numbers(offsets) or len(offsets) != 2:
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
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _check_bytes(path: Path, entries: list[TensorEntry], data_start: int, file_bytes: int) -> None:
    """Entries in file order must tile the data exactly."""
    for before, entry in pairwise(entries):
        if entry.start < before.start + before.size_bytes:
            raise UnusableInput(f"{path}: the bytes of {entry.name} overlap those of {before.name}")
    stop, last = data_start, "the header"
    for entry in entries:
        if entry.start > stop:
            raise UnusableInput(
                f"{path}: {entry.start - stop} bytes between {last} and {entry.name} belong to no tensor"
            )
        stop, last = entry.start + entry.size_bytes, entry.name
        if stop > file_bytes:
            raise UnusableInput(
                f"{path} is truncated: {entry.name} ends at byte {stop} and the file has {file_bytes}",
                hint="fetch the file again",
            )
    if stop < file_bytes:
        raise UnusableInput(f"{path}: {file_bytes - stop} bytes after {last} belong to no tensor")
