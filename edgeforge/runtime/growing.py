"""The decoder for graphs whose present caches are new, longer tensors (optimum's exports): past in, present out,
present becomes past.

Slower than `session.SharedCacheDecoder`, since each layer's cache is copied at every token; it runs the second,
independent road.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .graph import DTYPES, Binding, Graph, Value, run
from .manifest import ModelRecord
from .requirements import Device, import_package
from .session import PREFILL_CHUNK, cache_arguments, check_room, shared_prefix


class GrowingCacheDecoder:
    """A `session.Decoder` over input_ids, attention_mask, (position_ids,) past_key_values.* -> logits [1, T, V],
    present.*.
    """

    def __init__(self, graph: Graph, model: ModelRecord, device: Device) -> None:
        self.context_length = model.context_length
        self._ids: list[int] = []
        self._graph = graph
        self._device = device
        self._arguments = cache_arguments(graph, model)
        self._has_positions = any(argument.name == "position_ids" for argument in graph.get_inputs())
        self._ort = import_package("onnxruntime", device)
        self._empty = (1, model.num_key_value_heads, 0, model.head_dim)
        self._past = self._empty_caches()

    @property
    def cached_ids(self) -> Sequence[int]:
        return self._ids

    def append(self, ids: Sequence[int]) -> NDArray[np.float32]:
        check_room(len(self._ids) + len(ids), self.context_length)
        for start in range(0, len(ids), PREFILL_CHUNK):
            logits = self._run(ids[start : start + PREFILL_CHUNK])
        last: NDArray[np.float32] = logits[-1]
        return last

    def rewind(self, length: int) -> None:
        if length >= len(self._ids):
            return
        del self._ids[length:]
        self._past = [self._value(np.ascontiguousarray(past.numpy()[:, :, :length])) for past in self._past]

    def score(self, ids: Sequence[int], first: int = 0) -> NDArray[np.float32]:
        """float32 [T - first, V], as `session.Scorer.score` gives them; at most context_length ids."""
        check_room(len(ids), self.context_length)
        self.rewind(min(shared_prefix(self._ids, ids), first))
        for start in range(len(self._ids), first, PREFILL_CHUNK):
            self._run(ids[start : min(start + PREFILL_CHUNK, first)])
        return self._run(ids[first:])

    def _run(self, ids: Sequence[int]) -> NDArray[np.float32]:
        past = len(self._ids)
        inputs = {"input_ids": [ids], "attention_mask": [[1] * (past + len(ids))]}
        if self._has_positions:
            inputs["position_ids"] = [range(past, past + len(ids))]
        binding: Binding = self._graph.io_binding()
        arrays = {name: np.asarray(value, np.int64) for name, value in inputs.items()}
        for name, array in arrays.items():
            binding.bind_input(name, "cpu", 0, np.int64, array.shape, array.ctypes.data)
        binding.bind_output("logits", "cpu")
        for argument, value in zip(self._arguments, self._past, strict=True):
            binding.bind_ortvalue_input(argument.name, value)
            binding.bind_output(argument.name.replace("past_key_values", "present"), self._device)
        run(self._graph, binding)
        logits, *self._past = binding.get_outputs()
        self._ids.extend(ids)
        return np.asarray(logits.numpy()[0], np.float32)

    def _empty_caches(self) -> list[Value]:
        return [self._value(np.zeros(self._empty, DTYPES[argument.type])) for argument in self._arguments]

    def _value(self, array: NDArray[np.generic]) -> Value:
        value: Value = self._ort.OrtValue.ortvalue_from_numpy(array, self._device, 0)
        return value
