"""A job as its owner keeps it: what was asked, what was tried, how it ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from outbid_contracts.errors import OutbidError
from outbid_contracts.events import Finished
from outbid_contracts.ids import NodeId
from outbid_contracts.messages import AttemptRecord, Job, JobRecord, JobState, Outcome
from outbid_node.auction import ASK_WORTH_S, Auction


@dataclass(eq=False)
class OwnedJob:
    """A job and everything its owner knows. `tell` sends an event to a streaming caller."""

    job: Job
    tell: Callable[[Any], None]
    state: JobState = "waiting"
    number: int = 0
    outcome: asyncio.Future[Outcome] | None = None
    node: NodeId | None = None
    attempts: list[AttemptRecord] = field(default_factory=list)
    auctions: list[Auction] = field(default_factory=list)
    failed_on: set[NodeId] = field(default_factory=set)
    started: float = field(default_factory=time.monotonic)
    awarded: float = 0.0
    ended_ms: int | None = None
    promised_s: float | None = None
    took_s: float | None = None
    error: OutbidError | None = None
    timings: dict[str, float] = field(default_factory=dict)
    task: asyncio.Task[Finished] | None = None
    cancelling: bool = False
    finished: Finished | None = None

    @property
    def watched(self) -> bool:
        """Whether its events go out on `mesh.job.<id>.event`; a job too short to ask for bids is too short to watch."""
        return (self.promised_s or ASK_WORTH_S) >= ASK_WORTH_S

    @property
    def ran_model(self) -> str | None:
        """The model of the bid that won, as far as it is known."""
        bids = self.auctions[-1].ranked if self.auctions else []
        return next((c.bid.model for c in bids if c.bid.node == self.node), self.job.model)

    def close_attempt(self, error: OutbidError | None, traceback: str) -> None:
        """The newest attempt has ended, now."""
        body = error.body() if error else None
        self.attempts[-1] = msgspec.structs.replace(
            self.attempts[-1], ended_ms=now_ms(), error=body, traceback=traceback
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
        )


def now_ms() -> int:
    """Milliseconds of Unix time."""
    return time.time_ns() // 1_000_000
