"""Durable jobs by the command line, and clients that hold on to them while their nodes die and come back."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from pathlib import Path

import pytest

from outbid import Mesh
from outbid.jobs import Job
from outbid_contracts.events import Awarded, Chunk, Finished, JobEvent
from outbid_contracts.ids import is_job_id
from tests.fleet import Fleet, NodeProcess, eventually, fleet, mesh_of

PATIENT_S = 60


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sequence[NodeProcess]]:
    with fleet(tmp_path_factory.mktemp("cli")) as running:
        yield asyncio.run(running.start("a", "b"))


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Fleet]:
    with fleet(tmp_path) as running:
        yield running


def outbid(node: NodeProcess, *words: str, code: int = 0, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "outbid", *words, "--state", str(node.state)]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == code, f"{done.returncode}: {done.stdout}\n{done.stderr}"
    return done


def submit(node: NodeProcess, *words: str, stdin: str = "") -> str:
    """The id alone is on standard output, so that JOB=$(outbid submit …) works."""
    printed = outbid(node, "submit", *words, stdin=stdin).stdout
    assert is_job_id(printed.removesuffix("\n")), printed
    return printed.removesuffix("\n")


# -- one job -----------------------------------------------------------------------------------------------------------


def test_a_job_submitted_on_one_node_is_read_and_watched_on_another(pair: Sequence[NodeProcess]) -> None:
    a, b = pair
    job = submit(a, "test.echo", "--param", "text=hello", "--param", "chunks=3", "--param", "delay_s=0.2")

    result = json.loads(outbid(b, "result", job, "--wait").stdout)
    watched = outbid(b, "watch", job)

    assert (result["text"], result["job"]) == ("hello", job)
    words, _, end = watched.stdout.partition("\n")
    assert words == "hello"
    assert json.loads(end)["text"] == "hello"
    assert f"{result['name']} runs it" in watched.stderr
    assert f"outbid why {job}" in watched.stderr


def test_every_event_comes_as_json_from_the_beginning(pair: Sequence[NodeProcess]) -> None:
    a, b = pair
    job = submit(a, "test.echo", "-p", "text=abc", "-p", "chunks=3", "-p", "delay_s=0.1")  # long enough to be watched

    events = [json.loads(line) for line in outbid(b, "watch", job, "--json").stdout.splitlines()]

    assert [event["data"]["text"] for event in events if event["event"] == "chunk"] == ["a", "b", "c"]
    assert events[0]["event"] == "awarded"
    assert (events[-1]["event"], events[-1]["result"]["text"]) == ("done", "abc")
    assert {event["job"] for event in events} == {job}


def test_a_text_parameter_that_looks_like_a_number_stays_text(pair: Sequence[NodeProcess]) -> None:
    a, _ = pair
    done = outbid(a, "submit", "test.echo", "-p", "text=8", "-p", "chunks:=2", "--wait")
    assert json.loads(done.stdout)["text"] == "8"
    assert re.fullmatch(r"job \w+\n", done.stderr)


def test_parameters_come_from_standard_input_too(pair: Sequence[NodeProcess]) -> None:
    a, _ = pair
    job = submit(a, "test.echo", "--params", "-", "-p", "chunks=2", stdin='{"text": "piped", "chunks": 7}')
    assert json.loads(outbid(a, "result", job, "--wait").stdout)["text"] == "piped"


def test_the_same_id_is_the_same_job_from_everywhere(pair: Sequence[NodeProcess]) -> None:
    a, b = pair
    first = json.loads(outbid(a, "submit", "test.echo", "-p", "text=one", "--job", "mine", "--json").stdout)
    assert (first["job"], first["known"]) == ("mine", False)
    again = outbid(b, "submit", "test.echo", "-p", "text=two", "--job", "mine")
    assert again.stdout == "mine\n"
    assert "submitted before" in again.stderr
    assert json.loads(outbid(b, "result", "mine", "--wait").stdout)["text"] == "one"


def test_a_job_that_has_not_ended_is_an_exit_code_of_its_own(pair: Sequence[NodeProcess]) -> None:
    a, b = pair
    job = submit(a, "test.noop", "--delay", "1h", "--priority", "batch")

    assert "not before" in outbid(b, "result", job, code=4).stderr
    started = time.monotonic()
    outbid(b, "result", job, "--timeout", "2s", code=4)
    assert time.monotonic() - started >= 2
    (row,) = [line for line in outbid(b, "jobs").stdout.splitlines() if job in line]
    assert "batch" in row
    assert "not before" in row

    assert "is cancelled" in outbid(b, "cancel", job).stdout
    assert "cancelled" in outbid(a, "result", job, code=1).stderr


def test_not_before_is_a_moment(pair: Sequence[NodeProcess]) -> None:
    a, _ = pair
    job = submit(a, "test.noop", "--not-before", "2999-01-01 02:00")
    assert "not before 2999-01-01 02:00" in outbid(a, "result", job, code=4).stderr
    outbid(a, "cancel", job)
    past = submit(a, "test.noop", "--not-before", "2020-01-01T00:00:00+02:00")
    outbid(a, "result", past, "--wait")


def test_a_job_waits_for_the_one_it_comes_after_and_fails_with_it(pair: Sequence[NodeProcess]) -> None:
    a, b = pair
    first = submit(a, "test.noop", "--delay", "1h")
    done = outbid(b, "submit", "test.noop", "--after", first)
    assert f"waits for {first}" in done.stderr
    second = done.stdout.strip()
    assert f"after {first}" in outbid(a, "why", second).stdout

    outbid(b, "cancel", first)

    assert first in outbid(a, "result", second, "--wait", code=1).stderr
    assert "had to be done before" in outbid(a, "watch", second, code=1).stderr


def test_why_tells_each_attempt_and_the_traceback_when_asked(pair: Sequence[NodeProcess]) -> None:
    a, b = pair
    job = submit(a, "test.echo", "-p", "text=x", "-p", "crash=exception", "--max-attempts", "2")
    assert "crashed as asked" in outbid(b, "result", job, "--wait", code=1).stderr

    short, long = outbid(b, "why", job).stdout, outbid(b, "why", job, "--verbose").stdout

    for n in (1, 2):
        assert re.search(rf"^attempt {n} on [ab] failed after .*crashed as asked", short, re.M)
    assert "Traceback" not in short
    assert long.count("Traceback") == 2
    record = json.loads(outbid(b, "why", job, "--json").stdout)
    assert [attempt["error"]["code"] for attempt in record["attempts"]] == ["attempt_failed"] * 2


def test_a_failed_job_is_retried_as_one_new_job(pair: Sequence[NodeProcess]) -> None:
    a, b = pair
    job = submit(a, "test.echo", "-p", "text=x", "-p", "crash=exception", "--max-attempts", "1")
    outbid(b, "result", job, "--wait", code=1)

    again = outbid(b, "retry", job).stdout.strip()

    assert again != job
    assert outbid(a, "retry", job).stdout.strip() == again
    assert json.loads(outbid(a, "retry", job, "--json").stdout) == {"job": again, "known": True}
    assert "crashed as asked" in outbid(a, "watch", again, code=1).stderr
    fine = submit(a, "test.noop")
    outbid(a, "result", fine, "--wait")
    assert "done" in outbid(a, "retry", fine, code=1).stderr


def test_leaving_a_watch_leaves_the_job(pair: Sequence[NodeProcess]) -> None:
    a, b = pair
    job = submit(a, "test.echo", "-p", "text=abcdefgh", "-p", "chunks=8", "-p", "delay_s=0.4")
    watch = subprocess.Popen(
        [sys.executable, "-m", "outbid", "watch", job, "--state", str(b.state)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert watch.stdout is not None
    assert watch.stdout.read(2) == b"ab"
    watch.send_signal(signal.SIGINT)
    watch.communicate(timeout=20)
    assert watch.returncode == 130
    assert json.loads(outbid(b, "result", job, "--wait").stdout)["text"] == "abcdefgh"


# -- many jobs ---------------------------------------------------------------------------------------------------------


def test_two_hundred_jobs_of_a_file_are_taken_at_once(pair: Sequence[NodeProcess], tmp_path: Path) -> None:
    a, b = pair
    file = tmp_path / "jobs.jsonl"
    file.write_text("".join(f'{{"params": {{"text": "no {n}"}}, "job": "of-file-{n}"}}\n\n' for n in range(200)))

    done = outbid(a, "submit", "test.echo", "--file", str(file), "--priority", "batch")

    assert done.stdout.splitlines() == [f"of-file-{n}" for n in range(200)]
    results = asyncio.run(_results(b, done.stdout.split()))
    assert results == [f"no {n}" for n in range(200)]
    record = json.loads(outbid(b, "why", "of-file-7", "--json").stdout)
    assert (record["durable"], record["priority"]) == (True, "batch")


async def _results(node: NodeProcess, ids: Sequence[str]) -> list[str]:
    async with mesh_of(node) as mesh:
        return [found["text"] for found in await asyncio.gather(*(mesh.attach(id).result(PATIENT_S) for id in ids))]


def test_results_of_several_jobs_come_in_their_order(pair: Sequence[NodeProcess]) -> None:
    a, _ = pair
    lines = ['{"capability": "test.echo", "params": {"text": "slow", "delay_s": 0.3}}', '{"capability": "test.noop"}']
    lines += ['{"capability": "test.echo", "params": {"text": "x", "crash": "exception"}, "max_attempts": 1}']

    done = outbid(a, "submit", "--file", "-", "--wait", stdin="\n".join(lines), code=1)

    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [found.get("text") for found in results] == ["slow", None]
    assert "1 of 3 jobs failed" in done.stderr


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["submit"], 2, "name a capability"),
        (["submit", "test.echo", "-p", "texts=x"], 2, "did you mean text?"),
        (["submit", "test.echo", "-p", "chunks=many"], 2, "chunks must be a whole number, not 'many'"),
        (["submit", "test.echo", "--params", "[1]"], 2, "must be a JSON object"),
        (["submit", "test.echo", "--delay", "soon"], 2, "write 90s, 30m, 12h or 7d"),
        (["submit", "test.echo", "--not-before", "tomorrow"], 2, "write 2026-11-22 02:00"),
        (["submit", "--file", "nowhere.jsonl"], 2, "nowhere.jsonl cannot be read"),
        (["submit", "--file", "-", "--job", "x"], 2, "--job is for a single job"),
        (["submit", "--file", "-"], 2, "line 2 of -: "),
        (["submit", "test.ech", "-p", "a=1"], 1, "test.ech"),
        (["submit", "test.noop", "--job", "a b"], 1, "`job` must be 1 to 64 of"),
        (["submit", "test.noop", "--after", "nobody"], 1, "nobody"),
        (["result", "nobody"], 1, "nobody"),
        (["watch", "nobody"], 1, "nobody"),
        (["retry", "nobody"], 1, "nobody"),
        (["drain", "nobody"], 1, "no node is called nobody; there are a, b"),
    ],
)
def test_a_mistake_is_told_with_what_to_do(pair: Sequence[NodeProcess], words: list[str], code: int, told: str) -> None:
    done = outbid(pair[0], *words, code=code, stdin='{"capability": "test.noop"}\n{"capability": ')
    assert told in " ".join(done.stderr.split())
    assert done.stdout == ""


def test_a_wrong_line_of_a_file_is_named_and_nothing_of_it_is_taken(pair: Sequence[NodeProcess]) -> None:
    lines = ['{"capability": "test.noop", "job": "line-1"}', '{"capability": "test.noop", "priority": "high"}']
    done = outbid(pair[0], "submit", "--file", "-", stdin="\n".join(lines), code=1)
    assert "line 2.priority" in done.stderr
    outbid(pair[0], "result", "line-1", code=1)


# -- draining ----------------------------------------------------------------------------------------------------------


def test_a_drained_node_takes_no_work_until_it_is_undone(pair: Sequence[NodeProcess]) -> None:
    a, b = pair
    assert "takes no new work" in outbid(a, "drain", "b").stdout
    try:
        jobs = [submit(a, "test.noop", "--prefer", "b") for _ in range(3)]
        assert {json.loads(outbid(a, "result", job, "--wait").stdout)["name"] for job in jobs} == {"a"}
    finally:
        undone = json.loads(outbid(a, "drain", b.local.node, "--undo", "--json").stdout)
    assert undone["draining"] is False


# -- while nodes die ---------------------------------------------------------------------------------------------------


async def test_results_and_events_are_waited_for_while_the_owner_restarts(nodes: Fleet) -> None:
    """The owner is killed in the midst of two attempts on another node, and comes back."""
    a, b = await nodes.start("a", "b")
    async with mesh_of(b) as mesh:
        jobs = await _two_running_on_b(a)
        result = asyncio.ensure_future(mesh.attach(jobs[0]).result(PATIENT_S))
        events = asyncio.ensure_future(_watch(mesh.attach(jobs[1])))
        await eventually(lambda: _all_run(mesh, jobs), 20, "the other node does not see them run")
        a.kill()
        a.spawn()
        await a.until_up()

        assert (await result)["text"] == "abcdefgh"
        seen = await events
    assert isinstance(seen[-1], Finished)
    assert seen[-1].result["text"] == "abcdefgh"
    _assert_told_once(seen)


async def _two_running_on_b(a: NodeProcess) -> list[str]:
    async with mesh_of(a) as mesh:
        params = {"text": "abcdefgh", "chunks": 8, "delay_s": 0.5}
        policy = {"goal": "fastest", "prefer": ["b"]}
        jobs = await mesh.submit_many([{"capability": "test.echo", "params": params, "policy": policy}] * 2)
        await eventually(lambda: _all_run(mesh, [job.id for job in jobs]), 20, "the jobs did not start")
        return [job.id for job in jobs]


async def _all_run(mesh: Mesh, jobs: Sequence[str]) -> bool:
    return all([(await mesh.job(id)).state == "running" for id in jobs])


async def _watch(job: Job) -> list[JobEvent]:
    return [event async for event in job.watch()]


def _assert_told_once(seen: Sequence[JobEvent]) -> str:
    """No piece twice, and of each attempt the pieces in order. Returns them in a row."""
    chunks = [(event.attempt, event.seq) for event in seen if isinstance(event, Chunk)]
    assert len(set(chunks)) == len(chunks)
    assert chunks == sorted(chunks)
    awards = [event.attempt for event in seen if isinstance(event, Awarded)]
    assert len(set(awards)) == len(awards)
    return "".join(event.data["text"] for event in seen if isinstance(event, Chunk))


async def test_a_watcher_whose_own_node_restarts_hears_the_rest_once(nodes: Fleet) -> None:
    a, b = await nodes.start("a", "b")
    async with mesh_of(a) as owners, mesh_of(b) as mesh:
        params = {"text": "abcdefgh", "chunks": 8, "delay_s": 0.4}
        job = await owners.submit("test.echo", params, policy="fastest", job="seen-from-b")
        seen: list[JobEvent] = []
        async with aclosing(mesh.attach(job.id).watch()) as events:
            async for event in events:
                seen.append(event)
                if isinstance(event, Chunk) and event.seq == 1:
                    b.kill()
                    b.spawn()
                    await b.until_up()
    assert isinstance(seen[-1], Finished)
    assert seen[-1].result["text"] == "abcdefgh"
    assert _assert_told_once(seen) == "abcdefgh"


async def test_a_submit_into_the_restart_of_a_node_makes_one_job(nodes: Fleet) -> None:
    (a,) = await nodes.start("a")
    async with mesh_of(a) as mesh:
        await mesh.run("test.noop", {}, timeout_s=30)
        a.kill()
        submitting = asyncio.ensure_future(mesh.submit("test.echo", {"text": "through"}))
        a.spawn()
        job = await submitting
        assert (await job.result(PATIENT_S))["text"] == "through"
        records = [record for record in (await mesh.jobs()).jobs if record.durable]
    assert [record.id for record in records] == [job.id]


@pytest.mark.slow
async def test_a_client_outlives_a_node_that_is_away_for_long(nodes: Fleet) -> None:
    """Longer than the client library tries on its own, so that it has to connect anew."""
    (a,) = await nodes.start("a")
    async with mesh_of(a) as mesh:
        job = await mesh.submit("test.echo", {"text": "later"}, delay_s=2)
        result = asyncio.ensure_future(job.result(PATIENT_S))
        first = mesh.connection
        a.kill()
        await eventually(lambda: first.closed, 40, "the connection was not given up")
        a.spawn()
        assert (await result)["text"] == "later"
        assert mesh.connection is not first
