"""What is asked of a durable job after it was accepted: to run again, or to wait at another place."""

from __future__ import annotations

import re
import time

import msgspec

from outbid_contracts import subjects
from outbid_contracts.durable import DurableJob, Priority
from outbid_contracts.ids import JobId, NodeId
from outbid_contracts.messages import JobRecord
from outbid_node.durable.book import Book
from outbid_node.durable.parked import as_record


def again_as(id: JobId, record: DurableJob, me: NodeId) -> DurableJob:
    """A new job of this node that asks for the same, now."""
    job = msgspec.structs.replace(
        record.job,
        id=id,
        reply=record.job.reply and subjects.events(me, id),
        created_ms=time.time_ns() // 1_000_000,
    )
    terms = msgspec.structs.replace(record.terms, not_before_ms=0, delay_s=0.0, after=())
    return DurableJob(job=job, terms=terms)


def next_id(id: JobId) -> JobId:
    """
    >>> next_id(JobId("report")), next_id(JobId("report-retry1"))
    ('report-retry1', 'report-retry2')
    """
    found = re.fullmatch(r"(.+)-retry(\d+)", id)
    base, count = (found[1], int(found[2]) + 1) if found else (id, 1)
    tail = f"-retry{count}"
    return JobId(base[: 64 - len(tail)] + tail)


async def prioritise(book: Book, id: JobId, priority: Priority) -> JobRecord | None:
    """Another place in the queue for a job that waits, on disk when this returns. None: it does not wait here, or is on
    its way to a slot.
    """
    parked = book.parked.get(id)
    if parked is None or (parked.ticket is not None and parked.ticket.passing):
        return None
    record = parked.prioritise(priority)
    shown, written = as_record(record, book.reason(parked)), book.journal.put(record)
    book.requeue(parked)
    await written
    return shown
