"""What the tests of runners share: a pool that is always stopped, and a sink that can be waited on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import psutil

from outbid_capabilities import testing
from outbid_contracts.capability import Capability, Machine, ModelFile
from outbid_contracts.errors import Refused
from outbid_contracts.runner import RunDone, RunFailed
from outbid_node.runners import RunnerPool
from outbid_node.runners.limits import Limits

PATIENCE_S = 20.0
QUICK = Limits(ping_s=0.05, hang_s=0.5, load_hang_s=20.0, stop_s=0.3, cancel_s=0.3, kill_grace_s=0.3)


class Sink:
    """Records what it hears. `outcome` is a RunDone, a RunFailed or "stopped"."""

    def __init__(self) -> None:
        self.chunks: list[dict[str, Any]] = []
        self.payloads: list[bytes] = []
        self.checkpoints: list[tuple[int, int, bytes]] = []
        self.notes: list[str] = []
        self.outcome: RunDone | RunFailed | str | None = None
        self._news = asyncio.Event()

    def loading(self, fraction: float | None, note: str) -> None:
        self.notes.append(note)
        self._news.set()

    def chunk(self, data: dict[str, Any], payloads: list[bytes]) -> None:
        assert self.outcome is None
        self.chunks.append(data)
        self._news.set()

    def progress(self, step: int, steps: int, note: str, eta_s: float | None) -> None:
        self._news.set()

    def checkpoint(self, step: int, steps: int, data: bytes) -> None:
        self.checkpoints.append((step, steps, data))

    def done(self, message: RunDone, payloads: list[bytes]) -> None:
        self.payloads = payloads
        self._end(message)

    def failed(self, message: RunFailed) -> None:
        self._end(message)

    def stopped(self) -> None:
        self._end("stopped")

    def _end(self, outcome: RunDone | RunFailed | str) -> None:
        assert self.outcome is None, f"ended twice: {self.outcome}, then {outcome}"
        self.outcome = outcome
        self._news.set()

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self._news.clear()
                await self._news.wait()

    async def end(self) -> RunDone | RunFailed | str:
        await self.until(lambda: self.outcome)
        assert self.outcome is not None
        return self.outcome

    async def success(self) -> RunDone:
        outcome = await self.end()
        assert isinstance(outcome, RunDone), outcome
        return outcome

    async def failure(self) -> RunFailed:
        outcome = await self.end()
        assert isinstance(outcome, RunFailed), outcome
        return outcome


class Fleet:
    """A pool, and short ways to use it. `changes` is set whenever room changed."""

    def __init__(self, pool: RunnerPool, settings: dict[str, Any]) -> None:
        self.pool = pool
        self.settings = settings
        self.changes = asyncio.Event()
        pool.on_change = self.changes.set
        self._count = 0

    def submit(
        self, capability: Capability = testing.echo, model: ModelFile | None = None, key: str = "", **params: Any
    ) -> Sink:
        sink = Sink()
        self._count += 1
        self.pool.run(capability, model, self.settings, key or f"job-{self._count}/1", params, sink)
        return sink

    async def submit_when_free(self, **params: Any) -> Sink:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    return self.submit(**params)
                except Refused:
                    self.changes.clear()
                    await self.changes.wait()

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self.changes.clear()
                await self.changes.wait()

    def phase(self, model: str | None = None) -> str:
        return next((view.phase for view in self.pool.views() if view.model == model), "none")


@asynccontextmanager
async def fleet(
    *,
    budget_mib: float = 1000.0,
    keep_warm_s: float = 600.0,
    cpu_share: float = 1.0,
    limits: Limits = QUICK,
    pool: dict[str, Any] | None = None,
    **settings: Any,
) -> AsyncIterator[Fleet]:
    """A started pool whose runners have these settings; stopped at the end, and nothing is left of it."""
    made = RunnerPool(
        machine=Machine(cpu_share=cpu_share),
        budget_mib=budget_mib,
        keep_warm_s=keep_warm_s,
        limits=limits,
        **(pool or {}),
    )
    await made.start()
    try:
        yield Fleet(made, {"enabled": True} | settings)
    finally:
        pids = [view.pid for view in made.views() if view.pid is not None]
        await made.stop(0.0)
        for pid in pids:
            wait_gone(pid)


def model(name: str, memory_mib: float) -> ModelFile:
    return ModelFile(name=name, memory_mib=memory_mib)


def with_runner(target: str) -> Capability:
    return replace(testing.echo, runner=target)


def wait_gone(pid: int) -> None:
    """Wait for the end of a process that may not be ours."""
    try:
        psutil.Process(pid).wait(timeout=PATIENCE_S)
    except psutil.NoSuchProcess:
        return
