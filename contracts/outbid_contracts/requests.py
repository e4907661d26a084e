"""What faces ask nodes: the request envelope, and the listing endpoints with what nodes ask each other for them.

A request to a capability is one flat map: the capability's own parameters, and beside them the envelope's keys

    stream   true: one message per event, an empty last one; false (default): one reply with the result
    policy   a goal ("fastest", …) or a map, see Policy
    job      an id chosen by the caller; asking again with the same id does not run the job again
    resume   with `job` and `stream`: go on with a stream that lost its owner, see Resume
    v        the sender's wire version, when it is newer than 1

Bare text fills the capability's text field.
"""

from __future__ import annotations

import difflib
import functools
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from outbid_contracts.admin import Sleeper
from outbid_contracts.capability import Capability
from outbid_contracts.codec import VERSION, Format, decode
from outbid_contracts.errors import InvalidRequest, PayloadTooLarge
from outbid_contracts.ids import JobId, is_job_id
from outbid_contracts.messages import JobRecord, JobState, Message, Presence
from outbid_contracts.policy import GOALS, ZONES, Policy

MAX_REQUEST_BYTES = 8 * 1024 * 1024
ENVELOPE = frozenset({"stream", "policy", "job", "resume", "v"})


class Resume(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a caller has of a stream whose owner or connection it lost: `chunks` in order, of attempts up to `attempt`,
    written by `model`. An owner that knows the job sends the rest to the new inbox; one that does not takes it on.
    """

    chunks: tuple[dict[str, Any], ...] = ()
    attempt: Annotated[int, Meta(ge=0, le=2**31)] = 0
    model: str | None = None


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed request: `params` is an instance of the capability's params Struct."""

    params: Any
    stream: bool = False
    policy: Policy = Policy()
    job: JobId | None = None
    resume: Resume | None = None


def parse_policy(value: Any, version: int = VERSION) -> Policy:
    """Of a goal's name or a map of the fields of `Policy`. Weights alone mean goal custom. Raises InvalidRequest that
    begins with the field (`policy.deadline_s: …`).
    """
    if value is None:
        return Policy()
    if isinstance(value, str):
        value = {"goal": value}
    strange = [key for key in value if key not in Policy.__struct_fields__] if isinstance(value, dict) else []
    if strange and version <= VERSION:
        raise InvalidRequest(f"policy has no field `{strange[0]}`; known are {', '.join(Policy.__struct_fields__)}")
    try:
        policy = msgspec.convert(value, Policy)
    except msgspec.ValidationError as error:
        raise InvalidRequest(_told_of_policy(str(error))) from error
    if policy.weights is not None and policy.goal != "custom":
        if policy.goal is not None:
            raise InvalidRequest(f"policy.weights: they are for goal custom, not for {policy.goal}")
        policy = msgspec.structs.replace(policy, goal="custom")
    return policy


def _told_of_policy(error: str) -> str:
    """msgspec's message with the field first, and what a word may be."""
    what, _, place = error.partition(" - at `$")
    field = place.rstrip("`")
    known = f"; goals are {', '.join(GOALS)}" if field == ".goal" else ""
    known = f"; zones are {', '.join(ZONES)}" if field.startswith(".zone[") else known
    return f"policy{field}: {what}{known}"


def parse_request(data: bytes, capability: Capability, format: Format) -> Request:
    """Validate a request body. Raises InvalidRequest naming the field, PayloadTooLarge above MAX_REQUEST_BYTES."""
    if len(data) > MAX_REQUEST_BYTES:
        raise PayloadTooLarge(
            f"the request has {len(data) / 2**20:.1f} MiB; the limit is {MAX_REQUEST_BYTES // 2**20} MiB"
        )
    body = _body(data, capability, format)
    version = body.get("v", 1)
    if not isinstance(version, int) or isinstance(version, bool):
        raise InvalidRequest("`v` must be a whole number")
    params = {key: value for key, value in body.items() if key not in ENVELOPE}
    parsed = parse_params(params, capability, version)
    stream = body.get("stream", False)
    if not isinstance(stream, bool):
        raise InvalidRequest("`stream` must be true or false")
    policy = parse_policy(body.get("policy"), version)
    resume = _resume(body.get("resume"), capability)
    return Request(params=parsed, stream=stream, policy=policy, job=_job_id(body.get("job")), resume=resume)


def parse_params(params: dict[str, Any], capability: Capability, version: int = VERSION) -> Any:
    """An instance of the capability's params Struct. Raises InvalidRequest naming the field."""
    names = _field_names(capability.params)
    unknown = sorted(params.keys() - names)
    if unknown and version <= VERSION:
        raise InvalidRequest(_unknown_field(unknown[0], names, capability))
    try:
        return msgspec.convert({key: value for key, value in params.items() if key in names}, capability.params)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"{capability.name}: {error}") from error


@functools.cache
def _field_names(params: type[msgspec.Struct]) -> frozenset[str]:
    """Cached: msgspec evaluates the annotations anew at each look, 0.1 ms."""
    return frozenset(info.encode_name for info in msgspec.structs.fields(params))


def _body(data: bytes, capability: Capability, format: Format) -> dict[str, Any]:
    if format is Format.TEXT:
        if capability.text_field is None:
            raise InvalidRequest(f"{capability.name} takes a JSON object, not bare text")
        try:
            return {capability.text_field: data.decode()}
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"the text is not UTF-8: {error}") from error
    body: Any = decode(data, Any, format)
    if not isinstance(body, dict) or not all(isinstance(key, str) for key in body):
        raise InvalidRequest("the request must be a map with text keys")
    return body


def _job_id(value: Any) -> JobId | None:
    if value is None:
        return None
    if not isinstance(value, str) or not is_job_id(value):
        raise InvalidRequest("`job` must be 1 to 64 of A-Z a-z 0-9 _ -")
    return JobId(value)


def _resume(value: Any, capability: Capability) -> Resume | None:
    if value is None:
        return None
    try:
        resume = msgspec.convert(value, Resume)
        for chunk in resume.chunks:
            msgspec.convert(chunk, capability.chunk)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"resume: {error}") from error
    return resume


def _unknown_field(name: str, names: frozenset[str], capability: Capability) -> str:
    close = difflib.get_close_matches(name, names | ENVELOPE, n=1)
    hint = (
        f"; did you mean `{close[0]}`?"
        if close
        else f"; known are {', '.join(sorted(names | (ENVELOPE - {'resume', 'v'})))}"
    )
    return f"{capability.name} has no field `{name}`{hint}"


class NodeView(Message, frozen=True, kw_only=True):
    """A node as another sees it. `age_s` since its last heartbeat, `rtt_ms` of a request to it where measured."""

    presence: Presence
    age_s: float = 0.0
    rtt_ms: float | None = None
    here: bool = False


class NodeList(Message, frozen=True, kw_only=True):
    nodes: tuple[NodeView, ...] = ()
    away: tuple[Sleeper, ...] = ()
    """Machines that were in the mesh and are not there now, the last seen first."""


class JobsRequest(Message, frozen=True, kw_only=True):
    """`mesh.jobs.list`."""

    limit: int = 50
    state: JobState | None = None


class JobRequest(Message, frozen=True, kw_only=True):
    """`mesh.jobs.get` and `mesh.jobs.cancel`."""

    job: JobId


class JobsReply(Message, frozen=True, kw_only=True):
    jobs: tuple[JobRecord, ...] = ()
    silent: tuple[str, ...] = ()
    """Names of nodes that did not answer in time: the list may lack their jobs."""


class JobQuery(Message, frozen=True, kw_only=True):
    """Node to node: `get` one job, `list` the newest `limit` (optionally in one `state`), `cancel` one, or say which of
    `jobs` are `known`.
    """

    verb: Literal["get", "list", "cancel", "known"]
    job: JobId | None = None
    jobs: tuple[JobId, ...] = ()
    limit: int = 50
    state: JobState | None = None
    recall: bool = False
    """With `get`: what only the history knows."""


class JobList(Message, frozen=True, kw_only=True):
    """`claimed`: those among the jobs asked for that a submit under way at this node is about to make."""

    jobs: tuple[JobRecord, ...] = ()
    claimed: tuple[JobId, ...] = ()


class ModelView(Message, frozen=True, kw_only=True):
    """One model on one node."""

    model: str
    capability: str
    node: str
    name: str
    warm: bool
    default: bool
    slots: int
    free: int
    blocked: str = ""
    size_mib: float = 0.0
    """Of its files; 0 where it is not known."""
    source: str = ""
    """Where it was pulled from, and under which licence it is."""
    licence: str = ""
    pinned: bool = False


class PulledView(Message, frozen=True, kw_only=True):
    """A pulled model on one node that no capability there offers, or that is not whole yet (`percent`)."""

    model: str
    node: str
    name: str
    source: str
    licence: str = ""
    size_mib: float = 0.0
    percent: float | None = None


class ModelList(Message, frozen=True, kw_only=True):
    models: tuple[ModelView, ...] = ()
    pulled: tuple[PulledView, ...] = ()
