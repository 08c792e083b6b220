"""The original as a bundle: built once per checkpoint and context, made again where it is damaged, never quantized."""

from pathlib import Path

import numpy as np
import pytest

from edgeforge.errors import UnusableInput, UsageError
from edgeforge.model.checkpoint import open_checkpoint
from edgeforge.model.forward import forward
from edgeforge.pipeline.reference import Original, open_original, reference_bundle
from edgeforge.runtime import load, read_manifest
from tests.tiny_bundle import make_bundle

IDS = [1, 403, 407, 261, 378]


@pytest.fixture
def original(stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Original:
    monkeypatch.setenv("EDGEFORGE_CACHE", str(tmp_path / "cache"))
    return Original(name=str(stories), revision=None, checkpoint=open_checkpoint(str(stories)))


def quiet(stage: str, done: int, total: int) -> None:
    """Nobody watches."""


def test_it_answers_like_the_checkpoint(original: Original) -> None:
    built = reference_bundle(original, context=128, threads=1, progress=quiet)
    assert built.precision == "f32"
    logits = load(built.bundle, threads=1).score(IDS)
    np.testing.assert_allclose(logits, forward(original.checkpoint, np.array(IDS)), atol=1e-4)


def test_it_is_built_once_and_again_where_it_is_damaged(original: Original) -> None:
    stages: list[str] = []

    def watch(stage: str, done: int, total: int) -> None:
        stages.append(stage)

    first = reference_bundle(original, context=128, threads=1, progress=watch)
    assert stages
    stages.clear()
    assert reference_bundle(original, context=128, threads=1, progress=watch) == first
    assert not stages
    (first.bundle / "manifest.json").write_text("{}")
    assert reference_bundle(original, context=128, threads=1, progress=watch) == first
    assert stages
    assert read_manifest(first.bundle).model.context_length == 128


def test_another_context_is_another_bundle(original: Original) -> None:
    keys = {reference_bundle(original, context=context, threads=1, progress=quiet).key for context in (128, 256)}
    assert len(keys) == 2


def test_a_local_source_must_be_named_and_be_the_same(stories: Path, tmp_path: Path) -> None:
    manifest = read_manifest(make_bundle(tmp_path / "bundle"))
    with pytest.raises(UsageError, match="does not record"):
        open_original(manifest, None, allow_other=False)
    with pytest.raises(UnusableInput, match="not the checkpoint that the bundle was built from"):
        open_original(manifest, str(stories), allow_other=False)
    assert open_original(manifest, str(stories), allow_other=True).checkpoint.names
