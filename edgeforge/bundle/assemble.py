"""From a folder with model/ in it to a bundle: the runtime, licences, provenance, the manifest; then what is sealed."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from edgeforge import __version__
from edgeforge.bundle.embedded import runtime_files
from edgeforge.bundle.epoch import source_date
from edgeforge.bundle.licences import licence_files
from edgeforge.bundle.provenance import provenance
from edgeforge.bundle.records import json_text, manifest_text, role_of
from edgeforge.bundle.seal import seal
from edgeforge.runtime.integrity import is_outside_manifest, sha256_of, tree
from edgeforge.runtime.manifest import (
    MANIFEST_NAME,
    SCHEMA_VERSION,
    Determinism,
    EngineRecord,
    FileRecord,
    Manifest,
    ModelRecord,
    Requirements,
    SourceRecord,
    manifest_from_json,
)
from edgeforge.runtime.parity import PARITY_NAME

PROVENANCE_NAME = "provenance.json"


def assemble(
    staging: Path,
    *,
    target: Mapping[str, object],
    profile: Mapping[str, object],
    plan: Mapping[str, object],
    source: SourceRecord,
    model: ModelRecord,
    requirements: Requirements,
    determinism: Determinism,
    notices: Mapping[str, bytes],
    parity: str | None = None,
    engine: EngineRecord | None = None,
    digests: Mapping[str, str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Complete `staging`, which holds a finished model/ folder, and return its manifest.

    `parity`: parity.json, what the original's tokenizer and template make of fixed texts. `digests` gives hashes
    already known (relative path -> SHA-256 in hex), so that a large file is not read again. `progress(done, total)`
    counts bytes hashed. The same arguments and model files give the same bytes, anywhere.
    """
    for path, content in _own_files(source, model, requirements.packages, notices, parity).items():
        (staging / path).parent.mkdir(exist_ok=True)
        (staging / path).write_bytes(content)
    files = _file_records(staging, model, digests or {}, progress)
    document = provenance(
        source=source,
        target=target,
        plan=plan,
        determinism=determinism,
        files=files,
        version=__version__,
        built_at=source_date(),
    )
    (staging / PROVENANCE_NAME).write_bytes(json_text(document).encode())
    files[PROVENANCE_NAME] = _record(staging, PROVENANCE_NAME, model)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        edgeforge_version=__version__,
        target=target,
        profile=profile,
        plan=plan,
        source=source,
        model=model,
        requirements=requirements,
        determinism=determinism,
        files=dict(sorted(files.items())),
        engine=engine,
    )
    text = manifest_text(manifest)
    manifest_from_json(json.loads(text))  # what is written must be readable: fail here, not at the user's
    (staging / MANIFEST_NAME).write_bytes(text.encode())
    seal(staging)
    return manifest


def _own_files(
    source: SourceRecord,
    model: ModelRecord,
    packages: Mapping[str, str],
    notices: Mapping[str, bytes],
    parity: str | None,
) -> dict[str, bytes]:
    vectors = {} if parity is None else {PARITY_NAME: parity.encode()}
    return runtime_files(model.backend, packages) | licence_files(source, notices, version=__version__) | vectors


def _file_records(
    staging: Path,
    model: ModelRecord,
    digests: Mapping[str, str],
    progress: Callable[[int, int], None] | None,
) -> dict[str, FileRecord]:
    sizes = {
        path: size for path, size in tree(staging).items() if path != PROVENANCE_NAME and not is_outside_manifest(path)
    }
    total = sum(sizes.values())
    done = 0
    records = {}
    for path, size in sizes.items():
        records[path] = _record(staging, path, model, digests.get(path))
        done += size
        if progress is not None:
            progress(done, total)
    return records


def _record(staging: Path, path: str, model: ModelRecord, digest: str | None = None) -> FileRecord:
    file = staging / path
    return FileRecord(sha256=digest or sha256_of(file), size=file.stat().st_size, role=role_of(path, model))
