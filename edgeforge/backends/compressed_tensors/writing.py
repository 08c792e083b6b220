"""Writes rows of tensors into a compressed-tensors checkpoint, from any thread, in any order."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeforge.backends.compressed_tensors.layout import WORD_CODES, cache_names, tensors
from edgeforge.backends.huggingface import calibrated
from edgeforge.backends.huggingface.layout import side
from edgeforge.backends.huggingface.writing import RowSink, ShardWriter, write_shards
from edgeforge.backends.nibbles import pack_words
from edgeforge.model.placed_file import Extent
from edgeforge.planning import BuildPlan
from edgeforge.quantization.calibration import Calibration
from edgeforge.quantization.scheme import QuantizedTensor

NO_INPUTS_HINT = f"{calibrated.HINT}; or use --scheme fp8-dynamic, which needs none"


def _put(shards: ShardWriter, name: str, start: int, rows: QuantizedTensor) -> Sequence[Extent]:
    prefix = name.removesuffix("weight")
    put: list[Extent] = []
    if rows.scheme.code_format == "int":
        put.append(shards.write(f"{prefix}weight_packed", start, pack_words(rows.codes.view(np.int8))))
        if rows.zero_points is not None:
            put.append(_put_zero_points(shards, f"{prefix}weight_zero_point", start, rows.zero_points))
    else:
        put.append(shards.write(name, start, rows.codes))
    if rows.scheme.granularity != "tensor":
        put.append(shards.write_floats(f"{prefix}weight_scale", start, rows.scales))
    elif start == 0:
        put.append(shards.write_floats(f"{prefix}weight_scale", 0, rows.scales[0]))
    return put


def _put_zero_points(shards: ShardWriter, name: str, start: int, zero_points: NDArray[np.int8]) -> Extent:
    """int8 [n, G] -> words of eight rows; the last word of a matrix is filled up with zero bits."""
    if start % WORD_CODES:
        raise ValueError(f"row {start} of {name} is in the middle of a word")
    short = -len(zero_points) % WORD_CODES
    padded = np.pad(zero_points, ((0, short), (0, 0)), constant_values=-8) if short else zero_points
    words = pack_words(np.ascontiguousarray(padded.T)).T
    return shards.write(name, start // WORD_CODES, np.ascontiguousarray(words))


@contextmanager
def open_sink(plan: BuildPlan, calibration: Calibration, directory: Path) -> Iterator[RowSink]:
    """The files, with everything in them that the plan and the calibration know."""
    norm_scales = calibrated.norm_scales(plan, calibration)
    calibrated.check_no_own_scales(plan, calibration)
    inputs = calibrated.input_scales(plan, calibration)
    calibrated.check_inputs_known(plan, inputs, NO_INPUTS_HINT)
    caches = calibrated.cache_scales(plan, calibration)
    with write_shards(directory, tensors(plan)) as shards:
        for layer, pair in enumerate(caches):
            for name, scale in zip(cache_names(layer), pair, strict=True):
                shards.write_floats(name, 0, np.array([scale]))
        for linear in plan.architecture.linears():
            if linear.name in inputs:
                shards.write_floats(side(linear, "input_scale"), 0, np.array([inputs[linear.name]]))
            if side(linear, "weight_shape") in shards:
                shape = np.array([linear.out_features, linear.in_features], np.int64)
                shards.write(side(linear, "weight_shape"), 0, shape)
        yield RowSink(plan, shards, norm_scales, _put)
