"""Durable jobs as their users see them: once each, in order, in time, with an end that can be read anywhere."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from outbid import Mesh
from outbid_contracts import subjects
from outbid_contracts.durable import SubmitReply
from outbid_contracts.errors import (
    AttemptsExhausted,
    Cancelled,
    DeadlineExceeded,
    DependencyFailed,
    InvalidRequest,
    NotDone,
    OutbidError,
    UnknownCapability,
    UnknownJob,
)
from outbid_contracts.policy import Policy
from tests.fleet import Fleet, eventually, fleet, mesh_of
from tests.traces import Traces

LATER_S = 3600.0
ECHO = "test.echo"


class Pair:
    """Nodes a and b, their clients, and what they wrote down."""

    def __init__(self, nodes: Fleet, traces: Traces) -> None:
        self.fleet = nodes
        self.traces = traces
        self.node_a, self.node_b = nodes.nodes[:2]
        self.a: Mesh
        self.b: Mesh


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("durable")
    traces = Traces(folder)
    with fleet(folder) as nodes:
        asyncio.run(nodes.start("a", "b", flags=traces.flags()))
        yield Pair(nodes, traces)
        traces.assert_lawful(tolerance_s=10)  # after three crashes a runner is not started at once again


@pytest.fixture
async def pair(started: Pair) -> AsyncIterator[Pair]:
    async with mesh_of(started.node_a) as started.a, mesh_of(started.node_b) as started.b:
        yield started


def text(of: str, **params: object) -> dict[str, object]:
    return {"text": of, **params}


async def result_of(mesh: Mesh, job: str, timeout_s: float = 30) -> dict[str, Any]:
    return await mesh.attach(job).result(timeout_s)


async def test_a_submit_returns_before_the_work_is_done_and_any_node_has_the_result(pair: Pair) -> None:
    job = await pair.a.submit(ECHO, text("hello", delay_s=0.5))
    with pytest.raises(NotDone):
        await pair.b.attach(job.id).result(0)
    for mesh in (pair.a, pair.b):
        assert (await result_of(mesh, job.id))["text"] == "hello"
    record = await pair.b.job(job.id)
    assert (record.state, record.durable, record.owner) == ("done", True, pair.node_a.local.node)


async def test_the_same_id_is_the_same_job_here_and_there_and_after_its_end(pair: Pair) -> None:
    first = await pair.a.submit(ECHO, text("one", delay_s=0.3), job="same")
    assert not first.known
    here, there = await pair.a.submit(ECHO, text("two"), job="same"), await pair.b.submit(ECHO, text("3"), job="same")
    assert here.known
    assert there.known
    assert here.owner == there.owner == first.owner
    assert (await result_of(pair.b, "same"))["text"] == "one"
    after = await pair.b.submit(ECHO, text("four"), job="same")
    assert after.known
    assert (await result_of(pair.a, "same"))["text"] == "one"
    assert pair.traces.count("accepted", "same") == pair.traces.count("started", "same") == 1


async def test_an_id_handed_in_by_many_at_once_is_one_job(pair: Pair) -> None:
    """On the same node and on two: whoever comes first, all are told the same owner and read the same result."""
    ids = [f"rush{n}" for n in range(12)]
    asked = [(id, mesh) for id in ids for mesh in (pair.a, pair.b, pair.a, pair.b)]
    jobs = await asyncio.gather(*(mesh.submit(ECHO, text(f"{id} {n}"), job=id) for n, (id, mesh) in enumerate(asked)))
    owners = {id: {job.owner for job in jobs if job.id == id} for id in ids}
    assert all(len(found) == 1 for found in owners.values()), owners
    for id in ids:
        both = await asyncio.gather(result_of(pair.a, id), result_of(pair.b, id))
        assert both[0] == both[1]
        assert pair.traces.count("accepted", id) == 1, pair.traces.told(id)
        assert pair.traces.count("ended", id) == 1, pair.traces.told(id)


async def test_a_batch_handed_in_at_two_nodes_at_once_is_one_batch(pair: Pair) -> None:
    batch = [{"capability": ECHO, "params": text(str(n)), "job": f"twin{n}"} for n in range(40)]
    left, right = await asyncio.gather(pair.a.submit_many(batch), pair.b.submit_many(batch[::-1]))
    assert {job.id: job.owner for job in left} == {job.id: job.owner for job in right}
    for n in range(40):
        assert (await result_of(pair.a, f"twin{n}"))["text"] == str(n)
        assert pair.traces.count("accepted", f"twin{n}") == 1


async def test_two_hundred_are_accepted_together(pair: Pair) -> None:
    jobs = await pair.a.submit_many([{"capability": ECHO, "params": text(f"no {n}")} for n in range(200)])
    results = await asyncio.gather(*(result_of(pair.b, job.id) for job in jobs))
    assert [result["text"] for result in results] == [f"no {n}" for n in range(200)]


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        ({"capability": ECHO, "params": {"texd": "x"}}, InvalidRequest, "jobs\\[137\\].*texd"),
        ({"capability": ECHO, "params": {"chunks": -1}}, InvalidRequest, "jobs\\[137\\].*chunks"),
        ({"capability": "test.nosuch"}, UnknownCapability, "jobs\\[137\\].*test.nosuch"),
        ({"capability": ECHO, "after": ["nobody"]}, InvalidRequest, "nobody"),
    ],
)
async def test_one_wrong_job_refuses_the_whole_batch_and_is_named(
    pair: Pair, wrong: dict[str, Any], error: type[OutbidError], says: str
) -> None:
    jobs: list[dict[str, Any]] = [{"capability": "test.noop", "job": f"never{n}"} for n in range(200)]
    jobs[137] = wrong | {"job": "never137"}
    with pytest.raises(error, match=says):
        await pair.a.connection.request(subjects.jobs("submit"), {"jobs": jobs}, SubmitReply, timeout_s=30)
    for n in (0, 137, 199):
        with pytest.raises(UnknownJob):
            await pair.a.job(f"never{n}")


async def test_jobs_wait_for_those_before_them_whoever_owns_them(pair: Pair) -> None:
    first = await pair.a.submit(ECHO, text("1", delay_s=0.6))
    second = await pair.b.submit(ECHO, text("2", delay_s=0.1), after=[first.id])
    third = await pair.a.submit(ECHO, text("3"), after=[second.id, first.id])
    assert first.id in second.note
    assert (await pair.a.job(third.id)).reason.startswith("waits for ")
    assert (await result_of(pair.b, third.id))["text"] == "3"
    order = [pair.traces.events(what, job.id)[0] for job in (first, second, third) for what in ("started", "stopped")]
    assert order == sorted(order, key=lambda event: event["mono"])


async def test_a_job_fails_with_the_one_it_waits_for_and_so_on_down_the_chain(pair: Pair) -> None:
    root = await pair.a.submit(ECHO, text("x", crash="exception", delay_s=0.2), max_attempts=1)
    middle = await pair.b.submit(ECHO, text("y"), after=[root.id])
    leaf = await pair.a.submit(ECHO, text("z"), after=[middle.id])
    with pytest.raises(DependencyFailed, match=root.id):
        await result_of(pair.a, middle.id)
    with pytest.raises(DependencyFailed, match=middle.id):
        await result_of(pair.b, leaf.id)
    late = await pair.a.submit(ECHO, text("late"), after=[root.id])
    with pytest.raises(DependencyFailed):
        await result_of(pair.a, late.id)
    assert not pair.traces.events("started", leaf.id)


async def test_a_batch_may_hold_a_whole_chain_in_any_order(pair: Pair) -> None:
    chain = [
        {"capability": ECHO, "params": text(str(n)), "job": f"link{n}", "after": [f"link{n - 1}"] if n else []}
        for n in range(20)
    ]
    await pair.a.submit_many(reversed(chain))
    assert (await result_of(pair.b, "link19"))["text"] == "19"
    starts = [pair.traces.events("started", f"link{n}")[0]["mono"] for n in range(20)]
    assert starts == sorted(starts)


async def test_nothing_starts_before_its_time(pair: Pair) -> None:
    begun = time.time()
    delayed = await pair.a.submit(ECHO, text("d"), delay_s=1.5)
    timed = await pair.b.submit(ECHO, text("t"), not_before=begun + 1.5)
    assert "not before" in delayed.note
    for job in (delayed, timed):
        await result_of(pair.a, job.id)
        (start,) = pair.traces.events("started", job.id)
        assert 1.49 <= start["t"] / 1e9 - begun < 6


@pytest.mark.parametrize(("how", "words"), [("kill", "SIGKILL"), ("abort", "SIGABRT"), ("exit", "3")])
async def test_a_job_that_kills_its_runners_is_stopped_and_tells_every_attempt(
    pair: Pair, how: str, words: str
) -> None:
    job = await pair.a.submit(ECHO, text("poison", crash=how), max_attempts=3)
    with pytest.raises(AttemptsExhausted, match="3 attempts"):
        await result_of(pair.b, job.id)
    record = await pair.b.job(job.id)
    assert len(record.attempts) == pair.traces.count("started", job.id) == 3
    assert record.state == "failed"
    for attempt in record.attempts:
        assert attempt.ended_ms
        assert attempt.error
        assert attempt.error.code == "runner_crashed"
        assert words in attempt.error.message
    assert {attempt.node for attempt in record.attempts} == {pair.node_a.local.node, pair.node_b.local.node}


async def test_a_python_error_is_kept_with_its_traceback(pair: Pair) -> None:
    job = await pair.a.submit(ECHO, text("x", crash="exception"))
    with pytest.raises(OutbidError, match="crashed as asked"):
        await result_of(pair.b, job.id)
    record = await pair.b.job(job.id)
    assert "RuntimeError: crashed as asked" in record.attempts[0].traceback


async def test_a_result_is_forgotten_after_its_time(pair: Pair) -> None:
    job = await pair.a.submit(ECHO, text("brief"), keep_s=1)
    assert (await result_of(pair.a, job.id))["text"] == "brief"

    async def forgotten() -> bool:
        try:
            await pair.a.connection.request(subjects.jobs("result"), {"job": job.id}, dict, timeout_s=5)
        except UnknownJob:
            return True
        return False

    await eventually(forgotten, 15, "the result is still there")


async def test_a_deadline_ends_a_job_that_waits_and_one_that_runs(pair: Pair) -> None:
    policy = Policy(deadline_s=1.0)
    waits = await pair.a.submit(ECHO, text("w"), policy=policy, delay_s=LATER_S)
    runs = await pair.a.submit(ECHO, text("r", delay_s=60), policy=policy)
    begun = time.monotonic()
    for job in (waits, runs):
        with pytest.raises(DeadlineExceeded):
            await result_of(pair.b, job.id)
        assert (await pair.b.job(job.id)).state == "failed"
    assert time.monotonic() - begun < 6
    await idle(pair.a)


async def test_cancel_ends_a_job_that_waits_for_its_time_for_another_or_that_runs(pair: Pair) -> None:
    timed = await pair.a.submit(ECHO, text("t"), delay_s=LATER_S)
    behind = await pair.b.submit(ECHO, text("b"), after=[timed.id])
    behind_that = await pair.b.submit(ECHO, text("c"), after=[behind.id])
    runs = await pair.a.submit(ECHO, text("r", delay_s=60))
    await pair.traces.until("started", runs.id)
    assert (await behind.cancel()).state == "cancelled"
    for job, mesh in ((timed, pair.b), (runs, pair.b)):
        assert (await mesh.cancel(job.id)).state == "cancelled"
        with pytest.raises(Cancelled):
            await result_of(mesh, job.id)
        assert (await mesh.cancel(job.id)).state == "cancelled"
    with pytest.raises(DependencyFailed):
        await result_of(pair.a, behind_that.id)
    await idle(pair.a)


async def test_cancelling_what_is_done_changes_nothing(pair: Pair) -> None:
    job = await pair.a.submit(ECHO, text("done"))
    result = await result_of(pair.a, job.id)
    assert (await pair.b.cancel(job.id)).state == "done"
    assert await result_of(pair.b, job.id) == result


async def test_a_cancel_in_the_midst_of_the_start_leaves_one_end(pair: Pair) -> None:
    """Cancels that meet jobs in every state: whatever the answer says is what stays."""
    jobs = await pair.a.submit_many([{"capability": ECHO, "params": text("x", delay_s=0.02)} for _ in range(60)])
    said = await asyncio.gather(*((pair.a, pair.b)[n % 2].cancel(job.id) for n, job in enumerate(jobs)))
    for job, record in zip(jobs, said, strict=True):
        assert record.state in ("cancelled", "done")
        assert (await pair.b.job(job.id)).state == record.state
        assert pair.traces.count("ended", job.id) == 1
    await idle(pair.a)


async def test_retry_runs_a_cancelled_job_again_as_one_new_job(pair: Pair) -> None:
    job = await pair.a.submit(ECHO, text("again"), delay_s=LATER_S, job="report")
    with pytest.raises(InvalidRequest, match="has not ended"):
        await pair.b.attach(job.id).retry()
    await job.cancel()
    once, twice = await asyncio.gather(pair.a.attach(job.id).retry(), pair.b.attach(job.id).retry())
    assert once.id == twice.id == "report-retry1"
    assert (await result_of(pair.b, once.id))["text"] == "again"
    assert pair.traces.count("accepted", once.id) == 1
    with pytest.raises(InvalidRequest, match="is done"):
        await pair.a.attach(once.id).retry()


async def test_an_interactive_job_cannot_take_the_id_of_a_durable_one_that_waits(pair: Pair) -> None:
    job = await pair.a.submit(ECHO, text("durable"), delay_s=1.5, job="mine")
    with pytest.raises(OutbidError, match="mine"):
        await pair.a.run(ECHO, text("interactive"), job="mine", timeout_s=10)
    assert (await result_of(pair.b, job.id))["text"] == "durable"


async def idle(mesh: Mesh) -> None:
    async def free() -> bool:
        return all(view.presence.running == 0 for view in await mesh.nodes())

    await eventually(free, 20, "an attempt still runs")


# -- a fleet for each ------------------------------------------------------------------------------------------------


async def test_urgent_jobs_go_first_and_equals_in_the_order_they_came(tmp_path: Path) -> None:
    traces = Traces(tmp_path)
    with fleet(tmp_path) as nodes:
        (a,) = await nodes.start("a", flags=traces.flags("test.slots=1"))
        async with mesh_of(a) as mesh:
            await result_of(mesh, (await mesh.submit(ECHO, text("first"), job="first")).id)
            busy = await mesh.submit(ECHO, text("busy", delay_s=1.5))
            await traces.until("started", busy.id)
            batch = [{"capability": ECHO, "params": text(p), "job": f"{p}{n}", "priority": p}
                     for p in ("batch", "normal", "interactive") for n in range(5)]  # fmt: skip
            for job in batch:
                await mesh.submit_many([job])
            caller = asyncio.ensure_future(mesh.run(ECHO, text("caller"), job="caller", timeout_s=30))
            for job in batch:
                await result_of(mesh, str(job["job"]))
            await caller
        order = [event["job"] for event in traces.events("started") if event["job"][-1].isdigit()]
        assert order[-15:] == [f"{p}{n}" for p in ("interactive", "normal", "batch") for n in range(5)]
        traces.assert_lawful()


async def test_a_job_that_nobody_may_do_waits_and_goes_when_somebody_can(tmp_path: Path) -> None:
    """Also one that has waited for another before; and the reasons are told meanwhile."""
    traces = Traces(tmp_path)
    with fleet(tmp_path) as nodes:
        owner = nodes.add("owner", "--set", f"log.trace={traces.path}")
        nodes.add("far", *traces.flags("node.zone=cloud"))
        for node in nodes.nodes:
            await node.until_up()
        await nodes.until_whole()
        async with mesh_of(owner) as mesh:
            first = await mesh.submit(ECHO, text("anywhere"))
            second = await mesh.submit(ECHO, text("at home"), policy="private", after=[first.id])
            modelled = await mesh.submit(ECHO, text("x", model="none-has-it"))

            async def says(job: str, words: str) -> bool:
                return words in (await mesh.job(job)).reason

            await eventually(lambda: says(second.id, "private"), 10, "no reason is told")
            await eventually(lambda: says(modelled.id, "none-has-it"), 10, "no reason is told")
            near = nodes.add("near", *traces.flags())
            await near.until_up()
            assert (await result_of(mesh, second.id))["name"] == "near"
            assert (await mesh.cancel(modelled.id)).state == "cancelled"


class Home:
    def __init__(self, nodes: Fleet, traces: Traces) -> None:
        self.fleet = nodes
        self.traces = traces
        self.pi, self.laptop = nodes.nodes


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[Home]:
    traces = Traces(tmp_path)
    with fleet(tmp_path) as nodes:
        nodes.add("pi", *traces.flags("node.always_on=true"))
        nodes.add("laptop", *traces.flags("node.always_on=false"))
        await asyncio.gather(*(node.until_up() for node in nodes.nodes))
        await nodes.until_whole()
        yield Home(nodes, traces)
        traces.assert_lawful(tolerance_s=5)


async def test_an_always_on_machine_owns_the_jobs_of_a_laptop_that_may_close(home: Home) -> None:
    async with AsyncExitStack() as stack:
        laptop = await stack.enter_async_context(mesh_of(home.laptop))
        job = await laptop.submit(ECHO, text("lid", delay_s=1.0), policy=Policy(prefer=("laptop",)))
        assert job.owner == home.pi.local.node
        again = await laptop.submit(ECHO, text("other"), job=job.id)
        assert again.known
        await home.traces.until("started", job.id)
        home.traces.killed(home.laptop)
        home.laptop.kill()
    async with mesh_of(home.pi) as pi:
        assert (await result_of(pi, job.id))["name"] == "pi"
    home.laptop.spawn()
    await home.laptop.until_up()
    await home.fleet.until_whole()
    assert home.pi.stop() == 0
    async with mesh_of(home.laptop) as laptop:
        alone = await laptop.submit(ECHO, text("alone"))
        assert alone.owner == home.laptop.local.node
        assert (await result_of(laptop, alone.id))["text"] == "alone"


@pytest.mark.slow
async def test_a_frozen_always_on_machine_does_not_make_two_of_one_job(home: Home) -> None:
    """It has the submit in its hands when it freezes. The caller is told what to do; what it then does makes one job,
    whichever machine takes it, also when the frozen one wakes up.
    """
    async with mesh_of(home.laptop) as laptop:
        home.traces.notes.note("frozen", node=home.pi.local.node)
        psutil.Process(home.pi.pid).suspend()
        wanted = {"capability": ECHO, "params": text("once"), "job": "once", "new": True}
        with pytest.raises(OutbidError, match=r"pi .*same ids.*once"):
            await laptop.connection.request(subjects.jobs("submit"), wanted, dict, timeout_s=30)
        again = await laptop.submit(ECHO, text("once"), job="once")
        psutil.Process(home.pi.pid).resume()
        home.traces.notes.note("resumed", node=home.pi.local.node)
        await home.fleet.until_whole()
        assert (await result_of(laptop, "once"))["text"] == "once"
        async with mesh_of(home.pi) as pi:
            assert (await result_of(pi, "once"))["text"] == "once"
            last = await pi.submit(ECHO, text("once"), job="once")
        assert last.known
        assert last.owner == again.owner
    assert home.traces.count("accepted", "once") == 1, home.traces.told("once")
