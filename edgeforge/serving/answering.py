"""Answers on their way: each waits for its slot, is computed in a thread of its own, and comes here chunk by chunk."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from edgeforge.runtime.stream import Chunk, Stream
from edgeforge.serving.admission import Ticket
from edgeforge.serving.metrics import Metrics
from edgeforge.serving.problems import Refusal


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A chunk of answer `index`."""

    index: int
    chunk: Chunk


Give = Callable[[Arrival | BaseException], None]


class Answering:
    """The threads in which answers are computed: one a slot, since each blocks until its next token."""

    def __init__(self, *, slots: int, metrics: Metrics) -> None:
        self._threads = ThreadPoolExecutor(slots, thread_name_prefix="edgeforge-answer")
        self._metrics = metrics
        self._on_their_way: set[Stream] = set()

    async def answers(
        self, streams: Sequence[Stream], tickets: Sequence[Ticket], *, deadline_s: float
    ) -> AsyncGenerator[Arrival]:
        """Chunks of all streams as they come, until each had its last. Leaving early ends the answers and gives their
        slots to others.

        Raises TimeoutError where one has no slot by `deadline_s` (the loop's time), Refusal where the server stops
        before, and what the runtime raises.
        """
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[Arrival | BaseException] = asyncio.Queue()

        def give(arrival: Arrival | BaseException) -> None:
            loop.call_soon_threadsafe(arrived.put_nowait, arrival)

        tasks = [
            loop.create_task(self._start(index, stream, ticket, give, deadline_s))
            for index, (stream, ticket) in enumerate(zip(streams, tickets, strict=True))
        ]
        try:
            unfinished = len(streams)
            while unfinished:
                arrival = await arrived.get()
                if isinstance(arrival, BaseException):
                    raise arrival
                unfinished -= arrival.chunk.finish_reason is not None
                yield arrival
        finally:
            for task, stream in zip(tasks, streams, strict=True):
                task.cancel()
                stream.close()
            for ticket in tickets:
                ticket.leave()

    def stop(self) -> None:
        """End all answers at once."""
        for stream in list(self._on_their_way):
            stream.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _start(self, index: int, stream: Stream, ticket: Ticket, give: Give, deadline_s: float) -> None:
        began_s = time.monotonic()
        try:
            async with asyncio.timeout_at(deadline_s):
                await ticket.slot()
        except (TimeoutError, Refusal) as error:
            give(error)
            return
        self._metrics.queue_s.observe(time.monotonic() - began_s)
        self._on_their_way.add(stream)
        ticket.computes = True
        computing = asyncio.get_running_loop().run_in_executor(self._threads, _compute, index, stream, give)
        computing.add_done_callback(lambda _: self._done(stream, ticket))

    def _done(self, stream: Stream, ticket: Ticket) -> None:
        # Only now: the engine computes for this slot until its thread has come back.
        self._on_their_way.discard(stream)
        ticket.computes = False
        ticket.leave()


def _compute(index: int, stream: Stream, give: Give) -> None:
    try:
        for chunk in stream:
            give(Arrival(index=index, chunk=chunk))
    except BaseException as error:  # told to whoever waits for the answer
        give(error)
