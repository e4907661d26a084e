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


class Waiting(Event, frozen=True, kw_only=True, tag="waiting"):
    """Every able node is busy; the job waits at its owner."""

    reason: str


class Loading(Event, frozen=True, kw_only=True, tag="loading"):
    """The node loads the model first. `fraction` 0 to 1 where the runner knows it."""

    node: NodeId
    model: str | None = None
    fraction: float | None = None


class Chunk(Event, frozen=True, kw_only=True, tag="chunk"):
    """A piece of the answer. `seq` counts the chunks of this attempt from 0; `data` is the capability's own shape."""

    seq: int
    attempt: int
    data: dict[str, Any]


class Progressed(Event, frozen=True, kw_only=True, tag="progress"):
    step: int
    steps: int
    note: str = ""


class AttemptLost(Event, frozen=True, kw_only=True, tag="lost"):
    """The attempt ended without a result; the job goes on elsewhere if `retry`."""

    node: NodeId
    attempt: int
    error: ErrorBody
    retry: bool


class Finished(Event, frozen=True, kw_only=True, tag="done"):
    """The result. `chunks` is how many Chunk messages came before it in this attempt."""

    node: NodeId
    name: str
    attempt: int
    result: dict[str, Any]
    chunks: int = 0
    timings: dict[str, float] = {}


class Ended(Event, frozen=True, kw_only=True, tag="failed"):
    """No result: failed or cancelled (`error.code`)."""

    error: ErrorBody


JobEvent = Awarded | Waiting | Loading | Chunk | Progressed | AttemptLost | Finished | Ended
