"""The queue: bounded, fair between clients, and nothing stays behind in it."""

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeforge.serving.admission import FairQueue, Ticket
from edgeforge.serving.problems import Refusal


async def served(queue: FairQueue, arrivals: Sequence[tuple[str, int]]) -> list[str]:
    """The clients in the order in which their answers ran; all come at once, each answer takes one turn."""
    order: list[str] = []

    async def answer(ticket: Ticket) -> None:
        await ticket.slot()
        order.append(ticket.client)
        await asyncio.sleep(0)
        ticket.leave()

    tickets = [ticket for client, count in arrivals for ticket in queue.enter(client, count)]
    async with asyncio.timeout(5):
        await asyncio.gather(*map(answer, tickets))
    return order


def test_a_client_with_a_hundred_requests_delays_anothers_first_by_one_answer() -> None:
    order = asyncio.run(served(FairQueue(slots=1, places=200), [("many", 100), ("few", 3)]))
    assert order[:6] == ["many", "few", "many", "few", "many", "few"]
    assert order.count("many") == 100


def test_slots_are_shared_as_evenly_as_clients_ask() -> None:
    order = asyncio.run(served(FairQueue(slots=4, places=200), [("many", 100), ("two", 8), ("three", 8)]))
    first = order[4:28]  # those that came first found all slots free
    assert all(first.count(client) >= 7 for client in ("many", "two", "three"))


def test_a_full_queue_says_when_to_come_again_and_a_request_that_never_fits_says_so() -> None:
    queue = FairQueue(slots=2, places=2)
    tickets = queue.enter("one", 4)
    with pytest.raises(Refusal) as full:
        queue.enter("two", 1)
    assert full.value.status == 429
    assert int(full.value.headers()["Retry-After"]) >= 1
    with pytest.raises(Refusal, match="up to 4") as never:
        queue.enter("two", 5)
    assert never.value.status == 400
    tickets[0].leave()
    assert len(queue.enter("two", 1)) == 1


def test_who_waits_when_the_server_stops_is_told_and_who_runs_goes_on() -> None:
    async def scene() -> tuple[bool, int]:
        queue = FairQueue(slots=1, places=2)
        first, second = queue.enter("one", 2)
        await first.slot()
        waiting = asyncio.create_task(second.slot())
        await asyncio.sleep(0)
        queue.close()
        with pytest.raises(Refusal) as stopped:
            await waiting
        with pytest.raises(Refusal):
            queue.enter("two", 1)
        return first.runs, stopped.value.status

    assert asyncio.run(scene()) == (True, 503)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 4), st.integers(0, 3)), max_size=30))
def test_whatever_comes_and_goes_slots_are_never_exceeded_and_the_queue_ends_empty(
    visits: list[tuple[str, int, int]],
) -> None:
    """Each visit asks for some answers, and gives up (cancelled while waiting, or before) that many of them."""

    async def scene() -> None:
        queue = FairQueue(slots=2, places=12)
        running = 0

        async def answer(ticket: Ticket) -> None:
            nonlocal running
            try:
                await ticket.slot()
                running += 1
                assert running <= 2
                assert queue.running <= 2
                await asyncio.sleep(0)
                running -= 1
            finally:
                ticket.leave()

        tasks: list[asyncio.Task[None]] = []
        for client, count, gives_up in visits:
            if queue.running + queue.waiting + count > 14:
                with pytest.raises(Refusal):
                    queue.enter(client, count)
                await asyncio.sleep(0)
                continue
            tickets = queue.enter(client, count)
            new = [asyncio.create_task(answer(ticket)) for ticket in tickets]
            await asyncio.sleep(0)
            for task, ticket in zip(new[:gives_up], tickets, strict=False):
                if not ticket.runs:
                    task.cancel()
            tasks += new
        async with asyncio.timeout(5):
            await asyncio.gather(*tasks, return_exceptions=True)
        assert (queue.running, queue.waiting) == (0, 0)
        assert len(queue.enter("later", 14)) == 14

    asyncio.run(scene())
