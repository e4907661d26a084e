"""Several real daemons: they find each other, bid, run jobs, and survive each other's deaths."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from outbid import Mesh
from outbid_contracts.errors import (
    AttemptsExhausted,
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    NoBid,
    OutbidError,
    RunnerCrashed,
    UnknownCapability,
    UnknownJob,
)
from outbid_contracts.events import AttemptLost, Awarded, Chunk, Finished
from outbid_contracts.policy import Policy
from tests.fleet import TEST_CAPABILITY, Fleet, NodeProcess, eventually, fleet, mesh_of


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Fleet]:
    with fleet(tmp_path) as running:
        yield running


async def echo(mesh: Mesh, text: str = "hi", **params: object) -> dict[str, object]:
    return await mesh.run("test.echo", {"text": text, **params}, timeout_s=30)


async def test_three_nodes_find_each_other_and_run_jobs_for_each_other(nodes: Fleet) -> None:
    a, b, _ = await nodes.start("a", "b", "c")
    async with mesh_of(a) as mesh:
        for node in ("a", "b", "c"):
            result = await mesh.run("test.echo", {"text": node}, policy=Policy(prefer=(node,)), timeout_s=30)
            assert (result["text"], result["name"]) == (node, node)
    async with mesh_of(b) as mesh:
        owners = {record.owner for record in (await mesh.jobs()).jobs}
        assert owners == {a.local.node}, "the caller's own node owns the job"


async def test_peers_by_address_are_enough_without_multicast(nodes: Fleet) -> None:
    off = ("--set", "mesh.discovery=false")
    a = nodes.add("a", *off, "--route-port", str(_free_port()), *TEST_CAPABILITY)
    await a.until_up()
    port = a.flags[a.flags.index("--route-port") + 1]
    nodes.add("b", *off, "--peer", f"127.0.0.1:{port}", *TEST_CAPABILITY)
    await nodes.nodes[1].until_up()
    await nodes.until_whole()


async def test_bid_sheet_names_every_bid_and_the_winner(nodes: Fleet) -> None:
    a, _, _ = await nodes.start("a", "b", "c")
    async with mesh_of(a) as mesh:
        # over 50 ms of work, so that the nodes are asked
        result = await mesh.run("test.echo", {"text": "x", "chunks": 3, "delay_s": 0.05}, timeout_s=30)
        record = await mesh.job(str(result["job"]))
    (sheet,) = record.sheets
    assert sheet.how == "asked"
    assert {considered.name for considered in sheet.bids} == {"a", "b", "c"}
    assert not any(considered.bid.standing for considered in sheet.bids)
    assert sheet.winner == result["node"]
    assert [c.score for c in sheet.bids] == sorted(c.score for c in sheet.bids)
    assert record.state == "done"
    assert record.took_s is not None


async def test_stream_goes_on_when_its_node_is_killed(nodes: Fleet) -> None:
    a, b, c = await nodes.start("a", "b", "c")
    async with mesh_of(a) as mesh:
        policy = Policy(prefer=("b",))
        seen = []
        lost_at = gone_s = 0.0
        async for event in mesh.stream("test.echo", {"text": "abcdef", "chunks": 6, "delay_s": 0.2}, policy=policy):
            seen.append(event)
            if isinstance(event, Chunk) and event.attempt == 1 and event.seq == 1:
                b.kill()
                lost_at = time.monotonic()
            if isinstance(event, AttemptLost):
                gone_s = time.monotonic() - lost_at
    assert isinstance(seen[-1], Finished)
    assert seen[-1].result["text"] == "abcdef"
    assert seen[-1].name in ("a", "c")
    assert [e.attempt for e in seen if isinstance(e, Awarded)] == [1, 2]
    assert gone_s < 3.0, "a killed daemon is noticed by its silence on the wire, not by missed heartbeats"
    async with mesh_of(c) as mesh:

        async def gone() -> bool:
            return "b" not in [view.presence.name for view in await mesh.nodes()]

        await eventually(gone, 20, "c still lists b")


async def test_frozen_node_loses_its_lease_and_its_late_result_is_refused(nodes: Fleet) -> None:
    a, b, _ = await nodes.start("a", "b", "c")
    async with mesh_of(a) as mesh:
        running = asyncio.ensure_future(
            mesh.run("test.echo", {"text": "x", "delay_s": 3.0}, policy=Policy(prefer=("b",)), job="frozen")
        )
        await _running_on(mesh, "frozen", b)
        os.kill(b.pid, signal.SIGSTOP)
        try:
            result = await asyncio.wait_for(running, 40)
        finally:
            os.kill(b.pid, signal.SIGCONT)
        assert result["name"] != "b"
        assert result["attempt"] == 2
        await nodes.until_whole()
        await eventually(
            lambda: b.lines("settle_stale") or b.lines("orphan_stopped"), 20, "b never learned it was late"
        )
        record = await mesh.job("frozen")
        assert record.node == result["node"]


async def test_node_that_comes_back_is_seen_again(nodes: Fleet) -> None:
    a, b = await nodes.start("a", "b")
    b.kill()
    async with mesh_of(a) as mesh:

        async def gone() -> bool:
            return [view.presence.name for view in await mesh.nodes()] == ["a"]

        await eventually(gone, 20, "a still lists b")
    b.spawn()
    await b.until_up()
    await nodes.until_whole()


async def test_killed_router_leaves_the_others_working_and_comes_back(nodes: Fleet) -> None:
    a, b, _ = await nodes.start("a", "b", "c")
    for process in psutil.Process(b.pid).children():
        if "router" in " ".join(process.cmdline()):
            process.kill()
    async with mesh_of(a) as mesh:
        result = await mesh.run("test.echo", {"text": "x"}, policy=Policy(prefer=("c",)), timeout_s=10)
        assert result["name"] == "c"
    await nodes.until_whole()
    assert b.lines("server_restarted") or b.lines("router_up") or b.lines("server_up")


async def test_killed_ledger_comes_back_and_serves_again(nodes: Fleet) -> None:
    (a,) = await nodes.start("a")
    url = a.local.url
    for process in psutil.Process(a.pid).children():
        if "ledger" in " ".join(process.cmdline()):
            process.kill()

    async def works() -> bool:
        try:
            async with mesh_of(a) as mesh:
                return (await echo(mesh))["text"] == "hi"
        except OutbidError:
            return False

    await eventually(works, 15, f"the ledger did not come back:\n{a.text()}")
    assert a.local.url == url


async def test_crashing_job_is_tried_elsewhere_then_fails_with_every_reason(nodes: Fleet) -> None:
    a, _, _ = await nodes.start("a", "b", "c")
    async with mesh_of(a) as mesh:
        with pytest.raises(AttemptsExhausted) as caught:
            await mesh.run("test.echo", {"text": "poison", "crash": "abort"}, job="poison", timeout_s=60)
        assert "3 attempts failed" in caught.value.message
        record = await mesh.job("poison")
        assert len({attempt.node for attempt in record.attempts}) == 3
        assert all(attempt.error and attempt.error.code == "runner_crashed" for attempt in record.attempts)
        assert (await echo(mesh, "still here"))["text"] == "still here"


async def test_python_crash_brings_its_traceback(nodes: Fleet) -> None:
    (a,) = await nodes.start("a", flags=(*TEST_CAPABILITY, "--set", "limits.max_attempts=1"))
    async with mesh_of(a) as mesh:
        with pytest.raises((RunnerCrashed, OutbidError)):
            await mesh.run("test.echo", {"text": "x", "crash": "exception"}, job="trace", timeout_s=30)
        record = await mesh.job("trace")
    assert "Traceback" in record.attempts[0].traceback


async def test_runner_that_writes_garbage_costs_the_attempt_not_the_daemon(nodes: Fleet) -> None:
    (a,) = await nodes.start("a", flags=(*TEST_CAPABILITY, "--set", "limits.max_attempts=1"))
    async with mesh_of(a) as mesh:
        for kind in ("bytes", "type", "field", "frames", "result"):
            with pytest.raises(OutbidError):
                await mesh.run("test.echo", {"text": "x", "garbage": kind}, timeout_s=30)
        assert (await echo(mesh))["text"] == "hi"


async def test_jobs_wait_for_a_slot_and_run_in_turn(nodes: Fleet) -> None:
    (a,) = await nodes.start("a", flags=(*TEST_CAPABILITY, "--set", "test.slots=1"))
    async with mesh_of(a) as mesh:
        jobs = [mesh.run("test.echo", {"text": str(i), "delay_s": 0.05}, timeout_s=30) for i in range(8)]
        results = await asyncio.gather(*jobs)
    assert [r["text"] for r in results] == [str(i) for i in range(8)]


async def test_full_waiting_room_says_so(nodes: Fleet) -> None:
    flags = (*TEST_CAPABILITY, "--set", "test.slots=1", "--set", "limits.max_waiting=1")
    (a,) = await nodes.start("a", flags=flags)
    async with mesh_of(a) as mesh:
        jobs = [mesh.run("test.echo", {"text": str(i), "delay_s": 0.3}, timeout_s=30) for i in range(4)]
        results = await asyncio.gather(*jobs, return_exceptions=True)
    errors = [r for r in results if isinstance(r, OutbidError)]
    assert len(errors) >= 1
    assert all(error.code == "busy" for error in errors)
    assert sum(isinstance(r, dict) for r in results) >= 2


async def test_no_job_waits_while_another_node_has_a_free_slot(nodes: Fleet) -> None:
    a, _, _ = await nodes.start("a", "b", "c", flags=(*TEST_CAPABILITY, "--set", "test.slots=1"))
    async with mesh_of(a) as mesh:
        started = time.monotonic()
        jobs = [mesh.run("test.echo", {"text": str(i), "delay_s": 0.5}, timeout_s=60) for i in range(12)]
        results = await asyncio.gather(*jobs)
        took_s = time.monotonic() - started
    by_node = [sum(r["name"] == name for r in results) for name in "abc"]
    assert min(by_node) >= 3, by_node
    assert took_s < 12 * 0.5 * 0.8, "three nodes are hardly faster than one"


async def test_cancel_reaches_a_job_on_another_node(nodes: Fleet) -> None:
    a, b = await nodes.start("a", "b")
    async with mesh_of(a) as mesh:
        policy = Policy(prefer=("b",))
        running = asyncio.ensure_future(mesh.run("test.echo", {"text": "x", "delay_s": 60}, policy=policy, job="long"))
        await _running_on(mesh, "long", b)
        async with mesh_of(b) as elsewhere:
            record = await elsewhere.cancel("long")
        assert record.state == "cancelled"
        with pytest.raises(Cancelled):
            await asyncio.wait_for(running, 40)

        async def free() -> bool:
            return all(view.presence.running == 0 for view in await mesh.nodes())

        await eventually(free, 20, "the attempt still runs")


async def test_deadline_ends_a_job_and_frees_its_slot(nodes: Fleet) -> None:
    (a,) = await nodes.start("a", flags=(*TEST_CAPABILITY, "--set", "test.slots=1"))
    async with mesh_of(a) as mesh:
        with pytest.raises(DeadlineExceeded):
            await mesh.run("test.echo", {"text": "x", "delay_s": 60}, policy=Policy(deadline_s=0.5), timeout_s=30)
        assert (await echo(mesh))["text"] == "hi"


async def test_same_job_id_runs_once(nodes: Fleet) -> None:
    (a,) = await nodes.start("a")
    async with mesh_of(a) as mesh:
        first = mesh.run("test.echo", {"text": "one", "delay_s": 0.2}, job="same", timeout_s=30)
        second = mesh.run("test.echo", {"text": "two"}, job="same", timeout_s=30)
        results = await asyncio.gather(first, second)
        assert results[0] == results[1]
        assert (await mesh.run("test.echo", {"text": "three"}, job="same", timeout_s=30)) == results[0]


async def test_clean_stop_hands_running_jobs_to_others(nodes: Fleet) -> None:
    flags = (*TEST_CAPABILITY, "--set", "limits.grace_s=0.2")
    a, b = await nodes.start("a", "b", flags=flags)
    async with mesh_of(a) as mesh:
        params = {"text": "moved", "delay_s": 1.0}
        running = asyncio.ensure_future(mesh.run("test.echo", params, policy=Policy(prefer=("b",)), job="moved"))
        await _running_on(mesh, "moved", b)
        assert b.stop() == 0
        result = await asyncio.wait_for(running, 40)
        assert (result["text"], result["name"]) == ("moved", "a")


async def test_errors_say_what_to_do(nodes: Fleet) -> None:
    (a,) = await nodes.start("a", flags=())
    async with mesh_of(a) as mesh:
        with pytest.raises(NoBid, match="switched off"):
            await echo(mesh)
        with pytest.raises(UnknownCapability):
            await mesh.run("no.such", {}, timeout_s=5)
        with pytest.raises(UnknownJob, match="nosuch"):
            await mesh.job("nosuch")
        with pytest.raises(InvalidRequest, match="did you mean `text`"):
            await mesh.run("test.echo", {"texd": "x"}, timeout_s=5)


async def test_killed_daemon_leaves_no_process_behind(nodes: Fleet) -> None:
    (a,) = await nodes.start("a")
    async with mesh_of(a) as mesh:
        await echo(mesh)
    children = psutil.Process(a.pid).children(recursive=True)
    assert len(children) >= 2  # ledger, runner
    a.kill()
    await eventually(lambda: not any(_alive(child) for child in children), 20, f"left behind: {children}")


async def test_stopped_node_says_goodbye_at_once(nodes: Fleet) -> None:
    a, b = await nodes.start("a", "b")
    assert b.stop() == 0
    assert not (b.state / "node.json").exists()
    async with mesh_of(a) as mesh:
        assert [view.presence.name for view in await mesh.nodes()] == ["a"]


async def test_second_daemon_on_the_same_state_folder_is_refused(nodes: Fleet) -> None:
    (a,) = await nodes.start("a")
    second = NodeProcess(a.state, "a2", nodes.mesh, [])
    second.log = a.state.with_name("second.log")
    second.spawn()
    assert second.process is not None
    assert second.process.wait(20) == 3
    assert f"pid {a.pid}" in second.text()
    async with mesh_of(a) as mesh:
        assert (await echo(mesh))["text"] == "hi"


async def _running_on(mesh: Mesh, job: str, node: NodeProcess) -> None:
    async def running() -> bool:
        try:
            record = await mesh.job(job)
        except UnknownJob:
            return False
        return record.state == "running" and record.node == node.local.node

    await eventually(running, 20, f"{job} did not start on {node.name}")


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _free_port() -> int:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
