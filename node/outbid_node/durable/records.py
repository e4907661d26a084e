"""The record of a durable job: made from what its owner knows, and what is told of it."""

from __future__ import annotations

from typing import Any

import msgspec

from outbid_contracts.codec import encode
from outbid_contracts.digest import digest
from outbid_contracts.durable import DurableJob
from outbid_contracts.errors import Cancelled, NodeLost
from outbid_contracts.events import Ended, Finished
from outbid_contracts.messages import AttemptRecord, Done, Settle
from outbid_node.owned import OwnedJob, now_ms
from outbid_node.trace import Trace

TERM = 1_000_000
"""Attempts of each life of a daemon are numbered from its term times this on, so no number is given out twice even
where the disk missed the last ones.
"""

HEIR = 1_000_000_000_000
"""And those of each further owner from this on, times how often the job was taken over: an owner that was cut off may
have given out more numbers, and worn more terms, than its heir knows of.
"""

MAX_RECORD_BYTES = 15 * 2**20


def record_of(owned: OwnedJob) -> DurableJob:
    assert owned.terms is not None
    return DurableJob(
        job=owned.job,
        terms=owned.terms,
        state=owned.state,
        number=owned.number,
        node=owned.node,
        attempts=tuple(owned.attempts),
        ended_ms=owned.ended_ms,
        error=owned.error.body() if owned.error else None,
        finished=owned.finished,
        sheets=tuple(auction.sheet() for auction in owned.auctions) if owned.watched else (),
        promised_s=owned.promised_s,
        took_s=owned.took_s,
        model=owned.ran_model,
        heirs=owned.heirs,
        unblocked=bool(owned.terms.after),
    )


def fitting(record: DurableJob) -> DurableJob:
    """Parameters and result together may be more than a message carries; the result matters more."""
    if record.finished is None or len(encode(record)) <= MAX_RECORD_BYTES:
        return record
    return msgspec.structs.replace(record, job=msgspec.structs.replace(record.job, params={}), sheets=())


def ending(record: DurableJob) -> Finished | Ended:
    """The last event of an ended job."""
    if record.finished is not None:
        return record.finished
    return Ended(job=record.job.id, error=record.error or Cancelled().body())


def about(record: DurableJob) -> dict[str, Any]:
    """What the trace says of a job."""
    job, terms = record.job, record.terms
    held = bool(terms.after and not record.unblocked) or terms.not_before_ms > now_ms()
    return {"job": job.id, "capability": job.capability, "model": job.model, "held": held}


def note_settled(trace: Trace, settle: Settle, *, accepted: bool) -> None:
    if not trace.on:
        return
    outcome = settle.outcome
    trace.note(
        "settled",
        job=settle.job,
        attempt=settle.attempt,
        by=settle.node,
        accepted=accepted,
        outcome=outcome.__struct_config__.tag,
        digest=digest(outcome.result) if isinstance(outcome, Done) else "",
    )


def cut_off(attempt: AttemptRecord) -> AttemptRecord:
    lost = NodeLost("the job's owner went away; another node took the job over").body()
    return msgspec.structs.replace(attempt, ended_ms=now_ms(), error=lost)
