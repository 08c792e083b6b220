"""Manifests and indexes out of a registry, verified where their digest is known."""

from dataclasses import dataclass

from edgeforge.errors import IntegrityError, UnusableInput
from edgeforge.publish.artifact import INDEX_TYPE, MANIFEST_TYPE, digest_of, document_of
from edgeforge.publish.registry import Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """A manifest or an index, as the registry has it."""

    media_type: str
    digest: str
    content: bytes


def fetch_manifest(registry: Registry, place: str) -> Fetched:
    """The manifest under a tag or digest; UnusableInput where there is none."""
    found = find_manifest(registry, place)
    if found is None:
        raise UnusableInput(f"there is no {registry.reference}", hint="check the name and the tag")
    return found


def find_manifest(registry: Registry, place: str) -> Fetched | None:
    """The manifest under a tag or digest, None where there is none (distribution-spec, "Pulling manifests").

    IntegrityError where it is not what its digest, or the registry's own header, says.
    """
    response = registry.request(
        "GET",
        registry.url(f"manifests/{place}"),
        expect=(200, 404),
        headers={"Accept": f"{MANIFEST_TYPE}, {INDEX_TYPE}"},
    )
    if response.status_code == 404:
        return None
    content = response.content
    digest = digest_of(content)
    said = response.headers.get("Docker-Content-Digest", digest)
    expected = place if place.startswith("sha256:") else said
    if digest != expected and expected.startswith("sha256:"):
        raise IntegrityError(
            f"the manifest of {registry.reference} arrived changed: its SHA-256 is not {expected}",
            hint="try again; if it happens again, do not trust the registry or what stands before it",
        )
    document = document_of(content)
    media_type = document.get("mediaType") or response.headers.get("Content-Type", "").partition(";")[0]
    return Fetched(media_type=str(media_type), digest=digest, content=content)
