"""Checkpoints behind URLs: the same bundle as from the disk, each byte fetched once, and a sentence when it fails."""

import hashlib
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
from built import build_once, quiet
from fsspec.registry import known_implementations
from range_server import SILENCE_S, RangeServer, serving
from sharded import weights_bytes, write_sharded

from edgeforge.errors import EdgeForgeError, IntegrityError, MissingDependency, OutOfResources, UnusableInput
from edgeforge.hardware import load_target
from edgeforge.model import remote, remote_errors, window
from edgeforge.model.checkpoint import Checkpoint, open_checkpoint
from edgeforge.pipeline import BuildOptions, build, resolve_target


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sharded(tmp_path_factory.mktemp("remote") / "Model")


@pytest.fixture
def server(sharded: Path) -> Iterator[RangeServer]:
    with serving(sharded.parent) as started:
        yield started


@pytest.fixture
def copied(sharded: Path, tmp_path: Path) -> Iterator[RangeServer]:
    """A server of files that a test may change: hard links until it does."""
    (tmp_path / "srv" / "Model").mkdir(parents=True)
    for path in sharded.iterdir():
        os.link(path, tmp_path / "srv" / "Model" / path.name)
    with serving(tmp_path / "srv") as started:
        yield started


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_errors, "DELAYS_S", (0.01, 0.01, 0.01))
    monkeypatch.setattr(remote, "_SILENCE_S", SILENCE_S / 2)


def url_of(server: RangeServer) -> str:
    return f"{server.url}/Model"


def read_all(checkpoint: Checkpoint) -> str:
    """SHA-256 of every weight as float32, in file order."""
    digest = hashlib.sha256()
    for name in checkpoint.names:
        tensor = checkpoint.tensor(name)
        digest.update(tensor.rows(0, tensor.shape[0]))
    return digest.hexdigest()


def digests(bundle: Path) -> dict[str, str]:
    files = (path for path in sorted(bundle.rglob("*")) if path.is_file())
    return {str(path.relative_to(bundle)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# the same as from the disk


@pytest.mark.parametrize(("target", "scheme"), [("cpu", "w4a16"), ("h100", "fp8")])
def test_the_bundle_is_the_local_one_and_each_byte_is_fetched_once(
    sharded: Path, server: RangeServer, tmp_path: Path, target: str, scheme: str
) -> None:
    # fp8 reads every weight twice: once for the scale of its block, once to quantize it
    local = build_once(tmp_path / "local", str(sharded), target=target, scheme=scheme, context=64)
    there = build_once(tmp_path / "remote", url_of(server), target=target, scheme=scheme, context=64)
    assert digests(there.bundle) == digests(local.bundle)
    assert server.sent_bytes <= 1.05 * weights_bytes(sharded)
    assert 1 < server.most_at_once <= window.CONNECTIONS + 4


def test_a_checkpoint_in_any_file_system_of_fsspec_is_the_local_one(sharded: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(sharded), "/bucket/Model", recursive=True)
    try:
        local = open_checkpoint(str(sharded))
        for url in ("memory://bucket/Model", f"file://{sharded}"):
            there = open_checkpoint(url)
            assert there.names == local.names
            assert there.fingerprint == local.fingerprint
            assert there.source == local.source
            assert there.notices == local.notices == {"LICENSE": b"Do what you like.\n"}
            assert there.tokenizer == local.tokenizer
            assert read_all(there) == read_all(local)
    finally:
        memory.rm("/bucket", recursive=True)


def test_a_gguf_file_behind_a_url_is_the_local_one(demo_gguf: Path) -> None:
    with serving(demo_gguf.parent) as server:
        local, there = open_checkpoint(str(demo_gguf)), open_checkpoint(f"{server.url}/{demo_gguf.name}")
        assert there.fingerprint == local.fingerprint
        assert there.source == local.source
        assert there.tokenizer == local.tokenizer
        assert server.sent_bytes < 8 << 20  # the header alone
        for name in ("model.layers.3.self_attn.q_proj.weight", "model.norm.weight"):
            tensor = local.tensor(name)
            np.testing.assert_array_equal(there.tensor(name).rows(0, tensor.shape[0]), tensor.rows(0, tensor.shape[0]))


def test_opening_reads_headers_and_samples_only(sharded: Path, server: RangeServer) -> None:
    checkpoint = open_checkpoint(url_of(server))
    assert checkpoint.fingerprint == open_checkpoint(str(sharded)).fingerprint
    assert server.sent_bytes < 250_000


def test_the_query_of_an_address_goes_with_every_file_and_into_no_message(server: RangeServer) -> None:
    server.query = "sig=hush"
    assert read_all(open_checkpoint(f"{url_of(server)}?sig=hush"))
    server.query = "sig=other"
    with pytest.raises(UnusableInput, match="denied") as raised:
        open_checkpoint(f"{url_of(server).replace('//', '//me:secret@')}?sig=hush")
    assert "hush" not in raised.value.message
    assert "secret" not in raised.value.message


# streaming


def test_announced_weights_come_side_by_side_ahead_of_the_reader_but_not_all(server: RangeServer) -> None:
    server.delay_s = 0.05
    checkpoint = open_checkpoint(url_of(server))
    for name in checkpoint.names:
        tensor = checkpoint.tensor(name)
        tensor.announce(0, tensor.shape[0])
    time.sleep(0.6)  # nobody has read anything yet
    fetched = [span for span in server.ranges if span[2] - span[1] > 1 << 20]
    assert 4 <= len(fetched) <= window.AHEAD_BLOCKS
    assert server.most_at_once > 1


def test_any_number_of_threads_read_the_same_blocks_once(sharded: Path, server: RangeServer) -> None:
    checkpoint, wanted = open_checkpoint(url_of(server)), read_all(open_checkpoint(str(sharded)))
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(read_all(checkpoint))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [wanted] * 4
    assert server.sent_bytes <= 1.05 * weights_bytes(sharded)


def test_a_small_window_still_gives_the_right_bytes(
    sharded: Path, server: RangeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(window, "BLOCK_BYTES", 1 << 20)
    monkeypatch.setattr(window.Window, "keep", lambda self, size_bytes: None)
    checkpoint, wanted = open_checkpoint(url_of(server)), read_all(open_checkpoint(str(sharded)))
    assert read_all(checkpoint) == wanted
    assert read_all(checkpoint) == wanted
    assert server.sent_bytes > 1.9 * weights_bytes(sharded)  # what gave way was fetched again


def test_weights_that_are_measured_first_are_fetched_once_by_a_window_smaller_than_the_checkpoint(
    sharded: Path, server: RangeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, scales = resolve_target(load_target("h100"), scheme="fp8", context=64), tmp_path / "s.safetensors"
    asked = BuildOptions(target=target, model=str(sharded), out=tmp_path / "local", validate=False)
    local = build(replace(asked, save_calibration=scales), progress=quiet)
    monkeypatch.setattr(window, "BLOCK_BYTES", 1 << 18)  # 8 MB ahead and a layer of 18 MB, of 52 MB
    asked = replace(asked, model=url_of(server), out=tmp_path / "remote", calibration=scales)
    there = build(asked, progress=quiet)
    weights = "model/model.safetensors"
    assert there.manifest.files[weights] == local.manifest.files[weights]
    assert server.sent_bytes <= 1.05 * weights_bytes(sharded)


# what goes wrong


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("fault", ["busy", "cut", "short", "drop", "silent"])
def test_what_passes_is_tried_again(sharded: Path, server: RangeServer, fault: str) -> None:
    checkpoint = open_checkpoint(url_of(server))
    server.faults.extend([fault] * 3)  # type: ignore[list-item]
    assert read_all(checkpoint) == read_all(open_checkpoint(str(sharded)))
    assert not server.faults


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("fault", "words"), [("busy", "503"), ("cut", "in 4 tries"), ("short", "bytes came where"), ("drop", "4 tries")]
)
def test_what_stays_is_a_sentence(server: RangeServer, fault: str, words: str) -> None:
    checkpoint = open_checkpoint(url_of(server))
    server.faults.extend([fault] * 1000)  # type: ignore[list-item]
    assert words in refused(checkpoint, 3)


@pytest.mark.usefixtures("impatient")
def test_a_server_that_is_gone_is_a_sentence(sharded: Path) -> None:
    with serving(sharded.parent) as server:
        checkpoint = open_checkpoint(url_of(server))
    assert "could not be read in 4 tries" in refused(checkpoint, 3)


def refused(checkpoint: Checkpoint, exit_code: int) -> str:
    with pytest.raises(EdgeForgeError) as raised:
        read_all(checkpoint)
    assert raised.value.exit_code == exit_code
    assert raised.value.hint
    assert "\n" not in raised.value.message
    return raised.value.message


def test_what_is_not_there_is_named(server: RangeServer, copied: RangeServer) -> None:
    with pytest.raises(UnusableInput, match=r"/Nothing has no config\.json"):
        open_checkpoint(f"{server.url}/Nothing")
    with pytest.raises(UnusableInput, match=r"/none\.gguf does not exist"):
        open_checkpoint(f"{server.url}/none.gguf")
    (copied.folder / "Model" / "model-2-of-2.safetensors").unlink()
    with pytest.raises(UnusableInput, match=r"lacks model-2-of-2\.safetensors"):
        open_checkpoint(url_of(copied))


def test_a_denied_folder_says_what_credentials_are_for(server: RangeServer) -> None:
    server.denied = True
    with pytest.raises(UnusableInput, match=r"access to .* is denied") as raised:
        open_checkpoint(url_of(server))
    assert "credentials" in (raised.value.hint or "")


def test_a_server_without_ranges_is_refused_before_it_sends_a_file(server: RangeServer) -> None:
    server.knows_ranges = False
    with pytest.raises(UnusableInput, match="answers no range requests") as raised:
        open_checkpoint(url_of(server))
    assert "download" in (raised.value.hint or "")
    assert server.sent_bytes < 100_000


def test_a_truncated_shard_is_told_by_its_header(copied: RangeServer) -> None:
    shard = copied.folder / "Model" / "model-1-of-2.safetensors"
    content = shard.read_bytes()
    shard.unlink()  # a link to the shared one
    shard.write_bytes(content[:-1000])
    with pytest.raises(UnusableInput, match=r"model-1-of-2\.safetensors is truncated"):
        open_checkpoint(url_of(copied))


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("change", ["replaced", "shrunk", "gone"])
def test_a_file_that_changes_while_it_is_read_is_an_integrity_error(copied: RangeServer, change: str) -> None:
    checkpoint = open_checkpoint(url_of(copied))
    shard = copied.folder / "Model" / "model-2-of-2.safetensors"
    content = shard.read_bytes()
    shard.unlink()
    if change != "gone":
        shard.write_bytes(content if change == "replaced" else content[:1000])
    with pytest.raises(IntegrityError, match="while it was read") as raised:
        read_all(checkpoint)
    assert raised.value.exit_code == 6
    assert ("is gone" if change == "gone" else "was replaced") in raised.value.message


def test_a_missing_package_is_a_missing_dependency(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"class": "no_such_package.Store", "err": "Install no_such_package to access Store"}
    monkeypatch.setitem(known_implementations, "store", known)
    with pytest.raises(MissingDependency, match="Install no_such_package") as raised:
        open_checkpoint("store://bucket/model")
    assert "edgeforge[s3]" in (raised.value.hint or "")
    with pytest.raises(UnusableInput, match="nowhere://x cannot be opened"):
        open_checkpoint("nowhere://x")


def test_no_room_for_the_window_is_out_of_resources(server: RangeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(url_of(server))

    def full(descriptor: int, content: bytes, offset: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OutOfResources) as raised:
        read_all(checkpoint)
    assert "TMPDIR" in (raised.value.hint or "")


def test_secrets_are_not_shown() -> None:
    assert remote.shown("https://me:pw@host:8443/a/b/?X-Amz-Signature=1") == "https://host:8443/a/b"
    assert remote.shown("s3://bucket/Llama/") == "s3://bucket/Llama"
