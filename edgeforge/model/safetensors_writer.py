"""A safetensors file written header first: names, dtypes and shapes are known before the first weight is, rows follow.

The `safetensors` package wants every tensor in memory at once; this needs one block of rows.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from edgeforge.model.placed_file import Extent, PlacedFile, file_of_size
from edgeforge.model.safetensors_header import ITEM_BYTES

STORAGE: Mapping[str, np.dtype[np.generic]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
FLOATS = ("F64", "F32", "F16", "BF16")


class SafetensorsWriter:
    """Takes rows in any order and from any thread, and puts them at their place in the file."""

    def __init__(self, file: PlacedFile, layout: Mapping[str, tuple[str, tuple[int, ...], int]]) -> None:
        self._file = file
        self._layout = layout  # name -> dtype, shape, byte offset in the file

    def write(self, name: str, row_start: int, array: NDArray[np.generic]) -> Extent:
        """Put `array` [rows, *shape[1:]] at `row_start`; each row is written once. Returns where its bytes lie.

        The array has the storage's own dtype, or it is float32 and is rounded to F64, F32, F16 or BF16 (half to even).
        Raises ValueError where dtype, shape or rows do not fit.
        """
        dtype, shape, offset = self._layout[name]
        stored = STORAGE[dtype]
        if array.dtype != stored:
            if array.dtype != np.float32 or dtype not in FLOATS:
                raise ValueError(f"{name} is stored as {dtype} and cannot take {array.dtype}")
            array = array.astype(stored)
        rows = len(array) if shape else 1
        if array.shape != ((rows, *shape[1:]) if shape else ()) or row_start < 0 or row_start + rows > _rows(shape):
            raise ValueError(f"rows {array.shape} at {row_start} do not fit {name} {shape}")
        row_bytes = math.prod(shape[1:]) * stored.itemsize
        return self._file.write(np.ascontiguousarray(array), offset + row_start * row_bytes)

    def keep(self, extent: Extent) -> None:
        """These bytes were written by an earlier process."""
        self._file.keep(extent)

    def check_complete(self) -> None:
        """Raise ValueError where some rows were not written, or written twice."""
        self._file.check_complete()


@contextmanager
def write_safetensors(
    path: Path,
    tensors: Sequence[tuple[str, str, tuple[int, ...]]],
    *,
    metadata: Mapping[str, str] | None = None,
) -> Iterator[SafetensorsWriter]:
    """Write `path` from (name, dtype, shape) rows, dtypes in safetensors' words; the bytes lie in the order given.

    The file appears under its name when the block ends well and all rows were written; else nothing is left behind.
    """
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    try:
        with fill_safetensors(partial, tensors, metadata=metadata) as writer:
            yield writer
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def fill_safetensors(
    path: Path,
    tensors: Sequence[tuple[str, str, tuple[int, ...]]],
    *,
    metadata: Mapping[str, str] | None = None,
) -> Iterator[SafetensorsWriter]:
    """The same in a file that is there under its name from the start, or was begun by another process.

    Its rows are told with `keep`. ValueError where rows are missing at the end; the file stays, whatever happens.
    """
    header, layout, file_bytes = _layout(tensors, metadata)
    with file_of_size(path, file_bytes) as descriptor:
        os.pwrite(descriptor, header, 0)
        slots = {name: (offset, _size_bytes(dtype, shape)) for name, (dtype, shape, offset) in layout.items()}
        writer = SafetensorsWriter(PlacedFile(descriptor, path.name, slots), layout)
        yield writer
        writer.check_complete()


def _layout(
    tensors: Sequence[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str] | None
) -> tuple[bytes, dict[str, tuple[str, tuple[int, ...], int]], int]:
    """(length and JSON, name -> dtype, shape and file offset, file size); data begins at a multiple of 8 bytes."""
    listed: dict[str, object] = {}
    if metadata is not None:
        listed["__metadata__"] = dict(metadata)
    places: list[tuple[str, str, tuple[int, ...], int]] = []
    end = 0
    for name, dtype, shape in tensors:
        if name in listed or name == "__metadata__":
            raise ValueError(f"{name} cannot be the name of another tensor")
        begin, end = end, end + _size_bytes(dtype, shape)
        listed[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
        places.append((name, dtype, tuple(shape), begin))
    text = json.dumps(listed, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    data_start = 8 + len(text)
    layout = {name: (dtype, shape, data_start + begin) for name, dtype, shape, begin in places}
    return len(text).to_bytes(8, "little") + text, layout, data_start + end


def _rows(shape: tuple[int, ...]) -> int:
    return shape[0] if shape else 1


def _size_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * ITEM_BYTES[dtype]
