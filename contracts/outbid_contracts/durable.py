"""Durable jobs: what faces submit and ask, what owners keep on disk, what nodes tell each other about them.

A durable job is acknowledged once its record is on its owner's disk, runs at least once, and ends in exactly one
recorded state. Its record, a `DurableJob`, is the value of key `<job>` in the owner's JetStream KV bucket
`JOBS_<node>`; when it ends its last one is that of key `ended.<job>`, which expires by its `keep_s`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from outbid_contracts.errors import ErrorBody
from outbid_contracts.events import Finished
from outbid_contracts.ids import JobId, NodeId
from outbid_contracts.messages import AttemptRecord, BidSheet, Job, JobState, Message
from outbid_contracts.policy import Policy

Priority = Literal["interactive", "normal", "batch"]

AHEAD_S: dict[str, float] = {"interactive": 0.0, "normal": 30.0, "batch": 600.0}
"""Jobs that wait go in the order of created + this: a batch job overtakes whatever came ten minutes after it, so
nothing starves.
"""

MAX_BATCH = 1000
"""Jobs in one submit: what one atomic batch of JetStream takes."""

KEEP_S = 7 * 86_400.0
"""How long an ended job and its result are kept, unless it says otherwise."""

MAX_WAIT_S = 60.0
"""How long one question for a result waits; ask again to wait longer."""


class Terms(Message, frozen=True, kw_only=True):
    """How a durable job is to be run.

    `after`: jobs that must be done first; if one ends otherwise, this one fails (`dependency_failed`).
    `delay_s`: what `not_before_ms` was made from, if it was: a clock that is set meanwhile does not move it.
    `max_attempts` None: the owner's limit. `keep_s`: how long its result is kept after its end.
    """

    priority: Priority = "normal"
    not_before_ms: int = 0
    delay_s: float = 0.0
    after: tuple[JobId, ...] = ()
    max_attempts: int | None = None
    keep_s: float = KEEP_S


class Submission(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One durable job as a face hands it in.

    `job`: an id of the caller's choice; handing in the same id again gives the same job. `not_before` (Unix seconds)
    or `delay_s` (from now) say when it may start at the earliest.
    """

    capability: str
    params: dict[str, Any] = {}
    policy: Any = None
    job: JobId | None = None
    priority: Priority = "normal"
    not_before: Annotated[float, Meta(ge=0)] | None = None
    delay_s: Annotated[float, Meta(ge=0, le=31_536_000)] | None = None
    after: tuple[JobId, ...] = ()
    max_attempts: Annotated[int, Meta(ge=1, le=1000)] | None = None
    keep_s: Annotated[float, Meta(ge=1, le=31_536_000)] | None = None


class SubmitRequest(Message, frozen=True, kw_only=True):
    """`mesh.jobs.submit` and, between nodes, `mesh.node.<id>.submit`: one job's fields flat, or `jobs` with up to
    MAX_BATCH of them, all or none.

    `new`: the ids were made up for this very request, so nobody needs to be asked whether they are known; never say it
    when asking again. `owner`: the one node that is to take them or pass them on, whoever gets the request; name the
    same when asking again, and it does not matter who else is away. `here`: do not pass it on to an always-on node.
    `passed_by`: the node that passes it on, and `ticket` its name for that; it is asked whether it still waits
    (`mesh.node.<id>.wanted`, with this message without jobs) right before the jobs are accepted, which may be long
    after it was sent. `submitter`: the user (U…) as the node that was asked saw it.
    """

    jobs: tuple[Submission, ...]
    new: bool = False
    owner: NodeId | None = None
    here: bool = False
    passed_by: NodeId | None = None
    ticket: str = ""
    submitter: str = ""


class Submitted(Message, frozen=True, kw_only=True):
    """An accepted job. `known`: it had been submitted before. `note`: why it cannot start yet, if so."""

    job: JobId
    owner: NodeId
    name: str
    state: JobState
    known: bool = False
    note: str = ""


class SubmitReply(Message, frozen=True, kw_only=True):
    jobs: tuple[Submitted, ...]


class ResultRequest(Message, frozen=True, kw_only=True):
    """`mesh.jobs.result` and `mesh.node.<id>.result`: waits up to `wait_s` (at most MAX_WAIT_S) for the job's end.

    The reply is the result as the capability's own endpoint gives it (between nodes: `Finished`), or the error that
    ended the job, or `not_done`.
    """

    job: JobId
    wait_s: Annotated[float, Meta(ge=0)] = 0.0


class WatchRequest(Message, frozen=True, kw_only=True):
    """`mesh.jobs.watch` and `mesh.node.<id>.watch`: the events so far (kept `EVENTS_KEPT_S`), then live ones, as
    `JobEvent`s; the last is the job's end with its result, then an empty message.

    `reply` and `format`: where to and how, when a node passes the question on to the owner.
    """

    job: JobId
    reply: str = ""
    format: str = "application/json"


class RetryRequest(Message, frozen=True, kw_only=True):
    """`mesh.jobs.retry` and `mesh.node.<id>.retry`: run a failed or cancelled durable job again, as a new job whose id
    is the old one with a count (`report`, `report-retry1`, `report-retry2`): asking twice makes one job.
    """

    job: JobId


class PriorityRequest(Message, frozen=True, kw_only=True):
    """`mesh.jobs.priority` and `mesh.node.<id>.priority`: give a durable job that waits another priority, and with it
    another place in the queue. The reply, a JobRecord, comes when that is on its owner's disk.
    """

    job: JobId
    priority: Priority


class DurableJob(Message, frozen=True, kw_only=True):
    """The record on disk. `number` is the newest attempt's, where that was written in time: a restarted owner goes on
    far above it. `unblocked`: the jobs of `after` are done. `heirs` counts how often another node took the job over.
    """

    job: Job
    terms: Terms
    state: JobState = "waiting"
    number: int = 0
    node: NodeId | None = None
    attempts: tuple[AttemptRecord, ...] = ()
    ended_ms: int | None = None
    error: ErrorBody | None = None
    finished: Finished | None = None
    sheets: tuple[BidSheet, ...] = ()
    promised_s: float | None = None
    took_s: float | None = None
    model: str | None = None
    """That of the newest attempt: another one does not go on with its text."""
    heirs: int = 0
    unblocked: bool = False

    @property
    def policy(self) -> Policy:
        return self.job.policy


EVENTS_KEPT_S = 86_400.0
EVENTS_BYTES = 64 * 2**20
"""The events stream forgets the oldest beyond this."""
