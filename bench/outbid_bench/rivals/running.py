"""One of the compared systems at work: its server, its worker, and a caller in a process of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outbid_bench.processes import Helper, clean_environment
from outbid_bench.rivals.driving import Driven
from outbid_bench.rivals.servers import Server
from outbid_bench.rivals.systems import System

PREPARE_TIMEOUT_S = 60.0
END_TIMEOUT_S = 5.0


class Failed(Exception):
    """A compared system did not start, or a job of its did not run as it should."""


@dataclass(frozen=True, slots=True)
class Running:
    """A worker that polls stands still (SIGSTOP) while it is not driven. One that waits for a message must not: it
    would time out when it goes on, and lose a message that it was being given.
    """

    system: System
    caller: Helper
    server: Server | None
    worker: subprocess.Popen[bytes] | None

    async def drive(self, in_flight: int, seconds: float, **more: Any) -> Driven:
        """Raises Failed, with the caller's log, if a job failed or gave a wrong result."""
        question = {"in_flight": in_flight, "seconds": seconds} | dict(self.system.extra) | more
        self._signal(signal.SIGCONT)
        try:
            return Driven(**await self.caller.ask(**question))
        except (RuntimeError, TimeoutError) as error:
            raise Failed(f"{self.system.title} failed: {error}") from error
        finally:
            self.rest()

    def rest(self) -> None:
        self._signal(signal.SIGSTOP)

    def _signal(self, number: signal.Signals) -> None:
        if self.worker is not None and self.system.polls:
            with suppress(ProcessLookupError):  # a worker that died shows in its jobs
                os.killpg(self.worker.pid, number)


@asynccontextmanager
async def running(system: System, folder: Path) -> AsyncIterator[Running]:
    """Started, and a job went through; nothing of it is left afterwards. Raises Failed if it does not start."""
    async with AsyncExitStack() as stack:
        folder.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - quick
        try:
            found = await _started(stack, system, folder)
        except (OSError, RuntimeError, TimeoutError, subprocess.SubprocessError) as error:
            raise Failed(f"{system.title} did not start: {error}") from error
        found.rest()
        yield found


async def _started(stack: AsyncExitStack, system: System, folder: Path) -> Running:
    log = folder / "log"
    environ = dict(system.environ)
    server = None
    if system.server is not None:
        server = system.server(folder)
        await asyncio.to_thread(server.__enter__)
        stack.push(server)
        environ["OUTBENCH_URL"] = server.url
    if system.prepare:
        await asyncio.to_thread(_prepare, system, environ, log)
    worker = stack.enter_context(_worker(system, environ, log)) if system.worker else None
    caller = await stack.enter_async_context(Helper(f"rivals.{system.module}", log=log, environ=environ))
    return Running(system, caller, server, worker)


def _prepare(system: System, environ: Mapping[str, str], log: Path) -> None:
    with log.open("ab") as file:
        subprocess.run(
            [sys.executable, *system.prepare],
            check=True,
            timeout=PREPARE_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=clean_environment(environ),
        )


@contextmanager
def _worker(system: System, environ: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """In a process group of its own, so that the processes it started end with it."""
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, *system.worker],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=clean_environment(environ),
            cwd=log.parent,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        _end_group(process)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the worker, which ends its own; SIGKILL to all that is left."""
    process.send_signal(signal.SIGTERM)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGCONT)
    with suppress(subprocess.TimeoutExpired):
        process.wait(END_TIMEOUT_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
