"""Writes rows of tensors straight to their place in `model.onnx.data`, from any thread, in any order."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeforge.backends import Rows
from edgeforge.backends.onnx.layout import LowBits, Matrix, Slot, WeightLayout, weight_layout
from edgeforge.backends.onnx.packing import pack, pad_to_blocks, split
from edgeforge.model.placed_file import Extent, PlacedFile, file_of_size
from edgeforge.model.rotary import rotary_tables
from edgeforge.planning import BuildPlan
from edgeforge.quantization.scheme import HIGH_BITS, LOW_BITS, QuantizedTensor

DATA_FILE = "model.onnx.data"
HIGH_STEP = np.float32(1 << LOW_BITS)  # what one step of the high bits is worth
NUMPY_DTYPES = {"u8": np.uint8, "f16": np.float16, "f32": np.float32}


class WeightFile:
    """The data file at its final size; `put` fills it in."""

    def __init__(self, layout: WeightLayout, file: PlacedFile) -> None:
        self._layout = layout
        self._file = file

    def put(self, name: str, start: int, rows: Rows) -> Sequence[Extent]:
        """See `edgeforge.backends.WeightSink`."""
        placement = self._layout.placements[name]
        first_row = placement.first_row + start
        if isinstance(rows, QuantizedTensor):
            return self._put_quantized(placement.matrix, first_row, rows)
        return (self.put_array(placement.matrix.weight, first_row, rows),)

    def keep(self, extents: Iterable[Extent]) -> None:
        """See `edgeforge.backends.WeightSink`."""
        for extent in extents:
            self._file.keep(extent)

    def _put_quantized(self, matrix: Matrix, first_row: int, rows: QuantizedTensor) -> Sequence[Extent]:
        if rows.scheme != matrix.scheme or rows.scheme.group_size is None or matrix.scales is None:
            raise ValueError(f"the plan stores {matrix.weight.name} as {matrix.scheme}, not {rows.scheme}")
        codes = pad_to_blocks(rows.codes.view(np.int8), rows.scheme.group_size)
        if matrix.low is not None:
            return self._put_split(matrix, matrix.low, first_row, rows, codes)
        put = [
            self.put_array(matrix.weight, first_row, pack(codes, rows.scheme.bits)),
            self.put_array(matrix.scales, first_row, np.repeat(rows.scales, matrix.scale_copies, axis=1)),
        ]
        if matrix.zero_points is not None and rows.zero_points is not None:
            zero_points = np.repeat(rows.zero_points, matrix.scale_copies, axis=1)
            put.append(self.put_array(matrix.zero_points, first_row, pack(zero_points, rows.scheme.bits)))
        if matrix.offsets is not None and rows.offsets is not None:
            put.append(self.put_array(matrix.offsets, first_row, rows.offsets))
        return put

    def _put_split(
        self, matrix: Matrix, low: LowBits, first_row: int, rows: QuantizedTensor, codes: NDArray[np.int8]
    ) -> Sequence[Extent]:
        """Codes of 6 bits as 4 and 2."""
        assert matrix.scales is not None
        zeros = np.zeros(rows.scales.shape, np.int8) if rows.zero_points is None else rows.zero_points
        high_codes, low_codes = split(codes)
        high_zeros, low_zeros = split(np.repeat(zeros, matrix.scale_copies, axis=1))
        put = [
            self.put_array(matrix.weight, first_row, pack(high_codes, HIGH_BITS)),
            self.put_array(low.weight, first_row, pack(low_codes, LOW_BITS)),
            self.put_array(matrix.scales, first_row, np.repeat(rows.scales * HIGH_STEP, matrix.scale_copies, axis=1)),
            self.put_array(low.zero_points, first_row, pack(low_zeros, LOW_BITS)),
        ]
        if matrix.zero_points is not None:
            put.append(self.put_array(matrix.zero_points, first_row, pack(high_zeros, HIGH_BITS)))
        return put

    def put_array(self, slot: Slot, first_row: int, rows: NDArray[np.generic]) -> Extent:
        """Cast to the slot's dtype and write as its rows `first_row` onwards; FloatingPointError beyond float16."""
        with np.errstate(over="ignore"):
            data = np.ascontiguousarray(rows, dtype=NUMPY_DTYPES[slot.dtype])
        if slot.dtype == "f16" and not np.isfinite(data).all():
            raise FloatingPointError("a value is too large for float16, which the target's activations are")
        if data.nbytes != slot.row_bytes * rows.shape[0] or first_row + rows.shape[0] > slot.shape[0]:
            raise ValueError(f"{rows.shape} at row {first_row} does not fit {slot}")
        return self._file.write(data, slot.offset + first_row * slot.row_bytes)


@contextmanager
def weight_file(plan: BuildPlan, directory: Path) -> Iterator[WeightFile]:
    """Open the data file at full size (a full disk shows here, before any work) and write the rotary tables.

    What an earlier process wrote into it stays. ValueError where something is missing at the end.
    """
    layout = weight_layout(plan)
    with file_of_size(directory / DATA_FILE, layout.size) as descriptor:
        file = PlacedFile(descriptor, DATA_FILE, {slot.name: (slot.offset, slot.size) for slot in _slots(layout)})
        weights = WeightFile(layout, file)
        cos, sin = rotary_tables(plan.architecture.rotary, plan.architecture.head_dim, plan.target.context)
        weights.put_array(layout.cos, 0, cos)
        weights.put_array(layout.sin, 0, sin)
        yield weights
        file.check_complete()


def _slots(layout: WeightLayout) -> Iterator[Slot]:
    yield from (layout.cos, layout.sin)
    for matrix in layout.matrices.values():
        low = () if matrix.low is None else (matrix.low.weight, matrix.low.zero_points)
        slots = (matrix.weight, matrix.scales, matrix.zero_points, matrix.offsets, *low)
        yield from (slot for slot in slots if slot is not None)
