"""What `mesh.jobs.submit` takes: a wrong batch is refused as a whole, with the job and the field it stumbled over."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbid_contracts.codec import Format, decode, encode
from outbid_contracts.durable import MAX_BATCH, Submission, SubmitRequest
from outbid_contracts.errors import InvalidRequest, PayloadTooLarge
from outbid_contracts.policy import Policy
from outbid_contracts.requests import MAX_REQUEST_BYTES
from outbid_contracts.submitting import parse_submit
from tests.unit.strategies import PLAIN

JOB = {"capability": "llm.chat", "params": {"prompt": "hi"}}
KEYS = [*Submission.__struct_fields__, "jobs", "new", "here", "v", "x"]


def _parse(body: Any, format: Format = Format.JSON) -> SubmitRequest:
    return parse_submit(encode(body, format), format)


@pytest.mark.parametrize("format", [Format.JSON, Format.MSGPACK])
def test_one_job_is_flat(format: Format) -> None:
    body = JOB | {"job": "mine", "priority": "batch", "after": ["a"], "delay_s": 5, "policy": "green", "new": True}

    request = _parse(body, format)

    assert request.new
    assert not request.here
    (job,) = request.jobs
    assert (job.job, job.priority, job.after, job.delay_s) == ("mine", "batch", ("a",), 5)
    assert (job.capability, job.params, job.policy) == ("llm.chat", {"prompt": "hi"}, Policy(goal="green"))


@pytest.mark.parametrize("format", [Format.JSON, Format.MSGPACK])
def test_many_jobs_keep_their_order(format: Format) -> None:
    request = _parse({"jobs": [JOB | {"job": str(n)} for n in range(MAX_BATCH)], "here": True}, format)

    assert request.here
    assert [job.job for job in request.jobs] == [str(n) for n in range(MAX_BATCH)]


def test_a_job_without_a_policy_has_the_default_one() -> None:
    assert _parse(JOB).jobs[0].policy == Policy()


@pytest.mark.parametrize("format", [Format.JSON, Format.MSGPACK])
def test_a_parsed_request_says_the_same_when_it_is_passed_on(format: Format) -> None:
    body = {"jobs": [JOB | {"policy": {"goal": "green", "avoid": ["pi"]}}, JOB | {"after": ["x"]}], "new": True}

    once = _parse(body, format)

    assert _parse(once, format) == once
    assert decode(encode(once), SubmitRequest).jobs[1].after == ("x",)


def test_the_jobs_of_a_batch_may_wait_for_each_other_in_a_row() -> None:
    request = _parse({"jobs": [JOB | {"job": "b", "after": ["a"]}, JOB | {"job": "a"}]})

    assert request.jobs[0].after == ("a",)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "missing required field `capability`"),
        ({"capability": 3}, "`capability`: Expected `str`"),
        (JOB | {"priorty": "batch"}, "no field `priorty`; did you mean `priority`"),
        ({"capability": "llm.chat", "prompt": "hi"}, "no field `prompt`; known are after, .* go into `params`"),
        (JOB | {"priority": "high"}, "`priority`: .*'high'; known are interactive, normal, batch"),
        (JOB | {"params": []}, "`params`: Expected `object`"),
        (JOB | {"job": "a b"}, "`job` must be 1 to 64 of"),
        (JOB | {"job": ""}, "`job` must be 1 to 64 of"),
        (JOB | {"job": "a" * 65}, "`job` must be 1 to 64 of"),
        (JOB | {"after": "a"}, "`after`: Expected `array`"),
        (JOB | {"after": ["a", "b c"]}, r"`after\[1\]` must be a job's id"),
        (JOB | {"job": "a", "after": ["a"]}, "cannot come after itself"),
        (JOB | {"delay_s": -1}, "`delay_s`: .*>= 0"),
        (JOB | {"delay_s": 1, "not_before": 1}, "either `not_before` or `delay_s`"),
        (JOB | {"not_before": 1e300}, "`not_before` must be Unix seconds before the year 10000"),
        (JOB | {"max_attempts": 0}, "`max_attempts`: .*>= 1"),
        (JOB | {"max_attempts": True}, "`max_attempts`"),
        (JOB | {"keep_s": 0.5}, "`keep_s`: .*>= 1"),
        (JOB | {"policy": "speedy"}, "policy.*goals are fastest"),
        (JOB | {"policy": {"gaol": "fastest"}}, "policy has no field `gaol`"),
        (JOB | {"new": 1}, "`new` must be true or false"),
        (JOB | {"here": None}, "`here` must be true or false"),
        (JOB | {"v": "1"}, "`v` must be a whole number"),
        ({"jobs": []}, "`jobs` must be a list of at least one job"),
        ({"jobs": JOB}, "`jobs` must be a list"),
        ({"jobs": [JOB], "priority": "batch"}, "`priority` cannot stand beside `jobs`"),
        ({"jobs": [JOB] * (MAX_BATCH + 1)}, "`jobs` has 1001 jobs; at most 1000"),
        ({"jobs": [JOB] * 17 + [JOB | {"priority": "high"}]}, r"jobs\[17\]\.priority: .*known are"),
        ({"jobs": [JOB, JOB | {"jobs": []}]}, r"jobs\[1\] has no field `jobs`"),
        ({"jobs": [JOB, JOB | {"delay": 3}]}, r"jobs\[1\] has no field `delay`; did you mean `delay_s`"),
        ({"jobs": [JOB, {}]}, r"jobs\[1\]: .*`capability`"),
        ({"jobs": [JOB, "llm.chat"]}, r"jobs\[1\] must be a map"),
        ({"jobs": [JOB, JOB | {"policy": "speedy"}]}, r"jobs\[1\]\.policy\.goal: .*goals are"),
        ({"jobs": [JOB | {"job": "a"}, JOB, JOB | {"job": "a"}]}, r"jobs\[2\]\.job: `a` is the id of jobs\[0\]"),
        (
            {"jobs": [JOB | {"job": "a", "after": ["b"]}, JOB | {"job": "b", "after": ["a"]}]},
            r"jobs\[\d\]\.after: the jobs wait for each other",
        ),
        ([JOB], "must be a map"),
        (None, "must be a map"),
    ],
)
@pytest.mark.parametrize("format", [Format.JSON, Format.MSGPACK])
def test_a_bad_request_is_refused_with_the_place(body: Any, message: str, format: Format) -> None:
    with pytest.raises(InvalidRequest, match=message):
        _parse(body, format)


@pytest.mark.parametrize("field", ["not_before", "delay_s", "keep_s"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_time_that_is_no_number_is_refused(field: str, value: float) -> None:
    with pytest.raises(InvalidRequest, match=field):
        _parse(JOB | {field: value}, Format.MSGPACK)


def test_bare_text_is_refused_with_an_example() -> None:
    with pytest.raises(InvalidRequest, match=r'"capability": "llm\.chat"'):
        parse_submit(b"why is the sky blue?", Format.TEXT)


def test_unknown_fields_of_a_newer_program_are_ignored() -> None:
    newer = {"v": 2, "jobs": [JOB | {"zzz": 1, "policy": {"goal": "green", "yyy": 2}}], "xxx": 3}

    assert _parse(newer) == _parse({"jobs": [JOB | {"policy": "green"}]})


def test_a_request_beyond_the_limit_is_refused() -> None:
    with pytest.raises(PayloadTooLarge, match=r"the limit is 8 MiB: submit fewer"):
        parse_submit(b" " * (MAX_REQUEST_BYTES + 1), Format.JSON)


@given(st.binary(), st.sampled_from(list(Format)))
def test_bytes_of_any_kind_raise_nothing_but_our_errors(data: bytes, format: Format) -> None:
    with suppress(InvalidRequest):
        parse_submit(data, format)


@given(
    st.dictionaries(st.sampled_from(KEYS), PLAIN, max_size=6),
    st.booleans(),
    st.sampled_from([Format.JSON, Format.MSGPACK]),
)
def test_maps_of_any_kind_raise_nothing_but_our_errors(body: dict[str, Any], inside: bool, format: Format) -> None:
    whole = {"jobs": [JOB | body, body]} if inside else JOB | body
    with suppress(InvalidRequest):
        encode(_parse(whole, format))
