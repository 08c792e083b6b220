"""Writes rows of tensors into a unified checkpoint, from any thread, in any order."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from edgeforge.backends.huggingface import calibrated
from edgeforge.backends.huggingface.layout import side
from edgeforge.backends.huggingface.writing import RowSink, ShardWriter, write_shards
from edgeforge.backends.modelopt.layout import cache_names, carries_input_scale, tensors
from edgeforge.backends.nibbles import pack_columns, pack_rows
from edgeforge.errors import UnusableInput
from edgeforge.model.placed_file import Extent
from edgeforge.planning import BuildPlan
from edgeforge.quantization.calibration import Calibration
from edgeforge.quantization.scheme import QuantizedTensor

ROWS_TOGETHER = 2
"""Int4 rows are stored in pairs, so a piece starts with an even row."""


def _put(plan: BuildPlan, shards: ShardWriter, name: str, start: int, rows: QuantizedTensor) -> Sequence[Extent]:
    scheme, prefix = rows.scheme, name.removesuffix("weight")
    scales: NDArray[np.generic] = rows.scales
    put: list[Extent] = []
    if scheme.code_format == "int":
        if start % ROWS_TOGETHER or len(rows.codes) % ROWS_TOGETHER:
            raise ValueError(f"rows {start} to {start + len(rows.codes) - 1} of {name} are not pairs")
        put.append(shards.write(name, start // ROWS_TOGETHER, pack_rows(rows.codes.view(np.int8))))
    elif scheme.code_format == "e2m1":
        put.append(shards.write(name, start, pack_columns(rows.codes.view(np.uint8))))
        scales = scales.astype(ml_dtypes.float8_e4m3fn)
    else:
        put.append(shards.write(name, start, rows.codes))
        scales = scales[:, 0]
    if scheme.granularity != "tensor":
        put.append(shards.write(f"{prefix}weight_scale", start, scales))
    elif start == 0:
        _check_scale(plan, name, rows.scales[0, 0])
        put.append(shards.write(f"{prefix}weight_scale", 0, np.asarray(rows.scales[0, 0])))
    if rows.tensor_scale is not None and start == 0:
        put.append(shards.write(f"{prefix}weight_scale_2", 0, np.asarray(rows.tensor_scale, np.float32)))
    return put


def _check_scale(plan: BuildPlan, name: str, scale: np.float32) -> None:
    """Edge-LLM takes the scale as float16. What that rounds shows in `read_back`; zero would lose the matrix."""
    if plan.target.engine == "edge-llm" and np.float16(scale) == 0:
        raise UnusableInput(
            f"the largest weight of {name} is {448 * float(scale):.1g}, and Edge-LLM's float16 scale of it is zero",
            hint="use --scheme nvfp4 or --scheme w4a16",
        )


@contextmanager
def open_sink(plan: BuildPlan, calibration: Calibration, directory: Path) -> Iterator[RowSink]:
    """The files, with everything in them that the calibration knows.

    A linear of scheme fp8 whose input was not measured gets no input_scale: TensorRT-LLM then finds one for each input
    as it comes. The other engines, and the other formats, would compute with a wrong one, and are refused.
    """
    norm_scales = calibrated.norm_scales(plan, calibration)
    if plan.target.scheme not in ("w4a16", "w4a8"):
        calibrated.check_no_own_scales(plan, calibration)
    inputs = calibrated.input_scales(plan, calibration)
    if plan.target.scheme != "fp8" or plan.target.engine != "tensorrt-llm":
        calibrated.check_inputs_known(plan, inputs)
    caches = calibrated.cache_scales(plan, calibration)
    wanted = tensors(plan)
    known = {side(linear, "input_scale") for linear in plan.architecture.linears() if linear.name in inputs}
    unknown = {tensor.name for tensor in wanted if tensor.optional} - known
    with write_shards(directory, wanted, left_out=unknown) as shards:
        for layer, pair in enumerate(caches):
            for name, scale in zip(cache_names(layer), pair, strict=True):
                shards.write(name, 0, np.asarray(scale))
        for linear in plan.architecture.linears():
            scheme = plan.schemes[linear.name]
            if linear.name in inputs:
                shards.write(side(linear, "input_scale"), 0, np.asarray(inputs[linear.name]))
            if not scheme.is_float and carries_input_scale(linear, scheme):
                ones = np.ones(linear.in_features, np.float32)
                own = calibration.pre_quant_scales.get(linear.name, ones)
                shards.write_floats(side(linear, "pre_quant_scale"), 0, own)
        yield RowSink(plan, shards, norm_scales, partial(_put, plan))
