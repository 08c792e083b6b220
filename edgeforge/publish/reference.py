"""Where a bundle is published to and pulled from: `oci://`, `hf://`, and any URL that fsspec opens."""

import re
from dataclasses import dataclass

from edgeforge.errors import UsageError

# OCI distribution-spec 1.1, "Pulling manifests": <name>, <reference>; image-spec 1.1, descriptor.md: digests.
_NAME = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*"
_TAG = r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}"
_DIGEST = r"sha256:[0-9a-f]{64}"
_HOST = r"(?:[A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\])(?::[0-9]{1,5})?"
_OCI = re.compile(rf"(?P<host>{_HOST})/(?P<name>{_NAME})(?::(?P<tag>{_TAG}))?(?:@(?P<digest>{_DIGEST}))?")
_HUB = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+))?")

EXAMPLES = "oci://registry.example.com/team/model:1.0, hf://org/model, file:///srv/models/model, s3://bucket/model"


@dataclass(frozen=True, slots=True, kw_only=True)
class OciReference:
    """`oci://host[:port]/name[:tag][@sha256:...]`; with neither tag nor digest, the tag is `latest`."""

    host: str
    name: str
    tag: str
    digest: str | None = None

    @property
    def place(self) -> str:
        """What the registry calls the manifest: the digest where there is one."""
        return self.digest or self.tag

    def __str__(self) -> str:
        return f"oci://{self.host}/{self.name}" + (f"@{self.digest}" if self.digest else f":{self.tag}")


@dataclass(frozen=True, slots=True, kw_only=True)
class HubReference:
    """`hf://org/name[@revision]`: a model repository of the Hugging Face hub."""

    name: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"hf://{self.name}" + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class UrlReference:
    """A folder that fsspec opens: `file:///srv/models/x`, `s3://bucket/x`, `sftp://host/x`."""

    url: str

    def __str__(self) -> str:
        return self.url


Reference = OciReference | HubReference | UrlReference


def parse_reference(text: str) -> Reference:
    """The reference; UsageError says what is wrong with it."""
    scheme, separator, rest = text.partition("://")
    if not separator or not scheme or not rest:
        raise UsageError(f"{text!r} is not a place to publish to or pull from", hint=f"give one like {EXAMPLES}")
    if scheme == "oci":
        return _oci(rest, text)
    if scheme == "hf":
        match = _HUB.fullmatch(rest)
        if match is None:
            raise UsageError(f"{text!r} is not a hub repository", hint="give hf://org/name or hf://org/name@revision")
        return HubReference(name=match["name"], revision=match["revision"])
    return UrlReference(url=text.rstrip("/"))


def _oci(rest: str, text: str) -> OciReference:
    match = _OCI.fullmatch(rest)
    if match is None:
        raise UsageError(
            f"{text!r} is not a registry's reference",
            hint="give oci://host[:port]/name:tag; a name has lower-case letters, digits, and . _ - / between them",
        )
    return OciReference(host=match["host"], name=match["name"], tag=match["tag"] or "latest", digest=match["digest"])
