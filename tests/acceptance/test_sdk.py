"""The SDK against a real node: many jobs at once, time-outs, threads and notebooks, nodes inside the program."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from outbid import Mesh, NodeFailed, Policy, TimedOut, sync
from outbid.chat import ChatStream
from outbid_contracts.errors import AttemptsExhausted, NoNode
from outbid_contracts.events import Chunk
from outbid_contracts.ids import JobId
from tests.fleet import TEST_CAPABILITY, eventually, fleet

ECHO = "test.echo"
SETTINGS = {"test.enabled": True, "test.slots": 4, "courtesy.enabled": False, "limits.calibrate": False}
LONG = {"text": "x" * 600, "chunks": 600, "delay_s": 0.1}


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Of a node that the tests share."""
    folder = tmp_path_factory.mktemp("sdk") / "node"
    with sync.Mesh.start_node(state=folder, settings=SETTINGS):
        yield folder


@pytest.fixture
async def mesh(state: Path) -> AsyncIterator[Mesh]:
    async with Mesh(state=state) as mesh:
        yield mesh


async def cancelled(mesh: Mesh, job: str) -> None:
    async def is_so() -> bool:
        return (await mesh.job(job)).state == "cancelled"

    await eventually(is_so, 20, f"job {job} was not cancelled")


# -- map ---------------------------------------------------------------------------------------------------------------


async def test_a_map_fills_the_slots_of_the_mesh_and_hardly_more(mesh: Mesh) -> None:
    running: list[int] = []
    items = [{"text": str(n), "delay_s": 0.1} for n in range(30)]
    many = mesh.map(items, capability=ECHO, progress=lambda now: running.append(now.running))
    assert [done["text"] async for done in many] == [str(n) for n in range(30)]
    assert 4 <= max(running) + 1 <= 5
    assert (many.progress.done, many.progress.total) == (30, 30)


async def test_a_job_that_fails_costs_its_own_item_only(mesh: Mesh) -> None:
    items = [{"text": "a"}, {"text": "b", "crash": "exception"}, {"text": "c"}]
    found = [(one.index, type(one.error)) async for one in mesh.map(items, capability=ECHO).outcomes()]
    assert found == [(0, type(None)), (1, AttemptsExhausted), (2, type(None))]


async def test_leaving_a_map_cancels_the_jobs_that_run(mesh: Mesh) -> None:
    async def endless() -> AsyncIterator[dict[str, Any]]:
        yield {"text": "quick"}
        for n in range(10**9):
            yield LONG | {"job": f"left{n}"}

    async for done in mesh.map(endless(), capability=ECHO, concurrency=3):
        assert done["text"] == "quick"
        break
    await cancelled(mesh, "left0")


# -- time-outs and leaving ---------------------------------------------------------------------------------------------


async def test_a_job_that_is_out_of_time_is_cancelled(mesh: Mesh) -> None:
    with pytest.raises(TimedOut, match=r"not done within 0\.5 s"):
        await mesh.run(ECHO, LONG, job="late", timeout_s=0.5)
    await cancelled(mesh, "late")


async def test_a_stream_that_is_out_of_time_is_cancelled(mesh: Mesh) -> None:
    job = JobId("late-stream")
    stream = ChatStream(job, mesh.stream(ECHO, LONG, job=job), mesh.cancel, timeout_s=2)
    with pytest.raises(TimeoutError):
        await stream.reply()
    assert stream.text.startswith("x")
    await cancelled(mesh, job)


@pytest.mark.parametrize("way", ["break", "cancel", "close"])
async def test_a_stream_that_is_left_is_cancelled(mesh: Mesh, way: str) -> None:
    job, begun = JobId(f"left-by-{way}"), asyncio.Event()

    async def read() -> None:
        stream = ChatStream(job, mesh.stream(ECHO, LONG, job=job), mesh.cancel)
        async for _ in stream:
            begun.set()
            if way == "close":
                await stream.aclose()
            if way == "break":
                break

    reading = asyncio.ensure_future(read())
    await begun.wait()
    if way == "cancel":
        reading.cancel()
    await cancelled(mesh, job)
    await asyncio.wait([reading])


async def test_a_caller_that_is_cancelled_cancels_its_job_also_where_it_leaves_the_mesh(
    state: Path, mesh: Mesh
) -> None:
    async def leave() -> None:
        async with Mesh(state=state) as own, asyncio.timeout(1):
            await own.run(ECHO, LONG, job="abandoned")

    with pytest.raises(TimeoutError):
        await leave()
    await cancelled(mesh, "abandoned")


# -- a node that is away for a moment ----------------------------------------------------------------------------------


@pytest.mark.slow
async def test_questions_and_jobs_outlive_the_restart_of_the_node(tmp_path: Path) -> None:
    with fleet(tmp_path) as nodes:
        node = nodes.add("a", *TEST_CAPABILITY)
        await node.until_up()
        async with Mesh(state=node.state) as mesh:
            running = asyncio.ensure_future(mesh.run(ECHO, {"text": "b", "delay_s": 1.5}, job="through", timeout_s=60))
            await eventually(lambda: _runs(mesh, "through"), 20, "it did not start")
            node.kill()
            asking = asyncio.ensure_future(mesh.nodes())
            node.spawn()
            assert [view.presence.name for view in await asking] == ["a"]
            assert (await running)["text"] == "b"


async def _runs(mesh: Mesh, job: str) -> bool:
    return any(one.id == job and one.state == "running" for one in (await mesh.jobs()).jobs)


# -- without await -----------------------------------------------------------------------------------------------------


async def test_it_works_where_a_loop_runs_already(state: Path) -> None:
    """As in a notebook."""
    with sync.Mesh(state=state) as mesh:
        assert mesh.run(ECHO, {"text": "cell"})["text"] == "cell"


def test_many_threads_use_one_mesh_at_once(state: Path) -> None:
    together = threading.Barrier(4)

    def ask(n: int) -> str:
        together.wait(20)
        text: str = shared.run(ECHO, {"text": str(n), "delay_s": 0.2})["text"]
        return text

    with sync.Mesh(state=state) as shared, ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(4))) == list("0123")


def test_streams_maps_jobs_and_orders_come_without_await(state: Path) -> None:
    with sync.Mesh(state=state) as mesh:
        chunks = [event for event in mesh.stream(ECHO, {"text": "abc", "chunks": 3}) if isinstance(event, Chunk)]
        assert [chunk.data["text"] for chunk in chunks] == ["a", "b", "c"]
        texts = ({"text": str(n)} for n in range(6))
        assert [done["text"] for done in mesh.map(texts, capability=ECHO, concurrency=2)] == list("012345")
        job = mesh.submit(ECHO, {"text": "durable"})
        assert job.result(timeout_s=30)["text"] == "durable"
        assert [type(event).__name__ for event in job.watch()][-1] == "Finished"
        assert mesh.node().logs(limit=1).lines


def test_a_loop_that_is_left_cancels_the_job(state: Path) -> None:
    with sync.Mesh(state=state) as mesh:
        for event in mesh.stream(ECHO, LONG, job="left-without-await"):
            if isinstance(event, Chunk):
                break
        asyncio.run(eventually(lambda: mesh.job("left-without-await").state == "cancelled", 20, "it runs on"))


def test_the_meshs_own_thread_does_not_wait_for_itself(state: Path) -> None:
    said: list[str] = []
    with sync.Mesh(state=state) as mesh:

        def ask(progress: object) -> None:
            try:
                mesh.nodes()
            except RuntimeError as error:
                said.append(str(error))

        assert len(list(mesh.map([{"text": "a"}], capability=ECHO, progress=ask))) == 1
    assert "the mesh's own thread" in said[0]


def test_ctrl_c_cancels_what_is_waited_for(state: Path) -> None:
    code = f"""
import os, signal, threading
from outbid.sync import Mesh
with Mesh(state={str(state)!r}) as mesh:
    def interrupt():
        while not any(job.id == "interrupted" and job.state == "running" for job in mesh.jobs().jobs):
            pass
        os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=interrupt).start()
    try:
        mesh.run("test.echo", {LONG!r}, job="interrupted")
    except KeyboardInterrupt:
        print("interrupted")
"""
    assert _python(code).stdout == "interrupted\n"
    with sync.Mesh(state=state) as mesh:
        asyncio.run(eventually(lambda: mesh.job("interrupted").state == "cancelled", 20, "it runs on"))


# -- nodes inside the program ------------------------------------------------------------------------------------------

OWN = """
import json, os, sys
from outbid.sync import Mesh
mesh = Mesh.start_node(state=next(iter(sys.argv[1:]), None), settings={"courtesy.enabled": False})
mesh.nodes()
import psutil
print(json.dumps([child.pid for child in psutil.Process().children(recursive=True)]), flush=True)
"""


def test_a_node_ends_with_a_program_that_forgets_it() -> None:
    done = _python(OWN)
    assert (done.returncode, done.stderr) == (0, "")
    _all_gone(done.stdout)


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX's")
def test_a_node_ends_with_a_program_that_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", f"{OWN}\nsys.stdin.read()", str(tmp_path / "node")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        told = program.stdout.readline()
        os.kill(program.pid, signal.SIGKILL)
    _all_gone(told)


def _all_gone(told: str) -> None:
    pids = [int(word) for word in told.strip(" []\n").split(",")]
    assert len(pids) >= 2
    asyncio.run(eventually(lambda: not any(map(psutil.pid_exists, pids)), 30, f"of {pids} some still run"))


async def test_two_nodes_of_a_program_make_one_mesh_and_leave_nothing() -> None:
    async with Mesh.start_node(name="one", settings=SETTINGS) as one:
        folder = one._state
        async with Mesh.start_node(name="two", beside=one, settings=SETTINGS) as two:
            done = await one.run(ECHO, {"text": "hi"}, policy=Policy(prefer=("two",)), timeout_s=60)
            assert (done["node"], done["name"]) == (two.local, "two")
    assert folder is not None
    assert not Path(folder).exists()


async def test_a_node_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(NodeFailed, match=r"exit status 2.*there is no key llm\.thread.*did you mean llm\.threads"):
        async with Mesh.start_node(state=tmp_path, settings={"llm.thread": 2}):
            raise AssertionError("it started")


async def test_where_no_node_runs_the_ones_on_the_network_are_named(state: Path, tmp_path: Path, mesh: Mesh) -> None:
    async with Mesh.discover(state=state) as found:
        assert found.local == mesh.local
    with pytest.raises(NoNode, match=r"there are .*app \(127\.0\.0\.1\).*run `outbid invite` on"):
        async with Mesh.discover(state=tmp_path):
            raise AssertionError("it found a way in")


def _python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=100)
