"""Who is next among the jobs that wait for one kind of work: each submitter has a fair share of the seconds. Pure.

Start-time fair queueing (Goyal, Vin and Cheng 1996) among submitters: a submitter's next job has the start tag
max(virtual time, finish tag of its last one), the smallest start tag is served, and a job's finish tag is its start tag
plus its expected seconds over its submitter's weight. So a flood of one submitter delays a single job of another by
about one job, and whoever was away has saved nothing up. Within a submitter's jobs the order is each job's own.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping
from typing import Generic, Protocol, TypeVar

COMPACT = 256
"""Served entries at the front of a list that are dropped in one go."""


class Ticket(Protocol):
    """`order` is any number, the smaller goes first; `number` breaks ties and is unique. `tag` is infinite until it was
    served, and belongs to the line.
    """

    submitter: str
    order: float
    number: int
    seconds: float
    tag: float


T = TypeVar("T", bound=Ticket)


class Line(Generic[T]):
    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        """`weights` by submitter; 1 for those it does not name."""
        self._weights = weights or {}
        self._flows: dict[str, _Flow[T]] = {}
        self._clock = 0.0
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def push(self, ticket: T) -> None:
        """One that was served and comes back without having run has its submitter's payment back."""
        flow = self._flows.get(ticket.submitter)
        if flow is None:
            flow = self._flows[ticket.submitter] = _Flow()
        if not len(flow):
            flow.tag = max(flow.tag, self._clock)
        if ticket.tag < math.inf:
            flow.tag = min(flow.tag, ticket.tag)
        flow.add(ticket)
        self._length += 1

    def serve(self, ticket: T) -> None:
        """It goes, from wherever in the line, and its submitter pays for it. Time goes on with the first of the line,
        so that one that goes out of turn costs the others nothing.
        """
        flow = self._flows[ticket.submitter]
        self._clock = max(self._clock, min(other.tag for other in self._flows.values() if len(other)))
        ticket.tag = flow.tag
        flow.tag += ticket.seconds / self._weights.get(ticket.submitter, 1.0)
        self.discard(ticket)

    def discard(self, ticket: T) -> None:
        """It is in the line, and wants nothing any more."""
        self._flows[ticket.submitter].remove(ticket)
        self._length -= 1

    def __iter__(self) -> Iterator[T]:
        """In the order in which they would be served one after the other. Nothing may change meanwhile."""
        if len(self._flows) == 1:
            yield from next(iter(self._flows.values()))
            return
        heap = []
        for name, flow in self._flows.items():
            tickets = iter(flow)
            if (head := next(tickets, None)) is not None:
                heap.append((flow.tag, head.order, head.number, head, tickets, self._weights.get(name, 1.0)))
        heapq.heapify(heap)
        while heap:
            tag, _, _, ticket, tickets, weight = heap[0]
            yield ticket
            tag += ticket.seconds / weight
            if (head := next(tickets, None)) is not None:
                heapq.heapreplace(heap, (tag, head.order, head.number, head, tickets, weight))
            else:
                heapq.heappop(heap)


class _Flow(Generic[T]):
    """The jobs of one submitter in their order; `tag` is the start tag of the first. Those before `_first` are gone."""

    def __init__(self) -> None:
        self.tag = 0.0
        self._line: list[tuple[float, int, T | None]] = []
        self._first = 0

    def __len__(self) -> int:
        return len(self._line) - self._first

    def __iter__(self) -> Iterator[T]:
        for index in range(self._first, len(self._line)):
            ticket = self._line[index][2]
            if ticket is not None:
                yield ticket

    def add(self, ticket: T) -> None:
        insort(self._line, (ticket.order, ticket.number, ticket), lo=self._first)

    def remove(self, ticket: T) -> None:
        index = bisect_left(self._line, (ticket.order, ticket.number), lo=self._first)
        if index > self._first:
            del self._line[index]
            return
        self._line[index] = (ticket.order, ticket.number, None)
        self._first += 1
        if self._first >= COMPACT or self._first == len(self._line):
            del self._line[: self._first]
            self._first = 0
