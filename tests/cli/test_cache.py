"""`edgeforge cache` lists what is EdgeForge's, and removes that and nothing else."""

import json
import os
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from edgeforge.cli.cache import cache
from edgeforge.errors import UsageError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two entries of 1,000 and 500 bytes, the second ten days old, and something that is not ours."""
    monkeypatch.setenv("EDGEFORGE_CACHE", str(tmp_path / "cache"))
    for name, size in (("demo/model.gguf", 1000), ("publish/uploads/a.json", 500), ("thesis/chapter.tex", 10)):
        path = tmp_path / "cache" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x" * size)
    old = time.time() - 10 * 86_400
    os.utime(tmp_path / "cache/publish/uploads/a.json", (old, old))
    return tmp_path / "cache"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cache, arguments, catch_exceptions=False)


def listed(*arguments: str) -> dict[str, tuple[int, int]]:
    document = json.loads(run(*arguments, "--json").stdout)
    assert document["size_bytes"] == sum(entry["size_bytes"] for entry in document["entries"])
    return {entry["name"]: (entry["size_bytes"], round(entry["age_days"])) for entry in document["entries"]}


def test_entries_are_listed_with_size_and_age(folder: Path) -> None:
    assert listed() == {"demo": (1000, 0), "publish": (500, 10)}
    assert listed("publish") == {"publish": (500, 10)}
    text = run().stdout
    assert "demo" in text
    assert str(folder) in text
    assert "thesis" not in text


def test_prune_removes_what_is_old_enough_and_nothing_of_others(folder: Path) -> None:
    assert set(listed("--prune", "--older-than", "11")) == set()
    assert set(listed("--prune", "--older-than", "9")) == {"publish"}
    assert sorted(path.name for path in folder.iterdir()) == ["demo", "thesis"]
    assert set(listed("--prune")) == {"demo"}
    assert [path.name for path in folder.iterdir()] == ["thesis"]
    assert listed("--prune") == {}


def test_a_link_in_the_cache_is_removed_not_followed(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    (folder / "demo/link").symlink_to(outside)
    (folder / "weighing").symlink_to(outside)
    assert set(listed("--prune")) == {"demo", "publish"}
    assert (outside / "precious").exists()


def test_an_empty_cache_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFORGE_CACHE", str(tmp_path / "none"))
    assert listed() == {}
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("arguments", [["thesis"], ["--older-than", "3"]])
def test_what_makes_no_sense_is_refused(arguments: list[str], folder: Path) -> None:
    with pytest.raises(UsageError):
        run(*arguments)
    assert len(list(folder.iterdir())) == 3
