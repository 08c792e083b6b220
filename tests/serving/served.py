"""A server on a tiny bundle: in the test's own process, and at a port of the loopback interface."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from starlette.testclient import TestClient

from edgeforge.runtime.model import Model
from edgeforge.serving.app import Settings, make_app, make_service
from edgeforge.serving.endpoint import Limits, Service
from edgeforge.serving.server import Server, listen

CONTEXT = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """A server that listens."""

    service: Service
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def settings(**changes: object) -> Settings:
    chosen: dict[str, object] = {
        "name": "tiny",
        "slots": 4,
        "places": 64,
        "limits": Limits(body_bytes=100_000, answer_s=60),
        **changes,
    }
    return Settings(**chosen)  # type: ignore[arg-type]


def client_of(model: Model, **changes: object) -> TestClient:
    """A client of a server of its own, in this process."""
    chosen = settings(**changes)
    return TestClient(
        make_app(make_service(model, chosen), chosen), base_url="http://127.0.0.1", raise_server_exceptions=True
    )


@contextmanager
def listening(model: Model, **changes: object) -> Iterator[Live]:
    chosen = settings(**changes)
    service = make_service(model, chosen)
    started = threading.Event()
    server = Server(service, chosen, ready=started.set)
    bound = listen("127.0.0.1", 0)
    loops: list[asyncio.AbstractEventLoop] = []

    async def run() -> None:
        loops.append(asyncio.get_running_loop())
        await server.serve(sockets=[bound])

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    started.wait()
    try:
        yield Live(service=service, port=bound.getsockname()[1])
    finally:
        loops[0].call_soon_threadsafe(server.stop)
        thread.join(timeout=20)
        assert not thread.is_alive(), "the server does not stop"
