"""The original as something to run: at full precision, through the same exporter, built once and kept in the cache.

Tasks and probes ask two bundles the same things, so that nothing but the stored weights differs between them.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgeforge import __version__
from edgeforge.errors import UnusableInput, UsageError
from edgeforge.hardware import Target, load_target
from edgeforge.model.checkpoint import Checkpoint, open_checkpoint
from edgeforge.model.hub import alone, cache_folder
from edgeforge.pipeline import BuildOptions, build, resolve_target
from edgeforge.planning import PlanDoesNotFit, make_plan
from edgeforge.runtime import BundleError, Manifest, verify

Progress = Callable[[str, int, int], None]

PRECISIONS = ("f32", "f16")  # the first that fits the machine's target
TARGET = "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Original:
    """The checkpoint that a bundle is held against, and how to open it again."""

    name: str
    revision: str | None
    checkpoint: Checkpoint


def open_original(manifest: Manifest, reference: str | None, *, allow_other: bool) -> Original:
    """What the user names, or the source that the manifest names where anybody can get it.

    UsageError when there is nothing to go by, UnusableInput when it is another checkpoint than the bundle's source.
    """
    source = manifest.source
    if reference is None and (source.kind not in ("demo", "hub") or source.name is None):
        raise UsageError(
            "the bundle was built from a local checkpoint, whose place it does not record",
            hint="name the original with --reference PATH",
        )
    name = reference or source.name or "demo"
    revision = source.revision if name == source.name else None
    checkpoint = open_checkpoint(name, revision=revision)
    if checkpoint.fingerprint != source.fingerprint and not allow_other:
        raise UnusableInput(
            f"{name} is not the checkpoint that the bundle was built from: its fingerprint is "
            f"{_short(checkpoint.fingerprint)}, the source's was {_short(source.fingerprint)}",
            hint="name the original with --reference, or compare with this one all the same: --allow-other-reference",
        )
    return Original(name=name, revision=revision, checkpoint=checkpoint)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceBundle:
    """Where it lies, what its numbers are (`f32`), and what its answers may be kept under: a hash of its content."""

    bundle: Path
    precision: str
    key: str


def reference_bundle(original: Original, *, context: int, threads: int | None, progress: Progress) -> ReferenceBundle:
    """Built where the cache has none for this very checkpoint, context and version of EdgeForge.

    Raises DoesNotFit where the unquantized original is too large to run here.
    """
    target, precision = _target(original, context)
    wanted = {"fingerprint": original.checkpoint.fingerprint, "context": context, "precision": precision}
    key = hashlib.sha256(json.dumps(wanted | {"version": __version__}, sort_keys=True).encode()).hexdigest()
    folder = cache_folder() / "validation" / "references"
    folder.mkdir(parents=True, exist_ok=True)
    bundle = folder / key[:32]
    with alone(folder):
        if not _is_whole(bundle):
            options = BuildOptions(
                target=target,
                model=original.name,
                revision=original.revision,
                out=bundle,
                validate=False,
                threads=threads,
            )
            build(options, progress=progress)
    return ReferenceBundle(bundle=bundle, precision=precision, key=key)


def _target(original: Original, context: int) -> tuple[Target, str]:
    """The first precision that fits; the last one's refusal where none does."""
    *wider, narrowest = PRECISIONS
    for precision in wider:
        target = resolve_target(load_target(TARGET), scheme=precision, context=context)
        try:
            make_plan(original.checkpoint.architecture, target)
        except PlanDoesNotFit:
            continue
        return target, precision
    target = resolve_target(load_target(TARGET), scheme=narrowest, context=context)
    make_plan(original.checkpoint.architecture, target)
    return target, narrowest


def _is_whole(bundle: Path) -> bool:
    """Whether a usable one is there; what is left of another is removed."""
    if not bundle.exists():
        return False
    try:
        verify(bundle, "quick")
    except BundleError:
        shutil.rmtree(bundle)
        return False
    return True


def _short(fingerprint: str) -> str:
    return fingerprint.removeprefix("sha256:")[:12]
