"""What every option of a bit budget costs, found once for a model and its text, and kept in the user's cache.

CACHE/weighing/KEY.json   the losses, under the SHA-256 of everything that decides them
CACHE/weighing/KEY/       what a weighing that belongs to no build leaves behind until it is done

Whatever is wrong with the cache, only costs the time to weigh again.
"""

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from edgeforge import __version__
from edgeforge.errors import OutOfResources, UnusableInput
from edgeforge.model.checkpoint import Checkpoint
from edgeforge.model.hub import alone, cache_folder
from edgeforge.pipeline.budget_options import Item, items_of
from edgeforge.pipeline.calibration_source import CalibrationTokens
from edgeforge.pipeline.layerwise import Recipe, check_torch, collect_grams
from edgeforge.planning import BuildPlan, fused_blocks

WEIGHING = 3
"""Raise it with every change to a loss: in `budget_losses`, `sensitivity`, `layerwise.collecting`, searched scales."""

GRAM_SAMPLES, GRADIENT_SAMPLES = 16, 8
"""Sequences: losses only have to be compared. On SmolLM2-135M at four sizes, what Gram matrices of 16 choose loses at
most 0.25 % more than the best by those of 32."""
ROW_READ = ("embed_tokens", "q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
"""Matrices whose first rows tell models of one shape apart."""

Progress = Callable[[int, int], None]
Log = Callable[[str], None]
Key = Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighing:
    """Every item's options, and what each costs: `losses` in nats per token, as long as the item's schemes."""

    items: tuple[Item, ...]
    losses: tuple[tuple[float, ...], ...]


def weigh(
    checkpoint: Checkpoint,
    plan: BuildPlan,
    tokens: CalibrationTokens,
    folder: Path | None,
    *,
    device: str,
    threads: int,
    progress: Progress,
    log: Log,
) -> Weighing:
    """The options of `plan`, weighed on the first of `tokens`, or as they were weighed before.

    Gram matrices are kept in `folder` (None: in the cache) until it is done; a stopped weighing goes on there. The
    same arguments give the same losses on any number of threads. Raises UnusableInput for weights, activations or
    logits that are not finite, OutOfResources, and MissingDependency.
    """
    check_torch(device)
    items = tuple(items_of(plan))
    key = _key(checkpoint, plan, items, tokens, device)
    path = cache_folder() / "weighing" / f"{_digest(key)}.json"
    known = _read(path, key, items)
    if known is not None:
        return known
    with _work_folder(path.with_suffix(""), folder) as work:
        known = _read(path, key, items)  # another process may have weighed the same meanwhile
        if known is None:
            found = _weigh(
                checkpoint, plan, items, tokens, work, device=device, threads=threads, progress=progress, log=log
            )
            known = Weighing(items=items, losses=found)
            _keep(path, key, known, log)
    return known


def _weigh(
    checkpoint: Checkpoint,
    plan: BuildPlan,
    items: Sequence[Item],
    tokens: CalibrationTokens,
    folder: Path,
    *,
    device: str,
    threads: int,
    progress: Progress,
    log: Log,
) -> tuple[tuple[float, ...], ...]:
    from edgeforge.pipeline import sensitivity
    from edgeforge.pipeline.budget_losses import losses_of
    from edgeforge.pipeline.layerwise.passes import resources_told

    _check_disk(plan, tokens, folder)
    few = replace(tokens, ids=tokens.ids[:GRAM_SAMPLES])
    grams = collect_grams(
        checkpoint, few, folder, device=device, threads=threads, progress=_part(progress, 0, 6), log=log
    )
    ids = tokens.ids[:GRADIENT_SAMPLES]
    with resources_told(folder):
        try:
            measured = sensitivity.measure(
                checkpoint,
                ids,
                folder / "gradients",
                device=device,
                threads=threads,
                progress=_part(progress, 6, 9),
            )
        except FloatingPointError as error:
            raise UnusableInput(
                f"the model cannot be weighed on the calibration text: {error}",
                hint="the checkpoint is damaged, or its training diverged; fetch it again or take another",
            ) from error
        losses = losses_of(checkpoint, plan, items, grams, measured, threads=threads, progress=_part(progress, 9, 10))
    return tuple(map(tuple, losses))


def _check_disk(plan: BuildPlan, tokens: CalibrationTokens, folder: Path) -> None:
    """OutOfResources where Gram matrices, and then the hidden states before every layer, have no room on the disk."""
    a = plan.architecture
    figures = sum(block[0].in_features ** 2 for block in fused_blocks(a)) + a.hidden_size**2
    figures += (a.num_hidden_layers + 1) * GRADIENT_SAMPLES * tokens.ids.shape[1] * a.hidden_size
    there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    wanted = figures * np.dtype(np.float32).itemsize - there
    place = next(parent for parent in folder.absolute().parents if parent.exists())
    free = shutil.disk_usage(place).free
    if free < wanted:
        raise OutOfResources(
            f"weighing the options keeps {wanted / 1e6:,.0f} MB of files, and {place} has {free / 1e6:,.0f} MB free",
            hint="free some space, or choose a folder on another disk with --out",
        )


def _part(progress: Progress, first: int, last: int) -> Progress:
    """From one tenth of all work to another."""
    return lambda done, total: progress(1000 * first + 1000 * (last - first) * done // max(total, 1), 10_000)


def _key(
    checkpoint: Checkpoint, plan: BuildPlan, items: Sequence[Item], tokens: CalibrationTokens, device: str
) -> dict[str, object]:
    """Everything that decides the losses, as JSON."""
    rows = hashlib.sha256()
    for name in checkpoint.names:
        if name.split(".")[-2] in ROW_READ:
            rows.update(checkpoint.tensor(name).rows(0, 1).tobytes())
    options = [[item.names, list(map(asdict, item.schemes)), item.copies] for item in items]
    return {
        "weighing": WEIGHING,
        "edgeforge": __version__,
        "model": checkpoint.fingerprint,
        "rows": rows.hexdigest(),
        "ids": hashlib.sha256(tokens.ids[:GRAM_SAMPLES].tobytes()).hexdigest(),
        "length": tokens.ids.shape[1],
        "samples": [GRAM_SAMPLES, GRADIENT_SAMPLES],
        "options": _digest(options),
        "emphasis": Recipe().emphasis if "gptq" in plan.target.algorithm else "none",
        "rounds_inputs": [plan.target.profile.kind, plan.target.activations],
        "device": device,
    }


def _digest(part: object) -> str:
    return hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()


def _read(path: Path, key: Key, items: tuple[Item, ...]) -> Weighing | None:
    """What is kept there, where it is whole and of this key."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        losses = tuple(tuple(map(float, each)) for each in told["losses"])
        whole = told["key"] == key and [len(each) for each in losses] == [len(item.schemes) for item in items]
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    if not whole or not all(math.isfinite(loss) and loss >= 0 for each in losses for loss in each):
        return None
    return Weighing(items=items, losses=losses)


def _keep(path: Path, key: Key, found: Weighing, log: Log) -> None:
    """Whole or not at all; a cache that cannot be written is no failure."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=path.parent) as partial:
            written = Path(partial) / path.name
            written.write_text(json.dumps({"key": key, "losses": found.losses}), encoding="utf-8")
            os.replace(written, path)
    except OSError as error:
        log(f"the weighed options could not be kept in {path.parent}: {error.strerror}")


@contextmanager
def _work_folder(own: Path, given: Path | None) -> Iterator[Path]:
    """`given`, else `own` in the cache for one process at a time, else a temporary one. It is gone afterwards, but for
    what a failure leaves in the first two, to go on with."""
    if given is not None:
        yield given
        shutil.rmtree(given, ignore_errors=True)
        return
    try:
        if _writable(own):
            with alone(own):
                yield own / "state"
                shutil.rmtree(own, ignore_errors=True)
        else:
            with tempfile.TemporaryDirectory(prefix="edgeforge-") as temporary:
                yield Path(temporary) / "state"
    except OutOfResources as error:
        hint = "free some space or memory, or set EDGEFORGE_CACHE to a folder on a larger disk"
        raise OutOfResources(error.message, hint=hint) from error


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".lock").touch()
    except OSError:
        return False
    return True
