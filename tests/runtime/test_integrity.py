"""Any changed, missing or extra byte of a bundle is found and the file is named; nothing else is."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeforge.bundle import seal
from edgeforge.runtime.errors import CorruptBundle
from edgeforge.runtime.integrity import QUICK_HASH_BYTES, tree, verify

NAMES = (
    "manifest.json",
    "SHA256SUMS",
    "LICENSE",
    "NOTICE",
    "README.md",
    "__main__.py",
    "provenance.json",
    "sbom.cdx.json",
    "model/model.onnx",
    "model/model.onnx.data",
    "model/scoring.onnx",
    "model/tokenizer.json",
    "model/chat_template.jinja",
    "runtime/__init__.py",
    "runtime/session.py",
    "reports/validation.json",
)


@pytest.fixture(scope="module")
def sealed(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a report; tests that change it put it back."""
    copy = tmp_path_factory.mktemp("sealed") / "bundle"
    shutil.copytree(tiny, copy)
    (copy / "reports").mkdir()
    (copy / "reports/validation.json").write_text("{}\n")
    seal(copy)
    return copy


@pytest.fixture
def scratch(sealed: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sealed, tmp_path / "bundle")


def test_an_untouched_bundle_passes(sealed: Path) -> None:
    manifest = verify(sealed, "full")
    assert verify(sealed, "quick") == manifest
    outside = {"manifest.json", "SHA256SUMS", "README.md", "sbom.cdx.json", "reports/validation.json"}
    assert set(manifest.files) == set(tree(sealed)) - outside


def test_sha256sum_itself_agrees(sealed: Path) -> None:
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=sealed, check=True)
    assert len((sealed / "SHA256SUMS").read_text().splitlines()) == len(tree(sealed)) - 1


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(NAMES), where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_a_flipped_byte_anywhere_is_found_and_the_file_named(sealed: Path, name: str, where: float, flip: int) -> None:
    path = sealed / name
    original = path.read_bytes()
    position = int(where * len(original))
    damaged = bytearray(original)
    damaged[position] ^= flip
    path.write_bytes(damaged)
    try:
        with pytest.raises(CorruptBundle) as caught:
            verify(sealed, "full")
    finally:
        path.write_bytes(original)
    assert name in caught.value.message
    assert caught.value.exit_code == 6


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_is_named(scratch: Path, name: str) -> None:
    (scratch / name).unlink()
    with pytest.raises(CorruptBundle, match=name):
        verify(scratch, "full")


@pytest.mark.parametrize("name", ["extra.txt", "model/other.onnx", "runtime/os.py", "reports/new.html", ".hidden"])
def test_an_extra_file_is_named(scratch: Path, name: str) -> None:
    (scratch / name).write_text("")
    with pytest.raises(CorruptBundle, match=name):
        verify(scratch, "full")


@pytest.mark.parametrize("extend", [lambda data: data + b"\n", lambda data: data[:-1], lambda data: b""])
@pytest.mark.parametrize("name", NAMES)
def test_a_longer_or_shorter_file_is_named(scratch: Path, name: str, extend: Callable[[bytes], bytes]) -> None:
    (scratch / name).write_bytes(extend((scratch / name).read_bytes()))
    with pytest.raises(CorruptBundle, match=name):
        verify(scratch, "full")


OUTSIDE = ("SHA256SUMS", "README.md", "sbom.cdx.json", "reports/validation.json")


@pytest.mark.parametrize("name", [name for name in NAMES if name not in OUTSIDE])
def test_quick_finds_changes_in_small_files_too(scratch: Path, name: str) -> None:
    data = bytearray((scratch / name).read_bytes())
    assert len(data) < QUICK_HASH_BYTES
    data[len(data) // 2] ^= 1
    (scratch / name).write_bytes(data)
    with pytest.raises(CorruptBundle, match=name):
        verify(scratch, "quick")


def test_links_are_refused_even_to_the_right_bytes(scratch: Path, tmp_path: Path) -> None:
    os.rename(scratch / "LICENSE", tmp_path / "LICENSE")
    (scratch / "LICENSE").symlink_to(tmp_path / "LICENSE")
    with pytest.raises(CorruptBundle, match="LICENSE is not a plain file"):
        verify(scratch, "quick")


def test_a_linked_folder_is_refused(scratch: Path, tmp_path: Path) -> None:
    os.rename(scratch / "model", tmp_path / "model")
    (scratch / "model").symlink_to(tmp_path / "model")
    with pytest.raises(CorruptBundle, match="model is not a plain file"):
        verify(scratch, "full")


def test_bytecode_of_an_embedding_program_is_overlooked_at_load_and_reported_by_full(scratch: Path) -> None:
    (scratch / "runtime/__pycache__").mkdir()
    (scratch / "runtime/__pycache__/model.cpython-311.pyc").write_bytes(b"code")
    verify(scratch, "quick")
    with pytest.raises(CorruptBundle, match="__pycache__") as caught:
        verify(scratch, "full")
    assert "PYTHONDONTWRITEBYTECODE" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "name", ["__pycache__/x.pyc", "runtime/__pycache__/x.py", "runtime/x.pyc", "model/__pycache__/x.pyc"]
)
def test_other_bytecode_is_refused_even_at_load(scratch: Path, name: str) -> None:
    (scratch / name).parent.mkdir(exist_ok=True)
    (scratch / name).write_bytes(b"code")
    with pytest.raises(CorruptBundle, match=name):
        verify(scratch, "quick")


def test_progress_ends_at_the_bytes_hashed(sealed: Path) -> None:
    seen: list[tuple[int, int]] = []
    manifest = verify(sealed, "full", lambda done, total: seen.append((done, total)))
    total = sum(record.size for record in manifest.files.values())
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_many_problems_make_one_sentence(scratch: Path) -> None:
    for name in ("LICENSE", "NOTICE", "model/model.onnx", "model/tokenizer.json", "runtime/text.py"):
        (scratch / name).unlink()
    with pytest.raises(CorruptBundle, match=r"\(and 2 more\)$"):
        verify(scratch)
