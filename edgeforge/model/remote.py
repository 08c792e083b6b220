"""Checkpoints behind a URL, read by range requests: `s3://`, `gs://`, `https://`, `hf://`, and what else fsspec opens.

Headers come first and weights by blocks (`edgeforge.model.window`), so that neither disk nor memory ever holds a whole
file. Every range is followed by a look at the file's tag, size and time: a file that is replaced while it is read is
told, never mixed. Credentials and endpoints are fsspec's own (its configuration files, FSSPEC_*) and each store's.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import numpy as np
from numpy.typing import NDArray

from edgeforge.errors import IntegrityError, UnusableInput
from edgeforge.model.folder import check_small
from edgeforge.model.positional import BLOCK_BYTES, Scratch
from edgeforge.model.remote_errors import Transient, is_missing, missing_package, patiently
from edgeforge.model.window import Window

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

# What tells versions of a file apart, by the names that fsspec's file systems give it. Never a time of access.
_TAGS = ("size", "ETag", "etag", "generation", "VersionId", "md5Hash", "Content-MD5", "checksum")
_TIMES = ("mtime", "LastModified", "Last-Modified", "last_modified", "updated", "created")
# Where a server cannot list its files, these are asked for.
_USUAL_NOTICES = ("COPYING", "LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE", "NOTICE.txt", "USE_POLICY.md")
_CONNECT_S, _SILENCE_S = 15, 30
_TRY_AGAIN = "nothing is kept of the old one; start again when it no longer changes"

Info = Mapping[str, object]


class RemoteFolder:
    """A directory behind a URL; see `edgeforge.model.folder.Folder`.

    A query (`?signature=...`) belongs to every file of it, and is in no message.
    """

    def __init__(self, url: str, *, immutable: bool = False) -> None:
        """`immutable`: what is there cannot change, as in a commit. MissingDependency, UnusableInput for the URL."""
        parts = urlsplit(url)
        self._is_http = parts.scheme in ("http", "https")
        self._query = f"?{parts.query}" if self._is_http and parts.query else ""
        self._shown = shown(url)
        self._system, root = _opened(url.partition("?")[0] if self._query else url, self._shown)
        self._root = root.rstrip("/")
        self._immutable = immutable
        self._infos: dict[str, Info | None] = {}
        self._window, self._scratch = Window(), Scratch()
        self._answers_ranges = not self._is_http

    def __str__(self) -> str:
        return self._shown

    @property
    def name(self) -> str:
        return self._shown.rpartition("/")[2]

    def names(self) -> Sequence[str]:
        """Its files in alphabetical order; a web server that lists none is asked for licence texts."""
        try:
            listed = patiently(lambda: self._system.ls(self._root, detail=True), self._shown)
        except UnusableInput:
            if not self._is_http:
                raise
            listed = []
        names = {str(info["name"]).rpartition("/")[2] for info in listed if info["type"] == "file"} - {""}
        if self._is_http:
            names |= {name for name in _USUAL_NOTICES if self.has(name)}
        return sorted(names)

    def has(self, name: str) -> bool:
        return self._info(name) is not None

    def read(self, name: str) -> bytes:
        file = self.open(name)
        check_small(f"{self}/{name}", file.size_bytes)
        return file.read(0, file.size_bytes)

    def open(self, name: str) -> "RemoteFile":
        info = self._info(name)
        if info is None:
            raise UnusableInput(f"{self}/{name} does not exist")
        size = info.get("size")
        if not isinstance(size, int):
            raise UnusableInput(f"{self}/{name} has no known size", hint="its server does not tell; download it")
        if not self._answers_ranges:
            self._check_ranges(name)
        return RemoteFile(folder=self, name=name, size_bytes=size, identity=_identity(info))

    def keep(self, size_bytes: int) -> None:
        self._window.keep(size_bytes)

    def window(self) -> tuple[Window, Scratch]:
        """What its files share."""
        return self._window, self._scratch

    def fetch(self, name: str, start: int, stop: int, identity: Info) -> bytes:
        """Bytes [start, stop) of the file while it is the one of this identity; IntegrityError once it is another."""
        return patiently(lambda: self._fetch(name, start, stop, identity), f"{self}/{name}")

    def _fetch(self, name: str, start: int, stop: int, identity: Info) -> bytes:
        try:
            content = _range(self._system, self._path(name), start, stop)
        except Exception:
            self._check_same(name, identity)  # what a store says of a range that is no longer there is not clear
            raise
        self._check_same(name, identity)
        if len(content) != stop - start:
            raise Transient(f"{len(content):,} bytes came where {stop - start:,} were asked for")
        return content

    def _check_same(self, name: str, identity: Info) -> None:
        if self._immutable:
            return
        found = self._ask(name)
        if found is None or _identity(found) != identity:
            what = "is gone" if found is None else "was replaced by another file"
            raise IntegrityError(f"{self}/{name} {what} while it was read", hint=_TRY_AGAIN)

    def _info(self, name: str) -> Info | None:
        if name not in self._infos:
            self._infos[name] = patiently(lambda: self._ask(name), f"{self}/{name}")
        return self._infos[name]

    def _ask(self, name: str) -> Info | None:
        """What the store says of the file now, None where there is none."""
        path = self._path(name)
        if not self._immutable:
            self._system.invalidate_cache(path)
        try:
            info: Info = self._system.info(path)
        except FileNotFoundError as error:
            if is_missing(error):
                return None
            raise
        return info if info.get("type") == "file" else None

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}{self._query}"

    def _check_ranges(self, name: str) -> None:
        """A web server that does not know ranges would answer the first with the whole file."""
        if not patiently(lambda: _answers_ranges(self._system, self._path(name)), f"{self}/{name}"):
            raise UnusableInput(
                f"the server of {self} answers no range requests, so weights cannot be read piece by piece",
                hint="download the model, and give its folder",
            )
        self._answers_ranges = True


class RemoteFile:
    """A file of a RemoteFolder, as it was when it was opened; see `edgeforge.model.folder.ReadableFile`."""

    def __init__(self, *, folder: RemoteFolder, name: str, size_bytes: int, identity: Info) -> None:
        self.size_bytes = size_bytes
        self._folder = folder
        self._name = name
        self._identity = identity
        self._window, self._scratch = folder.window()

    def fetch(self, start: int, stop: int) -> bytes:
        """The bytes [start, stop), from the network."""
        return self._folder.fetch(self._name, start, stop, self._identity) if stop > start else b""

    def read(self, offset: int, size_bytes: int) -> bytes:
        self._check(offset, size_bytes)
        return self.fetch(offset, offset + size_bytes)

    def read_into(self, buffer: NDArray[np.generic], offset: int) -> None:
        view = buffer.reshape(-1).view(np.uint8)
        self._check(offset, view.size)
        self.announce(offset, view.size)
        self._window.read(self, offset, view.data)

    def stream(self, offset: int, size_bytes: int) -> Iterator[NDArray[np.uint8]]:
        self._check(offset, size_bytes)
        self.announce(offset, size_bytes)
        for at in range(0, size_bytes, BLOCK_BYTES):
            block = self._scratch.block[: min(BLOCK_BYTES, size_bytes - at)]
            self._window.read(self, offset + at, block.data)
            yield block

    def announce(self, offset: int, size_bytes: int) -> None:
        self._window.announce(self, offset, size_bytes)

    def _check(self, offset: int, size_bytes: int) -> None:
        if offset + size_bytes > self.size_bytes:
            raise UnusableInput(
                f"{self._folder}/{self._name} has {self.size_bytes:,} bytes and ends before {offset + size_bytes:,}"
            )


def shown(url: str) -> str:
    """The URL as messages show it: without user, password and query, which may be secrets."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))


def _opened(url: str, called: str) -> "tuple[AbstractFileSystem, str]":
    """The file system and the path in it."""
    try:
        import fsspec

        scheme = urlsplit(url).scheme
        if scheme not in ("http", "https"):
            system, root = fsspec.core.url_to_fs(url)
            return system, str(root)
        import aiohttp

        # Beside what the user configured. A range of a compressed file would be a range of its compressed bytes.
        asked = fsspec.config.conf.get(scheme, {})
        headers = {"Accept-Encoding": "identity", **asked.get("headers", {})}
        patience = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=_SILENCE_S)
        client = {"timeout": patience, **asked.get("client_kwargs", {})}
        system, root = fsspec.core.url_to_fs(url, headers=headers, client_kwargs=client)
        return system, str(root)
    except ImportError as error:
        raise missing_package(error, called) from error
    except (ValueError, OSError) as error:
        raise UnusableInput(f"{called} cannot be opened: {error}", hint="check the address") from error


def _range(system: "AbstractFileSystem", path: str, start: int, stop: int) -> bytes:
    """One request. File objects are told to read nothing ahead: the window does."""
    if system.async_impl:
        return bytes(system.cat_file(path, start=start, end=stop))
    with system.open(path, "rb", cache_type="none") as file:
        file.seek(start)
        return bytes(file.read(stop - start))


def _answers_ranges(system: "AbstractFileSystem", url: str) -> bool:
    """Whether the server answers with 206, partial content; no body is read."""
    from fsspec.asyn import sync

    async def ask() -> bool:
        session = await system.set_session()
        headers = {**system.kwargs.get("headers", {}), "Range": "bytes=0-0"}
        async with session.get(system.encode_url(url), **{**system.kwargs, "headers": headers}) as response:
            response.raise_for_status()
            return bool(response.status == 206)

    return bool(sync(system.loop, ask))


def _identity(info: Info) -> Info:
    return {name: str(info[name]) for name in (*_TAGS, *_TIMES) if info.get(name) is not None}
