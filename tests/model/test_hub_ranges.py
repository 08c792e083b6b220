"""`hf://org/name`: a repository of the hub read where it is, as its downloaded snapshot would be."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from huggingface_hub import constants, file_download
from huggingface_hub.utils import reset_sessions
from sharded import weights_bytes, write_sharded
from test_remote import digests, read_all

from edgeforge.errors import UnusableInput
from edgeforge.model.checkpoint import open_checkpoint

sys.path.append(str(Path(__file__).parents[1] / "publish"))
from fake_hub import FakeHub, Repository, serving


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sharded(tmp_path_factory.mktemp("hub") / "Model")


@pytest.fixture
def hub(sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with one repository, `org/model`, and a cache that is empty."""
    with serving() as started:
        repository = started.repositories["org/model"] = Repository(private=False)
        repository.commit("main", {path.name: path.read_bytes() for path in sorted(sharded.iterdir())})
        monkeypatch.setattr(constants, "ENDPOINT", started.url)
        template = started.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template)  # bound when it was imported
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        fsspec.get_filesystem_class("hf").clear_instance_cache()
        reset_sessions()  # one that was made under HF_HUB_OFFLINE stays offline
        yield started
        fsspec.get_filesystem_class("hf").clear_instance_cache()


def test_a_repository_read_in_place_is_its_snapshot(hub: FakeHub, sharded: Path, tmp_path: Path) -> None:
    there = open_checkpoint("hf://org/model")
    streamed, fingerprint = read_all(there), there.fingerprint
    assert hub.served_bytes <= 1.05 * weights_bytes(sharded)
    assert not (tmp_path / "cache").exists()
    snapshot = open_checkpoint("org/model")
    assert (streamed, fingerprint) == (read_all(snapshot), snapshot.fingerprint)
    assert there.source == snapshot.source
    assert there.source.revision == hub.repositories["org/model"].names["main"]
    assert there.notices == snapshot.notices
    assert there.tokenizer == snapshot.tokenizer


def test_the_commit_is_settled_when_it_is_opened(hub: FakeHub, sharded: Path) -> None:
    repository = hub.repositories["org/model"]
    before = open_checkpoint("hf://org/model@main")
    first = repository.names["main"]
    changed = repository.commits[first] | {"LICENSE": b"Do nothing.\n"}
    repository.commit("main", changed)
    assert before.notices == {"LICENSE": b"Do what you like.\n"}
    assert open_checkpoint("hf://org/model", revision="main").notices == {"LICENSE": b"Do nothing.\n"}
    assert open_checkpoint(f"hf://org/model@{first}").source.revision == first


def test_what_the_hub_lacks_is_a_sentence(hub: FakeHub) -> None:
    with pytest.raises(UnusableInput, match="no model org/other"):
        open_checkpoint("hf://org/other")
    with pytest.raises(UnusableInput, match="no revision v9"):
        open_checkpoint("hf://org/model@v9")
    with pytest.raises(UnusableInput, match="names no repository"):
        open_checkpoint("hf://model")
    with pytest.raises(UnusableInput, match="two revisions"):
        open_checkpoint("hf://org/model@a", revision="b")


def edgeforge(hub: FakeHub, tmp_path: Path, *arguments: object) -> "subprocess.CompletedProcess[str]":
    """The command line in a process of its own, which knows the hub by its environment variable."""
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "edgeforge.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


def test_a_streamed_build_leaves_no_shard_on_the_disk(hub: FakeHub, sharded: Path, tmp_path: Path) -> None:
    asked = ("build", "--target", "cpu", "--model", "org/model", "--context", 64, "--no-validate")
    done = edgeforge(hub, tmp_path, *asked, "--stream-download", "--out", tmp_path / "streamed")
    assert done.returncode == 0, done.stderr
    assert hub.served_bytes <= 1.05 * weights_bytes(sharded)
    assert not list(tmp_path.rglob("*.safetensors"))
    assert edgeforge(hub, tmp_path, *asked, "--out", tmp_path / "downloaded").returncode == 0
    assert digests(tmp_path / "streamed") == digests(tmp_path / "downloaded")


def test_only_a_hub_id_can_be_streamed(hub: FakeHub, sharded: Path, tmp_path: Path) -> None:
    done = edgeforge(hub, tmp_path, "build", "--target", "cpu", "--model", sharded, "--stream-download")
    assert done.returncode == 2
    assert "--stream-download is for hub ids" in done.stderr
