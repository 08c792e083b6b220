"""One blob out of a registry into a file: verified while it arrives, continued where it was cut.

OCI distribution-spec 1.1, "Pulling blobs"; byte ranges as in RFC 9110, 14.
"""

import hashlib
import re
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import requests
import urllib3.exceptions

from edgeforge.errors import IntegrityError
from edgeforge.publish.artifact import Descriptor
from edgeforge.publish.registry import Busy, Registry
from edgeforge.runtime.integrity import BLOCK_BYTES

BLOCKS_AHEAD = 8
_HINT = "publish the bundle again; if that does not help, do not trust the registry or what stands before it"


def fetch_bytes(registry: Registry, blob: Descriptor, *, name: str) -> bytes:
    """A small blob, verified."""
    content = registry.request("GET", registry.url(f"blobs/{blob.digest}"), expect=(200,)).content
    if len(content) != blob.size:
        raise wrong_size(name, len(content), blob)
    if hashlib.sha256(content).hexdigest() != blob.sha256:
        raise wrong_digest(name)
    return content


def fetch_blob(
    registry: Registry,
    blob: Descriptor,
    file: Path,
    *,
    name: str,
    received: Callable[[int], None] = lambda count: None,
) -> int:
    """`file` holds the whole blob afterwards; returns how many bytes of it were there before and are right.

    Whatever `file` holds is taken for the beginning of the blob, and found out if it is not. IntegrityError, and no
    file, where the registry sends other bytes or fewer than the descriptor says.
    """
    arriving = Arriving(file, blob)
    kept = arriving.size
    _receive_all(registry, blob, arriving, name, received)
    if kept and arriving.digest.hexdigest() != blob.sha256:  # what was there may be what is wrong
        kept = 0
        arriving.restart()
        _receive_all(registry, blob, arriving, name, received)
    if arriving.digest.hexdigest() != blob.sha256:
        file.unlink()
        raise wrong_digest(name)
    return kept


class Arriving:
    """A file that grows, and the SHA-256 of what it holds."""

    def __init__(self, file: Path, blob: Descriptor) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.size = 0
        if file.exists():
            if file.stat().st_size > blob.size:
                self.restart()
            else:
                with file.open("rb", buffering=0) as content:
                    while block := content.read(BLOCK_BYTES):
                        self.digest.update(block)
                        self.size += len(block)

    @contextmanager
    def filling(self) -> Iterator[Callable[[bytes], None]]:
        """A function that appends a block. Large blocks are hashed beside, while the next one arrives; the hash is that
        of the whole when the block of code ends.
        """
        with self.file.open("ab") as sink, ThreadPoolExecutor(max_workers=1) as beside:
            hashing: deque[Future[None]] = deque()

            def take(block: bytes) -> None:
                sink.write(block)
                self.size += len(block)
                if len(block) < BLOCK_BYTES and not hashing:
                    self.digest.update(block)
                    return
                hashing.append(beside.submit(self.digest.update, block))
                if len(hashing) > BLOCKS_AHEAD:
                    hashing.popleft().result()

            yield take

    def restart(self) -> None:
        self.file.write_bytes(b"")
        self.digest = hashlib.sha256()
        self.size = 0


def _receive_all(
    registry: Registry, blob: Descriptor, arriving: Arriving, name: str, received: Callable[[int], None]
) -> None:
    """Ask for the rest until it is there; attempts count anew with every byte that came."""
    attempt = 0
    arriving.file.touch()
    while arriving.size < blob.size:
        before = arriving.size
        try:
            _receive(registry, blob, arriving, name, received)
        except Busy as busy:
            attempt = 1 if arriving.size > before else attempt + 1
            if attempt >= registry.attempts or not busy.soon:
                raise
            registry.wait(attempt, busy.seconds)


def _receive(
    registry: Registry, blob: Descriptor, arriving: Arriving, name: str, received: Callable[[int], None]
) -> None:
    """Append what one response brings. Busy where it was cut."""
    headers = {"Range": f"bytes={arriving.size}-"} if arriving.size else {}
    url = registry.url(f"blobs/{blob.digest}")
    response = registry.request("GET", url, expect=(200, 206, 416), headers=headers, stream=True)
    with response:
        if response.status_code == 200 and arriving.size:  # it knows no ranges, and sends the whole
            arriving.restart()
        _check_length(registry, response, blob, arriving, name)
        with arriving.filling() as take:
            try:
                while block := response.raw.read(BLOCK_BYTES):
                    take(block)
                    received(len(block))
            except (urllib3.exceptions.HTTPError, requests.RequestException) as error:
                raise registry.explain(error) from None


def _check_length(
    registry: Registry, response: requests.Response, blob: Descriptor, arriving: Arriving, name: str
) -> None:
    """The registry's blob is as long as its descriptor says, before any byte of it is taken."""
    if response.status_code == 416:
        found = re.fullmatch(r"bytes \*/([0-9]+)", response.headers.get("Content-Range", ""))
        size = int(found[1]) if found else arriving.size
    elif response.status_code == 206:
        found = re.fullmatch(r"bytes ([0-9]+)-[0-9]+/([0-9]+)", response.headers.get("Content-Range", ""))
        if found is None or int(found[1]) != arriving.size:
            arriving.restart()
            raise Busy(f"{registry.host} answers with another range than was asked for", hint="try again later")
        size = int(found[2])
    else:
        size = int(response.headers.get("Content-Length", blob.size))
    if size != blob.size:
        arriving.file.unlink()
        raise wrong_size(name, size, blob)


def wrong_size(name: str, size: int, blob: Descriptor) -> IntegrityError:
    what = "truncated" if size < blob.size else "longer than it should be"
    return IntegrityError(f"{name} is {what} in the registry: {size:,} bytes of {blob.size:,}", hint=_HINT)


def wrong_digest(name: str) -> IntegrityError:
    return IntegrityError(f"{name} arrived changed: its SHA-256 is not that of its descriptor", hint=_HINT)
