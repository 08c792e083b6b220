"""`publish` and `pull` for every kind of reference."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeforge.bundle import check_destination, verify
from edgeforge.errors import UsageError
from edgeforge.model.hub import cache_folder
from edgeforge.publish.artifact import target_name
from edgeforge.publish.hub import pull_from_hub, push_to_hub
from edgeforge.publish.journal import Journal
from edgeforge.publish.outcome import Pulled, Pushed, Verified
from edgeforge.publish.pull import Choose
from edgeforge.publish.pull import pull as pull_from_registry
from edgeforge.publish.push import push
from edgeforge.publish.reference import HubReference, OciReference, UrlReference, parse_reference
from edgeforge.publish.registry import Registry
from edgeforge.publish.upload import CHUNK_BYTES
from edgeforge.publish.urls import pull_from_url, push_to_url

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
    if isinstance(place, OciReference):
        if place.digest is not None:
            raise UsageError(f"{place} names a digest, which only the content decides", hint="publish under a tag")
    elif len(bundles) > 1 or add:
        raise UsageError(f"{place} holds one bundle", hint="publish several to a registry, or each to its own place")
    verified = [_verified(bundle, checks, progress) for bundle in bundles]
    _check_targets(verified)

    def uploaded(done: int, total: int) -> None:
        progress("upload", done, total)

    if isinstance(place, HubReference):
        return push_to_hub(place, verified[0])
    if isinstance(place, UrlReference):
        return push_to_url(place, verified[0], progress=uploaded)
    registry = Registry(place, plain_http=wire.plain_http, attempts=wire.attempts)
    journal = Journal(folder=cache_folder() / "publish")
    return push(registry, verified, journal, add=add, chunk_bytes=wire.chunk_bytes, progress=uploaded)


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
    """The bundle under `reference` is at `destination` afterwards, in the place of the one that was there; or nothing
    has changed.

    `platform` names the target to take where there are several; without it, `choose` decides. Every check sees the
    complete bundle before it is in place. Raises UnusableInput, IntegrityError, CorruptBundle, UsageError,
    OutOfResources, what `choose` raises, and what a check raises.
    """
    place = parse_reference(reference)
    check_destination(destination, replace=True)
    if destination.is_symlink():
        raise UsageError(f"{destination} is a link", hint="name the folder it points to")

    def check(bundle: Path) -> None:
        for each in checks:
            each(bundle)

    def downloaded(done: int, total: int) -> None:
        progress("download", done, total)

    if isinstance(place, HubReference):
        return pull_from_hub(place, destination, check=check)
    if isinstance(place, UrlReference):
        return pull_from_url(place, destination, check=check, progress=downloaded)
    registry = Registry(place, plain_http=wire.plain_http, attempts=wire.attempts)
    return pull_from_registry(registry, destination, platform=platform, choose=choose, check=check, progress=downloaded)


def _verified(bundle: Path, checks: Sequence[Check], progress: Progress) -> Verified:
    manifest = verify(bundle, "full", lambda done, total: progress("verify", done, total))
    for check in checks:
        check(bundle)
    return Verified(folder=bundle, manifest=manifest)


def _check_targets(bundles: Sequence[Verified]) -> None:
    """An index has one bundle for each target."""
    folders: dict[str, Path] = {}
    for bundle in bundles:
        target = target_name(bundle.manifest)
        if target in folders:
            raise UsageError(
                f"{folders[target]} and {bundle.folder} are both for target {target}",
                hint="publish one bundle for each target, or under several tags",
            )
        folders[target] = bundle.folder
