"""The shuffle that fidelity is measured on changes the weights and not the model."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from shuffle import shuffled

from edgeforge.model.architecture import LlamaArchitecture
from edgeforge.model.checkpoint import Checkpoint, open_checkpoint
from edgeforge.model.forward import forward

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Rows:
    values: Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def rows(self, start: int, stop: int) -> Array:
        return self.values[start:stop].copy()


@dataclass(frozen=True)
class InMemory:
    architecture: LlamaArchitecture
    tensors: Mapping[str, Array]

    def tensor(self, name: str) -> Rows:
        return Rows(self.tensors[name])


def of_seed(checkpoint: Checkpoint, seed: int) -> Mapping[str, Array]:
    def whole(name: str) -> Array:
        tensor = checkpoint.tensor(name)
        return tensor.rows(0, tensor.shape[0])

    return shuffled(checkpoint.architecture, whole, checkpoint.names, seed)


def test_the_shuffled_model_answers_like_the_original(stories: Path) -> None:
    checkpoint = open_checkpoint(str(stories))
    ids = np.random.default_rng(0).integers(3, 500, 64)
    expected = forward(checkpoint, ids)
    for seed in (0, 1):
        found = forward(InMemory(checkpoint.architecture, of_seed(checkpoint, seed)), ids)
        assert np.abs(found - expected).max() < 2e-4


def test_every_matrix_is_in_another_order_for_each_seed(stories: Path) -> None:
    checkpoint = open_checkpoint(str(stories))
    first, again, second = (of_seed(checkpoint, seed) for seed in (0, 0, 1))
    assert tuple(first) == checkpoint.names
    for name in checkpoint.names:
        original = checkpoint.tensor(name).rows(0, checkpoint.tensor(name).shape[0])
        assert np.array_equal(first[name], again[name])
        if original.ndim == 2:
            assert not np.array_equal(first[name], original)
            assert not np.array_equal(first[name], second[name])
            assert np.array_equal(np.sort(first[name], axis=None), np.sort(original, axis=None))
