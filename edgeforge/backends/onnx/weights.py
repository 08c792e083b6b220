"""Writes rows of tensors straight to their place in `model.onnx.data`, from any thread, in any order."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeforge.backends import Rows
from edgeforge.backends.onnx.layout import LowBits, Matrix, Slot, WeightLayout, weight_layout
from edgeforge.backends.onnx.packing import pack, pad_to_blocks, split
from edgeforge.model.rotary import rotary_tables
from edgeforge.planning import BuildPlan
from edgeforge.quantization.scheme import HIGH_BITS, LOW_BITS, QuantizedTensor

DATA_FILE = "model.onnx.data"
HIGH_STEP = np.float32(1 << LOW_BITS)  # what one step of the high bits is worth
NUMPY_DTYPES = {"u8": np.uint8, "f16": np.float16, "f32": np.float32}


class WeightFile:
    """The data file at its final size; `put` fills it in."""

    def __init__(self, layout: WeightLayout, descriptor: int) -> None:
        self._layout = layout
        self._descriptor = descriptor

    def put(self, name: str, start: int, rows: Rows) -> None:
        """See `edgeforge.backends.WeightSink`."""
        placement = self._layout.placements[name]
        first_row = placement.first_row + start
        if isinstance(rows, QuantizedTensor):
            self._put_quantized(placement.matrix, first_row, rows)
        else:
            self.put_array(placement.matrix.weight, first_row, rows)

    def _put_quantized(self, matrix: Matrix, first_row: int, rows: QuantizedTensor) -> None:
        if rows.scheme != matrix.scheme or rows.scheme.group_size is None or matrix.scales is None:
            raise ValueError(f"the plan stores {matrix.weight.name} as {matrix.scheme}, not {rows.scheme}")
        codes = pad_to_blocks(rows.codes.view(np.int8), rows.scheme.group_size)
        if matrix.low is not None:
            self._put_split(matrix, matrix.low, first_row, rows, codes)
            return
        self.put_array(matrix.weight, first_row, pack(codes, rows.scheme.bits))
        self.put_array(matrix.scales, first_row, np.repeat(rows.scales, matrix.scale_copies, axis=1))
        if matrix.zero_points is not None and rows.zero_points is not None:
            zero_points = np.repeat(rows.zero_points, matrix.scale_copies, axis=1)
            self.put_array(matrix.zero_points, first_row, pack(zero_points, rows.scheme.bits))
        if matrix.offsets is not None and rows.offsets is not None:
            self.put_array(matrix.offsets, first_row, rows.offsets)

    def _put_split(
        self, matrix: Matrix, low: LowBits, first_row: int, rows: QuantizedTensor, codes: NDArray[np.int8]
    ) -> None:
        """Codes of 6 bits as 4 and 2."""
        assert matrix.scales is not None
        zeros = np.zeros(rows.scales.shape, np.int8) if rows.zero_points is None else rows.zero_points
        high_codes, low_codes = split(codes)
        high_zeros, low_zeros = split(np.repeat(zeros, matrix.scale_copies, axis=1))
        self.put_array(matrix.weight, first_row, pack(high_codes, HIGH_BITS))
        self.put_array(low.weight, first_row, pack(low_codes, LOW_BITS))
        self.put_array(matrix.scales, first_row, np.repeat(rows.scales * HIGH_STEP, matrix.scale_copies, axis=1))
        if matrix.zero_points is not None:
            self.put_array(matrix.zero_points, first_row, pack(high_zeros, HIGH_BITS))
        self.put_array(low.zero_points, first_row, pack(low_zeros, LOW_BITS))

    def put_array(self, slot: Slot, first_row: int, rows: NDArray[np.generic]) -> None:
        """Cast to the slot's dtype and write as its rows `first_row` onwards; FloatingPointError beyond float16."""
        with np.errstate(over="ignore"):
            data = np.ascontiguousarray(rows, dtype=NUMPY_DTYPES[slot.dtype])
        if slot.dtype == "f16" and not np.isfinite(data).all():
            raise FloatingPointError("a value is too large for float16, which the target's activations are")
        if data.nbytes != slot.row_bytes * rows.shape[0] or first_row + rows.shape[0] > slot.shape[0]:
            raise ValueError(f"{rows.shape} at row {first_row} does not fit {slot}")
        _write_all(self._descriptor, data, slot.offset + first_row * slot.row_bytes)


def _write_all(descriptor: int, data: NDArray[np.generic], offset: int) -> None:
    view = data.reshape(-1).view(np.uint8).data
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


@contextmanager
def weight_file(plan: BuildPlan, directory: Path) -> Iterator[WeightFile]:
    """Create the data file at full size (a full disk shows here, before any work) and write the rotary tables."""
    layout = weight_layout(plan)
    with (directory / DATA_FILE).open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, layout.size)
        file.truncate(layout.size)
        weights = WeightFile(layout, file.fileno())
        cos, sin = rotary_tables(plan.architecture.rotary, plan.architecture.head_dim, plan.target.context)
        weights.put_array(layout.cos, 0, cos)
        weights.put_array(layout.sin, 0, sin)
        yield weights
