"""Where a bundle goes: the default folder, and what may be there already."""

import re
from pathlib import Path

from edgeforge.errors import UsageError

ARTIFACTS = Path("artifacts")


def default_output(model: str, target: str, *, backend: str | None = None, scheme: str | None = None) -> Path:
    """`artifacts/<model>-<target>[-backend][-scheme]`; backend and scheme only where the user chose them.

    >>> str(default_output("meta-llama/Llama-3.1-8B-Instruct", "h100"))
    'artifacts/Llama-3.1-8B-Instruct-h100'
    """
    parts = [model_slug(model), target, *(word for word in (backend, scheme) if word)]
    return ARTIFACTS / "-".join(parts)


def model_slug(model: str) -> str:
    """A file name for a model reference: its last part, without .gguf and without characters that shells mind."""
    if "://" in model:
        model = model.partition("?")[0]  # a query may be a signature
    name = Path(model).name or Path(model).resolve().name
    if name in (".", ".."):
        name = Path(model).resolve().name
    name = name.removesuffix(".gguf")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "model"


def check_destination(out: Path, *, force: bool) -> None:
    """UsageError when `out` exists, and with `force` when it is anything but a bundle."""
    from edgeforge import bundle

    if force and out.is_symlink():
        raise UsageError(f"{out} is a link, so --force will not replace it", hint="name the folder it points to")
    bundle.check_destination(out, replace=force)
