"""The directory a user deploys: its layout, manifest, licences, provenance, bill of materials, card, sums, signature,
and how it appears on the disk.

`edgeforge.runtime` owns what reading needs (the manifest's dataclasses, verification); here is what writing needs. The
JSON Schema of manifest.json is `manifest.schema.json` beside this file.
"""

from pathlib import Path

from edgeforge.bundle.assemble import assemble
from edgeforge.bundle.embedded import runtime_files
from edgeforge.bundle.epoch import source_date
from edgeforge.bundle.publish import check_destination, publish_directory, staging_directory
from edgeforge.bundle.publishable import check_publishable
from edgeforge.bundle.records import manifest_text, manifest_to_json
from edgeforge.bundle.seal import seal
from edgeforge.bundle.workplace import Workplace, unfinished_bytes, workplace
from edgeforge.runtime.integrity import Level, Progress
from edgeforge.runtime.integrity import verify as _verify
from edgeforge.runtime.manifest import Manifest

__all__ = [
    "Workplace",
    "assemble",
    "check_destination",
    "check_publishable",
    "manifest_text",
    "manifest_to_json",
    "publish_directory",
    "runtime_files",
    "seal",
    "source_date",
    "staging_directory",
    "unfinished_bytes",
    "verify",
    "workplace",
]


def verify(bundle: Path, level: Level = "full", progress: Progress | None = None) -> Manifest:
    """Every byte of the bundle against its manifest and SHA256SUMS; CorruptBundle (exit 6) names what differs."""
    return _verify(bundle, level, progress)
