"""What the tests of publishing ask and make: bundles that differ in one file, and what a command answered."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgeforge.bundle import seal
from edgeforge.bundle.records import manifest_text
from edgeforge.runtime.integrity import sha256_of
from edgeforge.runtime.manifest import FileRecord, read_manifest

Run = Callable[..., "subprocess.CompletedProcess[str]"]
LICENCE = {"LICENSE": b"Anybody may do anything with this.\n"}
PROGRAM = (sys.executable, "-m", "edgeforge.cli")


def incompressible(count: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(count)


def with_file(bundle: Path, path: str, content: bytes, *, target: str | None = None) -> Path:
    """The bundle with one file more, or another, and its manifest and sums made anew."""
    (bundle / path).write_bytes(content)
    manifest = read_manifest(bundle)
    record = FileRecord(sha256=sha256_of(bundle / path), size=len(content), role="weights")
    changed = replace(manifest, files=dict(sorted({**manifest.files, path: record}.items())))
    if target is not None:
        changed = replace(changed, target={**manifest.target, "name": target})
    (bundle / "manifest.json").write_text(manifest_text(changed), encoding="utf-8")
    seal(bundle)
    return bundle


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def document(done: "subprocess.CompletedProcess[str]") -> dict[str, object]:
    """The JSON object of a command that must have worked."""
    assert done.returncode == 0, done.stderr
    value: dict[str, object] = json.loads(done.stdout)
    return value


def refused(done: "subprocess.CompletedProcess[str]", code: int) -> str:
    """The sentence of a command that must have failed with `code`."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    sentences = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(sentences) == 1, done.stderr
    assert done.stderr.splitlines()[-1].startswith("hint: "), done.stderr
    return sentences[0]


def only(folder: Path, names: Sequence[str]) -> None:
    """Nothing else is in `folder`, hidden or not."""
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
