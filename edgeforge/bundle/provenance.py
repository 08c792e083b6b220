"""provenance.json: which inputs, by hash, became which files, and who did it: in-toto's Statement, SLSA's predicate.

Sources: in-toto/attestation spec/v1 (statement, resource_descriptor, digest_set); slsa.dev/spec/v1.0/provenance.
The statement is not signed by itself: a signature over the bundle covers it. It claims what EdgeForge knows: a
checkpoint's fingerprint is no hash of its files, so that it stands beside the digests and not among them.
"""

from collections.abc import Mapping
from datetime import datetime

from edgeforge.model.hub import DEMO_SHA256, DEMO_WHEEL
from edgeforge.runtime.manifest import Determinism, FileRecord, SourceRecord

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:edgeforge:build:v1"

Json = dict[str, object]


def provenance(
    *,
    source: SourceRecord,
    target: Mapping[str, object],
    plan: Mapping[str, object],
    determinism: Determinism,
    files: Mapping[str, FileRecord],
    version: str,
    built_at: datetime | None,
) -> Json:
    """The statement as JSON values: `files` are its subjects; `built_at` only where the builder was told a time."""
    definition: Json = {
        "buildType": BUILD_TYPE,
        "externalParameters": {"model": _model(source), "target": target.get("name")},
        "internalParameters": {
            "target": dict(target),
            "plan": dict(plan),
            "reproducible": determinism.reproducible,
            "note": determinism.note,
        },
        "resolvedDependencies": [_checkpoint(source), *_calibration(plan)],
    }
    details: Json = {"builder": {"id": f"pkg:pypi/edgeforge@{version}", "version": {"edgeforge": version}}}
    if built_at is not None:
        details["metadata"] = {"finishedOn": built_at.strftime("%Y-%m-%dT%H:%M:%SZ")}
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": path, "digest": {"sha256": record.sha256}} for path, record in sorted(files.items())],
        "predicateType": PREDICATE_TYPE,
        "predicate": {"buildDefinition": definition, "runDetails": details},
    }


def _model(source: SourceRecord) -> Json:
    return {"kind": source.kind, "name": source.name, "revision": source.revision}


def _checkpoint(source: SourceRecord) -> Json:
    found: Json = {"name": "checkpoint", "uri": checkpoint_uri(source)}
    if source.kind == "hub" and source.revision:
        # A commit of the hub holds the SHA-256 of every weight file.
        found["digest"] = {"gitCommit": source.revision}
    elif source.kind == "demo":
        found["digest"] = {"sha256": DEMO_SHA256}
    found["annotations"] = {"fingerprint": source.fingerprint, "precision": source.precision}
    return found


def checkpoint_uri(source: SourceRecord) -> str:
    """A purl where the checkpoint is published; its fingerprint as a URN where it is somebody's folder."""
    if source.kind == "demo":
        return f"pkg:pypi/{DEMO_WHEEL.replace('==', '@')}"
    if source.kind == "hub" and source.name:
        return f"pkg:huggingface/{source.name}" + (f"@{source.revision}" if source.revision else "")
    return f"urn:edgeforge:checkpoint:{source.fingerprint}"


def _calibration(plan: Mapping[str, object]) -> list[Json]:
    told = plan.get("calibration")
    if not isinstance(told, Mapping) or not told.get("text_sha256"):
        return []
    facts = {key: value for key, value in told.items() if key != "text_sha256"}
    return [{"name": "calibration text", "digest": {"sha256": told["text_sha256"]}, "annotations": facts}]
