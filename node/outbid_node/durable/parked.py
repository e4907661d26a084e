"""Durable jobs that do not run yet: waiting for their time, for other jobs, or for a free slot."""

from __future__ import annotations

import heapq
import sys
import time
from collections.abc import Callable, Iterable

import msgspec

from outbid_contracts.codec import decode, encode
from outbid_contracts.durable import AHEAD_S, DurableJob, Priority
from outbid_contracts.errors import Draining
from outbid_contracts.ids import JobId, NodeId
from outbid_contracts.messages import JobRecord
from outbid_node.choosing import Want
from outbid_node.registry import OfferKey
from outbid_node.waiting import Ticket

LOOK_S = 1.0
"""How often the clock is read for jobs that are to start at a time of day: it may jump."""


class Parked:
    """One waiting job, held small: its record stays encoded until it is its turn."""

    __slots__ = (
        "after",
        "data",
        "deadline",
        "id",
        "key",
        "not_before_ms",
        "order",
        "reason",
        "starts",
        "submitter",
        "ticket",
    )

    def __init__(self, record: DurableJob) -> None:
        job, terms = record.job, record.terms
        self.id = job.id
        self.key: OfferKey = (job.capability, job.model)
        self.order = _order(record)
        self.not_before_ms = terms.not_before_ms
        self.after: set[JobId] | None = None if record.unblocked else set(terms.after) or None
        self.deadline = deadline_of(record)
        self.starts = _left(record, terms.delay_s) if terms.delay_s else None
        self.submitter = sys.intern(job.submitter)
        self.reason = ""
        self.ticket: Ticket | None = None
        self.data = encode(record)

    def record(self) -> DurableJob:
        found: DurableJob = decode(self.data, DurableJob)
        return found

    def want(self, record: DurableJob | None = None) -> Want:
        """What its place in the queue stands for. `record`: its own, if that is at hand."""
        record = record or self.record()
        return Want(record.job.work, record.job.policy, failed_on(record), self.deadline)

    def unblock(self) -> DurableJob:
        """All it waited for is done; that is said in its record, because theirs are not kept for ever."""
        record = msgspec.structs.replace(self.record(), unblocked=True)
        self.after, self.data = None, encode(record)
        return record

    def prioritise(self, priority: Priority) -> DurableJob:
        """Its place counts from now on; the ticket that it has is for the old one."""
        record = self.record()
        record = msgspec.structs.replace(record, terms=msgspec.structs.replace(record.terms, priority=priority))
        self.order, self.data = _order(record), encode(record)
        return record


def _order(record: DurableJob) -> float:
    return record.job.created_ms + AHEAD_S[record.terms.priority] * 1000


def failed_on(record: DurableJob) -> set[NodeId]:
    """Nodes where an attempt at it failed; a node that drained only gave it back."""
    return {a.node for a in record.attempts if a.error and a.error.code != Draining.code}


def deadline_of(record: DurableJob) -> float | None:
    """On the monotonic clock, so that a clock set later does not move it."""
    limit_s = record.job.policy.deadline_s
    if limit_s is None:
        return None
    return _left(record, limit_s)


def _left(record: DurableJob, seconds: float) -> float:
    """So long after its submission; never longer from now on, though the clock was set back since."""
    left_s = record.job.created_ms / 1000 + seconds - time.time()
    return time.monotonic() + min(seconds, max(0.0, left_s))


def as_record(record: DurableJob, reason: str = "") -> JobRecord:
    """What `outbid jobs` shows of it."""
    job, terms = record.job, record.terms
    return JobRecord(
        id=job.id,
        owner=job.owner,
        capability=job.capability,
        model=job.model,
        policy=job.policy,
        state=record.state,
        created_ms=job.created_ms,
        ended_ms=record.ended_ms,
        node=record.node,
        attempts=record.attempts,
        sheets=record.sheets,
        error=record.error,
        timings=record.finished.timings if record.finished else {},
        promised_s=record.promised_s,
        took_s=record.took_s,
        durable=True,
        priority=terms.priority,
        not_before_ms=terms.not_before_ms,
        after=terms.after,
        reason=reason,
    )


class Alarms:
    """Jobs to look at when a time has come: `monotonic` seconds for delays and deadlines, Unix milliseconds for times
    of day.
    """

    def __init__(self, ring: Callable[[JobId], None]) -> None:
        self._ring = ring
        self._delays: list[tuple[float, JobId]] = []
        self._times: list[tuple[float, JobId]] = []

    def after(self, at: float, id: JobId) -> None:
        heapq.heappush(self._delays, (at, id))

    def at(self, unix_ms: int, id: JobId) -> None:
        heapq.heappush(self._times, (unix_ms, id))

    def ring(self) -> None:
        """Call this every LOOK_S."""
        for id in [*_due(self._delays, time.monotonic()), *_due(self._times, time.time() * 1000)]:
            self._ring(id)


def _due(heap: list[tuple[float, JobId]], now: float) -> Iterable[JobId]:
    while heap and heap[0][0] <= now:
        yield heapq.heappop(heap)[1]
