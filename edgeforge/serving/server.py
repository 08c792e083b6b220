"""The process around the application: a socket, a log on stderr, and an orderly end.

The first Ctrl-C (or SIGTERM) closes the door: answers that run are finished, those that wait are told to come again.
A second one ends at once.
"""

import asyncio
import logging
import math
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn

from edgeforge.errors import UsageError
from edgeforge.runtime.model import Model
from edgeforge.serving.app import Settings, make_app, make_service
from edgeforge.serving.endpoint import Service

BACKLOG = 1024
KEEP_ALIVE_S = 30
SIGNALS = (signal.SIGINT, signal.SIGTERM)
log = logging.getLogger("edgeforge.serving")


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to one address (port 0: any that is free). UsageError where that cannot be."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        said = error.strerror or str(error)
        raise UsageError(
            f"cannot listen at {host} port {port}: {said[:1].lower()}{said[1:]}", hint="choose another with --port"
        ) from None
    return bound


def serve(model: Model, settings: Settings, bound: socket.socket, *, ready: Callable[[], None]) -> None:
    """Answer requests at `bound` until a signal says to stop. `ready` is called when the first may come."""
    server = Server(make_service(model, settings), settings, ready=ready)
    with _log_on_stderr():
        asyncio.run(server.serve(sockets=[bound]))


class Server(uvicorn.Server):
    """uvicorn's, with our way to end."""

    def __init__(self, service: Service, settings: Settings, *, ready: Callable[[], None]) -> None:
        super().__init__(_configuration(service, settings))
        self._service = service
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()

        def on_signal(number: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(self.stop)

        in_main = threading.current_thread() is threading.main_thread()
        previous = {number: signal.signal(number, on_signal) for number in SIGNALS} if in_main else {}
        try:
            yield
        finally:
            self._service.answering.stop()
            for number, handler in previous.items():
                signal.signal(number, handler)

    def stop(self) -> None:
        """Close the door; called again, end at once. To be called in the loop's thread."""
        queue = self._service.queue
        if self.should_exit:
            self.force_exit = True
            self._service.answering.stop()
            return
        self.should_exit = True
        queue.close()
        log.info("stopping: %d answers are being finished; Ctrl-C again ends at once", queue.running)


def _configuration(service: Service, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        make_app(service, settings),
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=math.ceil(settings.limits.answer_s),
        # An address that a client claims to speak for would be a place in the fair queue that it chooses itself.
        proxy_headers=False,
        server_header=False,
    )


@contextmanager
def _log_on_stderr() -> Iterator[None]:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%Y-%m-%dT%H:%M:%S%z"))
    loggers = [(log, logging.INFO), (logging.getLogger("uvicorn.error"), logging.WARNING)]
    for logger, level in loggers:
        logger.addHandler(handler)
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, _ in loggers:
            logger.removeHandler(handler)
