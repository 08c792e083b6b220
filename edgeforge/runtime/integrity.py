"""Is the bundle what its manifest says? Any changed, missing or extra byte is found, and the file is named.

Two levels. `quick`, at every load: the size of every file, the hash of every file under 4 MB, missing and extra files.
`full`, for `edgeforge verify`: every hash, and SHA256SUMS byte for byte, which covers what the manifest does not: the
manifest itself, and what is written again when a report is added (reports/, README.md, sbom.cdx.json).

A signature, model.sig, covers SHA256SUMS, so that neither it nor the manifest can list it; whoever has the key checks
it (`edgeforge verify --key`).

Python writes `__pycache__` beside modules that a program imports, so an application that embeds BUNDLE/runtime leaves
some in the bundle. `quick` overlooks `*.pyc` files in a `__pycache__` folder under runtime/, and that of
edgeforge_runtime.py, or embedding would break the second start; `full` reports them, since compiled code is code.
(`python BUNDLE` leaves none: __main__.py sees to that.)
"""

import hashlib
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from .errors import CorruptBundle
from .manifest import MANIFEST_NAME, FileRecord, Manifest, is_safe_path, read_manifest

SUMS_NAME = "SHA256SUMS"
REPORTS = "reports/"
CARD_NAME = "README.md"
SBOM_NAME = "sbom.cdx.json"
SIGNATURE_NAME = "model.sig"
# What the manifest does not list. All of it but the sums and the signature is in SHA256SUMS.
OUTSIDE_MANIFEST = (MANIFEST_NAME, SUMS_NAME, CARD_NAME, SBOM_NAME, SIGNATURE_NAME)
OUTSIDE_SUMS = (SUMS_NAME, SIGNATURE_NAME)
QUICK_HASH_BYTES = 4 << 20
BLOCK_BYTES = 1 << 20

Level = Literal["quick", "full"]
Progress = Callable[[int, int], None]


def verify(bundle: Path, level: Level = "quick", progress: Progress | None = None) -> Manifest:
    """Check the bundle against its manifest and return it; CorruptBundle names what differs.

    `progress(done, total)` is called with bytes hashed so far.
    """
    sums = _read_sums(bundle)
    # The manifest's own hash comes first: a damaged manifest must be called damaged, not unreadable.
    if sums is not None:
        _check_manifest_hash(bundle, sums)
    manifest = read_manifest(bundle)
    if sums is None:
        raise CorruptBundle(f"{SUMS_NAME} is missing", hint="copy the bundle again")
    sizes = tree(bundle)
    problems = _tree_problems(manifest, sizes, level)
    hashed = [path for path, record in manifest.files.items() if level == "full" or record.size < QUICK_HASH_BYTES]
    if not problems:
        problems = _hash_problems(bundle, manifest.files, hashed, progress)
    if not problems and level == "full":
        problems = _sums_problems(bundle, manifest, sums, sizes)
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise CorruptBundle("; ".join(problems[:3]) + more, hint=_hint(problems))
    return manifest


def tree(bundle: Path) -> dict[str, int]:
    """Relative path -> size in bytes of every regular file, sorted; CorruptBundle on links and devices."""
    found: dict[str, int] = {}
    for folder, folders, names in os.walk(bundle, followlinks=False):
        for name in (*folders, *names):
            path = Path(folder, name)
            status = path.lstat()
            if stat.S_ISDIR(status.st_mode):
                continue
            relative = path.relative_to(bundle).as_posix()
            if not stat.S_ISREG(status.st_mode):
                raise CorruptBundle(f"{relative} is not a plain file", hint="a bundle holds no links")
            found[relative] = status.st_size
    return dict(sorted(found.items()))


def sha256_of(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """SHA-256 of a file in hex, read in blocks; `progress(bytes)` after each."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            if progress is not None:
                progress(len(block))
    return digest.hexdigest()


def sums_text(digests: Mapping[str, str]) -> str:
    """SHA256SUMS for relative path -> hex digest, as `sha256sum -c` reads it, sorted by path."""
    return "".join(f"{digests[path]}  {path}\n" for path in sorted(digests))


def _read_sums(bundle: Path) -> dict[str, str] | None:
    try:
        lines = (bundle / SUMS_NAME).read_bytes().decode("utf-8").split("\n")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except UnicodeDecodeError:
        raise CorruptBundle(f"{SUMS_NAME} is not UTF-8 text", hint="copy the bundle again") from None
    digests: dict[str, str] = {}
    for number, line in enumerate(lines[:-1], start=1):
        digest, separator, path = line.partition("  ")
        if len(digest) != 64 or not separator or not is_safe_path(path) or path in digests:
            raise CorruptBundle(f"{SUMS_NAME}: line {number} is not a hash and a path", hint="copy the bundle again")
        digests[path] = digest
    return digests


def _check_manifest_hash(bundle: Path, sums: Mapping[str, str]) -> None:
    path = bundle / MANIFEST_NAME
    if not path.is_file():
        raise CorruptBundle(f"{MANIFEST_NAME} is missing", hint="copy the bundle again")
    if sums.get(MANIFEST_NAME) != sha256_of(path):
        raise CorruptBundle(
            f"{MANIFEST_NAME} and its line in {SUMS_NAME} differ: one of the two was changed",
            hint="copy the bundle again",
        )


def _tree_problems(manifest: Manifest, sizes: Mapping[str, int], level: Level) -> list[str]:
    problems = [f"{path} is missing" for path in manifest.files if path not in sizes]
    for path, size in sizes.items():
        record = manifest.files.get(path)
        if record is not None:
            if size != record.size:
                problems.append(f"{path} has {size} bytes, the manifest says {record.size}")
        elif not (is_outside_manifest(path) or (level == "quick" and _is_bytecode(path))):
            problems.append(f"{path} is not in the manifest")
    return problems


def is_outside_manifest(path: str) -> bool:
    """Whether a bundle may hold this file though its manifest does not list it."""
    return path in OUTSIDE_MANIFEST or path.startswith(REPORTS)


def _is_bytecode(path: str) -> bool:
    parts = path.split("/")
    imported = parts[0] == "runtime" or path.startswith("__pycache__/edgeforge_runtime.")
    return imported and len(parts) >= 2 and parts[-2] == "__pycache__" and path.endswith(".pyc")


def _hash_problems(
    bundle: Path, files: Mapping[str, FileRecord], hashed: list[str], progress: Progress | None
) -> list[str]:
    total = sum(files[path].size for path in hashed)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    return [
        f"{path} was changed: its SHA-256 is not the manifest's"
        for path in hashed
        if sha256_of(bundle / path, advance) != files[path].sha256
    ]


def _sums_problems(bundle: Path, manifest: Manifest, sums: Mapping[str, str], sizes: Mapping[str, int]) -> list[str]:
    """Compare SHA256SUMS with what it must be now that every file of the manifest is known to be right."""
    right = {path: record.sha256 for path, record in manifest.files.items()}
    for path in sizes:
        if path not in right and path not in OUTSIDE_SUMS:
            right[path] = sha256_of(bundle / path)
    problems = [f"{path} is missing, {SUMS_NAME} lists it" for path in sums if path not in right]
    for path, digest in right.items():
        if path not in sums:
            problems.append(f"{path} is not in {SUMS_NAME}")
        elif sums[path] != digest:
            who = f"{SUMS_NAME} was changed: its line for {path} is not the file's hash"
            problems.append(who if path in manifest.files else f"{path} was changed: its SHA-256 is not {SUMS_NAME}'s")
    if not problems and (bundle / SUMS_NAME).read_bytes() != sums_text(right).encode():
        problems.append(f"{SUMS_NAME} was changed")
    return problems


def _hint(problems: list[str]) -> str:
    if any("__pycache__" in problem for problem in problems):
        return (
            "Python wrote __pycache__ when a program imported the runtime: delete it, or set PYTHONDONTWRITEBYTECODE=1"
        )
    return "copy the bundle again, or build it again"
