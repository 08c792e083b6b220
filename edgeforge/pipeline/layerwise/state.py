"""The state folder of a calibrated pass: what each layer left behind, under a key that says of which pass.

key.json                everything that decides the bytes; of another pass, the folder is emptied
layer-0007.safetensors  codes, scales, changed norms and largest magnitudes; or (collecting) Gram matrices
now-0008.f32            the hidden states before layer 8, float32 [B, T, D]; the newest only
meant-0008.f32          the same in the unquantized model
first.json              what a sequence's first token weighs for each linear
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from edgeforge.model.safetensors_header import TensorEntry, read_header
from edgeforge.model.safetensors_writer import write_safetensors
from edgeforge.quantization.calibration import Calibration
from edgeforge.quantization.scheme import QuantizationScheme, QuantizedTensor

KEY = "key.json"
NOW, MEANT = "now", "meant"
FIRST = ".first"
SCALES, ZERO_POINTS, TENSOR_SCALE = ".scales", ".zero_points", ".tensor_scale"
_WORDS = {np.dtype(np.float32): "F32", np.dtype(np.int8): "I8", np.dtype(np.uint8): "U8"}
_ARRAYS = {"F32": np.float32, "I8": np.int8, "U8": np.uint8}

Floats = NDArray[np.float32]
Stored = Mapping[str, NDArray[np.generic]]


class StateFolder:
    """Files of finished layers. `parts` are numbered: layers first, the output head after the last."""

    def __init__(self, path: Path, key: Mapping[str, object], log: Callable[[str], None]) -> None:
        """Open `path` for the pass that `key` (JSON) describes; another pass's files are deleted, and `log` told."""
        self.path = path
        text = json.dumps(key, sort_keys=True, indent=1)
        there = path / KEY
        if there.is_file() and there.read_text(encoding="utf-8") == text:
            done = sum(1 for _ in self._finished())
            if done:
                log(f"going on after {done} finished layers in {path.name}")
            return
        if path.exists():
            log(f"{path.name} is of another calibration: starting again")
            shutil.rmtree(path)
        path.mkdir(parents=True)
        there.write_text(text, encoding="utf-8")

    @property
    def first(self) -> Path:
        return self.path / "first.json"

    def part(self, number: int) -> Path:
        return self.path / f"layer-{number:04}.safetensors"

    def states(self, number: int, name: str = NOW) -> Path:
        """The hidden states before layer `number`: with the weights as they are now, or as they were meant."""
        return self.path / f"{name}-{number:04}.f32"

    def resume_at(self, layers: int, names: Sequence[str] = (NOW,)) -> int:
        """The first layer to do: all before it are finished, and the hidden states before it are there; 0 for none."""
        done = sum(1 for _ in self._finished())
        return next((number for number in range(min(done, layers), 0, -1) if self._has_states(number, names)), 0)

    def _has_states(self, number: int, names: Sequence[str]) -> bool:
        return all(self.states(number, name).is_file() for name in names)

    def _finished(self) -> Iterator[Path]:
        number = 0
        while self.part(number).is_file():
            yield self.part(number)
            number += 1

    def save(self, number: int, arrays: Stored) -> None:
        """Write one part, whole or not at all."""
        listed = [(name, _WORDS[array.dtype], array.shape) for name, array in arrays.items()]
        with write_safetensors(self.part(number), listed) as writer:
            for name, array in arrays.items():
                writer.write(name, 0, array)


def key_of(**parts: object) -> dict[str, object]:
    """Long parts by their SHA-256."""
    return {name: part if isinstance(part, str | int) else _digest(part) for name, part in parts.items()}


def _digest(part: object) -> str:
    text = json.dumps(part, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def stored_form(name: str, tensor: QuantizedTensor) -> dict[str, NDArray[np.generic]]:
    """A quantized tensor as arrays that a safetensors file holds; float codes as their bytes."""
    codes = tensor.codes if tensor.codes.dtype == np.int8 else tensor.codes.view(np.uint8)
    arrays: dict[str, NDArray[np.generic]] = {name: codes, name + SCALES: tensor.scales}
    if tensor.zero_points is not None:
        arrays[name + ZERO_POINTS] = tensor.zero_points
    if tensor.tensor_scale is not None:
        arrays[name + TENSOR_SCALE] = np.array(tensor.tensor_scale, np.float32)
    return arrays


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    path: Path
    entry: TensorEntry

    def read(self) -> NDArray[np.generic]:
        kind = np.dtype(_ARRAYS[self.entry.dtype])
        with self.path.open("rb") as file:
            file.seek(self.entry.start)
            return np.fromfile(file, kind, self.entry.size_bytes // kind.itemsize).reshape(self.entry.shape)


def _places(folder: StateFolder, parts: int) -> dict[str, _Place]:
    paths = [folder.part(number) for number in range(parts)]
    return {entry.name: _Place(path=path, entry=entry) for path in paths for entry in read_header(path).entries}


def read_arrays(path: Path, suffixes: tuple[str, ...]) -> dict[str, NDArray[np.generic]]:
    """The arrays of a part whose names end so."""
    entries = read_header(path).entries
    return {entry.name: _Place(path=path, entry=entry).read() for entry in entries if entry.name.endswith(suffixes)}


class Quantized:
    """The finished pass: tensors by their names, read from the state folder when asked for. Thread-safe."""

    def __init__(
        self, folder: StateFolder, parts: int, schemes: Mapping[str, QuantizationScheme], calibration: Calibration
    ) -> None:
        self.calibration = calibration
        self._schemes = schemes
        self._places = _places(folder, parts)
        self.names = tuple(name for name in self._places if name.endswith(".weight"))

    def tensor(self, name: str) -> QuantizedTensor | Floats:
        """All rows of tensor `name`: quantized, or float32 where the pass changed what stays float (norms)."""
        values = self._places[name].read()
        if name + SCALES not in self._places:
            return values.astype(np.float32, copy=False)
        scheme = self._schemes[name]
        return QuantizedTensor(
            scheme=scheme,
            codes=values if scheme.code_format == "int" else values.view(_CODES[scheme.code_format]),
            scales=self._floats(name + SCALES),
            zero_points=self._zero_points(name),
            tensor_scale=np.float32(self._floats(name + TENSOR_SCALE)) if name + TENSOR_SCALE in self._places else None,
        )

    def _floats(self, name: str) -> Floats:
        return self._places[name].read().astype(np.float32, copy=False)

    def _zero_points(self, name: str) -> NDArray[np.int8] | None:
        place = self._places.get(name + ZERO_POINTS)
        return None if place is None else place.read().astype(np.int8, copy=False)


_CODES = {"e4m3": ml_dtypes.float8_e4m3fn, "e2m1": ml_dtypes.float4_e2m1fn}


class Grams:
    """Gram matrices on disk. `rows`: tokens that they sum over. `names`: of the linears (and head) that have one."""

    def __init__(self, folder: StateFolder, parts: int, owners: Mapping[str, str], rows: int) -> None:
        self.rows = rows
        self.names = tuple(owners)
        self._owners = owners
        self._places = _places(folder, parts)

    def gram(self, name: str) -> Floats:
        """float32 [K, K]: X^T X over the inputs of linear `name`. Linears that share an input share it."""
        return self._places[self._owners[name]].read().astype(np.float32, copy=False)

    def first(self, name: str) -> Floats:
        """float32 [B, K]: the inputs of every sequence's first token."""
        return self._places[self._owners[name] + FIRST].read().astype(np.float32, copy=False)
