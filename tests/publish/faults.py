"""A proxy before a registry, on loopback, that counts what passes and can be told what to do wrong."""

import http.client
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BLOCK = 1 << 16
HOP_BY_HOP = frozenset({"connection", "transfer-encoding", "content-length"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the proxy was asked, before anything was forwarded."""

    method: str
    path: str
    headers: Mapping[str, str]

    @property
    def is_blob(self) -> bool:
        return self.method == "GET" and re.search(r"/blobs/sha256:", self.path) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What to do wrong with a request.

    status, headers, body   answer this, and forward nothing
    change                  the response's body, as the client gets it
    cut                     end the connection after so many bytes of the response's body
    forget_range            ask the registry for the whole, whatever the client asked for
    pause_s                 wait before answering
    """

    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    change: Callable[[bytes], bytes] | None = None
    cut: int | None = None
    forget_range: bool = False
    pause_s: float = 0


@dataclass(slots=True, kw_only=True)
class Proxy:
    """`fault` decides about each request; `uploading` and `downloading` are told, while bodies pass on, how many bytes
    passed in both directions so far.
    """

    host: str = ""
    fault: Callable[[Request], Fault | None] = lambda request: None
    uploading: Callable[[int], None] = lambda total: None
    downloading: Callable[[int], None] = lambda total: None
    requests: list[Request] = field(default_factory=list)
    uploaded_bytes: int = 0
    downloaded_bytes: int = 0

    @property
    def passed_bytes(self) -> int:
        return self.uploaded_bytes + self.downloaded_bytes

    def forget(self) -> None:
        self.requests.clear()
        self.uploaded_bytes = self.downloaded_bytes = 0


@contextmanager
def before(upstream: str) -> Iterator[Proxy]:
    """The proxy before `upstream` (host:port), until the block ends."""
    proxy = Proxy()

    class Handler(_Handler):
        state = proxy
        behind = upstream

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    proxy.host = f"127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    """One thread for each connection."""

    protocol_version = "HTTP/1.1"
    state: Proxy
    behind: str

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_PATCH = do_GET  # noqa: N815  (http.server's names)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""

    def _answer(self) -> None:
        request = Request(method=self.command, path=self.path, headers=dict(self.headers))
        self.state.requests.append(request)
        fault = self.state.fault(request) or Fault()
        time.sleep(fault.pause_s)
        try:
            if fault.status is not None:
                self._refuse(fault)
            else:
                self._forward(fault)
        except (OSError, http.client.HTTPException):
            self.close_connection = True

    def _body(self) -> Iterator[bytes]:
        left = int(self.headers.get("Content-Length", 0))
        while left > 0:
            block = self.rfile.read1(min(BLOCK, left))
            if not block:
                raise ConnectionError("the client went away")
            left -= len(block)
            self.state.uploaded_bytes += len(block)
            self.state.uploading(self.state.passed_bytes)
            yield block

    def _refuse(self, fault: Fault) -> None:
        assert fault.status is not None
        for _ in self._body():
            pass
        self.send_response(fault.status)
        for name, value in fault.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(fault.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(fault.body)

    def _forward(self, fault: Fault) -> None:
        upstream = http.client.HTTPConnection(self.behind, timeout=60)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                dropped = ("connection", "authorization", *(("range",) if fault.forget_range else ()))
                if name.lower() not in dropped:
                    upstream.putheader(name, value)
            upstream.endheaders()
            for block in self._body():
                upstream.send(block)
            self._pass_on(upstream.getresponse(), fault)
        finally:
            upstream.close()

    def _pass_on(self, response: http.client.HTTPResponse, fault: Fault) -> None:
        length = int(response.headers.get("Content-Length", 0))
        self.send_response(response.status)
        for name, value in {**dict(response.headers), **fault.headers}.items():
            if name.lower() not in HOP_BY_HOP:
                self.send_header(name, value)
        changed = None if fault.change is None else fault.change(response.read())
        self.send_header("Content-Length", str(length if changed is None else len(changed)))
        self.end_headers()
        if self.command == "HEAD":
            return
        left = fault.cut
        blocks = iter(lambda: response.read(BLOCK), b"") if changed is None else iter([changed])
        for block in blocks:
            part = block if left is None else block[:left]
            self.wfile.write(part)
            self.state.downloaded_bytes += len(part)
            self.state.downloading(self.state.passed_bytes)
            if left is not None:
                left -= len(part)
                if left <= 0:
                    self.wfile.flush()
                    raise ConnectionError("cut as asked")
