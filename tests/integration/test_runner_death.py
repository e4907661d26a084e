"""A runner does not outlive its daemon, however that dies; and it is a good child while it lives."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap

import psutil
import pytest

from outbid_node.runners.machine import Phase
from tests.integration.test_runner_support import fleet, wait_gone

DAEMON = """
    import asyncio, sys
    from tests.integration.test_runner_support import fleet
    from outbid_capabilities import testing

    async def main():
        async with fleet(children=1, cpu_share=float(sys.argv[1])) as node:
            await node.submit().success()
            ready = node.pool.room(testing.echo, None).ready
            sink = node.submit(chunks=100000, burn_s=0.01)
            await sink.until(lambda: sink.chunks)
            print(ready.info["pid"], *ready.info["children"], flush=True)
            await asyncio.sleep(1000)

    asyncio.run(main())
"""
linux_children = pytest.mark.skipif(sys.platform == "win32", reason="no process groups on Windows")


@linux_children
@pytest.mark.parametrize("cpu_share", [1.0, 0.1], ids=["full speed", "mostly paused"])
def test_a_killed_daemon_takes_its_runners_along(cpu_share: float) -> None:
    daemon = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(DAEMON), str(cpu_share)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert daemon.stdout is not None
    with daemon:
        pids = [int(pid) for pid in daemon.stdout.readline().split()]
        runner = psutil.Process(pids[0])
        assert runner.is_running()
        daemon.kill()
    wait_gone(pids[0])


@linux_children
def test_the_end_of_standard_input_ends_a_runner_and_its_children() -> None:
    """Where the kernel does not tell (other than Linux), the closed pipe does."""
    runner = subprocess.Popen(
        [sys.executable, "-c", "import subprocess, sys; " + KIT_BY_HAND],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        process_group=0,
        env=os.environ | {"OUTBID_RUNNER_ENDPOINT": "tcp://127.0.0.1:9", "OUTBID_RUNNER_TOKEN": "t"},
    )
    assert runner.stdin is not None
    assert runner.stdout is not None
    child = int(runner.stdout.readline())
    runner.stdin.close()
    assert runner.wait(timeout=20) in (1, -signal.SIGKILL)
    wait_gone(child)
    runner.stdout.close()


KIT_BY_HAND = (
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1000)']); "
    "print(child.pid, flush=True); "
    "from outbid_capabilities import runner_kit; runner_kit.main('outbid_capabilities.testing.runner:FakeRunner')"
)


@linux_children
async def test_ctrl_c_is_not_for_the_runner() -> None:
    async with fleet() as node:
        pid = (await node.submit().success()).result["pid"]
        assert os.getpgid(pid) == pid != os.getpgrp()
        os.kill(pid, signal.SIGINT)
        assert (await node.submit().success()).result["pid"] == pid


@linux_children
async def test_a_term_signal_ends_a_runner_in_order() -> None:
    async with fleet() as node:
        pid = (await node.submit().success()).result["pid"]
        os.kill(pid, signal.SIGTERM)
        await node.until(lambda: node.phase() in (Phase.STOPPED, Phase.DEAD))


async def test_a_share_of_the_processor_is_kept() -> None:
    """0.2 s of computing at a fifth of the time take about a second."""
    async with fleet(cpu_share=0.2) as node:
        await node.submit().success()
        begun = asyncio.get_running_loop().time()
        await node.submit(burn_s=0.2).success()
        took_s = asyncio.get_running_loop().time() - begun
        assert took_s > 0.2 / 0.2 * 0.8  # the last pause is not waited for


async def test_a_paused_runner_can_be_stopped() -> None:
    async with fleet(cpu_share=0.2, ignore_term=True) as node:
        sink = node.submit(chunks=1000, burn_s=0.01)
        await sink.until(lambda: sink.chunks)
        await node.pool.stop(0.0)
        await sink.failure()
        assert node.phase() in (Phase.STOPPED, Phase.DEAD)
