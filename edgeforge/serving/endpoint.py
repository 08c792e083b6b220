"""The way of one request for answers: read, let in, opened, computed, told; whole or as a stream."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from edgeforge.runtime.errors import BundleError
from edgeforge.runtime.stream import Stream
from edgeforge.serving.admission import FairQueue, Ticket
from edgeforge.serving.answering import Answering, Arrival
from edgeforge.serving.exchange import Exchange, Tally
from edgeforge.serving.forms import Form, Served
from edgeforge.serving.metrics import Metrics
from edgeforge.serving.problems import Refusal, failed, out_of_memory, stopping, too_slow, unusable
from edgeforge.serving.reading import read
from edgeforge.serving.requests import AnswerRequest
from edgeforge.serving.transport import EVENT_HEADERS, read_body, send_events, unless_gone

R = TypeVar("R", bound=AnswerRequest)
log = logging.getLogger("edgeforge.serving")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Seconds count from the request's arrival, waiting included."""

    body_bytes: int
    answer_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What all endpoints share."""

    served: Served
    limits: Limits
    queue: FairQueue
    answering: Answering
    metrics: Metrics


class AnswerEndpoint:
    """An ASGI application for one path. `form` makes the request's record into a form."""

    def __init__(self, service: Service, kind: type[R], form: Callable[[Served, R], Form]) -> None:
        self._service = service

        def read_form(body: bytes) -> Form:
            return form(service.served, read(kind, body))

        self._read_form = read_form

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        limits = self._service.limits
        deadline_s = asyncio.get_running_loop().time() + limits.answer_s
        request = Request(scope, receive)
        body = await read_body(request, most_bytes=limits.body_bytes, limit_s=limits.answer_s)
        form = self._read_form(body)
        self._check_model(form.request)
        exchange: Exchange = scope["state"]["exchange"]
        exchange.tally = Tally(answers_per_prompt=form.answers_per_prompt)
        telling = _Telling(service=self._service, form=form, exchange=exchange, deadline_s=deadline_s)
        await unless_gone(receive, telling.tell(scope, receive, send))

    def _check_model(self, asked: AnswerRequest) -> None:
        name = self._service.served.name
        if asked.model is not None and asked.model != name:
            raise Refusal(
                404, f"there is no model {asked.model!r} here, only {name!r}", param="model", code="model_not_found"
            )


@dataclass(slots=True, kw_only=True)
class _Telling:
    """One request's answers on their way to its client."""

    service: Service
    form: Form
    exchange: Exchange
    deadline_s: float
    last_token_s: dict[int, float] = field(default_factory=dict)

    async def tell(self, scope: Scope, receive: Receive, send: Send) -> None:
        tickets = self.service.queue.enter(self.exchange.client, self.form.answers)
        try:
            async with aclosing(self._arrivals(tickets)) as arrivals:
                if self.form.request.stream:
                    events = self._events(arrivals, await anext(arrivals))
                    await send_events(send, events, headers=EVENT_HEADERS)
                else:
                    response = Response(await self._whole(arrivals), media_type="application/json")
                    await response(scope, receive, send)
        finally:
            for ticket in tickets:
                ticket.leave()

    async def _arrivals(self, tickets: list[Ticket]) -> AsyncGenerator[Arrival]:
        """Chunks as they come, counted; what goes wrong as a Refusal."""
        streams = await self._opened()
        try:
            arriving = self.service.answering.answers(streams, tickets, deadline_s=self.deadline_s)
            async with aclosing(arriving):
                async for arrival in arriving:
                    self._count(arrival)
                    if arrival.chunk.finish_reason == "timeout":
                        raise too_slow(self.service.limits.answer_s)
                    if arrival.chunk.finish_reason == "cancelled":  # by us: the client is there
                        raise stopping()
                    yield arrival
        except TimeoutError:
            raise too_slow(self.service.limits.answer_s) from None
        except MemoryError:
            raise out_of_memory() from None
        except BundleError as error:
            if not self.form.is_constrained:  # nothing that was asked for: the server's own failure
                raise
            raise unusable(error) from None

    async def _opened(self) -> list[Stream]:
        timeout_s = max(self.deadline_s - asyncio.get_running_loop().time(), 0.001)
        try:
            return await run_in_threadpool(self.form.open, timeout_s=timeout_s)
        except BundleError as error:
            raise unusable(error) from None
        except MemoryError:
            raise out_of_memory() from None

    async def _events(self, arrivals: AsyncIterator[Arrival], first: Arrival) -> AsyncIterator[str]:
        """The stream's events. An error that comes when the stream has begun is one of them."""
        try:
            for told in self.form.take(first.index, first.chunk):
                yield told.json_text()
            async for arrival in arrivals:
                for told in self.form.take(arrival.index, arrival.chunk):
                    yield told.json_text()
        except Refusal as refusal:
            self.exchange.ended = refusal.code or refusal.kind
            yield json.dumps(refusal.body())
            return
        except Exception:
            log.exception("an answer failed (id=%s)", self.exchange.id)
            self.exchange.ended = "failed"
            yield json.dumps(failed().body())
            return
        options = self.form.request.stream_options
        if options is not None and options.include_usage:
            yield self.form.closing(self.exchange.tally.usage()).json_text()

    async def _whole(self, arrivals: AsyncIterator[Arrival]) -> str:
        async for arrival in arrivals:
            for _ in self.form.take(arrival.index, arrival.chunk):
                pass
        return self.form.whole(self.exchange.tally.usage()).json_text()

    def _count(self, arrival: Arrival) -> None:
        metrics, exchange, now_s = self.service.metrics, self.exchange, time.monotonic()
        tokens = len(arrival.chunk.token_ids)
        if tokens and exchange.first_token_s is None:
            exchange.first_token_s = now_s
            metrics.first_token_s.observe(now_s - exchange.began_s)
        if tokens:
            before_s = self.last_token_s.get(arrival.index)
            if before_s is not None:
                metrics.between_tokens_s.observe((now_s - before_s) / tokens)
            self.last_token_s[arrival.index] = now_s
        if arrival.chunk.finish_reason is not None:
            exchange.tally.add(arrival.index, arrival.chunk)
            exchange.ended = arrival.chunk.finish_reason
            metrics.answers.labels(arrival.chunk.finish_reason).inc()
