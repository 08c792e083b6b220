"""One blob into a registry: not at all where it is there, by name where another repository has it, else in chunks.

OCI distribution-spec 1.1: "Pushing blobs", "Pushing a blob in chunks", "Mounting a blob from another repository". An
upload that was cut is asked how far it came, and goes on there.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from urllib.parse import urlencode

import requests

from edgeforge.errors import EdgeForgeError, IntegrityError
from edgeforge.publish.artifact import Descriptor
from edgeforge.publish.chunks import Carrier, Chunk, carrier
from edgeforge.publish.journal import Journal
from edgeforge.publish.registry import Busy, Registry

CHUNK_BYTES = 16 << 20
BYTES_TYPE = "application/octet-stream"

Outcome = Literal["present", "mounted", "sent"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a blob's bytes are: a file, or bytes made here. `name` is for sentences."""

    name: str
    content: Path | bytes

    def read(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset`. IntegrityError where a file has become shorter."""
        if isinstance(self.content, bytes):
            data = self.content[offset : offset + count]
        else:
            with self.content.open("rb", buffering=0) as file:
                file.seek(offset)
                data = file.read(count)
        if len(data) != count:
            raise IntegrityError(f"{self.name} became shorter while it was sent", hint="verify the bundle")
        return data


@dataclass(frozen=True, slots=True, kw_only=True)
class Push:
    """What pushing blobs to one repository takes. `sent(bytes)` counts what went over the wire."""

    registry: Registry
    journal: Journal
    chunk_bytes: int = CHUNK_BYTES
    sent: Callable[[int], None] = lambda count: None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Upload:
    """An upload that the registry knows: where it goes on, the bytes it has, the least it takes at a time."""

    location: str
    offset: int = 0
    least_bytes: int = 0


def push_blob(push: Push, blob: Descriptor, source: Source) -> Outcome:
    """The blob is in the repository afterwards. Raises IntegrityError where it is not what its digest says."""
    reference = push.registry.reference
    outcome: Outcome = "present"
    if not _exists(push, blob):
        # Only what goes in chunks can be gone on with.
        small = blob.size <= push.chunk_bytes or isinstance(source.content, bytes)
        with nullcontext(-1) if small else push.journal.alone(reference, blob.digest) as lock:
            upload = _resumed(push, blob) or _mounted_or_begun(push, blob)
            outcome = "mounted" if upload is None else "sent"
            if upload is not None:
                _complete(push, upload, blob, source, lock)
            push.journal.end(reference, blob.digest)
    push.journal.hold(reference, blob.digest)
    return outcome


def _exists(push: Push, blob: Descriptor) -> bool:
    response = push.registry.request("HEAD", push.registry.url(f"blobs/{blob.digest}"), expect=(200, 404))
    return response.status_code == 200


def _mounted_or_begun(push: Push, blob: Descriptor) -> _Upload | None:
    """None where a repository that this machine pushed the blob to could lend it."""
    for holder in push.journal.holders(push.registry.reference, blob.digest):
        query = urlencode({"mount": blob.digest, "from": holder})
        try:
            response = push.registry.request("POST", push.registry.url(f"blobs/uploads/?{query}"), expect=(201, 202))
        except Busy:
            raise
        except EdgeForgeError:  # no permission for that repository: send the bytes
            break
        return None if response.status_code == 201 else _upload(push, response)
    return _begun(push)


def _begun(push: Push) -> _Upload:
    return _upload(push, push.registry.request("POST", push.registry.url("blobs/uploads/"), expect=(202,)))


def _upload(push: Push, response: requests.Response) -> _Upload:
    least = response.headers.get("OCI-Chunk-Min-Length", "")
    return _Upload(location=push.registry.location(response), least_bytes=int(least) if least.isdigit() else 0)


def _resumed(push: Push, blob: Descriptor) -> _Upload | None:
    """The upload that was cut, as far as the registry has it; None where it knows of none."""
    reference = push.registry.reference
    location = push.journal.upload(reference, blob.digest)
    if location is None:
        return None
    try:
        response = push.registry.request("GET", location, expect=(204,))
        upload = _upload(push, response)
    except Busy:
        raise
    except EdgeForgeError:  # forgotten, or cancelled since it was cut within a chunk
        push.journal.end(reference, blob.digest)
        return None
    offset = _received(response)
    return replace(upload, offset=offset) if offset <= blob.size else None


def _received(response: requests.Response) -> int:
    """Bytes that the registry has, by its Range header (`0-N`). `0-0` is none: a chunk has more than one byte."""
    match = re.fullmatch(r"(?:bytes=)?0-([0-9]+)", response.headers.get("Range", ""))
    return 0 if match is None or match[1] == "0" else int(match[1]) + 1


def _complete(push: Push, upload: _Upload, blob: Descriptor, source: Source, lock: int) -> None:
    """Send the rest and close the upload. After a cut the registry is asked how far it came; attempts count anew as
    soon as more has arrived than ever before.
    """
    furthest = upload.offset
    attempt = 0
    while True:
        try:
            for further in _chunks_sent(push, upload, blob, source, lock):
                upload = further
                if upload.offset > furthest:
                    furthest, attempt = upload.offset, 0
            _close(push, upload, blob, source)
            return
        except Busy as busy:
            attempt += 1
            if attempt >= push.registry.attempts or not busy.soon:
                raise
            push.registry.wait(attempt, busy.seconds)
            if _exists(push, blob):  # only the answer was lost
                return
            upload = _resumed(push, blob) or _begun(push)


def _chunks_sent(push: Push, upload: _Upload, blob: Descriptor, source: Source, lock: int) -> Iterator[_Upload]:
    """The upload after every chunk that it still needs; none for a blob that its last request can carry."""
    at_once = max(push.chunk_bytes, upload.least_bytes)
    if isinstance(source.content, bytes) or blob.size in (upload.offset, min(blob.size, push.chunk_bytes)):
        return
    reference = push.registry.reference
    push.journal.begin(reference, blob.digest, upload.location)
    with carrier(lock) as courier:
        while upload.offset < blob.size:
            chunk = Chunk(
                file=source.content,
                offset=upload.offset,
                count=min(at_once, blob.size - upload.offset),
                journal=push.journal.upload_file(reference, blob.digest),
            )
            upload = _send_chunk(push, upload, courier, chunk, source.name)
            yield upload


def _send_chunk(push: Push, upload: _Upload, courier: Carrier, chunk: Chunk, name: str) -> _Upload:
    end = chunk.offset + chunk.count
    response = push.registry.request(
        "PATCH",
        upload.location,
        expect=(202, 204, 400, 404, 416),
        headers={"Content-Type": BYTES_TYPE, "Content-Range": f"{chunk.offset}-{end - 1}"},
        send=lambda url, headers: courier.send(url, headers, chunk),
        again=False,
    )
    if response.status_code not in (202, 204):
        raise Busy(f"{push.registry.host} lost the upload of {name}", hint="the same command sends it again")
    push.sent(chunk.count)
    return replace(upload, location=push.registry.location(response), offset=end)


def _close(push: Push, upload: _Upload, blob: Descriptor, source: Source) -> None:
    """PUT with the digest, which the registry checks; with all bytes, where none was sent before."""
    data = source.read(0, blob.size) if upload.offset == 0 else b""
    location = f"{upload.location}{'&' if '?' in upload.location else '?'}{urlencode({'digest': blob.digest})}"
    headers = {"Content-Type": BYTES_TYPE, "Content-Length": str(len(data))}
    response = push.registry.request(
        "PUT", location, expect=(201, 204, 400, 404, 416), headers=headers, body=data, again=False
    )
    if response.status_code in (201, 204):
        push.sent(len(data))
        return
    push.journal.end(push.registry.reference, blob.digest)
    if "DIGEST_INVALID" in response.text:
        raise IntegrityError(
            f"{push.registry.host} received other bytes of {source.name} than were sent",
            hint="verify the bundle, and publish it again",
        )
    raise Busy(f"{push.registry.host} lost the upload of {source.name}", hint="the same command sends it again")
