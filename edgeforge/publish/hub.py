"""Bundles on the Hugging Face hub: one model repository, one commit for each push.

Everything that travels does so by huggingface_hub, so that HF_ENDPOINT, HF_TOKEN and its proxies mean what they mean
everywhere. Large files that the hub has are not sent again, and a download that was cut goes on.
"""

import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from edgeforge.bundle import publish_directory, verify
from edgeforge.errors import IntegrityError, OutOfResources, UnusableInput
from edgeforge.publish.arrival import arrival, check_free, older_files, reuse
from edgeforge.publish.artifact import target_name
from edgeforge.publish.outcome import Pulled, Pushed, Verified
from edgeforge.publish.reference import HubReference
from edgeforge.runtime.manifest import MANIFEST_NAME, is_safe_path

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile

# What the hub itself keeps in a repository, and no bundle has.
OF_THE_HUB = ".gitattributes"


def push_to_hub(reference: HubReference, bundle: Verified) -> Pushed:
    """The repository's branch holds the bundle and nothing else afterwards. One that is not there is made, private."""
    from huggingface_hub import HfApi

    files = [path for path in bundle.folder.rglob("*") if path.is_file()]
    with _sentences(reference):
        api = HfApi()
        api.create_repo(reference.name, private=True, exist_ok=True)
        if reference.revision is not None:
            api.create_branch(reference.name, branch=reference.revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=reference.name,
            folder_path=bundle.folder,
            revision=reference.revision,
            commit_message=f"Bundle for {target_name(bundle.manifest)}, EdgeForge {bundle.manifest.edgeforge_version}",
            delete_patterns=["*"],
        )
    return Pushed(
        digest=commit.oid,
        targets=(target_name(bundle.manifest),),
        files=len(files),
        size_bytes=sum(path.stat().st_size for path in files),
    )


def pull_from_hub(reference: HubReference, destination: Path, *, check: Callable[[Path], None]) -> Pulled:
    """The bundle of the repository's branch, tag or commit is at `destination` afterwards, or nothing has changed."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.hf_api import RepoFile

    with arrival(destination) as room, _sentences(reference):
        api = HfApi()
        commit = api.model_info(reference.name, revision=reference.revision).sha or ""
        entries = api.list_repo_tree(reference.name, recursive=True, revision=commit)
        files = {entry.path: entry for entry in entries if isinstance(entry, RepoFile) and entry.path != OF_THE_HUB}
        for path in files:
            if not is_safe_path(path):
                raise IntegrityError(f"{reference} has a file {path!r}, which leads out of its folder")
        if MANIFEST_NAME not in files:
            raise UnusableInput(
                f"{reference} is no bundle: it has no {MANIFEST_NAME}", hint="`edgeforge publish` makes one"
            )
        check_free(room, sum(entry.size for entry in files.values()) - _size(room.unsorted))
        reused = _reused(files, older_files(destination), room.unsorted)
        # The library writes whole files only, and keeps unfinished ones under .cache.
        snapshot_download(
            reference.name, revision=commit, local_dir=room.unsorted, ignore_patterns=[OF_THE_HUB, *reused]
        )
        shutil.rmtree(room.unsorted / ".cache", ignore_errors=True)
        os.replace(room.unsorted, room.bundle)
        manifest = verify(room.bundle, "full")
        check(room.bundle)
        publish_directory(room.bundle, destination, replace=True)
    size = sum(entry.size for entry in files.values())
    spared = sum(files[path].size for path in reused)
    return Pulled(
        digest=commit,
        target=target_name(manifest),
        files=len(files),
        size_bytes=size,
        received_bytes=size - spared,
        reused_bytes=spared,
    )


def _reused(files: "Mapping[str, RepoFile]", older: Mapping[str, Path], folder: Path) -> list[str]:
    """Paths of the large files that the bundle at the destination has, by content; they are in `folder` now."""
    reused = []
    for path, entry in files.items():
        old = older.get(entry.lfs.sha256) if entry.lfs is not None else None
        if old is not None and entry.lfs is not None:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            if reuse(old, folder / path, entry.lfs.sha256):
                reused.append(path)
    return reused


@contextmanager
def _sentences(reference: HubReference) -> Iterator[None]:
    """huggingface_hub's errors as ours; its progress bars only on a terminal."""
    from huggingface_hub import constants, errors
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        yield
    except errors.GatedRepoError:
        raise UnusableInput(
            f"{reference} is gated", hint="ask for access on its page, and set HF_TOKEN to a token of that account"
        ) from None
    except errors.RevisionNotFoundError:
        raise UnusableInput(f"{reference.name} has no revision {reference.revision}", hint="check the name") from None
    except errors.RepositoryNotFoundError:
        raise UnusableInput(
            f"there is no {reference}, or it is private",
            hint="check the name; log in with `hf auth login`, or set HF_TOKEN",
        ) from None
    except errors.HfHubHTTPError as error:
        raise _refusal(reference, error) from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutOfResources("the disk is full", hint="free some space, or pull to another disk") from None
        if isinstance(error, errors.LocalEntryNotFoundError) or not error.errno:  # requests' errors are such
            raise UnusableInput(
                f"the hub at {constants.ENDPOINT} could not be reached ({type(error).__name__})",
                hint="check the network, and HF_ENDPOINT if a mirror is used; the same command goes on",
            ) from None
        raise


def _refusal(reference: HubReference, error: Exception) -> UnusableInput:
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if status in (401, 403):
        return UnusableInput(
            f"the hub refuses these credentials for {reference}",
            hint="log in again with `hf auth login`, or set HF_TOKEN to a token that may do this",
        )
    return UnusableInput(f"the hub answered {status} for {reference}", hint="try again later; the same command goes on")


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
