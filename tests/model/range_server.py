"""A web server of one folder that answers range requests, counts what it sends, and misbehaves when asked to."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

Fault = Literal["busy", "cut", "short", "drop", "silent"]
SILENCE_S = 0.8


@dataclass(slots=True, kw_only=True)
class RangeServer:
    """`faults`: what the next ranges of weights get instead of an answer. `sent_bytes` counts headers too."""

    folder: Path
    url: str = ""
    knows_ranges: bool = True
    denied: bool = False
    closed: bool = False
    delay_s: float = 0.0
    query: str = ""
    faults: deque[Fault] = field(default_factory=deque)
    before_range: Callable[[int], None] | None = None
    sent_bytes: int = 0
    ranges: list[tuple[str, int, int]] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def serving(folder: Path) -> Iterator[RangeServer]:
    server = RangeServer(folder=folder)

    class Handler(_Handler):
        state = server

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listener.daemon_threads = True
    server.url = f"http://127.0.0.1:{listener.server_address[1]}"
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.closed = True  # connections that are kept alive outlive the listener
        listener.shutdown()
        thread.join()
        listener.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: RangeServer

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        with self.state.lock:
            self.state.at_once += 1
            self.state.most_at_once = max(self.state.most_at_once, self.state.at_once)
        try:
            self._answer(body=True)
        finally:
            with self.state.lock:
                self.state.at_once -= 1

    def _answer(self, *, body: bool) -> None:
        asked = urlsplit(self.path)
        path = self.state.folder / unquote(asked.path).lstrip("/")
        if self.state.closed:
            self.close_connection = True
        elif self.state.denied or asked.query != self.state.query:
            self._send(403)
        elif not path.is_file():
            self._send(404)
        else:
            self._file(path, body=body)

    def _file(self, path: Path, *, body: bool) -> None:
        size, span = path.stat().st_size, self.headers.get("Range")
        tag = {"ETag": f'"{path.stat().st_mtime_ns}-{size}"'}
        if span is None or not self.state.knows_ranges or not body:
            self._send(200, path.read_bytes() if body else None, {**tag, "Content-Length": str(size)})
            return
        start, last = (int(number) for number in span.removeprefix("bytes=").split("-"))
        if start >= size:
            self._send(416)
            return
        last = min(last, size - 1)
        with self.state.lock:
            self.state.ranges.append((path.name, start, last + 1))
            fault = self.state.faults.popleft() if self.state.faults and path.suffix != ".json" else None
        time.sleep(self.state.delay_s)
        if self.state.before_range is not None:
            self.state.before_range(start)
        with path.open("rb") as file:
            file.seek(start)
            content = file.read(last + 1 - start)
        self._part(content, {**tag, "Content-Range": f"bytes {start}-{last}/{size}"}, fault)

    def _part(self, content: bytes, headers: dict[str, str], fault: Fault | None) -> None:
        length = {"Content-Length": str(len(content))}
        if fault == "silent":
            time.sleep(SILENCE_S)
        if fault == "busy":
            self._send(503)
        elif fault == "drop":
            self.close_connection = True
        elif fault == "cut":
            self._send(206, content[: len(content) // 2], headers | length)
            self.close_connection = True
        elif fault == "short":
            self._send(206, content[:-1], headers)
        else:
            self._send(206, content, headers)

    def _send(self, status: int, body: bytes | None = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        fields = {"Content-Length": str(len(body or b"")), **(headers or {})}
        for name, value in fields.items():
            self.send_header(name, value)
        head = sum(len(line) for line in self._headers_buffer)  # type: ignore[attr-defined]
        self.end_headers()
        self.wfile.write(body or b"")
        with self.state.lock:
            self.state.sent_bytes += head + 2 + len(body or b"")
