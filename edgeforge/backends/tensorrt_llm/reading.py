"""Reads the ranks' files back: their parts side by side again, dequantized, by ranges of rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from edgeforge.backends import InputScales
from edgeforge.backends.nibbles import unpack_rows
from edgeforge.backends.tensorrt_llm.files import (
    FLOATS,
    INPUT_SCALE,
    KV_SCALE,
    PRE_QUANT_SCALE,
    SCALE,
    SCALE_2,
    WEIGHT,
    matrix_tensors,
    rank_file,
    rank_tensors,
)
from edgeforge.backends.tensorrt_llm.sharding import BY_COLUMNS, Layout, Matrix, Share, make_layout
from edgeforge.errors import UnusableInput
from edgeforge.model.architecture import LlamaArchitecture
from edgeforge.model.checkpoint import Weights
from edgeforge.model.positional import PositionalFile, Scratch
from edgeforge.model.safetensors_header import TensorEntry, read_header
from edgeforge.model.safetensors_writer import STORAGE
from edgeforge.planning import BuildPlan

Floats = NDArray[np.float32]


class RankFile:
    """One rank's file, its tensors read by ranges of their rows."""

    def __init__(self, path: Path, scratch: Scratch) -> None:
        self.path = path
        self.entries: Mapping[str, TensorEntry] = {entry.name: entry for entry in read_header(path).entries}
        self._file = PositionalFile(path, scratch)

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.generic]:
        """[stop - start, *shape[1:]] in the stored type, a fresh array."""
        entry = self.entries[name]
        count = (entry.shape[0] if stop is None else stop) - start
        values = np.empty((count, *entry.shape[1:]), STORAGE[entry.dtype])
        row_bytes = entry.size_bytes // entry.shape[0]
        self._file.read_into(values, entry.start + start * row_bytes)
        return values

    def number(self, name: str) -> float:
        return float(self.rows(name)[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardedTensor:
    """A checkpoint tensor in the ranks' files; a `TensorRows`."""

    shape: tuple[int, ...]
    shares: tuple[Share, ...]
    by_columns: bool
    files: Sequence[RankFile]
    dtype: str  # the model's: f16 or bf16

    def rows(self, start: int, stop: int) -> Floats:
        """float32 [stop - start, *shape[1:]], a fresh array."""
        if not 0 <= start <= stop <= self.shape[0]:
            raise ValueError(f"rows {start}:{stop} of {self.shape}")
        if self.by_columns:
            return np.concatenate([self._part(share, start, stop) for share in self.shares], axis=1)
        values = np.empty((stop - start, *self.shape[1:]), np.float32)
        for share in self.shares:
            low, high = max(start, share.first), min(stop, share.stop)
            if low < high:
                values[low - start : high - start] = self._part(share, low, high)
        return values

    def _part(self, share: Share, start: int, stop: int) -> Floats:
        """Rows of the checkpoint tensor that one rank has."""
        first = share.row + start - share.first
        return matrix_rows(self.files[share.rank], share.matrix, first, first + stop - start, self.dtype)


def matrix_rows(file: RankFile, matrix: Matrix, start: int, stop: int, dtype: str) -> Floats:
    """float32 rows of a rank's matrix, as the kernels of TensorRT-LLM dequantize them.

    INT4 scales are rounded to the model's type as they are loaded; W4A8's are divided by the second scale and rounded
    to float16 (preprocess_perlayer_weights of tensorrt_llm/models/modeling_utils.py).
    """
    name, scheme = matrix.name, matrix.scheme
    if scheme is None:
        return file.rows(f"{name}.{WEIGHT}", start, stop).astype(np.float32)
    if scheme.code_format == "e4m3":
        return file.rows(f"{name}.{WEIGHT}", start, stop).astype(np.float32) * np.float32(
            file.number(f"{name}.{SCALE}")
        )
    packed = file.rows(f"{name}.{WEIGHT}", start // 2, -(-stop // 2)).view(np.uint8)
    codes = unpack_rows(packed)[start % 2 : start % 2 + stop - start]
    scales = file.rows(f"{name}.{SCALE}", start, stop).astype(_numpy(dtype)).astype(np.float32)
    if scheme.activations != "none":
        whole = np.float32(file.number(f"{name}.{SCALE_2}"))
        scales = (scales / whole).astype(_numpy(dtype)).astype(np.float16).astype(np.float32) * whole
    grouped = codes.reshape(*scales.shape, -1) * scales[:, :, None]
    return grouped.reshape(codes.shape)


def _numpy(dtype: str) -> np.dtype[np.generic]:
    return np.dtype(np.float16) if dtype == "f16" else np.dtype(ml_dtypes.bfloat16)


class ShardedWeights:
    """The model in the ranks' files; a `Weights`."""

    def __init__(self, plan: BuildPlan, layout: Layout, files: Sequence[RankFile]) -> None:
        self.architecture: LlamaArchitecture = plan.architecture
        self._layout = layout
        self._files = files
        self._dtype = plan.target.activations
        self._shapes = dict(plan.architecture.tensors())
        self._by_columns = {linear.name for linear in plan.architecture.linears() if linear.role in BY_COLUMNS}

    def tensor(self, name: str) -> ShardedTensor:
        """KeyError where the architecture has none of that name."""
        shares = self._layout.shares[name]
        if name not in self._by_columns:
            # Copies of a key or value head, and the tied head's of the embedding, are read once.
            shares = tuple({share.first: share for share in reversed(shares)}.values())
        else:
            shares = tuple(sorted(shares, key=lambda share: share.rank))
        return ShardedTensor(
            shape=self._shapes[name],
            shares=shares,
            by_columns=name in self._by_columns,
            files=self._files,
            dtype=self._dtype,
        )


def read_back(plan: BuildPlan, directory: Path) -> Weights:
    """See `edgeforge.backends.ReadableBackend`."""
    layout = make_layout(plan)
    return ShardedWeights(plan, layout, _open(plan, layout, directory))


def read_inputs(plan: BuildPlan, directory: Path) -> InputScales:
    """See `edgeforge.backends.ReadableBackend`. Pre-quant scales of ones are left out."""
    layout = make_layout(plan)
    files = _open(plan, layout, directory)
    inputs: dict[str, float] = {}
    scales: dict[str, Floats] = {}
    for name, shares in layout.shares.items():
        parts = matrix_tensors(shares[0].matrix, FLOATS[plan.target.activations])
        if INPUT_SCALE in parts:
            inputs[name] = files[shares[0].rank].number(f"{shares[0].matrix.name}.{INPUT_SCALE}")
        if PRE_QUANT_SCALE in parts:
            whole = _pre_quant_scale(shares, files)
            scales |= {name: whole} if (whole != 1).any() else {}
    caches: tuple[float, ...] = ()
    if plan.target.kv_cache in ("fp8", "int8"):
        caches = tuple(files[rank].number(prefix + KV_SCALE) for rank, prefix in layout.layers)
    return InputScales(inputs=inputs, pre_quant_scales=scales, keys=caches, values=caches)


def _pre_quant_scale(shares: Sequence[Share], files: Sequence[RankFile]) -> Floats:
    """float32 [K]; each rank has those of its columns."""
    parts = {share.matrix.columns: files[share.rank].rows(f"{share.matrix.name}.{PRE_QUANT_SCALE}") for share in shares}
    return np.concatenate([part.astype(np.float32) for part in parts.values()])


def _open(plan: BuildPlan, layout: Layout, directory: Path) -> list[RankFile]:
    """Every rank's file; UnusableInput where one is not as the plan says."""
    scratch = Scratch()
    files = [RankFile(directory / rank_file(rank), scratch) for rank in range(len(layout.ranks))]
    for rank, file in enumerate(files):
        found = {name: (entry.dtype, entry.shape) for name, entry in file.entries.items()}
        meant = rank_tensors(plan, layout, rank)
        if found != meant:
            wrong = next(name for name in (*meant, *found) if found.get(name) != meant.get(name))
            raise UnusableInput(
                f"{file.path}: {wrong} should be {_described(meant.get(wrong))} and is {_described(found.get(wrong))}",
                hint="the plan and the files are not of one build; build the bundle again",
            )
    return files


def _described(tensor: tuple[str, tuple[int, ...]] | None) -> str:
    return "absent" if tensor is None else f"{tensor[0]} {list(tensor[1])}"
