"""Going on with a build that stopped: is it the same one, and what of its finished work is still there?"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from edgeforge import __version__
from edgeforge.errors import UsageError
from edgeforge.model.checkpoint import Checkpoint
from edgeforge.model.placed_file import Extent
from edgeforge.pipeline.journal import Entry, Piece, read_asked, read_entries
from edgeforge.planning import BuildPlan, plan_to_json
from edgeforge.quantization.calibration import Calibration

BLOCK_BYTES = 1 << 20
AT_ONCE = 1024
LISTED = 3
SAID = {
    "edgeforge": "by another version of EdgeForge",
    "exporter": "with another exporter",
    "checkpoint": "of another checkpoint",
    "calibration": "with other scales of activations",
    "schemes": "with other schemes for its matrices",
}


def asked_for(
    checkpoint: Checkpoint, plan: BuildPlan, *, exporter: str, calibration: Calibration | None = None
) -> dict[str, object]:
    """Everything that decides the bytes of the weights, as JSON; without `calibration`, what is known before it."""
    document = plan_to_json(plan)
    known = {
        "edgeforge": __version__,
        "exporter": exporter,
        "checkpoint": checkpoint.fingerprint,
        "target": document["target"],
        "schemes": _sha256(document["tensors"], document["schemes"]),
    }
    return known if calibration is None else {**known, "calibration": _calibration_sha256(calibration)}


def check_same(journal: Path, out: Path, asked: Mapping[str, object]) -> None:
    """UsageError where an unfinished build of `out` was asked for something else, in what `asked` tells."""
    before = read_asked(journal)
    differing = [] if before is None else list(_differences(before, asked))
    if differing:
        more = f" and {len(differing) - LISTED} more" if len(differing) > LISTED else ""
        raise UsageError(
            f"an unfinished build of {out} was begun {', '.join(differing[:LISTED])}{more}",
            hint="--fresh starts again; or ask for the same, or name another folder with --out",
        )


def _differences(before: Mapping[str, object], now: Mapping[str, object]) -> Iterator[str]:
    then, target = before.get("target"), now.get("target")
    changed = (
        {key: then.get(key) for key in (*target, *then) if then.get(key) != target.get(key)}
        if isinstance(then, dict) and isinstance(target, dict)
        else {}
    )
    for key, value in changed.items():
        yield f"with {key} {value if isinstance(value, str | int | float) else 'another'}"
    for key, said in SAID.items():
        follows = key == "schemes" and changed  # the target's scheme says it
        if key in now and before.get(key) != now[key] and not follows:
            yield said


def still_there(
    journal: Path,
    folder: Path,
    is_wanted: Callable[[Piece], bool],
    *,
    threads: int,
    progress: Callable[[int, int], None],
) -> Iterator[Entry]:
    """The entries of a journal whose bytes in the files of `folder` are what they were. Each is read and hashed.

    Those of pieces that nobody wants are left out. `progress` counts bytes.
    """

    def wanted() -> Iterator[Entry]:
        return (entry for entry in read_entries(journal) if is_wanted(entry.piece))

    total, done, entries = sum(entry.size_bytes for entry in wanted()), 0, wanted()
    with ThreadPoolExecutor(threads) as pool:
        while some := list(islice(entries, AT_ONCE)):
            for entry, true in zip(some, pool.map(lambda entry: _is_true(folder, entry), some), strict=True):
                done += entry.size_bytes
                progress(done, total)
                if true:
                    yield entry


def _is_true(folder: Path, entry: Entry) -> bool:
    try:
        return all(_sha256_at(folder / extent.file, extent) == extent.sha256 for extent in entry.extents)
    except (OSError, ValueError, OverflowError):  # what cannot be read is done again
        return False


def _sha256_at(path: Path, extent: Extent) -> str:
    """Of the extent's bytes as they are in the file now, in hex; of fewer where it is shorter."""
    digest = hashlib.sha256()
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        place, end = extent.offset, extent.offset + extent.size
        while block := os.pread(descriptor, min(BLOCK_BYTES, end - place), place):
            digest.update(block)
            place += len(block)
    finally:
        os.close(descriptor)
    return digest.hexdigest()


def _calibration_sha256(calibration: Calibration) -> str:
    scales = {name: scale.tobytes().hex() for name, scale in sorted(calibration.pre_quant_scales.items())}
    return _sha256(dict(calibration.inputs), calibration.keys, calibration.values, scales)


def _sha256(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
