"""What a caller or watcher of a job is told while it goes on; past tense, tagged by `event`."""

from __future__ import annotations

from typing import Any

import msgspec

from outbid_contracts.errors import ErrorBody
from outbid_contracts.ids import JobId, NodeId


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="event"):
    job: JobId


class Awarded(Event, frozen=True, kw_only=True, tag="awarded"):
    """A node won the auction. `promised_s` is its bid's median finish."""

    node: NodeId
    name: str
    attempt: int
    promised_s: float
    why: str = ""
    chunks: int = 0
    """Pieces of the stream already delivered: this attempt goes on after them."""
    step: int = 0
    """Step of the checkpoint from which this attempt goes on."""
    model: str | None = None


class Waiting(Event, frozen=True, kw_only=True, tag="waiting"):
    """Every able node is busy; the job waits at its owner."""

    reason: str


class Loading(Event, frozen=True, kw_only=True, tag="loading"):
    """The node loads the model first. `fraction` 0 to 1 where the runner knows it."""

    node: NodeId
    model: str | None = None
    fraction: float | None = None


class Chunk(Event, frozen=True, kw_only=True, tag="chunk"):
    """A piece of the answer. `seq` counts from 0; an attempt that goes on where another was lost counts on, one that
    starts again counts from 0 again (`Awarded.chunks` tells). `data` is the capability's own shape.
    """

    seq: int
    attempt: int
    data: dict[str, Any]


class Progressed(Event, frozen=True, kw_only=True, tag="progress"):
    """`eta_s`: seconds until the attempt is done, where the runner can tell."""

    step: int
    steps: int
    note: str = ""
    eta_s: float | None = None


class AttemptLost(Event, frozen=True, kw_only=True, tag="lost"):
    """The attempt ended without a result; the job goes on elsewhere if `retry`. A node that drains gives its attempts
    back with the error `draining`, which counts as no failure.
    """

    node: NodeId
    attempt: int
    error: ErrorBody
    retry: bool


class Finished(Event, frozen=True, kw_only=True, tag="done"):
    """The result. `chunks` is how many pieces the stream has, those of earlier attempts that it goes on from too."""

    node: NodeId
    name: str
    attempt: int
    result: dict[str, Any]
    chunks: int = 0
    timings: dict[str, float] = {}

    def flat(self) -> dict[str, Any]:
        """The single reply: the result's own fields beside job, node, name, attempt and timings."""
        return self.result | {
            "job": self.job,
            "node": self.node,
            "name": self.name,
            "attempt": self.attempt,
            "timings": self.timings,
        }


class Ended(Event, frozen=True, kw_only=True, tag="failed"):
    """No result: failed or cancelled (`error.code`)."""

    error: ErrorBody


JobEvent = Awarded | Waiting | Loading | Chunk | Progressed | AttemptLost | Finished | Ended
