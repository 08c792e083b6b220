"""A bundle appears at its destination whole or not at all: it is written beside it and renamed at the end."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeforge.errors import UsageError


@contextmanager
def staging_directory(destination: Path) -> Iterator[Path]:
    """A new empty folder `.NAME.partial-XXXX` beside `destination`; gone when the block ends, unless published."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    staging = destination.parent / f".{destination.name}.partial-{secrets.token_hex(4)}"
    staging.mkdir()
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def check_destination(destination: Path, *, replace: bool = False) -> None:
    """UsageError if something is there that must not be replaced. Call it before the work, too."""
    if os.path.lexists(destination) and not replace:
        raise UsageError(f"{destination} exists", hint="name another folder with --out, or replace it with --force")
    if replace and os.path.lexists(destination) and not (destination / "manifest.json").is_file():
        raise UsageError(f"{destination} is not a bundle, and is not replaced", hint="name another folder with --out")


def publish_directory(staging: Path, destination: Path, *, replace: bool = False) -> None:
    """Rename `staging` to `destination`; with `replace`, the bundle that was there is removed after the new one is in
    place.
    """
    check_destination(destination, replace=replace)
    if not os.path.lexists(destination):
        os.rename(staging, destination)
        return
    old = destination.parent / f".{destination.name}.replaced-{secrets.token_hex(4)}"
    os.rename(destination, old)
    try:
        os.rename(staging, destination)
    except BaseException:
        os.rename(old, destination)
        raise
    shutil.rmtree(old, ignore_errors=True)
