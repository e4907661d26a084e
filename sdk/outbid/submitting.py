"""Handing in durable jobs so that each exists once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from outbid.jobs import Job
from outbid.patience import insist
from outbid_contracts import subjects
from outbid_contracts.codec import encode
from outbid_contracts.durable import MAX_BATCH, Submission, SubmitReply, SubmitRequest
from outbid_contracts.errors import OutbidError
from outbid_contracts.ids import new_job_id
from outbid_contracts.policy import Goal, Policy
from outbid_contracts.requests import MAX_REQUEST_BYTES
from outbid_contracts.submitting import parse_submission

if TYPE_CHECKING:
    from outbid.mesh import Mesh

ID_BYTES = 64
"""Room for what is added to each job, and to the request as a whole."""


def submission(
    capability: str,
    params: Mapping[str, Any],
    policy: Policy | Goal | None,
    not_before: float | datetime | None,
    **fields: Any,
) -> Submission:
    """One job as it crosses the wire. A `not_before` without a time zone is local time. Raises InvalidRequest."""
    if isinstance(not_before, datetime):
        not_before = not_before.timestamp()
    given = {key: value for key, value in fields.items() if value is not None}
    return parse_submission(
        {
            "capability": capability,
            "params": {key: value for key, value in params.items() if value is not None},
            "policy": msgspec.to_builtins(policy),
            "not_before": not_before,
        }
        | given
    )


async def submit(mesh: Mesh, jobs: Iterable[Submission | Mapping[str, Any]]) -> list[Job]:
    """Hand them in, MAX_BATCH at a time, each batch all or none, in order."""
    accepted: list[Job] = []
    for batch in _batches(_checked(jobs)):
        try:
            accepted += await _submit_batch(mesh, batch)
        except OutbidError as error:
            error.detail["accepted"] = [job.id for job in accepted]
            raise
    return accepted


async def _submit_batch(mesh: Mesh, batch: Sequence[Submission]) -> list[Job]:
    """Ids made up here are new to everyone when first asked with; when asked again they may have been taken already."""
    named = tuple(job if job.job else msgspec.structs.replace(job, job=new_job_id()) for job in batch)
    ours = all(job.job is None for job in batch)
    request = SubmitRequest(jobs=named, new=ours, owner=mesh.local if ours else None)
    reply: SubmitReply = await insist(mesh, subjects.jobs("submit"), request, SubmitReply)
    return [Job(mesh, submitted.job, submitted) for submitted in reply.jobs]


def _checked(jobs: Iterable[Submission | Mapping[str, Any]]) -> Iterator[Submission]:
    for n, job in enumerate(jobs):
        yield job if isinstance(job, Submission) else parse_submission(dict(job), f"jobs[{n}]")


def _batches(jobs: Iterable[Submission]) -> Iterator[list[Submission]]:
    """As many at a time as one request may have and carry; a single job too large for any is left to the node to
    refuse.
    """
    batch: list[Submission] = []
    size = 0
    for job in jobs:
        more = len(encode(job)) + ID_BYTES
        if batch and (len(batch) == MAX_BATCH or size + more > MAX_REQUEST_BYTES - ID_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(job)
        size += more
    if batch:
        yield batch
