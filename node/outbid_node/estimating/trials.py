"""Trying a model on purpose: loaded as for a job, a few tiny jobs, and what they say of its speed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from outbid_contracts.capability import Capability, ModelFile
from outbid_contracts.errors import OutbidError, Refused
from outbid_contracts.runner import RunDone, RunFailed
from outbid_node.estimating.learner import Learner, Speed, WarmUp
from outbid_node.estimating.run import Run
from outbid_node.runners.attempt import Nobody
from outbid_node.runners.pool import RunnerPool

KEY = "calibration"
"""Names its attempts in the pool, in the place of a job's id."""


class Interrupted(Refused):
    """A job came, which goes first."""


@dataclass(frozen=True, slots=True)
class Tried:
    """`runs`, and what the runner said of itself when it came up."""

    runs: Sequence[Run]
    warm_up: WarmUp


class Trials:
    """One capability and model at a time."""

    def __init__(self, pool: RunnerPool) -> None:
        self._pool = pool
        self._key = ""
        self._interrupted = False

    @property
    def under_way(self) -> bool:
        return bool(self._key)

    def interrupt(self) -> None:
        """A job came."""
        if self._key:
            self._interrupted = True
            self._pool.cancel(self._key)

    async def run(
        self, capability: Capability, file: ModelFile | None, settings: Mapping[str, Any], within_s: float
    ) -> Tried:
        """Raises Interrupted if a job came, else an OutbidError that says why it cannot be tried."""
        self._interrupted = False
        runs = []
        try:
            async with asyncio.timeout(within_s):
                for number, trial in enumerate(capability.trials, 1):
                    self._key = f"{KEY}/{number}"
                    runs.append(await self._one(capability, file, settings, trial))
        except TimeoutError:
            raise Refused(f"it takes longer than {within_s:.0f} s") from None
        finally:
            self._pool.cancel(self._key)
            self._key = ""
        ready = self._pool.room(capability, file).ready
        if ready is None:
            raise Refused("its runner went away")
        return Tried(runs, WarmUp(ready.load_s, ready.rates, ready.fixed_s))

    async def _one(
        self, capability: Capability, file: ModelFile | None, settings: Mapping[str, Any], trial: Mapping[str, Any]
    ) -> Run:
        params = msgspec.convert(trial, capability.params)
        warm, began, ear = self._pool.room(capability, file).warm, time.monotonic(), _Ear()
        self._pool.run(capability, file, settings, self._key, msgspec.to_builtins(params), ear, heard=False)
        done = await ear.over
        if self._interrupted or done is None:
            raise Interrupted("a job came, which goes first")
        if isinstance(done, RunFailed):
            raise OutbidError(done.message)
        took_s = time.monotonic() - began
        return Run(capability.work(params), done.measured, took_s, warm=warm, at_s=time.time())


def conclude(tried: Tried, believed: Learner, at_most: tuple[str, ...]) -> Speed:
    """The speed that the trials show, had nothing else been seen."""
    alone = Learner(believed.prior, at_most)
    alone.warmed_up(tried.warm_up)
    for run in tried.runs:
        alone.note(run)
    return alone.speed()


class _Ear(Nobody):
    """Hears only how it ends: `over` is None if it was stopped."""

    def __init__(self) -> None:
        self.over: asyncio.Future[RunDone | RunFailed | None] = asyncio.get_running_loop().create_future()

    def done(self, message: RunDone, payloads: list[bytes]) -> None:
        self._end(message)

    def failed(self, message: RunFailed) -> None:
        self._end(message)

    def stopped(self) -> None:
        self._end(None)

    def _end(self, how: RunDone | RunFailed | None) -> None:
        if not self.over.done():
            self.over.set_result(how)
