"""Reads back the shards of a directory: any rows of any tensor, in the type they are stored in."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeforge.backends import InputScales
from edgeforge.backends.huggingface.layout import TensorSpec, shards, side
from edgeforge.errors import UnusableInput
from edgeforge.model.architecture import Linear, LlamaArchitecture
from edgeforge.model.checkpoint import TensorRows
from edgeforge.model.positional import PositionalFile, Scratch
from edgeforge.model.safetensors_header import read_header
from edgeforge.model.safetensors_writer import STORAGE
from edgeforge.planning import BuildPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    spec: TensorSpec
    file: PositionalFile
    start: int


class StoredTensors:
    """The tensors of a written directory, which are those that the plan says."""

    def __init__(self, directory: Path, expected: Iterable[TensorSpec]) -> None:
        """Reads the headers. UnusableInput where a tensor is missing, or of another type or shape."""
        files = shards(expected)
        self._places = _places(directory, files)
        for tensor in (tensor for group in files.values() for tensor in group):
            if tensor.name not in self._places and tensor.optional:
                continue
            found = self._places.get(tensor.name)
            if found is None or (found.spec.dtype, found.spec.shape) != (tensor.dtype, tensor.shape):
                raise UnusableInput(
                    f"{directory} has no {tensor.name} of type {tensor.dtype} and shape {list(tensor.shape)}",
                    hint="its weights are not those of the plan; build it again",
                )

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def shape(self, name: str) -> tuple[int, ...]:
        return self._places[name].spec.shape

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.generic]:
        """Rows [start, stop) in the stored type, a fresh array. ValueError outside the tensor."""
        place = self._places[name]
        rows, *rest = place.spec.shape
        if not 0 <= start <= stop <= rows:
            raise ValueError(f"rows {start}:{stop} of {name} {place.spec.shape}")
        values = np.empty((stop - start, *rest), STORAGE[place.spec.dtype])
        place.file.read_into(values, place.start + start * math.prod(rest) * values.itemsize)
        return values

    def floats(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """The same as float32."""
        return self.rows(name, start, stop).astype(np.float32)

    def scalar(self, name: str) -> np.float32:
        """The one number of a tensor [] or [1]."""
        place = self._places[name]
        value = np.empty(1, STORAGE[place.spec.dtype])
        place.file.read_into(value, place.start)
        return np.float32(value[0])


def _places(directory: Path, files: Iterable[str]) -> Mapping[str, _Place]:
    scratch, places = Scratch(), {}
    for name in files:
        header = read_header(directory / name)
        file = PositionalFile(directory / name, scratch)
        for entry in header.entries:
            spec = TensorSpec(name=entry.name, dtype=entry.dtype, shape=entry.shape)
            places[entry.name] = _Place(spec=spec, file=file, start=entry.start)
    return places


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    shape: tuple[int, ...]
    read: Callable[[int, int], NDArray[np.float32]]

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        return self.read(start, stop)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredWeights:
    """A `Weights` over stored tensors. `linears`: the rows of a quantized linear, dequantized, by its weight's name."""

    architecture: LlamaArchitecture
    stored: StoredTensors
    linears: Mapping[str, Callable[[int, int], NDArray[np.float32]]]

    def tensor(self, name: str) -> TensorRows:
        """KeyError for a name that the architecture does not have."""
        read = self.linears.get(name) or partial(self.stored.floats, name)
        return _Rows(shape=dict(self.architecture.tensors())[name], read=read)


def open_weights(
    plan: BuildPlan,
    stored: StoredTensors,
    rows: Callable[[BuildPlan, StoredTensors, Linear, int, int], NDArray[np.float32]],
) -> StoredWeights:
    """The weights of the files, quantized linears read by `rows`."""
    linears = {
        linear.name: partial(rows, plan, stored, linear)
        for linear in plan.architecture.linears()
        if not plan.schemes[linear.name].is_float
    }
    return StoredWeights(architecture=plan.architecture, stored=stored, linears=linears)


def stored_inputs(plan: BuildPlan, stored: StoredTensors, cache_names: Callable[[int], tuple[str, str]]) -> InputScales:
    """The static input scales that the files hold, and those of an FP8 cache; no pre-quant scales."""
    names = {linear.name: side(linear, "input_scale") for linear in plan.architecture.linears()}
    layers = range(plan.architecture.num_hidden_layers if plan.target.kv_cache == "fp8" else 0)
    keys, values = ([float(stored.scalar(cache_names(layer)[which])) for layer in layers] for which in (0, 1))
    return InputScales(
        inputs={name: float(stored.scalar(scale)) for name, scale in names.items() if scale in stored},
        keys=tuple(keys),
        values=tuple(values),
    )
