"""One tree of errors. The docstring is the default message; the code and the status never change meaning.

An error crosses the bus as a NATS service error (ADR-32): headers `Nats-Service-Error` (the message) and
`Nats-Service-Error-Code` (the status), `Outbid-Error` (the code), and an `ErrorBody` as the payload.
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    """An error on the wire. `detail` is for programs, `message` for people."""

    code: str
    message: str
    status: int = 500
    detail: dict[str, Any] = {}


class OutbidError(Exception):
    """Something went wrong inside Outbid; the daemon's log has the traceback."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500

    def __init__(self, message: str | None = None, /, **detail: Any) -> None:
        self.message = message or " ".join((type(self).__doc__ or "").split())
        self.detail = detail
        super().__init__(self.message)

    def body(self) -> ErrorBody:
        return ErrorBody(code=self.code, message=self.message, status=self.status, detail=self.detail)


class InvalidRequest(OutbidError):
    """The request is not valid; the message names the field and what it may hold."""

    code = "invalid_request"
    status = 400


class InvalidConfig(OutbidError):
    """The configuration is not valid; the message names the key and the allowed values."""

    code = "invalid_config"
    status = 400


class ContextOverflow(InvalidRequest):
    """The prompt and the answer do not fit the model's context; shorten the prompt or lower max_tokens."""

    code = "context_overflow"


class PayloadTooLarge(InvalidRequest):
    """The request is larger than a node accepts; send less, or put the data in a file the node can read."""

    code = "payload_too_large"
    status = 413


class BadQuery(InvalidRequest):
    """The query cannot be run on the history; the message says where it is wrong."""

    code = "bad_query"


class QueryTooLong(OutbidError):
    """The query took longer than it may; select less, or allow it more time."""

    code = "query_too_long"
    status = 408


class NoHistoryKept(OutbidError):
    """This node keeps no history now; the message says why."""

    code = "no_history"
    status = 503


class UnknownCapability(OutbidError):
    """No node of this mesh has that capability; `outbid nodes` shows what there is."""

    code = "unknown_capability"
    status = 404


class UnknownModel(OutbidError):
    """No node of this mesh has that model; `outbid models` shows which there are."""

    code = "unknown_model"
    status = 404


class UnknownJob(OutbidError):
    """No node of this mesh knows that job; `outbid jobs` lists the recent ones."""

    code = "unknown_job"
    status = 404


class DuplicateJob(OutbidError):
    """A job with that id exists already and another caller is reading it."""

    code = "duplicate_job"
    status = 409


class NotDone(OutbidError):
    """The job has not ended yet; ask again later, with `wait_s` to wait for it, or watch it."""

    code = "not_done"
    status = 425


class DependencyFailed(OutbidError):
    """A job that had to be done before this one failed or was cancelled."""

    code = "dependency_failed"


class StorageFailed(OutbidError):
    """The node cannot write durable jobs to its disk; `outbid doctor` says why. Nothing was accepted."""

    code = "storage_failed"
    status = 507


class UnknownArtifact(OutbidError):
    """No node of this mesh that answers has that artifact; it may have expired, or its node is away."""

    code = "unknown_artifact"
    status = 404


class NoSpace(OutbidError):
    """The disk of the node is too full; the message says what was needed and where. Nothing was lost."""

    code = "no_space"
    status = 507


class PullFailed(OutbidError):
    """The model could not be fetched; the message says from where and why. What came is kept for the next try."""

    code = "pull_failed"
    status = 502


class ChecksumMismatch(PullFailed):
    """What came is not what was promised: its SHA-256 is another one. It was thrown away."""

    code = "checksum_mismatch"


class NoBid(OutbidError):
    """No node made a bid for this job; the reasons they gave are in the message."""

    code = "no_bid"
    status = 503


class Busy(OutbidError):
    """Every able node is busy and the waiting room is full; try again shortly."""

    code = "busy"
    status = 503


class DeadlineExceeded(OutbidError):
    """The job's deadline passed before it was done."""

    code = "deadline_exceeded"
    status = 504


class Cancelled(OutbidError):
    """The job was cancelled."""

    code = "cancelled"
    status = 499


class Refused(OutbidError):
    """The node refused the award; the owner goes on to the next-best bid."""

    code = "refused"
    status = 409


class AttemptFailed(OutbidError):
    """The job failed on the node that ran it."""

    code = "attempt_failed"


class RunnerCrashed(AttemptFailed):
    """The runner process died while it ran the job; its last words are in the message."""

    code = "runner_crashed"


class RunnerUnavailable(AttemptFailed):
    """The runner could not load the model; the message says why."""

    code = "runner_unavailable"


class OutOfMemory(AttemptFailed):
    """The node ran out of memory in the middle of the job; a smaller picture or another node may do."""

    code = "out_of_memory"


class NodeLost(AttemptFailed):
    """The node that ran the job went away before it was done."""

    code = "node_lost"


class AttemptsExhausted(OutbidError):
    """Every attempt at the job failed; the reasons are in the message."""

    code = "attempts_exhausted"


class Draining(OutbidError):
    """This node is shutting down and takes no new work; another node or a later moment will do."""

    code = "draining"
    status = 503


class NoNode(OutbidError):
    """No Outbid node runs here; start one with `outbid up`, or name one with --state DIR or OUTBID_STATE."""

    code = "no_node"
    status = 503


class NodeUnreachable(OutbidError):
    """The local node does not answer; `outbid up` starts it, its log says why it stopped."""

    code = "node_unreachable"
    status = 503


def _tree(cls: type[OutbidError]) -> dict[str, type[OutbidError]]:
    found = {cls.code: cls}
    for sub in cls.__subclasses__():
        found |= _tree(sub)
    return found


BY_CODE: dict[str, type[OutbidError]] = _tree(OutbidError)


def from_body(body: ErrorBody) -> OutbidError:
    """The exception a received `ErrorBody` stands for; an unknown code (newer peer) becomes a plain OutbidError."""
    return BY_CODE.get(body.code, OutbidError)(body.message, **body.detail)
