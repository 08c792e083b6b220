"""Where a bundle goes: the default folder, and taking the place of an older bundle."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeforge.errors import UsageError

ARTIFACTS = Path("artifacts")


def default_output(model: str, target: str, scheme: str | None) -> Path:
    """`artifacts/<model>-<target>[-scheme]`; the scheme only where the user chose one.

    >>> str(default_output("meta-llama/Llama-3.1-8B-Instruct", "h100", None))
    'artifacts/Llama-3.1-8B-Instruct-h100'
    """
    parts = [model_slug(model), target, *([scheme] if scheme else [])]
    return ARTIFACTS / "-".join(parts)


def model_slug(model: str) -> str:
    """A file name for a model reference: its last part, without .gguf and without characters that shells mind."""
    name = Path(model).name or Path(model).resolve().name
    if name in (".", ".."):
        name = Path(model).resolve().name
    name = name.removesuffix(".gguf")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "model"


def check_destination(out: Path, *, force: bool) -> None:
    """UsageError when `out` exists, and with `force` when it holds anything that is not a bundle."""
    if not out.exists() and not out.is_symlink():
        return
    if not force:
        raise UsageError(f"{out} exists already", hint="choose another folder with --out, or replace it with --force")
    if not _is_replaceable(out):
        raise UsageError(f"{out} is not a bundle, so --force will not delete it", hint="choose another folder")


@contextmanager
def destination(out: Path, *, force: bool) -> Iterator[Path]:
    """The folder to build into so that `out` is never half a bundle; with `force`, the old one stays until the end.

    Raises as `check_destination` does.
    """
    check_destination(out, force=force)
    if not out.exists():
        yield out
        return
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.replacing-", dir=out.parent) as folder:
        fresh = Path(folder) / out.name
        yield fresh
        if fresh.exists():
            out.rename(Path(folder) / "old")
            fresh.rename(out)


def _is_replaceable(out: Path) -> bool:
    if out.is_symlink() or not out.is_dir():
        return False
    return (out / "manifest.json").is_file() or not any(out.iterdir())
