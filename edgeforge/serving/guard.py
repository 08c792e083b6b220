"""Around every request: who it is, whether it may enter, its line in the log, and an answer whatever happens."""

import logging
import secrets
import time
from collections.abc import Collection, Sequence
from contextlib import suppress

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgeforge.serving.exchange import Exchange
from edgeforge.serving.metrics import Metrics
from edgeforge.serving.problems import Refusal, failed

log = logging.getLogger("edgeforge.serving")


class Guard:
    """ASGI middleware. `paths` are those that the metrics name; any other is "other"."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        api_keys: Sequence[str],
        hosts: Collection[str],
        paths: Collection[str],
        metrics: Metrics,
    ) -> None:
        self._app = app
        self._keys = [key.encode() for key in api_keys]
        self._hosts = hosts
        self._paths = paths
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _exchange(scope)
        scope.setdefault("state", {})["exchange"] = exchange

        async def send_noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = exchange.id
            await send(message)

        try:
            await self._enter(scope, receive, send_noted, exchange)
        finally:
            self._note(exchange)

    async def _enter(self, scope: Scope, receive: Receive, send: Send, exchange: Exchange) -> None:
        try:
            self._check(scope, exchange)
            await self._app(scope, receive, send)
        except ClientDisconnect:
            exchange.ended = "client left"
        except Refusal as refusal:
            exchange.ended = exchange.ended or refusal.code or refusal.kind
            await _refuse(refusal, exchange, scope, receive, send)
        except Exception:
            log.exception("a request failed (id=%s)", exchange.id)
            exchange.ended = "failed"
            await _refuse(failed(), exchange, scope, receive, send)

    def _check(self, scope: Scope, exchange: Exchange) -> None:
        """Raises Refusal for a name that is not this server's, and for a missing or wrong key."""
        headers = Headers(scope=scope)
        if self._hosts and _host(headers.get("host", "")) not in self._hosts:
            # A page of another site whose name was made to point here (DNS rebinding) sends its own name.
            raise Refusal(421, "this server does not go by that name", code="wrong_host")
        path = scope["path"]
        if self._keys and (path.startswith("/v1/") or path == "/metrics"):
            exchange.client = self._client(headers.get("authorization", ""), exchange.client)

    def _client(self, authorization: str, address: str) -> str:
        """Who is it: the key where there are several, else the address."""
        scheme, _, given = authorization.partition(" ")
        matches = [secrets.compare_digest(given.strip().encode(), key) for key in self._keys]
        if scheme.lower() != "bearer" or not any(matches):
            said = "wrong API key" if given else "no API key: send it as Authorization: Bearer KEY"
            raise Refusal(401, said, kind="authentication_error", code="invalid_api_key")
        return f"key{matches.index(True) + 1}" if len(matches) > 1 else address

    def _note(self, exchange: Exchange) -> None:
        metrics, tally = self._metrics, exchange.tally
        path = exchange.path if exchange.path in self._paths else "other"
        metrics.requests.labels(path, str(exchange.status or "gone")).inc()
        metrics.request_s.observe(time.monotonic() - exchange.began_s)
        metrics.prompt_tokens.inc(tally.prompt_tokens)
        metrics.cached_tokens.inc(tally.cached_tokens)
        metrics.completion_tokens.inc(tally.completion_tokens)
        log.info("%s", exchange.line())


def _exchange(scope: Scope) -> Exchange:
    address = scope["client"][0] if scope.get("client") else "local"
    return Exchange(client=address, method=scope["method"], path=scope["path"])


async def _refuse(refusal: Refusal, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
    if exchange.status:  # the answer has begun: nothing can be said any more
        return
    response = JSONResponse(refusal.body(), refusal.status, headers=dict(refusal.headers()))
    with suppress(ClientDisconnect):
        await response(scope, receive, send)


def _host(header: str) -> str:
    """The name without the port; an IPv6 address without its brackets."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0].lower()
