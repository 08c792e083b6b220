"""Between ASGI and the rest: a body with limits, a client that may leave, a stream of events."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Send

from edgeforge.serving.problems import Refusal

T = TypeVar("T")
DONE = b"data: [DONE]\n\n"


async def read_body(request: Request, *, most_bytes: int, limit_s: float) -> bytes:
    """The JSON body of a request. Raises Refusal: 408, 413, 415; ClientDisconnect.

    Only application/json: a page of another site can send any other type without asking the server first (CORS).
    """
    sent = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if sent != "application/json":
        raise Refusal(415, f"the body must be of type application/json, not {sent or 'of none'}", code="not_json")
    too_large = Refusal(413, f"the body is larger than {most_bytes:,} bytes", code="body_too_large")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > most_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(limit_s):
            async for piece in request.stream():
                body += piece
                if len(body) > most_bytes:
                    raise too_large
    except TimeoutError:
        raise Refusal(408, f"the body did not come within {limit_s:g} seconds", code="body_too_slow") from None
    return bytes(body)


async def unless_gone(receive: Receive, work: Coroutine[None, None, T]) -> T:
    """What `work` returns; where the client leaves before, `work` is cancelled and ClientDisconnect raised."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        leaving.cancel()
        working.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def send_events(send: Send, events: AsyncIterator[str], *, headers: list[tuple[bytes, bytes]]) -> None:
    """Server-sent events: each text of `events` is one, and `[DONE]` the last."""
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    async for event in events:
        await send({"type": "http.response.body", "body": f"data: {event}\n\n".encode(), "more_body": True})
    await send({"type": "http.response.body", "body": DONE, "more_body": False})


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


EVENT_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would collect the answer and send it whole
]
