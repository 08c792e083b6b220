"""The KV caches of several sequences side by side: token ids in, logits of the last tokens out.

Shape letters: B sequences, T new tokens, S positions in a cache buffer, V vocabulary. The graph takes input_ids int64
[B, T], attention_mask int64 [B, past + T] (ones up to each sequence's length) and past_key_values.{i}.key/.value [B,
KV, S, head_dim]; it gives logits [B, 1, V] and present.{i}.key/.value. Past and present are one buffer, bound once:
GroupQueryAttention writes the new positions in place. The runtime graph also takes logits_from int64 [1] and gives
logits of the tokens from there on (-1: the last one).
"""

import math
import mmap
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .errors import UnusableBundle
from .graph import DTYPES, Argument, Binding, Graph, Value, run
from .manifest import ModelRecord
from .requirements import Device, import_package

# Bounds the activations of a long prompt; larger chunks are no faster.
PREFILL_CHUNK = 512
# Rows of logits that memory is kept for: what speculation asks of one run.
KEPT_ROWS = 16


class Caches(Protocol):
    """`ids[slot]` are the tokens whose keys and values a slot holds."""

    ids: list[list[int]]

    @property
    def copies(self) -> bool:
        """Whether keys and values can be copied (`Slots.copy`, `read`, `write`)."""
        ...

    @property
    def rows(self) -> int:
        """How many tokens of one run may have logits."""
        ...

    @property
    def positions(self) -> int:
        """How many tokens a slot has room for."""
        ...

    def feed(
        self, first: int, rows: Sequence[Sequence[int]], wanted: int = 1, *, own: bool = False
    ) -> NDArray[np.float32]:
        """Feed rows[i] to slot first + i: several rows of one token, or one row of many. A row without tokens leaves
        its slot as it is.

        float32 [B, wanted, V], logits of each row's last tokens, valid until the next call, or the caller's `own`.
        UnusableBundle where a context is full.
        """
        ...

    def rewind(self, slot: int, length: int) -> None:
        """Forget everything but the slot's first `length` tokens."""
        ...


class Slots:
    """`Caches` over a graph whose present caches are its past caches. Memory grows to as many slots as were in use at
    once (on a GPU, it is there for all from the start).
    """

    def __init__(self, graph: Graph, model: ModelRecord, device: Device, *, slots: int, positions: int | None = None):
        self.ids: list[list[int]] = [[] for _ in range(slots)]
        self.positions = positions or model.context_length
        self.copies = device == "cpu"
        self._graph = graph
        self._device = device
        self._arguments = cache_arguments(graph, model)
        self._shape = (model.num_key_value_heads, self.positions, model.head_dim)
        logits = output(graph, "logits")
        self._asks = any(argument.name == "logits_from" for argument in graph.get_inputs())
        self._gives_all = not self._asks and logits.shape[1] != 1
        self.rows = self.positions if self._asks or self._gives_all else 1
        self._ids = np.zeros(max(self.positions, slots), np.int64)
        self._mask = np.ones(self.positions, np.int64)
        self._from = np.zeros(1, np.int64)
        self._logits = np.zeros((max(slots, KEPT_ROWS), model.vocab_size), DTYPES[logits.type])
        self._allocated = 0
        self._buffers: list[NDArray[np.generic] | Value] = []
        self._bindings: dict[tuple[int, int], Binding] = {}
        self._places: dict[tuple[Binding, str], tuple[int, tuple[int, ...]]] = {}
        self._grow(1 if self.copies else slots)

    def feed(
        self, first: int, rows: Sequence[Sequence[int]], wanted: int = 1, *, own: bool = False
    ) -> NDArray[np.float32]:
        slots = range(first, first + len(rows))
        self._grow_to(slots[-1])
        for slot, row in zip(slots, rows, strict=True):
            check_room(len(self.ids[slot]) + len(row), self.positions)
        binding = self._bindings.get((first, len(rows))) or self._bind(first, len(rows))
        self._bind_tokens(binding, slots, rows)
        given = max(len(row) for row in rows) if self._gives_all else wanted
        logits = self._bind_logits(binding, len(rows), given, own=own)
        run(self._graph, binding)
        for slot, row in zip(slots, rows, strict=True):
            self.ids[slot].extend(row)
        return np.asarray(logits[:, given - wanted :], np.float32)

    def rewind(self, slot: int, length: int) -> None:
        # The buffers keep what was there: the attention mask says how much of them counts.
        del self.ids[slot][length:]

    def copy(self, source: int, target: int, start: int, stop: int) -> None:
        """Have `target`, which holds `start` tokens, go on with those of `source` up to `stop`."""
        self._grow_to(target)
        for buffer in self._arrays():
            buffer[target, :, start:stop] = buffer[source, :, start:stop]
        self.ids[target].extend(self.ids[source][start:stop])

    def read(self, slot: int, start: int, stop: int) -> NDArray[np.generic]:
        """Keys and values of a slot's tokens, a copy: [2 layers, KV, stop - start, head_dim]."""
        return np.stack([buffer[slot, :, start:stop] for buffer in self._arrays()])

    def write(self, slot: int, ids: Sequence[int], values: NDArray[np.generic]) -> None:
        """Go on with `ids`, whose keys and values `read` gave."""
        self._grow_to(slot)
        start, stop = len(self.ids[slot]), len(self.ids[slot]) + len(ids)
        for buffer, value in zip(self._arrays(), values, strict=True):
            buffer[slot, :, start:stop] = value
        self.ids[slot].extend(ids)

    def _arrays(self) -> list[NDArray[np.generic]]:
        return [buffer for buffer in self._buffers if isinstance(buffer, np.ndarray)]

    def _grow_to(self, slot: int) -> None:
        if slot >= self._allocated:
            self._grow(min(max(2 * self._allocated, slot + 1), len(self.ids)))

    def _grow(self, slots: int) -> None:
        """Buffers for so many slots, [slots, KV, S, head_dim] for every past_key_values input."""
        try:
            grown = [self._buffer((slots, *self._shape), DTYPES[argument.type]) for argument in self._arguments]
        except Exception as error:  # numpy's MemoryError, or what onnxruntime raises for a device
            raise MemoryError(
                f"there is not enough memory for the keys and values of {slots} sequences of {self.positions} tokens: "
                "load with a smaller batch, or build with a shorter context"
            ) from error
        for after, before in zip(grown, self._arrays(), strict=False):
            for slot, ids in enumerate(self.ids[: self._allocated]):
                np.asarray(after)[slot, :, : len(ids)] = before[slot, :, : len(ids)]
        self._bindings.clear()
        self._places.clear()
        self._buffers, self._allocated = grown, slots

    def _buffer(self, shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[np.generic] | Value:
        if self._device == "cpu":
            # Pages count once a token reaches them. np.zeros would ask for huge ones, which count whole.
            return np.frombuffer(mmap.mmap(-1, math.prod(shape) * np.dtype(dtype).itemsize), dtype).reshape(shape)
        ort = import_package("onnxruntime", self._device)
        value: Value = ort.OrtValue.ortvalue_from_shape_and_type(shape, dtype, self._device, 0)
        return value

    def _bind(self, first: int, count: int) -> Binding:
        """A binding whose caches are those of `count` slots: each buffer as the past and the present of its layer."""
        binding = self._bindings[first, count] = self._graph.io_binding()
        shape = (count, *self._shape)
        for argument, buffer in zip(self._arguments, self._buffers, strict=True):
            dtype = DTYPES[argument.type]
            begin = buffer.ctypes.data if isinstance(buffer, np.ndarray) else buffer.data_ptr()
            pointer = begin + first * math.prod(self._shape) * np.dtype(dtype).itemsize
            present = argument.name.replace("past_key_values", "present")
            binding.bind_input(argument.name, self._device, 0, dtype, shape, pointer)
            binding.bind_output(present, self._device, 0, dtype, shape, pointer)
        return binding

    def _bind_tokens(self, binding: Binding, slots: range, rows: Sequence[Sequence[int]]) -> None:
        new = max(len(row) for row in rows)
        for slot, row in zip(slots, rows, strict=True):
            if not row and len(self.ids[slot]) == self.positions:
                self.ids[slot].pop()  # what is computed for nobody is written behind the last token
        lengths = [len(self.ids[slot]) + new for slot in slots]
        total = max(lengths)
        ids = self._ids[: len(rows) * new].reshape(len(rows), new)
        for index, row in enumerate(rows):
            ids[index] = row or 0
        mask = self._mask[None, :total]
        if len(rows) > 1:
            mask = (np.arange(total) < np.asarray(lengths)[:, None]).astype(np.int64)
        self._last_mask = mask  # alive until the run is over
        self._bind_input(binding, "input_ids", ids)
        self._bind_input(binding, "attention_mask", mask)

    def _bind_logits(self, binding: Binding, count: int, given: int, *, own: bool) -> NDArray[np.generic]:
        rows, vocabulary = count * given, self._logits.shape[1]
        kept = rows <= len(self._logits) and not own
        logits = self._logits[:rows] if kept else np.empty((rows, vocabulary), self._logits.dtype)
        logits = logits.reshape(count, given, vocabulary)
        if self._asks:
            self._from[0] = -given
            self._bind_input(binding, "logits_from", self._from)
        if self._is_elsewhere(binding, "logits", logits):
            binding.bind_output("logits", "cpu", 0, logits.dtype.type, logits.shape, logits.ctypes.data)
        return logits

    def _bind_input(self, binding: Binding, name: str, array: NDArray[np.int64]) -> None:
        # A CUDA session copies at this moment.
        if self._is_elsewhere(binding, name, array) or self._device != "cpu":
            binding.bind_input(name, "cpu", 0, np.int64, array.shape, array.ctypes.data)

    def _is_elsewhere(self, binding: Binding, name: str, array: NDArray[np.generic]) -> bool:
        """Whether `name` was bound to another place, or in another shape; from now on it is bound there."""
        place = (array.ctypes.data, array.shape)
        is_elsewhere = self._places.get((binding, name)) != place
        self._places[binding, name] = place
        return is_elsewhere


def one_context_bytes(model: ModelRecord) -> int:
    """What keys and values of a whole context take."""
    values = 2 * model.num_hidden_layers * model.num_key_value_heads * model.head_dim
    return model.context_length * values * (4 if model.kv_cache == "f32" else 2)


def cache_arguments(graph: Graph, model: ModelRecord) -> list[Argument]:
    """The graph's past_key_values inputs; UnusableBundle unless there are two for every layer of the manifest."""
    found = {argument.name: argument for argument in graph.get_inputs()}
    names = [f"past_key_values.{i}.{part}" for i in range(model.num_hidden_layers) for part in ("key", "value")]
    for name in names:
        if name not in found or found[name].type not in DTYPES:
            raise UnusableBundle(f"{model.graph} does not fit its manifest: it has no usable input {name}")
    return [found[name] for name in names]


def output(graph: Graph, name: str) -> Argument:
    for argument in graph.get_outputs():
        if argument.name == name and argument.type in DTYPES:
            return argument
    raise UnusableBundle(f"the graph has no usable output {name}")


def check_room(tokens: int, context_length: int) -> None:
    if tokens > context_length:
        raise UnusableBundle(
            f"{tokens} tokens do not fit the bundle's context of {context_length}",
            hint="shorten the text, or build the bundle with a longer --context",
        )


def shared_prefix(cached: Sequence[int], ids: Sequence[int]) -> int:
    """How many tokens both begin with."""
    for position, (have, want) in enumerate(zip(cached, ids, strict=False)):
        if have != want:
            return position
    return min(len(cached), len(ids))
