"""Checks what faces hand in at `mesh.jobs.submit`, before anything is kept of it.

One job is a flat map of the fields of `Submission`; several are `{"jobs": [{…}, …]}`. Beside them may stand `new`,
`here` (see `SubmitRequest`) and `v`, the sender's wire version: fields that this version does not know are refused,
unless the sender's is newer.
"""

from __future__ import annotations

import difflib
import graphlib
import math
import re
from collections.abc import Sequence
from typing import Any, get_args

import msgspec

from outbid_contracts.codec import VERSION, Format, decode
from outbid_contracts.durable import MAX_BATCH, Priority, Submission, SubmitRequest
from outbid_contracts.errors import InvalidRequest, PayloadTooLarge
from outbid_contracts.ids import JobId, NodeId, is_job_id, is_node_id
from outbid_contracts.requests import MAX_REQUEST_BYTES, parse_policy

LATEST_S = 253_402_300_800.0
"""The end of the year 9999 in Unix seconds."""

_JOB_FIELDS = frozenset(Submission.__struct_fields__)
_BESIDE = frozenset({"new", "owner", "here", "v"})
_WHERE = re.compile(r"(.*) - at `\$\.?(.*)`", re.DOTALL)


def parse_submit(data: bytes, format: Format) -> SubmitRequest:
    """The request with a `Policy` in each job's `policy`. Parameters are not checked here: the capability does that.

    Raises InvalidRequest naming the job and the field (`jobs[17].priority`), PayloadTooLarge above MAX_REQUEST_BYTES.
    """
    body = _body(data, format)
    version = body.get("v", 1)
    if not isinstance(version, int) or isinstance(version, bool):
        raise InvalidRequest("`v` must be a whole number")
    if "jobs" in body:
        jobs = _many(body, version)
    else:
        own = {key: value for key, value in body.items() if key not in _BESIDE}
        jobs = (parse_submission(own, "", version),)
    return SubmitRequest(jobs=jobs, new=_flag(body, "new"), owner=_owner(body), here=_flag(body, "here"))


def _body(data: bytes, format: Format) -> dict[str, Any]:
    if len(data) > MAX_REQUEST_BYTES:
        raise PayloadTooLarge(
            f"the request has {len(data) / 2**20:.1f} MiB; the limit is {MAX_REQUEST_BYTES // 2**20} MiB: submit fewer "
            "jobs at once"
        )
    if format is Format.TEXT:
        raise InvalidRequest('submit takes a JSON object: {"capability": "llm.chat", "params": {"prompt": "…"}}')
    body: Any = decode(data, Any, format)
    if not isinstance(body, dict) or not all(isinstance(key, str) for key in body):
        raise InvalidRequest("the request must be a map with text keys")
    return body


def _many(body: dict[str, Any], version: int) -> tuple[Submission, ...]:
    strange = sorted(body.keys() - _BESIDE - {"jobs"})
    if strange and version <= VERSION:
        raise InvalidRequest(f"`{strange[0]}` cannot stand beside `jobs`; put it into each job")
    items = body["jobs"]
    if not isinstance(items, list) or not items:
        raise InvalidRequest("`jobs` must be a list of at least one job")
    if len(items) > MAX_BATCH:
        raise InvalidRequest(f"`jobs` has {len(items)} jobs; at most {MAX_BATCH} go into one request")
    jobs = tuple(parse_submission(item, f"jobs[{n}]", version) for n, item in enumerate(items))
    _check_ids(jobs)
    return jobs


def parse_submission(item: Any, place: str = "", version: int = VERSION) -> Submission:
    """One job. `place` is where it stands, for messages. Raises InvalidRequest."""
    if not isinstance(item, dict) or not all(isinstance(key, str) for key in item):
        raise InvalidRequest(f"{place} must be a map with text keys")
    unknown = sorted(item.keys() - _JOB_FIELDS)
    if unknown and version <= VERSION:
        raise InvalidRequest(_unknown_field(unknown[0], place))
    if unknown:
        item = {key: value for key, value in item.items() if key in _JOB_FIELDS}
    try:
        job = msgspec.convert(item, Submission)
    except msgspec.ValidationError as error:
        raise InvalidRequest(_told(error, place)) from error
    _check(job, place)
    return msgspec.structs.replace(job, policy=_policy(job, place, version))


def _policy(job: Submission, place: str, version: int) -> Any:
    try:
        return parse_policy(job.policy, version)
    except InvalidRequest as error:
        raise InvalidRequest(f"{place}.{error.message}" if place else error.message) from error


def _check(job: Submission, place: str) -> None:
    """What the types do not say."""
    for name in ("not_before", "delay_s", "keep_s"):
        value = getattr(job, name)
        if value is not None and not math.isfinite(value):
            raise InvalidRequest(f"{_at(place, name)} must be a finite number of seconds")
    if job.not_before is not None and job.not_before >= LATEST_S:
        raise InvalidRequest(f"{_at(place, 'not_before')} must be Unix seconds before the year 10000")
    if job.not_before is not None and job.delay_s is not None:
        raise InvalidRequest(f"{_at(place, 'not_before')}: give either `not_before` or `delay_s`, not both")
    if job.job is not None and not is_job_id(job.job):
        raise InvalidRequest(f"{_at(place, 'job')} must be 1 to 64 of A-Z a-z 0-9 _ -")
    for n, id in enumerate(job.after):
        if not is_job_id(id):
            raise InvalidRequest(f"{_at(place, f'after[{n}]')} must be a job's id: 1 to 64 of A-Z a-z 0-9 _ -")
        if id == job.job:
            raise InvalidRequest(f"{_at(place, f'after[{n}]')}: a job cannot come after itself")


def _check_ids(jobs: Sequence[Submission]) -> None:
    """Each id once, and no jobs of one request that wait for each other: they would wait for ever."""
    first: dict[JobId, int] = {}
    for n, job in enumerate(jobs):
        if job.job is not None and (other := first.setdefault(job.job, n)) != n:
            raise InvalidRequest(f"jobs[{n}].job: `{job.job}` is the id of jobs[{other}] already")
    waits = {job.job: [id for id in job.after if id in first] for job in jobs if job.job is not None and job.after}
    try:
        graphlib.TopologicalSorter(waits).prepare()
    except graphlib.CycleError as error:
        circle = " → ".join(map(str, error.args[1]))
        raise InvalidRequest(
            f"jobs[{first[error.args[1][0]]}].after: the jobs wait for each other: {circle}"
        ) from error


def _owner(body: dict[str, Any]) -> NodeId | None:
    owner = body.get("owner")
    if owner is not None and not (isinstance(owner, str) and is_node_id(owner)):
        raise InvalidRequest("`owner` must be the id of a node; `outbid nodes --json` shows them")
    return None if owner is None else NodeId(owner)


def _flag(body: dict[str, Any], name: str) -> bool:
    value = body.get(name, False)
    if not isinstance(value, bool):
        raise InvalidRequest(f"`{name}` must be true or false")
    return value


def _at(place: str, field: str) -> str:
    return f"{place}.{field}" if place else f"`{field}`"


def _told(error: msgspec.ValidationError, place: str) -> str:
    """msgspec's message with the place first: `jobs[17].max_attempts: Expected `int`, got `str``."""
    found = _WHERE.fullmatch(str(error))
    what, field = (found[1], found[2]) if found else (str(error), "")
    if field == "priority":
        what += f"; known are {', '.join(get_args(Priority))}"
    where = _at(place, field) if field else place
    return f"{where}: {what}" if where else what


def _unknown_field(name: str, place: str) -> str:
    close = difflib.get_close_matches(name, _JOB_FIELDS | ({"jobs"} if not place else set()), n=1)
    known = f"known are {', '.join(sorted(_JOB_FIELDS))}; the capability's own parameters go into `params`"
    whose = f"{place} has" if place else "a submitted job has"
    return f"{whose} no field `{name}`; " + (f"did you mean `{close[0]}`?" if close else known)
