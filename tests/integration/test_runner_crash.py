"""Whatever a runner does, its attempts hear why, the daemon goes on, and the next attempt gets a fresh runner."""

from __future__ import annotations

import os
import signal
import venv
from dataclasses import replace
from pathlib import Path

import pytest

from outbid_capabilities import testing
from outbid_contracts.errors import Refused
from outbid_node.runners.machine import Phase
from tests.integration.test_runner_support import QUICK, Fleet, fleet, wait_gone, with_runner

DEATHS = {
    "abort": "killed by SIGABRT; last words: Fatal Python error: Aborted",
    "kill": "killed by SIGKILL (out of memory?)",
    "exit": "ended with status 3",
    "exception": "RuntimeError: crashed as asked",
}


async def works_again(node: Fleet) -> None:
    node.settings = {"enabled": True}
    sink = await node.submit_when_free(text="again")
    assert (await sink.success()).result["text"] == "again"


@pytest.mark.parametrize(("how", "words"), DEATHS.items(), ids=DEATHS)
async def test_a_crash_at_token_5_fails_every_attempt_of_the_runner(how: str, words: str) -> None:
    async with fleet(crash=how, crash_after=5, slots=2) as node:
        talker = node.submit(chunks=100, delay_s=0.02, text="abc")
        bystander = node.submit(delay_s=100)
        failed, beside = await talker.failure(), await bystander.failure()
        assert len(talker.chunks) == 5
        assert failed.code == beside.code == "runner_crashed"
        assert words in failed.message
        assert failed.retry
        await works_again(node)


async def test_a_crash_comes_with_its_traceback() -> None:
    async with fleet() as node:
        native = await node.submit(crash="abort").failure()
        assert 'runner.py", line' in native.traceback
        node.settings = {"enabled": True, "crash": "exception"}
        python = await (await node.submit_when_free()).failure()
        assert "Traceback (most recent call last)" in python.traceback or "RuntimeError" in python.traceback


async def test_an_exception_in_an_attempt_fails_only_that() -> None:
    async with fleet() as node:
        other = node.submit(chunks=5, delay_s=0.02)
        failed = await node.submit(crash="exception").failure()
        assert (failed.code, failed.message) == ("attempt_failed", "RuntimeError: crashed as asked")
        assert "Traceback (most recent call last)" in failed.traceback
        assert (await other.success()).result["pid"] == node.pool.views()[0].pid


async def test_a_runner_killed_from_outside_is_noticed_and_its_children_end() -> None:
    async with fleet(children=2) as node:
        await node.submit().success()
        ready = node.pool.room(testing.echo, None).ready
        assert ready is not None
        sink = node.submit(delay_s=100)
        os.kill(ready.info["pid"], signal.SIGKILL)
        assert (await sink.failure()).code == "runner_crashed"
        for pid in ready.info["children"]:
            wait_gone(pid)
        await works_again(node)


async def test_an_idle_runner_that_dies_is_noticed() -> None:
    async with fleet() as node:
        pid = (await node.submit().success()).result["pid"]
        os.kill(pid, signal.SIGKILL)
        await node.until(lambda: node.phase() in (Phase.DEAD, Phase.STOPPED))
        assert not node.pool.room(testing.echo, None).warm
        await works_again(node)


async def test_a_hung_runner_is_killed() -> None:
    async with fleet() as node:
        await node.submit().success()
        hung, beside = node.submit(hang=True), node.submit(delay_s=100)
        failed = await hung.failure()
        assert "hung: no sign of life" in failed.message
        assert (await beside.failure()).code == failed.code == "runner_crashed"
        await works_again(node)


async def test_a_runner_that_hangs_while_loading_is_killed() -> None:
    async with fleet(hang_load=True, limits=replace(QUICK, load_hang_s=1.0)) as node:
        assert "hung" in (await node.submit().failure()).message
        await works_again(node)


async def test_loading_for_long_is_no_hang() -> None:
    async with fleet(slow_load_s=1.5, limits=replace(QUICK, load_hang_s=1.0)) as node:
        await node.submit().success()


async def test_a_runner_that_cannot_load_says_why_and_is_left_alone_for_a_while() -> None:
    async with fleet(fail_load="the weights are torn") as node:
        failed = await node.submit().failure()
        assert failed.code == "runner_unavailable"
        assert "the weights are torn" in failed.message
        assert "Traceback (most recent call last)" in failed.traceback
        await (await node.submit_when_free()).failure()
        await node.until(lambda: node.phase() == Phase.DEAD)
        room = node.pool.room(testing.echo, None)
        assert room.free == 0
        assert "crashed 2 times in a row" in room.blocked
        assert "next try in 0." in room.blocked
        with pytest.raises(Refused, match="crashed 2 times"):
            node.submit()
        await works_again(node)
        assert node.pool.views()[0].crashes == 0


@pytest.mark.parametrize("how", ["abort", "kill", "exit", "exception"])
async def test_a_crash_while_loading_is_told(how: str) -> None:
    async with fleet(crash_load=how) as node:
        failed = await node.submit().failure()
        assert failed.code == ("runner_unavailable" if how == "exception" else "runner_crashed")
        await works_again(node)


async def test_a_runner_class_that_is_not_there() -> None:
    async with fleet() as node:
        failed = await node.submit(with_runner("no_such_module:Runner")).failure()
        assert failed.code == "runner_unavailable"
        assert "ModuleNotFoundError" in failed.message


async def test_an_interpreter_that_is_not_there() -> None:
    async with fleet() as node:
        failed = await node.submit(replace(testing.echo, python="/no/such/python")).failure()
        assert failed.code == "runner_unavailable"
        assert "/no/such/python" in failed.message


async def test_an_interpreter_without_the_kit(tmp_path: Path) -> None:
    """A capability's own environment in which the kit is not installed."""
    venv.create(tmp_path, with_pip=False)
    async with fleet() as node:
        failed = await node.submit(replace(testing.echo, python=str(tmp_path / "bin" / "python"))).failure()
        assert failed.code == "runner_crashed"
        assert "No module named 'outbid_capabilities'" in failed.message


@pytest.mark.parametrize("kind", ["bytes", "type", "field", "frames"])
async def test_garbage_costs_the_runner_and_nothing_else(kind: str) -> None:
    async with fleet() as node:
        beside = node.submit(delay_s=100)
        failed = await node.submit(garbage=kind).failure()
        assert "sent a message that cannot be read" in failed.message
        assert (await beside.failure()).code == failed.code == "runner_crashed"
        assert node.pool.stats()["garbage"] == 1
        await works_again(node)


async def test_an_oversized_message_is_cut_off() -> None:
    async with fleet(pool={"max_message_bytes": 2**20}) as node:
        failed = await node.submit(garbage="oversized", size=2**22).failure()
        # Which is seen first: the cut connection, or the end of the process that could send no more.
        assert "closed its connection" in failed.message or "ended with status 1" in failed.message
        await works_again(node)


async def test_an_attempt_that_does_not_heed_its_cancellation_costs_the_runner() -> None:
    async with fleet() as node:
        await node.submit().success()
        silent, beside = node.submit(silent=True, chunks=2, crash_after=1, key="a/1"), node.submit(delay_s=100)
        await silent.until(lambda: silent.chunks)
        node.pool.cancel("a/1")
        assert await silent.end() == "stopped"
        assert "did not stop an attempt within 0.3 s" in (await beside.failure()).message
        await works_again(node)


async def test_a_broken_runner_that_ignores_term_is_killed_with_its_children() -> None:
    async with fleet(ignore_term=True, children=1) as node:
        await node.submit().success()
        ready = node.pool.room(testing.echo, None).ready
        assert ready is not None
        await node.submit(garbage="bytes").failure()
        await node.until(lambda: node.phase() == Phase.DEAD)
        for pid in (ready.info["pid"], *ready.info["children"]):
            wait_gone(pid)
