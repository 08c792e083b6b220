"""The decoder with its KV cache: token ids in, logits of the last token out; and the scorer, logits of every token.

Shape letters: T new tokens, S positions in a cache buffer, V vocabulary. The generation graph takes input_ids int64 [1,
T], attention_mask int64 [1, past + T] (all ones) and past_key_values.{i}.key/.value [1, KV, S, head_dim]; it gives
logits [1, 1, V] and present.{i}.key/.value. Past and present are one buffer, bound once: GroupQueryAttention writes the
new positions in place. The scoring graph differs in its logits, [1, T, V].
"""

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


class Decoder(Protocol):
    """What generation needs to know of a model: ids go in, logits come out, the cache can be cut back."""

    @property
    def context_length(self) -> int: ...
    @property
    def cached_ids(self) -> Sequence[int]:
        """The tokens whose keys and values are in the cache."""
        ...

    def append(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Feed ids (at least one); logits float32 [V] of the last, valid until the next call."""
        ...

    def rewind(self, length: int) -> None:
        """Forget everything but the first `length` tokens."""
        ...


class SharedCacheDecoder:
    """A `Decoder` over a graph whose present caches are its past caches."""

    def __init__(self, graph: Graph, model: ModelRecord, device: Device) -> None:
        self.context_length = model.context_length
        self._ids: list[int] = []
        self._graph = graph
        self._cache = CacheBuffers(graph, model, device, positions=model.context_length)
        self._binding = graph.io_binding()
        self._cache.bind(self._binding)
        self._inputs = TokenInputs(self._binding, positions=model.context_length)
        logits = output(graph, "logits")
        self._logits = np.zeros((1, 1, model.vocab_size), DTYPES[logits.type])
        bind_array_output(self._binding, "logits", self._logits)

    @property
    def cached_ids(self) -> Sequence[int]:
        return self._ids

    def append(self, ids: Sequence[int]) -> NDArray[np.float32]:
        check_room(len(self._ids) + len(ids), self.context_length)
        for start in range(0, len(ids), PREFILL_CHUNK):
            chunk = ids[start : start + PREFILL_CHUNK]
            self._inputs.bind(chunk, past=len(self._ids))
            run(self._graph, self._binding)
            self._ids.extend(chunk)
        return np.asarray(self._logits[0, 0], np.float32)

    def rewind(self, length: int) -> None:
        # The buffers keep what was there: the attention mask says how much of them counts.
        del self._ids[length:]


class Scorer:
    """Logits of every token, for measuring. The cache stays between calls, for those that need not all rows."""

    def __init__(self, graph: Graph, model: ModelRecord, device: Device) -> None:
        self._graph = graph
        self._model = model
        self._device = device
        self._positions = 0
        self._ids: list[int] = []

    def score(self, ids: Sequence[int], first: int = 0) -> NDArray[np.float32]:
        """float32 [T - first, V]: row t holds the logits for token first + t + 1. At most context_length ids.

        Of the tokens before `first`, those that the last call began with, too, are not computed again.
        """
        check_room(len(ids), self._model.context_length)
        if len(ids) > self._positions:
            self._grow(min(max(len(ids), 2 * self._positions), self._model.context_length))
        known = min(shared_prefix(self._ids, ids), first)
        del self._ids[known:]
        for start in range(known, first, PREFILL_CHUNK):
            self._run(ids[start : min(start + PREFILL_CHUNK, first)])
        return np.asarray(self._run(ids[first:]), np.float32)

    def _run(self, ids: Sequence[int]) -> NDArray[np.generic]:
        self._inputs.bind(ids, past=len(self._ids))
        logits = np.empty((1, len(ids), self._model.vocab_size), DTYPES[output(self._graph, "logits").type])
        bind_array_output(self._binding, "logits", logits)
        run(self._graph, self._binding)
        self._ids.extend(ids)
        rows: NDArray[np.generic] = logits[0]
        return rows

    def _grow(self, positions: int) -> None:
        self._ids.clear()
        self._binding = self._graph.io_binding()
        self._cache = CacheBuffers(self._graph, self._model, self._device, positions=positions)
        self._cache.bind(self._binding)
        self._inputs = TokenInputs(self._binding, positions=positions)
        self._positions = positions


class CacheBuffers:
    """One buffer per past_key_values input, [1, KV, S, head_dim], on the device."""

    def __init__(self, graph: Graph, model: ModelRecord, device: Device, *, positions: int) -> None:
        self._device = device
        self._arguments = cache_arguments(graph, model)
        self._shape = (1, model.num_key_value_heads, positions, model.head_dim)
        self._buffers: list[NDArray[np.generic] | Value] = []
        self._pointers: list[int] = []
        for argument in self._arguments:
            if device == "cpu":
                array = np.zeros(self._shape, DTYPES[argument.type])  # calloc: pages count once a token reaches them
                self._buffers.append(array)
                self._pointers.append(array.ctypes.data)
            else:
                ort = import_package("onnxruntime", device)
                value: Value = ort.OrtValue.ortvalue_from_shape_and_type(self._shape, DTYPES[argument.type], device, 0)
                self._buffers.append(value)
                self._pointers.append(value.data_ptr())

    def bind(self, binding: Binding) -> None:
        """Bind each buffer as the past and as the present of its layer."""
        for argument, pointer in zip(self._arguments, self._pointers, strict=True):
            dtype = DTYPES[argument.type]
            present = argument.name.replace("past_key_values", "present")
            binding.bind_input(argument.name, self._device, 0, dtype, self._shape, pointer)
            binding.bind_output(present, self._device, 0, dtype, self._shape, pointer)


class TokenInputs:
    """input_ids and attention_mask: two arrays allocated once, bound anew with their current lengths (10 us)."""

    def __init__(self, binding: Binding, *, positions: int) -> None:
        self._binding = binding
        self._ids = np.zeros((1, positions), np.int64)
        self._mask = np.ones((1, positions), np.int64)
        self._ids_pointer = self._ids.ctypes.data
        self._mask_pointer = self._mask.ctypes.data

    def bind(self, ids: Sequence[int], *, past: int) -> None:
        count = len(ids)
        self._ids[0, :count] = ids
        bind = self._binding.bind_input
        # Bound at every step even where the pointer is the same: a CUDA session copies at this moment.
        bind("input_ids", "cpu", 0, np.int64, (1, count), self._ids_pointer)
        bind("attention_mask", "cpu", 0, np.int64, (1, past + count), self._mask_pointer)


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


def bind_array_output(binding: Binding, name: str, array: NDArray[np.generic]) -> None:
    """Have the run write into `array`, which the caller keeps alive."""
    binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def check_room(tokens: int, context_length: int) -> None:
    if tokens > context_length:
        raise UnusableBundle(
            f"{tokens} tokens do not fit the bundle's context of {context_length}",
            hint="shorten the text, or build the bundle with a longer --context",
        )
    if tokens < 1:
        raise UnusableBundle("there are no tokens to run the model on", hint="give it a text that is not empty")


def shared_prefix(cached: Sequence[int], prompt: Sequence[int]) -> int:
    """How many of the prompt's first tokens the cache holds; never the last one, whose logits must be computed."""
    for position, (have, want) in enumerate(zip(cached, prompt[:-1], strict=False)):
        if have != want:
            return position
    return min(len(cached), len(prompt) - 1)
