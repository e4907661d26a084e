"""A job as its owner keeps it: what was asked, what was tried, how it ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from outbid_contracts.durable import Terms
from outbid_contracts.errors import AttemptFailed, Draining, OutbidError
from outbid_contracts.events import Awarded, Finished
from outbid_contracts.ids import NodeId
from outbid_contracts.messages import AttemptRecord, Checkpoint, Done, Failed, Job, JobRecord, JobState, Outcome
from outbid_node.auction import ASK_WORTH_S
from outbid_node.auctioned import Auction
from outbid_node.checkpoints import Saved
from outbid_node.choosing import Want
from outbid_node.delivered import Delivered
from outbid_node.waiting import Ticket


class Recorder(Protocol):
    """Keeps durable jobs on disk."""

    def awarding(self, owned: OwnedJob) -> None:
        """An award is about to be sent."""

    def awarded(self, owned: OwnedJob) -> None:
        """A node took the job."""

    def lost(self, owned: OwnedJob) -> None:
        """The attempt failed and there will be another."""

    def completed(self, owned: OwnedJob, whole: Finished) -> None:
        """The lost attempts had delivered all of it."""

    async def ended(self, owned: OwnedJob) -> None:
        """Returns when the end is on disk."""

    def unplaced(self, owned: OwnedJob) -> None:
        """Driving it stopped without an end: nobody can do it now (`owned.error`), or the node stops."""


@dataclass(eq=False, slots=True)
class OwnedJob:
    """A job and everything its owner knows. `tell` sends an event to a streaming caller."""

    job: Job
    tell: Callable[[Any], None]
    state: JobState = "waiting"
    number: int = 0
    outcome: asyncio.Future[Outcome] | None = None
    node: NodeId | None = None
    name: str = ""
    attempts: list[AttemptRecord] = field(default_factory=list)
    auctions: list[Auction] = field(default_factory=list)
    failed_on: set[NodeId] = field(default_factory=set)
    started: float = field(default_factory=lambda: time.monotonic())
    awarded: float = 0.0
    ended_ms: int | None = None
    promised_s: float | None = None
    took_s: float | None = None
    error: OutbidError | None = None
    timings: dict[str, float] = field(default_factory=dict)
    task: asyncio.Task[Finished] | None = None
    cancelling: bool = False
    finished: Finished | None = None
    recorder: Recorder | None = None
    delivered: Delivered | None = None
    """Of a stream that can go on on another node."""
    resumed: Saved | None = None
    """The checkpoint that the current attempt goes on from."""
    ticket: Ticket | None = None
    """Its place in the waiting room, if it comes from there."""
    floor: int = 0
    """New attempts are numbered above it, because a life before this one may have given out numbers up to it."""
    terms: Terms | None = None
    """Of a durable job."""
    deadline: float | None = None
    """On the monotonic clock."""
    taken: int = 0
    """The attempt whose settlement was accepted last."""
    energy_j: float | None = None
    cost_usd: float | None = None
    """What that attempt took, as its node says."""
    concluded: asyncio.Future[None] | None = None
    """Of that settlement: done when what follows from it is on disk."""
    sealing: bool = False
    """Its end is decided and being recorded."""
    suspended: bool = False
    """Driving it stopped, though it has not ended."""
    lost_not_before: float = 0.0
    """Until then (monotonic) a node that is not seen is waited for: this one has just started."""
    heirs: int = 0

    def time_left_s(self) -> float | None:
        if self.deadline is not None:
            return max(0.0, self.deadline - time.monotonic())
        return self.job.policy.deadline_s

    @property
    def waited_s(self) -> float:
        """Since it came, or since its attempt before ended."""
        since_ms = self.attempts[-1].ended_ms if self.attempts else None
        return max(0.0, (now_ms() - (since_ms or self.job.created_ms)) / 1000)

    def want(self) -> Want:
        """What its place in the queue stands for."""
        limit_s = self.job.policy.deadline_s
        deadline = self.deadline if self.deadline is not None or limit_s is None else self.started + limit_s
        job = self.delivered.rest(self.job) if self.delivered is not None and self.attempts else self.job
        return Want(job.work, job.policy, self.failed_on, deadline)

    @property
    def tries(self) -> int:
        """Attempts that count; one given back by a draining node does not."""
        return sum(a.error is None or a.error.code != Draining.code for a in self.attempts)

    def until_concluded(self) -> asyncio.Future[None]:
        self.concluded = self.concluded or asyncio.get_running_loop().create_future()
        return self.concluded

    def conclude(self) -> None:
        if self.concluded is not None and not self.concluded.done():
            self.concluded.set_result(None)
        self.concluded = None

    @property
    def is_told(self) -> bool:
        """Whether its caller hears of its events."""
        return self.tell is not nobody

    @property
    def watched(self) -> bool:
        """Whether its events go out on `mesh.job.<id>.event`; a job too short to ask for bids is too short to watch."""
        return (self.promised_s or ASK_WORTH_S) >= ASK_WORTH_S

    @property
    def ran_model(self) -> str | None:
        """The model of the bid that won, as far as it is known."""
        bids = self.auctions[-1].ranked if self.auctions else []
        return next((c.bid.model for c in bids if c.bid.node == self.node), self.job.model)

    @property
    def step(self) -> int:
        """The current attempt goes on from a checkpoint after it; 0: from the beginning."""
        return self.resumed.checkpoint.step if self.resumed else 0

    def award_event(self, chunks: int) -> Awarded:
        """The current attempt goes on after so many pieces."""
        assert self.node is not None
        return Awarded(
            job=self.job.id,
            node=self.node,
            name=self.name,
            attempt=self.number,
            promised_s=self.promised_s or 0.0,
            why=self.auctions[-1].why if self.auctions else "",
            chunks=chunks,
            step=self.step,
            model=self.ran_model,
        )

    def whole(self) -> Finished | None:
        """The end of a stream whose last node was lost after its last piece."""
        result = self.delivered.whole(self.job) if self.delivered else None
        if self.delivered is None or result is None:
            return None
        return Finished(
            job=self.job.id,
            node=self.attempts[-1].node if self.attempts else self.job.owner,
            name=self.name,
            attempt=max(self.number, 1),
            result=result,
            chunks=len(self.delivered.pieces.data),
        )

    def joined(self, outcome: Done) -> Done | Failed:
        """The result of the whole from that of its rest; a failure if the pieces before it are lost."""
        if not outcome.after:
            return outcome
        try:
            if self.delivered is None:
                raise AttemptFailed("the pieces before the result are lost")
            return msgspec.structs.replace(outcome, result=self.delivered.joined(outcome.result, outcome.after))
        except AttemptFailed as error:
            return Failed(error=error.body(), chunks=outcome.chunks)

    def saved(self, checkpoint: Checkpoint) -> Saved:
        """By the current attempt."""
        return Saved(
            job=self.job.id,
            created_ms=self.job.created_ms,
            attempt=self.number,
            origin=self.resumed.origin if self.resumed else self.number,
            checkpoint=checkpoint,
        )

    def close_attempt(self, error: OutbidError | None, traceback: str) -> None:
        """The newest attempt has ended, now."""
        newest = self.attempts[-1]
        settled = self.taken == newest.attempt
        self.attempts[-1] = msgspec.structs.replace(
            newest,
            ended_ms=now_ms(),
            error=error.body() if error else None,
            traceback=traceback,
            took_s=time.monotonic() - self.awarded if settled else None,
            energy_j=self.energy_j if settled else None,
            cost_usd=self.cost_usd if settled else None,
        )

    def end_with(self, error: OutbidError, state: JobState) -> OutbidError:
        """Without a result; returns `error`, to be raised."""
        self.state, self.error = state, error
        if self.attempts and self.attempts[-1].ended_ms is None:
            self.close_attempt(error, "")
        return error

    def forget_result(self) -> None:
        self.finished = None
        self.task = None

    def record(self) -> JobRecord:
        return JobRecord(
            id=self.job.id,
            owner=self.job.owner,
            capability=self.job.capability,
            model=self.job.model,
            policy=self.job.policy,
            state=self.state,
            created_ms=self.job.created_ms,
            ended_ms=self.ended_ms,
            node=self.node,
            attempts=tuple(self.attempts),
            sheets=tuple(auction.sheet() for auction in self.auctions),
            error=self.error.body() if self.error else None,
            timings=self.timings,
            promised_s=self.promised_s,
            took_s=self.took_s,
            submitter=self.job.submitter,
            **_of_durable(self.terms),
        )


def _of_durable(terms: Terms | None) -> dict[str, Any]:
    if terms is None:
        return {}
    return {
        "durable": True,
        "priority": terms.priority,
        "not_before_ms": terms.not_before_ms,
        "after": terms.after,
    }


def nobody(event: Any) -> None:
    """The `tell` of a job whose caller wants the result only."""


def now_ms() -> int:
    """Milliseconds of Unix time."""
    return time.time_ns() // 1_000_000
