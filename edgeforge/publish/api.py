"""`publish` and `pull` for every kind of reference."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeforge.bundle import verify
from edgeforge.errors import UsageError
from edgeforge.model.hub import cache_folder
from edgeforge.publish.journal import Journal
from edgeforge.publish.pull import Choose, Pulled
from edgeforge.publish.pull import pull as pull_from_registry
from edgeforge.publish.push import Pushed, Verified, push
from edgeforge.publish.reference import OciReference, parse_reference
from edgeforge.publish.registry import Registry
from edgeforge.publish.upload import CHUNK_BYTES

# A stage (verify, upload, download), bytes done, bytes in all.
Progress = Callable[[str, int, int], None]
Check = Callable[[Path], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """How to talk to a registry."""

    plain_http: bool = False
    attempts: int = 5
    chunk_bytes: int = CHUNK_BYTES


def publish(
    bundles: Sequence[Path],
    reference: str,
    *,
    wire: Wire,
    add: bool = False,
    checks: Sequence[Check] = (),
    progress: Progress = lambda stage, done, total: None,
) -> Pushed:
    """Verify the bundles, ask every check of each, and publish them. Nothing is sent where one refuses.

    Raises CorruptBundle, UnusableInput, IntegrityError, UsageError, and whatever a check raises.
    """
    place = parse_reference(reference)
    if not isinstance(place, OciReference):
        raise UsageError(f"{place} is no registry", hint="give oci://host/name:tag")
    if place.digest is not None:
        raise UsageError(f"{place} names a digest, which only the content decides", hint="publish under a tag")
    verified = [_verified(bundle, checks, progress) for bundle in bundles]
    _check_targets(verified)
    registry = Registry(place, plain_http=wire.plain_http, attempts=wire.attempts)
    return push(
        registry,
        verified,
        Journal(folder=cache_folder() / "publish"),
        add=add,
        chunk_bytes=wire.chunk_bytes,
        progress=lambda done, total: progress("upload", done, total),
    )


def pull(
    reference: str,
    destination: Path,
    *,
    wire: Wire,
    platform: str | None,
    choose: Choose,
    checks: Sequence[Check] = (),
    progress: Progress = lambda stage, done, total: None,
) -> Pulled:
    """The bundle at `destination`, proven; see `edgeforge.publish.pull`."""
    place = parse_reference(reference)
    if not isinstance(place, OciReference):
        raise UsageError(f"{place} is no registry", hint="give oci://host/name:tag")

    def check(bundle: Path) -> None:
        for each in checks:
            each(bundle)

    return pull_from_registry(
        Registry(place, plain_http=wire.plain_http, attempts=wire.attempts),
        destination,
        platform=platform,
        choose=choose,
        check=check,
        progress=lambda done, total: progress("download", done, total),
    )


def _verified(bundle: Path, checks: Sequence[Check], progress: Progress) -> Verified:
    manifest = verify(bundle, "full", lambda done, total: progress("verify", done, total))
    for check in checks:
        check(bundle)
    return Verified(folder=bundle, manifest=manifest)


def _check_targets(bundles: Sequence[Verified]) -> None:
    """An index has one bundle for each target."""
    folders: dict[str, Path] = {}
    for bundle in bundles:
        target = str(bundle.manifest.target.get("name"))
        if target in folders:
            raise UsageError(
                f"{folders[target]} and {bundle.folder} are both for target {target}",
                hint="publish one bundle for each target, or under several tags",
            )
        folders[target] = bundle.folder
