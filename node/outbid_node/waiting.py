"""Where jobs wait at their owner: while every able node is busy, or for one that is worth waiting for (late binding).

Submitters have fair shares (`shares`); within one the order is by time of creation, set back for less urgent jobs
(`AHEAD_S`) and for long ones (`SHORTER_FIRST`), so that nothing starves. Who goes where is `choosing.plan`'s. A durable
job waits as a mere ticket: a hundred thousand of them cost no tasks.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from outbid_contracts.errors import Busy
from outbid_contracts.events import Waiting
from outbid_contracts.ids import NodeId
from outbid_contracts.messages import Job, Work
from outbid_contracts.policy import Policy
from outbid_node.choosing import LOOK_AHEAD, Wait, Want, look_ahead, plan
from outbid_node.company import Arrivals, thrifty
from outbid_node.quotas import Quotas
from outbid_node.registry import OfferKey, Registry
from outbid_node.shares import Line

FEW = 8
"""With fewer jobs on their way to a slot a new one passes without looking: an auction tells it what is free."""

MOST_WANTS = 64
"""Kinds of work that a heartbeat names as waited for."""

SHORTER_FIRST = 8.0
"""A job goes before those that came up to this many times later as it is shorter: one of a second passes one of twenty
that has waited for less than 152 s.
"""

MOST_COUNTED = 256
"""Kinds of work that are counted on though nothing of them is on its way: the next such job comes soon."""

LOOK_S = 0.25
"""Heartbeats have the waiting jobs looked at again at most this often; a slot that becomes free does at once."""


class Ticket:
    """A place in the queue. Waiting, then on its way to a slot (`passing`), until it leaves.

    `patient`: with nobody able it waits on; others are let go to hear why. `seconds` are expected ones. `wait` says for
    what it waits, if it was looked at. `target`: the node whose slot it was let go for.
    """

    __slots__ = (
        "_load",
        "_want",
        "gone",
        "key",
        "number",
        "on_turn",
        "order",
        "passing",
        "patient",
        "queued",
        "rated",
        "seconds",
        "submitter",
        "tag",
        "target",
        "wait",
        "waited",
    )

    def __init__(
        self,
        key: OfferKey,
        order: float,
        number: int,
        on_turn: Callable[[], None],
        patient: bool,
        submitter: str = "",
        load: Callable[[], Want] | None = None,
    ) -> None:
        self.key = key
        self.order = order
        self.number = number
        self.on_turn = on_turn
        self.patient = patient
        self.submitter = submitter
        self.seconds = 1.0
        self.rated = False
        self.tag = math.inf
        self.queued = False
        self.passing = False
        self.gone = False
        self.waited = False
        self.target: NodeId | None = None
        self.wait: Wait | None = None
        self._load = load
        self._want: Want | None = None

    @property
    def want(self) -> Want:
        """Made when it is first looked at: of most that wait it never is."""
        if self._want is None:
            self._want = self._load() if self._load is not None else Want({}, Policy())
            self._want.tag = self
        return self._want

    def leave(self) -> None:
        """Whatever it wanted is past, and goes without waiting for the collector of cycles."""
        self.gone = True
        if self._want is not None:
            self._want.tag = None

    @property
    def counted(self) -> bool:
        """Whether it is among the arrivals that are here."""
        return self._want is not None and self._want.counted

    def work(self) -> Work:
        if self._want is None and self._load is not None:
            return self._load().work
        return self.want.work

    @property
    def reason(self) -> str:
        """Why it waits, for people; empty if that was not looked at."""
        return self.wait.reason if self.wait is not None else ""


class WaitingRoom:
    """One queue per (capability, model). A job goes as soon as the registry knows of a free slot that is best for it,
    and that nobody else is on the way to.
    """

    def __init__(self, registry: Registry, limit: int, quotas: Quotas | None = None) -> None:
        """`limit`: callers that may wait; durable jobs are not counted."""
        self.quotas = quotas or Quotas(room=limit)
        self._registry = registry
        self._limit = limit
        self._callers: Counter[str] = Counter()
        self._length = 0
        self._numbers = itertools.count()
        self._lines: dict[OfferKey, Line[Ticket]] = {}
        self._passing: dict[OfferKey, Counter[NodeId | None]] = {}
        self._passing_by: Counter[str] = Counter()
        """By submitter, where that counts."""
        self._looked: dict[OfferKey, float] = {}
        self._arrivals: dict[OfferKey, Arrivals] = {}
        self._short: set[OfferKey] = set()
        """Where more would have gone, had not so many been on their way."""
        self.on_wait: Callable[[OfferKey], None] = lambda key: None
        self.own_room: Callable[[OfferKey], int] = lambda key: 0
        """Slots here that are open to this node's own callers only; jobs that wait for better times may not have them.
        """
        registry.on_change.append(self._node_changed)

    def __len__(self) -> int:
        return self._length

    def wants(self) -> tuple[OfferKey, ...]:
        """For what jobs wait now, at most MOST_WANTS. `on_wait` hears of each that is new."""
        return tuple(itertools.islice(self._lines, MOST_WANTS))

    # -- callers --------------------------------------------------------------------------------------------------

    async def enter(self, job: Job, tell: Callable[[Any], None], load: Callable[[], Want] | None = None) -> Ticket:
        """Returns when it is this job's turn; `leave` with the ticket once it has its slot or gave up. Raises Busy when
        too many wait.
        """
        key = (job.capability, job.model)
        ticket = Ticket(key, job.created_ms, next(self._numbers), _nothing, job.durable, job.submitter, load)
        may_pass = self._may_pass(ticket)
        if may_pass and not (thrifty(job.policy) and self._callers.total() < self._limit):
            self._pass(ticket, None)
            return ticket
        others = "" if may_pass else "other jobs wait already"
        await self.wait(ticket, lambda: tell(Waiting(job=job.id, reason=others or ticket.reason)))
        return ticket

    async def wait(self, ticket: Ticket, waits: Callable[[], None] | None = None) -> None:
        """Wait (again) at the ticket's own place; `waits` is called if its turn does not come at once. Raises Busy when
        too many wait.
        """
        if not ticket.patient:
            if self._callers.total() >= self._limit:
                raise Busy(f"{self._limit} jobs wait already; try again later or raise limits.max_waiting")
            self.quotas.check_waiting(self._callers[ticket.submitter])
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        ticket.on_turn = lambda: None if turn.done() else turn.set_result(None)
        self._callers[ticket.submitter] += not ticket.patient
        self.queue(ticket)
        try:
            if waits is not None and ticket.queued:
                waits()
            await turn
        except BaseException:
            self.leave(ticket)
            raise
        finally:
            self._callers[ticket.submitter] -= not ticket.patient
            if not self._callers[ticket.submitter]:
                del self._callers[ticket.submitter]

    def claimed(self, ticket: Ticket) -> Collection[NodeId]:
        """Nodes whose free slots all have other jobs on their way to them."""
        on_way = self._passing.get(ticket.key)
        if on_way is None or len(on_way) <= 1:
            return ()
        places, found = self._registry.places(*ticket.key), []
        for node, count in on_way.items():
            if node is not None and node != ticket.target and (place := places.get(node)) is not None:
                found += [node] if place.free <= count else []
        return found

    # -- tickets --------------------------------------------------------------------------------------------------

    def ticket(
        self,
        key: OfferKey,
        order: float,
        on_turn: Callable[[], None],
        submitter: str = "",
        load: Callable[[], Want] | None = None,
    ) -> Ticket:
        """A durable job's place, for `queue`; `on_turn` is called when it may go. `load` tells what it wants."""
        return Ticket(key, order, next(self._numbers), on_turn, True, submitter, load)

    def passes(self, ticket: Ticket) -> bool:
        """Let a durable job go without a look at what is best for it, if nobody waits and a slot is free: its auction
        looks anyway. The caller goes on with it.
        """
        key, places = ticket.key, self._registry.places(*ticket.key)
        on_way = self._passing[key].total() if key in self._passing else 0
        if key in self._lines or places.room() <= on_way or not self._one_more(ticket.submitter):
            return False
        self._pass(ticket, None)
        return True

    def queue(self, ticket: Ticket) -> None:
        """Its turn may come at once."""
        if ticket.passing:
            self._end_pass(ticket)
        self._rate(ticket)
        ticket.queued = ticket.waited = True
        self._length += 1
        line = self._lines.get(ticket.key)
        if line is None:
            line = self._lines[ticket.key] = Line(self.quotas.weights)
        first = not len(line)
        line.push(ticket)
        if self._matters(ticket, line):
            self._let_go(ticket.key)
        if first and ticket.queued:
            self.on_wait(ticket.key)

    def _matters(self, ticket: Ticket, line: Line[Ticket]) -> bool:
        """Whether a walk could let it go, or others now that it is there: not if it is behind all that a walk looks at,
        and these were looked at when there was as much room as now.
        """
        depth = look_ahead(self._registry.places(*ticket.key))
        if len(line) <= depth or ticket.key not in self._looked or self._is_open(ticket.key):
            return True
        return ticket in itertools.islice(line, depth)

    def leave(self, ticket: Ticket) -> None:
        """It has its slot, or wants none any more."""
        ticket.leave()
        if ticket.counted and (arrivals := self._arrivals.get(ticket.key)) is not None:
            arrivals.went(time.monotonic(), ticket.seconds)
        if ticket.queued:
            self._lines[ticket.key].discard(ticket)
            self._dequeue(ticket)
        if ticket.passing:
            self._end_pass(ticket)
        if ticket.key in self._lines and self._is_open(ticket.key):
            self._let_go(ticket.key)

    # -- turns ----------------------------------------------------------------------------------------------------

    def _node_changed(self, node: NodeId, what: str) -> None:
        for key in list(self._lines):
            if what not in ("beat", "room") or self._is_due(key, node):
                self._let_go(key)

    def _is_due(self, key: OfferKey, node: NodeId) -> bool:
        """Whether news of that node are a reason to look again: there is more room, or it may matter by now."""
        places = self._registry.places(*key)
        if node not in places:
            return not len(places)
        return places.grew or time.monotonic() >= self._looked.get(key, 0.0) + LOOK_S

    def _is_open(self, key: OfferKey) -> bool:
        """Whether one that left may have left something for others: a slot it did not take, or its turn."""
        places = self._registry.places(*key)
        turns = key in self._short or self.quotas.max_running or self.own_room(key)
        return bool(turns) or places.grew or not len(places)

    def _let_go(self, key: OfferKey) -> None:
        """Let go whose best slot is free, as far as there are slots nobody is on the way to."""
        line = self._lines.get(key)
        if line is None:
            return
        going = self._going(key, line) if len(line) else []
        for ticket, node in going:
            line.serve(ticket)
            self._dequeue(ticket)
            self._pass(ticket, node)
        if not len(line) and self._lines.get(key) is line:
            del self._lines[key]
            self._looked.pop(key, None)
            self._short.discard(key)
        for ticket, _ in going:
            ticket.on_turn()

    def _going(self, key: OfferKey, line: Line[Ticket]) -> Sequence[tuple[Ticket, NodeId | None]]:
        places = self._registry.places(*key)
        passing = self._passing.get(key, _NOBODY)
        on_way = passing.total()
        if not len(places):  # somebody is let go to hear that
            return self._first_callers(line, 1 - on_way)
        free, own = places.room(), self.own_room(key)
        if own and (callers := self._first_callers(line, own + free - on_way)):
            return callers
        if free <= on_way:
            self._short.add(key)
            return ()
        self._looked[key] = now = time.monotonic()
        wants = (ticket.want for ticket in self._allowed(line))
        made = plan(wants, places, now, on_way=passing, gains=places.gains(), arrivals=self._arrivals_of(key))
        for wait in made.waits:
            wait.want.tag.wait = wait
        going = made.go[: free - on_way]
        (self._short.add if len(going) < len(made.go) else self._short.discard)(key)
        return [(want.tag, place.node if place is not None else None) for want, place in going]

    def _arrivals_of(self, key: OfferKey) -> Arrivals:
        arrivals = self._arrivals.get(key)
        if arrivals is None:
            if len(self._arrivals) >= MOST_COUNTED:
                del self._arrivals[next(iter(self._arrivals))]
            arrivals = self._arrivals[key] = Arrivals()
        return arrivals

    def _allowed(self, line: Line[Ticket]) -> Iterable[Ticket]:
        """Those whose submitter may have one more job run."""
        if not self.quotas.max_running:
            yield from line
            return
        left: dict[str, int] = {}
        for ticket in line:
            whose = ticket.submitter
            if whose not in left:
                left[whose] = (self.quotas.may_run(whose) or 0) - self._passing_by[whose]
            if left[whose] > 0:
                left[whose] -= 1
                yield ticket

    def _first_callers(self, line: Line[Ticket], most: int) -> Sequence[tuple[Ticket, NodeId | None]]:
        callers = (ticket for ticket in itertools.islice(line, LOOK_AHEAD) if not ticket.patient)
        return [(ticket, None) for ticket in itertools.islice(callers, max(0, most))]

    def _may_pass(self, ticket: Ticket) -> bool:
        """Whether a new one goes on without waiting; who waits already goes first."""
        key = ticket.key
        own = 0 if ticket.patient else self.own_room(key)
        if (key in self._lines and not own) or not self._one_more(ticket.submitter):
            return False
        on_way = self._passing[key].total() if key in self._passing else 0
        if on_way < FEW:
            return True
        places = self._registry.places(*key)
        return not len(places) or own + places.room() > on_way

    def _one_more(self, submitter: str) -> bool:
        may_run = self.quotas.may_run(submitter)
        return may_run is None or may_run > self._passing_by[submitter]

    def _rate(self, ticket: Ticket) -> None:
        """How long it is, when it first waits."""
        if not ticket.rated:
            ticket.rated = True
            ticket.seconds = self._registry.places(*ticket.key).seconds(ticket.work())
            ticket.order += SHORTER_FIRST * ticket.seconds * 1000

    def _dequeue(self, ticket: Ticket) -> None:
        self._length -= ticket.queued
        ticket.queued = False

    def _pass(self, ticket: Ticket, node: NodeId | None) -> None:
        ticket.passing, ticket.target = True, node
        on_way = self._passing.get(ticket.key)
        if on_way is None:
            on_way = self._passing[ticket.key] = Counter()
        on_way[node] += 1
        if self.quotas.max_running:
            self._passing_by[ticket.submitter] += 1

    def _end_pass(self, ticket: Ticket) -> None:
        ticket.passing = False
        if ticket.target is not None:
            self._registry.places(*ticket.key).released(ticket.target)
        on_way = self._passing[ticket.key]
        on_way[ticket.target] -= 1
        if not on_way[ticket.target]:
            del on_way[ticket.target]
        if not on_way and len(self._passing) > MOST_COUNTED:
            del self._passing[ticket.key]
        if self.quotas.max_running:
            self._passing_by[ticket.submitter] -= 1


_NOBODY: Counter[NodeId | None] = Counter()


def _nothing() -> None:
    pass
