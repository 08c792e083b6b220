"""The cache of graphs whose present caches are new, longer tensors (optimum's exports): past in, present out, present
becomes past.

Slower than `slots.Slots`, since each layer's cache is copied at every token; it runs the second, independent road.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .graph import DTYPES, Binding, Graph, Value, run
from .manifest import ModelRecord
from .requirements import Device, import_package
from .slots import cache_arguments, check_room


class GrowingCache:
    """`slots.Caches` of one slot. The graph takes input_ids, attention_mask, (position_ids,) and past_key_values.*; it
    gives logits [1, T, V] and present.*.
    """

    copies = False

    def __init__(self, graph: Graph, model: ModelRecord, device: Device) -> None:
        self.positions = self.rows = model.context_length
        self.ids: list[list[int]] = [[]]
        self._graph = graph
        self._device = device
        self._arguments = cache_arguments(graph, model)
        self._has_positions = any(argument.name == "position_ids" for argument in graph.get_inputs())
        self._ort = import_package("onnxruntime", device)
        shape = (1, model.num_key_value_heads, 0, model.head_dim)
        self._past = [self._value(np.zeros(shape, DTYPES[argument.type])) for argument in self._arguments]

    def feed(
        self, first: int, rows: Sequence[Sequence[int]], wanted: int = 1, *, own: bool = False
    ) -> NDArray[np.float32]:
        (ids,) = rows
        past = len(self.ids[0])
        check_room(past + len(ids), self.positions)
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
        self.ids[0].extend(ids)
        return np.asarray(logits.numpy()[:, -wanted:], np.float32)

    def rewind(self, slot: int, length: int) -> None:
        if length < len(self.ids[0]):
            del self.ids[0][length:]
            self._past = [self._value(np.ascontiguousarray(past.numpy()[:, :, :length])) for past in self._past]

    def _value(self, array: NDArray[np.generic]) -> Value:
        value: Value = self._ort.OrtValue.ortvalue_from_numpy(array, self._device, 0)
        return value
