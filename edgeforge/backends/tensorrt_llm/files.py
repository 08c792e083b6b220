"""One safetensors file per rank, all open at once: rows arrive in any order, from any thread, and go to their places.

Per quantized matrix: `weight`, `weights_scaling_factor` and, by scheme, `activation_scaling_factor` (of the input),
`prequant_scaling_factor` (the input is multiplied by it) and `weights_scaling_factor_2` (W4A8's second scale). A byte
of INT4 is of two rows: row 2i in the low nibble, row 2i + 1 in the high one, in two's complement.
"""

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeforge.backends import Rows, WeightSink
from edgeforge.backends.huggingface.writing import rounded
from edgeforge.backends.nibbles import pack_rows
from edgeforge.backends.tensorrt_llm.sharding import Layout, Matrix, Share, make_layout, shared_inputs
from edgeforge.errors import UnusableInput
from edgeforge.model.placed_file import Extent
from edgeforge.model.safetensors_writer import SafetensorsWriter, fill_safetensors
from edgeforge.planning import BuildPlan
from edgeforge.quantization.calibration import Calibration
from edgeforge.quantization.fp8 import input_scale, kv_cache_scale
from edgeforge.quantization.scheme import QuantizationScheme, QuantizedTensor

FLOATS: Mapping[str, str] = {"f16": "F16", "bf16": "BF16"}
WEIGHT, SCALE, SCALE_2 = "weight", "weights_scaling_factor", "weights_scaling_factor_2"
INPUT_SCALE, PRE_QUANT_SCALE = "activation_scaling_factor", "prequant_scaling_factor"
KV_SCALE = "attention.kv_cache_scaling_factor"

Tensors = dict[str, tuple[str, tuple[int, ...]]]
Floats = NDArray[np.float32]


def rank_file(rank: int) -> str:
    return f"rank{rank}.safetensors"


def matrix_tensors(matrix: Matrix, float_dtype: str) -> Tensors:
    """dtype and shape of a matrix's tensors, by the last part of their names."""
    scheme, shape = matrix.scheme, matrix.shape
    if scheme is None:
        return {WEIGHT: (float_dtype, shape)}
    one: tuple[str, tuple[int, ...]] = ("F32", (1,))
    if scheme.code_format == "e4m3":
        return {WEIGHT: ("F8_E4M3", shape), SCALE: one, INPUT_SCALE: one}
    n, k = shape
    tensors: Tensors = {
        WEIGHT: ("I8", (n // 2, k)),
        SCALE: ("F32", (n, scheme.groups(k))),
        PRE_QUANT_SCALE: (float_dtype, (k,)),
    }
    return tensors | ({} if scheme.activations == "none" else {INPUT_SCALE: one, SCALE_2: one})


def rank_tensors(plan: BuildPlan, layout: Layout, rank: int) -> Tensors:
    """dtype and shape of everything in a rank's file, by name, in file order."""
    float_dtype, tp = FLOATS[plan.target.activations], plan.target.tensor_parallel
    tensors: Tensors = {}
    for matrix in layout.ranks[rank]:
        parts = matrix_tensors(matrix, float_dtype)
        tensors |= {f"{matrix.name}.{part}": stored for part, stored in parts.items()}
    if plan.target.kv_cache in ("fp8", "int8"):
        prefixes = (prefix for first, prefix in layout.layers if first == rank // tp * tp)
        tensors |= {prefix + KV_SCALE: ("F32", (1,)) for prefix in prefixes}
    return tensors


class RankFiles:
    """The open files; a `WeightSink`. What calibration knows is written first, by `write_calibrated`."""

    def __init__(self, layout: Layout, writers: Sequence[SafetensorsWriter], float_dtype: str) -> None:
        self._layout = layout
        self._writers = writers
        self._float_dtype = float_dtype
        self._lock = threading.Lock()
        self._singles: dict[tuple[int, str], np.float32] = {}

    def put(self, name: str, start: int, rows: Rows) -> Sequence[Extent]:
        """See `edgeforge.backends.WeightSink`. INT4 rows come in pairs."""
        count = len(rows.codes) if isinstance(rows, QuantizedTensor) else len(rows)
        put: list[Extent] = []
        for share in self._layout.shares[name]:
            low, high = max(start, share.first), min(start + count, share.stop)
            if low < high:
                put += self._place(share, share.row + low - share.first, rows, slice(low - start, high - start))
        return put

    def keep(self, extents: Iterable[Extent]) -> None:
        """See `edgeforge.backends.WeightSink`."""
        files = {rank_file(rank): writer for rank, writer in enumerate(self._writers)}
        for extent in extents:
            files[extent.file].keep(extent)

    def write(self, rank: int, name: str, row: int, values: NDArray[np.generic]) -> Extent:
        return self._writers[rank].write(name, row, values)

    def _place(self, share: Share, row: int, rows: Rows, cut: slice) -> list[Extent]:
        matrix, name = share.matrix, f"{share.matrix.name}.{WEIGHT}"
        places = (cut,) if matrix.columns is None else (cut, slice(*matrix.columns))
        if not isinstance(rows, QuantizedTensor):
            return [self.write(share.rank, name, row, rounded(rows[places], self._float_dtype))]
        if rows.scheme != matrix.scheme:
            raise ValueError(f"the plan stores {name} as {matrix.scheme}, not {rows.scheme}")
        codes = rows.codes[places]
        if rows.scheme.code_format == "e4m3":
            put = [self.write(share.rank, name, row, np.ascontiguousarray(codes))]
            return put + self._single(share, row, SCALE, rows.scales[0, 0])
        if row % 2 or len(codes) % 2:
            raise ValueError(f"rows {row} to {row + len(codes) - 1} of {name} are not pairs")
        groups = slice(None) if matrix.columns is None else _groups(matrix.columns, rows.scheme)
        put = [
            self.write(share.rank, name, row // 2, pack_rows(codes.view(np.int8)).view(np.int8)),
            self.write(share.rank, f"{matrix.name}.{SCALE}", row, np.ascontiguousarray(rows.scales[cut, groups])),
        ]
        return put if rows.tensor_scale is None else put + self._single(share, row, SCALE_2, rows.tensor_scale)

    def _single(self, share: Share, row: int, part: str, value: np.float32) -> list[Extent]:
        """The one number of a whole matrix, written with its row 0; the other rows' must be the same."""
        name = f"{share.matrix.name}.{part}"
        with self._lock:
            known = self._singles.setdefault((share.rank, name), value)
        if known != value:
            raise ValueError(f"{name} is {known} for some rows and {value} for others")
        return [] if row else [self.write(share.rank, name, 0, np.array([value], np.float32))]


def _groups(columns: tuple[int, int], scheme: QuantizationScheme) -> slice:
    size = scheme.group_size or 1
    return slice(columns[0] // size, columns[1] // size)


@contextmanager
def rank_files(plan: BuildPlan, calibration: Calibration, directory: Path) -> Iterator[WeightSink]:
    """Create every rank's file at its full size, and write what does not come with the weights."""
    layout = make_layout(plan)
    with ExitStack() as stack:
        writers = [
            stack.enter_context(
                fill_safetensors(
                    directory / rank_file(rank),
                    [(name, dtype, shape) for name, (dtype, shape) in rank_tensors(plan, layout, rank).items()],
                )
            )
            for rank in range(len(layout.ranks))
        ]
        files = RankFiles(layout, writers, FLOATS[plan.target.activations])
        _write_padding(layout, files)
        _write_calibrated(plan, layout, calibration, files)
        yield files


def _write_padding(layout: Layout, files: RankFiles) -> None:
    """Zeros below the vocabulary's last row, where it does not divide among the ranks."""
    for shares in layout.shares.values():
        for share in shares:
            matrix = share.matrix
            filled = max(0, share.stop - share.first)
            if len(matrix.sources) == 1 and filled < matrix.shape[0]:
                zeros = np.zeros((matrix.shape[0] - filled, *matrix.shape[1:]), np.float32)
                files.write(share.rank, f"{matrix.name}.{WEIGHT}", filled, zeros)


def _write_calibrated(plan: BuildPlan, layout: Layout, calibration: Calibration, files: RankFiles) -> None:
    inputs = shared_inputs(plan)
    for rank, matrices in enumerate(layout.ranks):
        for matrix in matrices:
            parts = matrix_tensors(matrix, FLOATS[plan.target.activations])
            if INPUT_SCALE in parts:
                scale = _input_scale(calibration, inputs[matrix.sources[0]])
                files.write(rank, f"{matrix.name}.{INPUT_SCALE}", 0, np.array([scale], np.float32))
            if PRE_QUANT_SCALE in parts:
                scales = _pre_quant_scale(calibration, matrix)
                files.write(rank, f"{matrix.name}.{PRE_QUANT_SCALE}", 0, scales)
    if plan.target.kv_cache in ("fp8", "int8"):
        _write_kv_scales(plan, layout, calibration, files)


def _input_scale(calibration: Calibration, names: Sequence[str]) -> np.float32:
    largest = calibration.shared_input(names)
    if largest is None:
        raise UnusableInput(
            f"calibration knows nothing of the input of {names[0]}, and TensorRT-LLM needs its scale",
            hint="leave out --calibration for the built-in text, or give a text or a file with all scales",
        )
    return input_scale(largest)


def _pre_quant_scale(calibration: Calibration, matrix: Matrix) -> Floats:
    """float32 [K] of the rank's columns: calibration's, or ones, which the reader wants in any case."""
    known = [calibration.pre_quant_scales.get(name) for name in matrix.sources]
    first = known[0]
    assert matrix.columns is not None
    if first is None:
        return np.ones(matrix.shape[1], np.float32)
    if any(other is None or not np.array_equal(first, other) for other in known):
        raise ValueError(f"{', '.join(matrix.sources)} are one matrix and need one pre-quant scale")
    return np.ascontiguousarray(first[slice(*matrix.columns)])


def _write_kv_scales(plan: BuildPlan, layout: Layout, calibration: Calibration, files: RankFiles) -> None:
    """One scale for keys and values together, the larger: what preprocess_weights makes of two."""
    cache = plan.target.kv_cache
    assert cache in ("fp8", "int8")
    if min(len(calibration.keys), len(calibration.values)) < len(layout.layers):
        raise UnusableInput(
            f"calibration knows nothing of the keys and values, and an {cache} cache needs their scales",
            hint="leave out --calibration, or use --kv-cache bf16",
        )
    pairs = zip(layout.layers, calibration.keys, calibration.values, strict=False)
    for (first, prefix), keys, values in pairs:
        scale = np.array([kv_cache_scale(max(keys, values), cache)], np.float32)
        for rank in range(first, first + plan.target.tensor_parallel):
            files.write(rank, prefix + KV_SCALE, 0, scale)
