"""Real runners that make room for a person: their niceness, and the memory of idle ones."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import psutil
import pytest

from outbid_node.runners.machine import Phase
from tests.integration.test_runner_support import fleet, wait_gone


def niceness(pid: int) -> set[int]:
    """Of all threads."""
    return {os.getpriority(os.PRIO_PROCESS, int(thread.name)) for thread in Path(f"/proc/{pid}/task").iterdir()}


@pytest.mark.skipif(sys.platform != "linux", reason="reads the threads of a process from /proc")
async def test_runners_turn_nice_with_all_their_threads_and_those_that_come_later_are() -> None:
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    async with fleet() as node:
        await node.submit(text="x").success()
        (view,) = node.pool.views()
        assert view.pid is not None
        assert len(psutil.Process(view.pid).threads()) > 1
        assert niceness(view.pid) == {usual}
        node.pool.be_nice(11)
        assert niceness(view.pid) == {11}
        node.pool.unload(0.0)
        await asyncio.to_thread(wait_gone, view.pid)
        await (await node.submit_when_free(text="y")).success()
        (view,) = node.pool.views()
        assert view.pid is not None
        assert niceness(view.pid) == {11}


async def test_idle_models_leave_memory_and_busy_ones_stay() -> None:
    async with fleet() as node:
        sink = node.submit(text="abc", chunks=3, delay_s=0.3)
        await sink.until(lambda: sink.chunks)
        node.pool.unload(0.0)
        await sink.success()
        (view,) = node.pool.views()
        assert view.phase == Phase.READY.value
        node.pool.unload(3600.0)
        assert node.pool.views()[0].phase == Phase.READY.value, "used a moment ago"
        node.pool.unload(0.0)
        assert view.pid is not None
        await asyncio.to_thread(wait_gone, view.pid)
