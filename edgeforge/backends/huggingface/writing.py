"""Writes a directory's shards as a stream: all files are open at their final size, rows arrive in any order."""

import json
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeforge.backends import Rows
from edgeforge.backends.huggingface.layout import INDEX_FILE, TensorSpec, shards
from edgeforge.model.placed_file import Extent
from edgeforge.model.safetensors_writer import STORAGE, SafetensorsWriter, fill_safetensors
from edgeforge.planning import BuildPlan
from edgeforge.quantization.scheme import QuantizedTensor

METADATA = {"format": "pt"}  # transformers refuses a file that does not say it
BEYOND: Mapping[str, float] = {"F16": 65520.0, "BF16": float(np.uint32(0x7F7F8000).view(np.float32))}
"""The smallest magnitudes that round to infinity."""
LONG_NAMES: Mapping[str, str] = {"F16": "float16", "BF16": "bfloat16"}


class ShardWriter:
    """Puts rows of a tensor into the file that has it. Thread-safe."""

    def __init__(
        self, files: Mapping[str, SafetensorsWriter], places: Mapping[str, str], words: Mapping[str, str]
    ) -> None:
        """`places`: the file of every tensor. `words`: its dtype, as safetensors calls it."""
        self._files = files
        self._places = places
        self._words = words

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def write(self, name: str, start: int, array: NDArray[np.generic]) -> Extent:
        """Rows `start` onwards of a tensor, in the type it is stored in. ValueError where they do not fit."""
        return self._files[self._places[name]].write(name, start, array)

    def write_floats(self, name: str, start: int, values: NDArray[np.float32]) -> Extent:
        """The same for float32 values, rounded to the stored type. FloatingPointError beyond its range."""
        return self.write(name, start, rounded(values, self._words[name]))

    def keep(self, extents: Iterable[Extent]) -> None:
        """These were written by an earlier process."""
        for extent in extents:
            self._files[extent.file].keep(extent)


class RowSink:
    """A backend's `WeightSink` over the shards: floats go to their place, after `put_quantized` has seen to codes.

    `norm_scales`: what a norm's weights are multiplied by, by its name.
    """

    def __init__(
        self,
        plan: BuildPlan,
        shards: ShardWriter,
        norm_scales: Mapping[str, NDArray[np.float32]],
        put_quantized: Callable[[ShardWriter, str, int, QuantizedTensor], Sequence[Extent]],
    ) -> None:
        self._plan = plan
        self._shards = shards
        self._norm_scales = norm_scales
        self._put_quantized = put_quantized

    def put(self, name: str, start: int, rows: Rows) -> Sequence[Extent]:
        """See `edgeforge.backends.WeightSink`."""
        if isinstance(rows, QuantizedTensor):
            if rows.scheme != self._plan.schemes[name]:
                raise ValueError(f"the plan stores {name} as {self._plan.schemes[name]}, not {rows.scheme}")
            return self._put_quantized(self._shards, name, start, rows)
        scale = self._norm_scales.get(name)
        scaled = rows if scale is None else rows * scale[start : start + len(rows)]
        return (self._shards.write_floats(name, start, scaled),)

    def keep(self, extents: Iterable[Extent]) -> None:
        """See `edgeforge.backends.WeightSink`."""
        self._shards.keep(extents)


def rounded(values: NDArray[np.float32], word: str) -> NDArray[np.generic]:
    """`values` as the safetensors type `word` (F32, F16 or BF16). FloatingPointError where it cannot hold one."""
    limit = BEYOND.get(word)
    if limit is not None and values.size and max(float(values.max()), -float(values.min())) >= limit:
        raise FloatingPointError(f"a value is too large for {LONG_NAMES[word]}, which the target's activations are")
    return values.astype(STORAGE[word], copy=False)


@contextmanager
def write_shards(
    directory: Path, tensors: Iterable[TensorSpec], *, left_out: Container[str] = frozenset()
) -> Iterator[ShardWriter]:
    """Open the shards of `tensors`; those named in `left_out` keep their shard's place and are not written.

    What an earlier process wrote into them stays. ValueError where rows are missing at the end; the index of several
    files is written then.
    """
    files = {
        file: [tensor for tensor in group if tensor.name not in left_out] for file, group in shards(tensors).items()
    }
    writers: dict[str, SafetensorsWriter] = {}
    with ExitStack() as stack:
        for file, group in files.items():
            rows = [(tensor.name, tensor.dtype, tensor.shape) for tensor in group]
            writers[file] = stack.enter_context(fill_safetensors(directory / file, rows, metadata=METADATA))
        places = {tensor.name: file for file, group in files.items() for tensor in group}
        yield ShardWriter(writers, places, {tensor.name: tensor.dtype for group in files.values() for tensor in group})
    if len(files) > 1:
        write_json(directory / INDEX_FILE, _index(files))


def _index(files: Mapping[str, list[TensorSpec]]) -> dict[str, object]:
    places = {tensor.name: file for file, group in files.items() for tensor in group}
    size = sum(tensor.size_bytes for group in files.values() for tensor in group)
    return {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Indented, keys in the order given."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
