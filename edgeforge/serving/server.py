"""The process around the application: a socket, a log on stderr, and an orderly end.

The first Ctrl-C (or SIGTERM) closes the door: answers that run are finished, those that wait are told to come again.
A second one ends at once.
"""

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from edgeforge.errors import UsageError
from edgeforge.runtime.model import Model
from edgeforge.serving.app import Settings, make_app, make_service
from edgeforge.serving.endpoint import Service

BACKLOG = 1024
KEEP_ALIVE_S = 30
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


def serve(model: Model, settings: Settings, bound: socket.socket) -> None:
    """Answer requests at `bound` until a signal says to stop."""
    service = make_service(model, settings)
    config = uvicorn.Config(
        make_app(service, settings),
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        # An address that a client claims to speak for would be a place in the fair queue that it chooses itself.
        proxy_headers=False,
        server_header=False,
    )
    server = _Server(config, service)
    with _log_on_stderr():
        asyncio.run(server.serve(sockets=[bound]))


class _Server(uvicorn.Server):
    """uvicorn's, with our way to end."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGINT, signal.SIGTERM)
        for number in numbers:
            loop.add_signal_handler(number, self._stop)
        try:
            yield
        finally:
            self._service.answering.stop()
            for number in numbers:
                loop.remove_signal_handler(number)

    def _stop(self) -> None:
        queue = self._service.queue
        if self.should_exit:
            self.force_exit = True
            self._service.answering.stop()
            return
        self.should_exit = True
        queue.close()
        log.info("stopping: %d answers are being finished; Ctrl-C again ends at once", queue.running)


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
