"""Folders of this machine and of fsspec's other file systems: whole or not a bundle at all."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from published import Run, contents, document, incompressible, only, refused, with_file

from edgeforge.errors import EdgeForgeError, IntegrityError
from edgeforge.publish import Wire, publish, pull
from edgeforge.runtime.integrity import sha256_of

MEMORY = "memory://models/tiny"


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    """A file system that cannot rename folders, as object stores cannot."""
    system = fsspec.filesystem("memory")
    yield system
    system.rm("/models", recursive=True)


def fetch(reference: str, folder: Path) -> object:
    return pull(reference, folder, wire=Wire(), platform=None, choose=min)


def test_a_folder_of_this_machine(run: Run, tiny: Path, tmp_path: Path) -> None:
    reference = f"file://{tmp_path / 'shelf' / 'tiny'}"
    document(run("publish", tiny, reference, "--json"))
    assert contents(tmp_path / "shelf" / "tiny") == contents(tiny)
    only(tmp_path / "shelf", ["tiny"])
    document(run("pull", reference, tmp_path / "got", "--json"))
    assert contents(tmp_path / "got") == contents(tiny)
    update = with_file(shutil.copytree(tiny, tmp_path / "update"), "model/other.data", b"other")
    document(run("publish", update, reference, "--json"))
    assert contents(tmp_path / "shelf" / "tiny") == contents(update)


def test_what_comes_back_is_the_same_bundle(memory: fsspec.AbstractFileSystem, tiny: Path, tmp_path: Path) -> None:
    publish([tiny], MEMORY, wire=Wire())
    fetch(MEMORY, tmp_path / "got")
    assert contents(tmp_path / "got") == contents(tiny)
    only(tmp_path, ["got"])


def test_an_update_sends_and_fetches_what_changed(
    memory: fsspec.AbstractFileSystem, large: Path, tmp_path: Path
) -> None:
    publish([large], MEMORY, wire=Wire())
    fetch(MEMORY, tmp_path / "got")
    update = with_file(shutil.copytree(large, tmp_path / "update"), "model/other.data", incompressible(10_000))
    memory.pipe_file("/models/tiny/stray.txt", b"stray")
    pushed = publish([update], MEMORY, wire=Wire())
    assert pushed.sent_bytes is not None
    assert pushed.sent_bytes < 60_000
    pulled = pull(MEMORY, tmp_path / "got", wire=Wire(), platform=None, choose=min)
    assert pulled.reused_bytes > 12 << 20
    assert contents(tmp_path / "got") == contents(update)


def test_a_push_that_is_cut_leaves_no_bundle(
    memory: fsspec.AbstractFileSystem, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish([tiny], MEMORY, wire=Wire())
    update = with_file(shutil.copytree(tiny, tmp_path / "update"), "runtime/zz.data", b"other")
    put = type(memory).put_file

    def cut(self: fsspec.AbstractFileSystem, local: str, remote: str, **more: object) -> None:
        if remote.endswith("zz.data"):
            raise ConnectionError("cut")
        put(self, local, remote, **more)

    with monkeypatch.context() as patched:
        patched.setattr(type(memory), "put_file", cut)
        with pytest.raises(ConnectionError):
            publish([update], MEMORY, wire=Wire())
    with pytest.raises(EdgeForgeError, match="no bundle"):
        fetch(MEMORY, tmp_path / "got")
    publish([update], MEMORY, wire=Wire())
    fetch(MEMORY, tmp_path / "got")
    assert contents(tmp_path / "got") == contents(update)


def test_a_changed_file_is_refused(memory: fsspec.AbstractFileSystem, tiny: Path, tmp_path: Path) -> None:
    publish([tiny], MEMORY, wire=Wire())
    memory.pipe_file("/models/tiny/NOTICE", memory.cat_file("/models/tiny/NOTICE")[::-1])
    with pytest.raises(IntegrityError, match="NOTICE arrived changed"):
        fetch(MEMORY, tmp_path / "got")
    only(tmp_path, [])


def test_what_is_left_of_a_cut_pull_is_gone_on_with(
    memory: fsspec.AbstractFileSystem, large: Path, tmp_path: Path
) -> None:
    publish([large], MEMORY, wire=Wire())
    blobs = tmp_path / ".got.pull" / "blobs"
    blobs.mkdir(parents=True)
    sha256 = sha256_of(large / "model/extra.data")
    (blobs / sha256).write_bytes((large / "model/extra.data").read_bytes()[: 5 << 20])
    pulled = pull(MEMORY, tmp_path / "got", wire=Wire(), platform=None, choose=min)
    assert pulled.resumed_bytes == 5 << 20
    assert contents(tmp_path / "got") == contents(large)


def test_what_cannot_be_opened_is_told(run: Run, tiny: Path, tmp_path: Path) -> None:
    assert "nothing://x" in refused(run("publish", tiny, "nothing://x"), 2)
    assert "no bundle" in refused(run("pull", f"file://{tmp_path}", tmp_path / "got"), 3)
    assert "holds one bundle" in refused(run("publish", tiny, tiny, f"file://{tmp_path / 'x'}"), 2)
