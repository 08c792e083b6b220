"""What is made last, of the manifest and the reports: the card, the bill of materials, and the sums over everything."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from edgeforge.bundle.card import card
from edgeforge.bundle.epoch import source_date
from edgeforge.bundle.names import spdx_id
from edgeforge.bundle.records import json_text
from edgeforge.bundle.sbom import sbom
from edgeforge.runtime.integrity import (
    CARD_NAME,
    OUTSIDE_SUMS,
    SBOM_NAME,
    SUMS_NAME,
    is_outside_manifest,
    sha256_of,
    sums_text,
    tree,
)
from edgeforge.runtime.manifest import MANIFEST_NAME, Manifest, read_manifest

VALIDATION = "reports/validation.json"
LARGEST_TEXT_BYTES = 1 << 20


def seal(bundle: Path) -> None:
    """Write README.md, sbom.cdx.json and SHA256SUMS. Call it again after adding a report.

    The manifest's hashes are taken as they stand, so sealing is quick; a file changed since then still fails
    verification. A signature that was there no longer fits where a report changed: sign again.
    """
    manifest = read_manifest(bundle)
    manifest_sha256 = sha256_of(bundle / MANIFEST_NAME)
    report = _report_of(bundle, manifest_sha256)
    texts = licence_texts(bundle, manifest)
    licence = texts.get("LICENSE", "")
    _write(bundle / CARD_NAME, card(manifest, licence=licence, texts=texts, report=report))
    document = sbom(
        manifest,
        manifest_sha256=manifest_sha256,
        validation_text=None if report is None else _mapping(report["text"]),
        licence=spdx_id(licence),
        built_at=source_date(),
    )
    _write(bundle / SBOM_NAME, json_text(document))
    digests = {path: record.sha256 for path, record in manifest.files.items()}
    for path in tree(bundle):
        if is_outside_manifest(path) and path not in OUTSIDE_SUMS:
            digests[path] = sha256_of(bundle / path)
    _write(bundle / SUMS_NAME, sums_text(digests))


def licence_texts(bundle: Path, manifest: Manifest) -> dict[str, str]:
    """What the authors of the model say of its terms, by path: LICENSE and licenses/."""
    paths = [path for path, record in manifest.files.items() if record.role == "licence"]
    return {
        path: (bundle / path).read_bytes()[:LARGEST_TEXT_BYTES].decode("utf-8", errors="replace")
        for path in paths
        if (bundle / path).is_file()
    }


def _report_of(bundle: Path, manifest_sha256: str) -> Mapping[str, object] | None:
    """The last validation report, where there is one and it is of this very manifest."""
    try:
        report = json.loads((bundle / VALIDATION).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return report if isinstance(report, dict) and report.get("manifest_sha256") == manifest_sha256 else None


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(text.encode())
    os.replace(partial, path)
