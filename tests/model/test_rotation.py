"""A rotated checkpoint answers like the original, and is read by rows like any other."""

import json
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from edgeforge.model.architecture import architecture_from_config
from edgeforge.model.checkpoint import Checkpoint, LazyTensor
from edgeforge.model.forward import forward
from edgeforge.model.rotation import RotatedTensor, rotated
from edgeforge.model.safetensors import open_directory, write_safetensors
from tests.model.test_forward import BASE, CASES, random_checkpoint, their_logits

TIED = {"tie_word_embeddings": True}
DOWN, O_PROJ = "model.layers.1.mlp.down_proj.weight", "model.layers.0.self_attn.o_proj.weight"


def tiny(folder: Path, **changes: object) -> Checkpoint:
    return random_checkpoint(folder, architecture_from_config(BASE | changes))


def saved(checkpoint: Checkpoint, folder: Path) -> Path:
    """The view's tensors as a directory that transformers loads."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(dict(checkpoint.config)))
    rows = [(name, "F32", checkpoint.tensor(name).shape) for name in checkpoint.names]
    with write_safetensors(folder / "model.safetensors", rows, metadata={"format": "pt"}) as writer:
        for name, _, shape in rows:
            writer.write(name, 0, checkpoint.tensor(name).rows(0, shape[0]))
    return folder


@pytest.mark.parametrize("case", CASES)
def test_logits_stay(tmp_path: Path, case: str) -> None:
    original = tiny(tmp_path, **CASES[case])
    ids = np.random.default_rng(1).integers(0, 101, 300)
    assert np.abs(forward(rotated(original), ids) - forward(original, ids)).max() < 1e-4


def test_logits_of_the_real_float32_model_stay(stories: Path) -> None:
    original = open_directory(stories)
    ids = np.random.default_rng(0).integers(0, 512, 400)
    assert np.abs(forward(rotated(original), ids) - forward(original, ids)).max() < 1e-4


@pytest.mark.parametrize("changes", [{}, TIED], ids=["untied", "tied"])
def test_transformers_answers_alike(tmp_path: Path, changes: dict[str, object]) -> None:
    (tmp_path / "original").mkdir()
    view = rotated(tiny(tmp_path / "original", **changes))
    ids = np.random.default_rng(1).integers(0, 101, (1, 200))
    theirs = their_logits(saved(view, tmp_path / "rotated"), ids)
    assert np.abs(theirs - their_logits(tmp_path / "original", ids)).max() < 1e-4


def test_the_stream_between_layers_is_the_original_turned(tmp_path: Path) -> None:
    """The embedding and what o and down write, one matrix for all; norms have no gain left."""
    original = tiny(tmp_path)
    view = rotated(original)
    e, turned = (each.tensor("model.embed_tokens.weight").rows(0, 101).astype(float) for each in (original, view))
    q = np.linalg.lstsq(e, turned, rcond=None)[0]
    assert np.abs(q @ q.T - np.eye(48)).max() < 1e-5
    for name in (DOWN, O_PROJ):
        w = original.tensor(name).rows(0, 48).astype(float)
        assert np.abs(q.T @ w - view.tensor(name).rows(0, 48)).max() < 1e-5
    for name, shape in view.architecture.tensors():
        if len(shape) == 1:
            assert np.array_equal(view.tensor(name).rows(0, 48), np.ones(48, np.float32))


def test_a_tied_head_comes_apart_and_all_else_is_said_as_before(tmp_path: Path) -> None:
    original = tiny(tmp_path, **TIED)
    view = rotated(original)
    assert original.architecture.tie_word_embeddings
    assert not view.architecture.tie_word_embeddings
    assert view.config["tie_word_embeddings"] is False
    assert view.names == (*original.names, "lm_head.weight")
    assert {name: view.tensor(name).shape for name in view.names} == dict(view.architecture.tensors())
    assert architecture_from_config(dict(view.config)) == view.architecture
    assert (view.source, view.generation) == (original.source, original.generation)


def test_fingerprints_tell_rotations_apart(tmp_path: Path) -> None:
    original = tiny(tmp_path)
    found = [original.fingerprint, rotated(original).fingerprint, rotated(original, 1).fingerprint]
    assert len(set(found)) == 3
    assert rotated(open_directory(tmp_path)).fingerprint == found[1]


@pytest.mark.parametrize("step", [1, 7, 48])
def test_ranges_of_rows_are_those_of_the_whole(tmp_path: Path, step: int) -> None:
    view = rotated(tiny(tmp_path, **TIED))
    for name in view.names:
        tensor = view.tensor(name)
        count = tensor.shape[0]
        pieces = [tensor.rows(start, min(start + step, count)) for start in range(0, count, step)]
        assert np.array_equal(np.concatenate(pieces), tensor.rows(0, count))
        assert all(piece.dtype == np.float32 and piece.flags.writeable for piece in pieces)
        assert tensor.magnitude(0, count) == np.abs(np.concatenate(pieces)).max()
        assert tensor.dtype == "F32" and tensor.grid is None and tensor.stored_codes(0, 1) is None


def test_what_was_read_may_be_changed(tmp_path: Path) -> None:
    tensor = rotated(tiny(tmp_path)).tensor(DOWN)
    want = tensor.rows(0, 48)
    for start, stop in ((0, 24), (0, 48), (24, 48)):
        tensor.rows(start, stop)[:] = 0
    assert np.array_equal(tensor.rows(0, 48), want)


class Counted:
    """A checkpoint that counts the rows read of each tensor."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.rows: dict[str, int] = {}
        self.lock = threading.Lock()

    def __getattr__(self, name: str) -> object:
        return getattr(self.checkpoint, name)

    def tensor(self, name: str) -> LazyTensor:
        return CountedTensor(self, self.checkpoint.tensor(name))  # type: ignore[return-value]


class CountedTensor:
    def __init__(self, owner: Counted, tensor: LazyTensor) -> None:
        self.owner, self.tensor = owner, tensor

    def __getattr__(self, name: str) -> object:
        return getattr(self.tensor, name)

    def rows(self, start: int, stop: int) -> np.ndarray:
        with self.owner.lock:
            self.owner.rows[self.tensor.name] = self.owner.rows.get(self.tensor.name, 0) + stop - start
        return self.tensor.rows(start, stop)


def test_mixed_rows_are_read_once_and_dropped_after_the_last(tmp_path: Path) -> None:
    counted = Counted(tiny(tmp_path))
    view = rotated(counted)  # type: ignore[arg-type]
    tensor = view.tensor(DOWN)
    want = tensor.rows(0, 48)
    assert counted.rows == {DOWN: 48}
    pieces = [(start, start + 4) for start in range(0, 48, 4)]
    with ThreadPoolExecutor(8) as pool:
        for start, stop in pieces:  # measured first, as for a scale of the whole matrix
            tensor.magnitude(start, stop)
        got = list(pool.map(lambda piece: tensor.rows(*piece), pieces))
    assert np.array_equal(np.concatenate(got), want)
    assert counted.rows == {DOWN: 96}
    assert kept_of(tensor) is None


def test_one_mixed_linear_is_in_memory_at_a_time(tmp_path: Path) -> None:
    view = rotated(tiny(tmp_path))
    first, second = view.tensor(DOWN), view.tensor(O_PROJ)
    first.rows(0, 8)
    assert kept_of(first) == (48, 80)
    second.rows(0, 8)
    assert kept_of(first) == kept_of(second) == (48, 48)


def kept_of(tensor: LazyTensor) -> tuple[int, ...] | None:
    assert isinstance(tensor, RotatedTensor)
    rows = tensor.turn.kept.rows  # type: ignore[attr-defined]
    return None if rows is None else rows.shape


def test_reading_a_large_model_by_rows_takes_the_memory_of_one_linear(tmp_path: Path) -> None:
    """[1024, 16384] is 67 MB; the model is 10 times that."""
    shape = {"hidden_size": 1024, "intermediate_size": 16384, "num_hidden_layers": 3, "num_attention_heads": 8}
    view = rotated(tiny(tmp_path, **shape, head_dim=128))
    largest = 4 * 1024 * 16384
    tracemalloc.start()
    for name in view.names:
        tensor = view.tensor(name)
        for start in range(0, tensor.shape[0], 64):
            tensor.rows(start, min(start + 64, tensor.shape[0]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < largest + (16 << 20)


def test_what_is_not_finite_stays_so(tmp_path: Path) -> None:
    """For the walk to refuse: a rotation must not make a number of it, nor warn."""
    original = tiny(tmp_path)

    class Broken:
        name, shape = DOWN, (48, 80)

        def rows(self, start: int, stop: int) -> np.ndarray:
            rows = original.tensor(DOWN).rows(start, stop)
            rows[0, 3] = np.inf
            return rows

    class Damaged(Counted):
        def tensor(self, name: str) -> LazyTensor:
            return Broken() if name == DOWN else self.checkpoint.tensor(name)  # type: ignore[return-value]

    turned = rotated(Damaged(original)).tensor(DOWN).rows(0, 48)  # type: ignore[arg-type]
    assert not np.isfinite(turned[:, 3]).any()
    assert np.isfinite(np.delete(turned, 3, axis=1)).all()
