"""Where jobs wait while every able node is busy: at their owner, in order, until a slot is free (late binding).

The order is by time of creation, set back for less urgent jobs (`AHEAD_S`), so that nothing starves. A durable job
waits as a mere ticket: a hundred thousand of them cost no tasks.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable
from typing import Any

from outbid_contracts.errors import Busy
from outbid_contracts.events import Waiting
from outbid_contracts.ids import NodeId
from outbid_contracts.messages import Job
from outbid_node.registry import OfferKey, Registry

FEW = 8
"""With fewer jobs on their way to a slot a new one passes without looking: an auction tells it what is free."""

MOST_WANTS = 64
"""Kinds of work that a heartbeat names as waited for."""


class Ticket:
    """A place in the queue. Waiting, then on its way to a slot (`passing`), until it leaves.

    `patient`: with nobody able it waits on; others are let go to hear why.
    """

    __slots__ = ("gone", "key", "number", "on_turn", "order", "passing", "patient", "queued")

    def __init__(self, key: OfferKey, order: float, number: int, on_turn: Callable[[], None], patient: bool) -> None:
        self.key = key
        self.order = order
        self.number = number
        self.on_turn = on_turn
        self.patient = patient
        self.queued = False
        self.passing = False
        self.gone = False

    def __lt__(self, other: Ticket) -> bool:
        return (self.order, self.number) < (other.order, other.number)


class WaitingRoom:
    """One queue per (capability, model). Its head goes as soon as the registry knows of a free slot that nobody else is
    on the way to.
    """

    def __init__(self, registry: Registry, limit: int) -> None:
        """`limit`: callers that may wait; durable jobs are not counted."""
        self._registry = registry
        self._limit = limit
        self._callers = 0
        self._length = 0
        self._numbers = itertools.count()
        self._queues: dict[OfferKey, list[Ticket]] = {}
        self._passing: dict[OfferKey, int] = {}
        self.on_wait: Callable[[OfferKey], None] = lambda key: None
        registry.on_change.append(self._node_changed)

    def __len__(self) -> int:
        return self._length

    def wants(self) -> tuple[OfferKey, ...]:
        """For what jobs wait now, at most MOST_WANTS. `on_wait` hears of each that is new."""
        return tuple(itertools.islice(self._queues, MOST_WANTS))

    # -- callers --------------------------------------------------------------------------------------------------

    async def enter(self, job: Job, tell: Callable[[Any], None]) -> Ticket:
        """Returns when it is this job's turn; `leave` with the ticket once it has its slot or gave up. Raises Busy when
        too many wait.
        """
        key = (job.capability, job.model)
        ticket = Ticket(key, job.created_ms, next(self._numbers), _nothing, patient=job.durable)
        if not self._queues.get(key) and self._is_room(key):
            self._pass(ticket)
            return ticket
        tell(Waiting(job=job.id, reason="other jobs wait already"))
        await self.wait(ticket)
        return ticket

    async def wait(self, ticket: Ticket) -> None:
        """Wait (again) at the ticket's own place. Raises Busy when too many wait."""
        if not ticket.patient and self._callers >= self._limit:
            raise Busy(f"{self._limit} jobs wait already; try again later or raise limits.max_waiting")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        ticket.on_turn = lambda: None if turn.done() else turn.set_result(None)
        self._callers += not ticket.patient
        self.queue(ticket)
        try:
            await turn
        except BaseException:
            self.leave(ticket)
            raise
        finally:
            self._callers -= not ticket.patient

    # -- tickets --------------------------------------------------------------------------------------------------

    def ticket(self, key: OfferKey, order: float, on_turn: Callable[[], None]) -> Ticket:
        """A durable job's place, for `queue`; `on_turn` is called when it may go."""
        return Ticket(key, order, next(self._numbers), on_turn, patient=True)

    def queue(self, ticket: Ticket) -> None:
        """Its turn may come at once."""
        if ticket.passing:
            self._end_pass(ticket)
        ticket.queued = True
        self._length += 1
        queue = self._queues.setdefault(ticket.key, [])
        heapq.heappush(queue, ticket)
        first = len(queue) == 1
        self._let_go(ticket.key)
        if first and ticket.queued:
            self.on_wait(ticket.key)

    def leave(self, ticket: Ticket) -> None:
        """It has its slot, or wants none any more."""
        ticket.gone = True
        self._dequeue(ticket)
        if ticket.passing:
            self._end_pass(ticket)
        self._let_go(ticket.key)

    # -- turns ----------------------------------------------------------------------------------------------------

    def _node_changed(self, node: NodeId, what: str) -> None:
        for key in list(self._queues):
            self._let_go(key)

    def _let_go(self, key: OfferKey) -> None:
        """Let as many go as there are slots nobody is on the way to."""
        queue = self._queues.get(key)
        while queue:
            head = queue[0]
            if not head.gone:
                if not self._may_go(head):
                    return
                heapq.heappop(queue)
                self._pass(head)
                head.on_turn()
            else:
                heapq.heappop(queue)
        if queue is not None and self._queues.get(key) is queue:
            del self._queues[key]

    def _may_go(self, head: Ticket) -> bool:
        standing = self._registry.standing(*head.key)
        passing = self._passing.get(head.key, 0)
        if not standing:
            return not head.patient and passing < 1
        return sum(s.free for s in standing if not s.offer.blocked) > passing

    def _is_room(self, key: OfferKey) -> bool:
        passing = self._passing.get(key, 0)
        if passing < FEW:
            return True
        standing = self._registry.standing(*key)
        return not standing or sum(s.free for s in standing if not s.offer.blocked) > passing

    def _dequeue(self, ticket: Ticket) -> None:
        self._length -= ticket.queued
        ticket.queued = False

    def _pass(self, ticket: Ticket) -> None:
        self._dequeue(ticket)
        ticket.passing = True
        self._passing[ticket.key] = self._passing.get(ticket.key, 0) + 1

    def _end_pass(self, ticket: Ticket) -> None:
        ticket.passing = False
        left = self._passing[ticket.key] - 1
        if left:
            self._passing[ticket.key] = left
        else:
            del self._passing[ticket.key]


def _nothing() -> None:
    pass
