"""Who is answered next: a bounded queue that is fair between clients.

`slots` answers run at once, `places` more may wait. A free slot goes to the client that has the fewest running, and
among those to the one that has waited longest since its last turn; a client's own answers keep their order. So one
client's hundred requests delay another's first by one answer at most.
"""

import asyncio
import math
import time
from collections import deque
from dataclasses import dataclass, field

from edgeforge.serving.problems import Refusal, overloaded, stopping

LONGEST_RETRY_S = 60
USUAL_ANSWER_S = 2.0  # before any was measured
NEWEST_SHARE = 0.2  # of the last answer in the moving average


@dataclass(slots=True, kw_only=True)
class _Client:
    last_turn: int
    tickets: int = 0
    running: int = 0
    waiting: deque["Ticket"] = field(default_factory=deque)


class Ticket:
    """The right to one answer: first a place in the queue, then a slot. `leave` gives back whichever it holds.

    While `computes` is set, a thread works in the slot, which then cannot be left.
    """

    def __init__(self, queue: "FairQueue", client: str) -> None:
        self._queue = queue
        self.client = client
        self.computes = False
        self.turn: asyncio.Future[None] | None = None
        self._began_s: float | None = None
        self._left = False

    @property
    def runs(self) -> bool:
        return self._began_s is not None

    async def slot(self) -> None:
        """Returns when a slot is this answer's. Raises Refusal where the server stops before."""
        await self._queue._slot_for(self)

    def leave(self) -> None:
        """Done, or no longer wanted; once or often."""
        if not self._left and not self.computes:
            self._left = True
            self._queue._leave(self)

    def begin(self) -> None:
        self._began_s = time.monotonic()

    def age_s(self) -> float:
        """Seconds since it got its slot."""
        return 0.0 if self._began_s is None else time.monotonic() - self._began_s


class FairQueue:
    """See the module. To be used from one event loop."""

    def __init__(self, *, slots: int, places: int) -> None:
        self.slots = slots
        self.places = places
        self.running = 0
        self.waiting = 0
        self._clients: dict[str, _Client] = {}
        self._turns = 0
        self._usual_s = USUAL_ANSWER_S
        self.closed = False

    def enter(self, client: str, answers: int) -> list[Ticket]:
        """Places for all the answers of one request. Raises Refusal: 400 if they never fit, 429 if they do not now."""
        if self.closed:
            raise stopping()
        most = self.slots + self.places
        if answers > most:
            raise Refusal(400, f"the request asks for {answers} answers; this server takes up to {most} at once")
        if self.running + self.waiting + answers > most:
            raise overloaded(
                f"{self.waiting} answers are waiting, which is as many as this server lets wait",
                retry_after_s=self._retry_after_s(),
            )
        self.waiting += answers
        # A newcomer comes before whoever had the last turn, and after those who have waited longer.
        self._clients.setdefault(client, _Client(last_turn=self._turns - 1)).tickets += answers
        return [Ticket(self, client) for _ in range(answers)]

    def close(self) -> None:
        """Refuse whoever waits or comes; what runs goes on."""
        self.closed = True
        for client in self._clients.values():
            for ticket in client.waiting:
                if ticket.turn is not None and not ticket.turn.done():
                    ticket.turn.set_exception(stopping())
            client.waiting.clear()

    async def _slot_for(self, ticket: Ticket) -> None:
        if self.closed:
            raise stopping()
        ticket.turn = asyncio.get_running_loop().create_future()
        self._clients[ticket.client].waiting.append(ticket)
        self._fill()
        await ticket.turn

    def _fill(self) -> None:
        """Give free slots to those whose turn it is."""
        while self.running < self.slots:
            ready = [client for client in self._clients.values() if client.waiting]
            if not ready:
                return
            client = min(ready, key=lambda client: (client.running, client.last_turn))
            ticket = client.waiting.popleft()
            assert ticket.turn is not None
            if ticket.turn.done():  # cancelled while it waited, and about to leave
                continue
            self._turns += 1
            client.running += 1
            client.last_turn = self._turns
            self.running += 1
            self.waiting -= 1
            ticket.begin()
            ticket.turn.set_result(None)

    def _leave(self, ticket: Ticket) -> None:
        client = self._clients[ticket.client]
        if ticket.runs:
            self.running -= 1
            client.running -= 1
            self._usual_s += NEWEST_SHARE * (ticket.age_s() - self._usual_s)
        else:
            self.waiting -= 1
            if ticket in client.waiting:
                client.waiting.remove(ticket)
        client.tickets -= 1
        if not client.tickets:
            del self._clients[ticket.client]
        self._fill()

    def _retry_after_s(self) -> int:
        """Until about one of those who wait is answered."""
        return min(max(math.ceil(self._usual_s * max(self.waiting, 1) / self.slots), 1), LONGEST_RETRY_S)
