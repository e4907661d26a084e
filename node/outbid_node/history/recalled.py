"""Jobs that ended long ago, or before a restart, put together again from the rows of their owner's history."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from outbid_contracts.errors import ErrorBody
from outbid_contracts.ids import BidId, JobId, NodeId
from outbid_contracts.messages import AttemptRecord, Bid, BidSheet, Considered, Decline, JobRecord, JobState
from outbid_contracts.policy import Policy
from outbid_node.history.interface import History
from outbid_node.history.rows import Attempts, Auctions, Bids, Jobs, Row
from outbid_node.ranking import ordered

R = TypeVar("R", bound=Row)

SLACK_MS = 1000
"""Rows of one job lie between its beginning and its end, and a little: ids may be used again, clocks be set."""


class Recall:
    """Of one node's own jobs."""

    def __init__(self, me: NodeId, history: History) -> None:
        self._me = me
        self._history = history

    async def job(self, id: JobId) -> JobRecord | None:
        """The newest of that id, with its attempts and sheets as far as they are kept."""
        found = await self._rows(Jobs, "job = ? ORDER BY ended_ms DESC LIMIT 1", [id])
        if not found:
            return None
        job = found[0]
        when = [id, job.created_ms - SLACK_MS, job.ended_ms + SLACK_MS]
        attempts = await self._rows(Attempts, "job = ? AND started_ms BETWEEN ? AND ? ORDER BY attempt", when)
        auctions = await self._rows(Auctions, "job = ? AND opened_ms BETWEEN ? AND ? ORDER BY attempt, opened_ms", when)
        bids = await self._rows(Bids, "job = ? AND NOT made AND at_ms BETWEEN ? AND ?", when)
        policy = _policy(job.policy)
        sheets = tuple(_sheet(auction, bids, policy) for auction in auctions)
        return self._record(job, policy, attempts, sheets)

    async def newest(self, limit: int, state: JobState | None) -> list[JobRecord]:
        """The newest that have ended, without their sheets."""
        if state in ("waiting", "running"):
            return []
        where = "state = ?" if state else "true"
        jobs = await self._rows(Jobs, f"{where} ORDER BY created_ms DESC LIMIT ?", [*([state] if state else []), limit])
        marks = ", ".join("?" * len(jobs))
        attempts = (
            await self._rows(Attempts, f"job IN ({marks}) ORDER BY attempt", [j.job for j in jobs]) if jobs else []
        )
        return [self._record(job, _policy(job.policy), [a for a in attempts if a.job == job.job], ()) for job in jobs]

    async def _rows(self, kind: type[R], where: str, parameters: Sequence[Any]) -> list[R]:
        """A column that a newer version added is NULL in older rows."""
        fields = msgspec.structs.fields(kind)
        columns = ", ".join(field.name for field in fields)
        sql = f"SELECT {columns} FROM {kind.__struct_config__.tag} WHERE {where}"
        defaults = [field.default if field.default is not msgspec.NODEFAULT else None for field in fields]
        return [
            kind(**{f.name: d if v is None else v for f, v, d in zip(fields, values, defaults, strict=True)})
            for values in await self._history.read(sql, parameters)
        ]

    def _record(
        self, job: Jobs, policy: Policy, attempts: Sequence[Attempts], sheets: tuple[BidSheet, ...]
    ) -> JobRecord:
        return JobRecord(
            id=JobId(job.job),
            owner=self._me,
            capability=job.capability,
            model=job.model,
            policy=policy,
            state=job.state,  # type: ignore[arg-type]
            created_ms=job.created_ms,
            ended_ms=job.ended_ms,
            node=NodeId(job.node) if job.node else None,
            attempts=tuple(_attempt(row) for row in attempts),
            sheets=sheets,
            error=_error(job.error_code, job.error),
            timings=job.timings or {},
            promised_s=job.promised_s,
            took_s=job.took_s,
            durable=job.durable,
            submitter=job.submitter,
            priority=job.priority,
        )


def _policy(text: str) -> Policy:
    """One that this version cannot read, which another wrote, is shown as the usual one."""
    try:
        return msgspec.json.decode(text, type=Policy)
    except msgspec.DecodeError:
        return Policy()


def _attempt(row: Attempts) -> AttemptRecord:
    return AttemptRecord(
        attempt=row.attempt,
        node=NodeId(row.node),
        started_ms=row.started_ms,
        ended_ms=row.ended_ms,
        error=_error(row.error_code, row.error),
        step=row.step,
        promised_s=row.promised_s,
        promised_p90_s=row.promised_p90_s,
        took_s=row.took_s,
        energy_j=row.energy_j,
        cost_usd=row.cost_usd,
    )


def _error(code: str, message: str) -> ErrorBody | None:
    """A runner's own words may quote the prompt, so they are not in the history."""
    return ErrorBody(code=code, message=message or "what it said is not kept") if code else None


def _sheet(auction: Auctions, bids: Sequence[Bids], policy: Policy) -> BidSheet:
    rows = [row for row in bids if (row.attempt, row.at_ms) == (auction.attempt, auction.opened_ms)]
    return BidSheet(
        attempt=auction.attempt,
        how=auction.how,  # type: ignore[arg-type]
        opened_ms=auction.opened_ms,
        took_ms=auction.took_ms,
        asked=auction.asked,
        bids=tuple(ordered((_considered(row) for row in rows if not row.decline_code), policy)),
        declines=tuple(_decline(row) for row in rows if row.decline_code),
        winner=NodeId(auction.winner) if auction.winner else None,
        why=auction.why,
        waited_s=auction.waited_s,
        waited_for=auction.waited_for,
    )


def _decline(row: Bids) -> Decline:
    return Decline(
        node=NodeId(row.node), job=JobId(row.job), code=row.decline_code, reason=row.why, temporary=row.temporary
    )


def _considered(row: Bids) -> Considered:
    bid = Bid(
        bid_id=BidId(""),
        node=NodeId(row.node),
        job=JobId(row.job),
        expires_ms=0,
        start_s=row.start_s or 0.0,
        finish_s=row.finish_s or 0.0,
        finish_p90_s=row.finish_p90_s or 0.0,
        energy_j=row.energy_j or 0.0,
        cost_usd=row.cost_usd or 0.0,
        warm=row.warm,
        zone=row.zone,  # type: ignore[arg-type]
        model=row.model,
        standing=row.standing,
        later=row.later,
        why=row.why,
    )
    return Considered(
        bid=bid,
        name=row.name,
        score=row.score or 0.0,
        parts=row.parts,
        stretch=row.stretch,
        excluded=row.excluded,
    )
