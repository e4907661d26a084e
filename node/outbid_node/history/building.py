"""Rows from what has ended. Runs in another thread than the event loop, so it reads only what no longer changes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import msgspec

from outbid_contracts.errors import ErrorBody
from outbid_contracts.ids import NodeId
from outbid_contracts.messages import (
    AttemptRecord,
    Bid,
    CallForProposals,
    Considered,
    Decline,
    Done,
    Failed,
    Job,
    Outcome,
    Proposal,
)
from outbid_node.history.rows import Attempts, Auctions, Bids, Jobs, Row, Runs
from outbid_node.history.words import LONGEST, kept

if TYPE_CHECKING:
    from outbid_node.attempt import Attempt
    from outbid_node.auctioned import Auction
    from outbid_node.owned import OwnedJob

MOST_UNITS = 16
"""Of one job: a runner may name what it likes."""

NameOf = Callable[[NodeId], str]


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def job_rows(owned: OwnedJob, name_of: NameOf) -> Iterator[Row]:
    yield _job(owned)
    winners = {auction.attempt: auction for auction in owned.auctions}
    for attempt in owned.attempts:
        yield _attempt(owned, attempt, winners.get(attempt.attempt), name_of)
    for auction in owned.auctions:
        yield _auction(owned.job, auction)
        yield from _bids(owned.job, auction, name_of)


def _job(owned: OwnedJob) -> Jobs:
    job, code, error = owned.job, *_told(owned.error.body() if owned.error else None)
    ended_ms = owned.ended_ms or now_ms()
    return Jobs(
        job=job.id,
        capability=job.capability,
        model=owned.ran_model,
        policy=msgspec.json.encode(job.policy).decode(),
        submitter=job.submitter,
        durable=owned.terms is not None,
        priority=owned.terms.priority if owned.terms else "",
        state=owned.state,
        error_code=code,
        error=error,
        created_ms=job.created_ms,
        ended_ms=ended_ms,
        node=owned.node,
        name=owned.name,
        attempts=len(owned.attempts),
        promised_s=six_or_none(owned.promised_s),
        promised_p90_s=six_or_none(owned.attempts[-1].promised_p90_s) if owned.attempts else None,
        took_s=six_or_none(owned.took_s),
        waited_s=six(max(0.0, (ended_ms - job.created_ms) / 1000 - (owned.took_s or 0.0))),
        energy_j=_total(attempt.energy_j for attempt in owned.attempts),
        cost_usd=_total(attempt.cost_usd for attempt in owned.attempts),
        work=few(job.work),
        timings=few(owned.timings),
    )


def _attempt(owned: OwnedJob, attempt: AttemptRecord, auction: Auction | None, name_of: NameOf) -> Attempts:
    code, error = _told(attempt.error)
    won = next((c for c in auction.ranked if c.bid.node == attempt.node), None) if auction else None
    return Attempts(
        job=owned.job.id,
        attempt=attempt.attempt,
        capability=owned.job.capability,
        model=won.bid.model if won else owned.job.model,
        node=attempt.node,
        name=won.name if won else name_of(attempt.node),
        started_ms=attempt.started_ms,
        ended_ms=attempt.ended_ms or attempt.started_ms,
        error_code=code,
        error=error,
        step=attempt.step,
        promised_s=six_or_none(attempt.promised_s),
        promised_p90_s=six_or_none(attempt.promised_p90_s),
        took_s=six_or_none(attempt.took_s),
        energy_j=six_or_none(attempt.energy_j),
        cost_usd=six_or_none(attempt.cost_usd),
        warm=won.bid.warm if won else False,
    )


def _auction(job: Job, auction: Auction) -> Auctions:
    return Auctions(
        job=job.id,
        attempt=auction.attempt,
        how=auction.how,
        opened_ms=auction.opened_ms,
        took_ms=six(auction.took_ms),
        asked=auction.asked,
        winner=auction.winner,
        why=auction.why[:LONGEST],
        waited_s=six(auction.waited_s),
        waited_for=auction.waited_for[:LONGEST],
    )


def _bids(job: Job, auction: Auction, name_of: NameOf) -> Iterator[Bids]:
    for considered in auction.bids():
        yield _received(job, auction, considered)
    for decline in auction.declines:
        yield _decline(
            decline,
            made=False,
            at_ms=auction.opened_ms,
            attempt=auction.attempt,
            name=name_of(decline.node),
            of=job,
        )


def _received(job: Job, auction: Auction, considered: Considered) -> Bids:
    return msgspec.structs.replace(
        _bid(considered.bid, at_ms=auction.opened_ms, attempt=auction.attempt, name=considered.name, of=job),
        score=six(considered.score),
        parts=few(considered.parts),
        stretch=considered.stretch,
        excluded=considered.excluded[:LONGEST],
        won=considered.bid.node == auction.winner,
    )


def made_rows(cfp: CallForProposals, proposal: Proposal, name: str, at_ms: int) -> Iterator[Bids]:
    """This node's answer to another owner, who alone knows the number of the attempt."""
    if isinstance(proposal, Bid):
        yield msgspec.structs.replace(_bid(proposal, at_ms=at_ms, attempt=0, name=name, of=cfp), made=True)
    else:
        yield _decline(proposal, made=True, at_ms=at_ms, attempt=0, name=name, of=cfp)


def _bid(bid: Bid, *, at_ms: int, attempt: int, name: str, of: Job | CallForProposals) -> Bids:
    return Bids(
        job=bid.job,
        attempt=attempt,
        made=False,
        at_ms=at_ms,
        node=bid.node,
        name=name,
        capability=of.capability,
        model=bid.model,
        start_s=six(bid.start_s),
        finish_s=six(bid.finish_s),
        finish_p90_s=six(bid.finish_p90_s),
        energy_j=six(bid.energy_j),
        cost_usd=six(bid.cost_usd),
        warm=bid.warm,
        zone=bid.zone,
        standing=bid.standing,
        later=bid.later,
        why=bid.why[:LONGEST],
    )


def _decline(decline: Decline, *, made: bool, at_ms: int, attempt: int, name: str, of: Job | CallForProposals) -> Bids:
    return Bids(
        job=decline.job,
        attempt=attempt,
        made=made,
        at_ms=at_ms,
        node=decline.node,
        name=name,
        capability=of.capability,
        model=of.model,
        decline_code=decline.code,
        temporary=decline.temporary,
        why=kept(decline.code, decline.reason),
    )


def run_rows(attempt: Attempt, outcome: Outcome, device: str, took_s: float, ended_ms: int) -> Iterator[Runs]:
    job, spent = attempt.job, attempt.spent
    measured = list(attempt.measured.items())[:MOST_UNITS]
    yield Runs(
        job=job.id,
        attempt=attempt.number,
        owner=job.owner,
        submitter=job.submitter,
        capability=job.capability,
        model=attempt.model,
        device=device,
        outcome="done" if isinstance(outcome, Done) else "failed" if isinstance(outcome, Failed) else "stopped",
        error_code=outcome.error.code if isinstance(outcome, Failed) else "",
        started_ms=ended_ms - round(took_s * 1000),
        ended_ms=ended_ms,
        warm=attempt.was_warm,
        beside=attempt.running_beside,
        work=few(attempt.work),
        counts={unit: six(count) for unit, (count, _) in measured},
        seconds={unit: six(seconds) for unit, (_, seconds) in measured},
        promised_s=six_or_none(attempt.promised_s),
        promised_p90_s=six_or_none(attempt.promised_p90_s),
        took_s=six(took_s),
        energy_j=six(spent.energy_j) if spent else None,
        cost_usd=six(spent.cost_usd) if spent else None,
        power_source=spent.source if spent else "",
        part=attempt.is_rest,
        slower=attempt.slower,
        cpu_share=attempt.worker.pool.cpu_share,
    )


def six(number: float) -> float:
    """With six significant digits, more than any of these has: rounded numbers take a third of the space."""
    return float(f"{number:.6g}")


def six_or_none(number: float | None) -> float | None:
    return None if number is None else six(number)


def few(numbers: Mapping[str, float]) -> dict[str, float]:
    return {unit: six(number) for unit, number in list(numbers.items())[:MOST_UNITS]}


def _told(error: ErrorBody | None) -> tuple[str, str]:
    return (error.code, kept(error.code, error.message)) if error else ("", "")


def _total(numbers: Iterable[float | None]) -> float | None:
    known = [number for number in numbers if number is not None]
    return six(sum(known)) if known else None
