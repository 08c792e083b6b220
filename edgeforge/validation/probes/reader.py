"""Long inputs read piece by piece: the logits of every token of a piece, after all that was read before.

`Model.score` starts from an empty cache and gives all logits at once, 1.6 GB for 8,192 tokens of a vocabulary of
49,152. Here the scoring graph keeps its cache, and logits exist for one piece.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgeforge.runtime.graph import DTYPES, Graph, open_graph, run
from edgeforge.runtime.manifest import ModelRecord
from edgeforge.runtime.model import Model
from edgeforge.runtime.requirements import Device
from edgeforge.runtime.session import CacheBuffers, Decoder, TokenInputs, bind_array_output, check_room, output

PIECE = 256
"""Tokens whose logits are asked for at once: 131 MB of a vocabulary of 128,256."""


class Reader(Protocol):
    """A model that remembers what it read."""

    def read(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits [T, V] of T more tokens (at most PIECE, at least one): row t expects what comes after ids[t]."""
        ...

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        ...


def open_reader(model: Model, *, positions: int) -> Reader:
    """Nothing is read yet; at most `positions` tokens will be. The weights are loaded once more, and go with it."""
    record = model.manifest.model
    if record.backend != "onnx" or record.scoring_graph is None:
        model.decoder.rewind(0)
        return SteppedReader(model.decoder)
    graph = open_graph(model.bundle / record.scoring_graph, device=model.device, threads=None)
    return KeptReader(graph, record, model.device, positions=positions)


class KeptReader:
    """The scoring graph with one cache that grows in place."""

    def __init__(self, graph: Graph, record: ModelRecord, device: Device, *, positions: int) -> None:
        self._graph = graph
        self._vocab_size = record.vocab_size
        self._positions = positions
        self._length = 0
        self._binding = graph.io_binding()
        self._cache = CacheBuffers(graph, record, device, positions=positions)
        self._cache.bind(self._binding)
        self._inputs = TokenInputs(self._binding, positions=positions)
        self._dtype = DTYPES[output(graph, "logits").type]

    def read(self, ids: Sequence[int]) -> NDArray[np.float32]:
        check_room(self._length + len(ids), self._positions)
        logits = np.empty((1, len(ids), self._vocab_size), self._dtype)
        self._inputs.bind(ids, past=self._length)
        bind_array_output(self._binding, "logits", logits)
        run(self._graph, self._binding)
        self._length += len(ids)
        return np.asarray(logits[0], np.float32)

    def rewind(self, length: int) -> None:
        # The attention mask says how much of the cache counts.
        self._length = min(self._length, length)


class SteppedReader:
    """Any decoder, a token at a time: for graphs whose caches are not shared."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    def read(self, ids: Sequence[int]) -> NDArray[np.float32]:
        return np.stack([self._decoder.append([token]).copy() for token in ids])

    def rewind(self, length: int) -> None:
        self._decoder.rewind(length)


def pieces(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """[start, stop) in steps of PIECE."""
    for place in range(start, stop, PIECE):
        yield place, min(place + PIECE, stop)
