"""What a caller waits for, and what becomes of it when it no longer does: time-outs, and jobs called off."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from outbid_contracts.errors import OutbidError
from outbid_contracts.ids import JobId

CALL_OFF_S = 5.0
"""How long a node may take to be told that nobody waits for a job any more."""

LAST_CALLS_S = 2.0
"""How long closing a mesh waits for those on their way."""


class TimedOut(OutbidError, TimeoutError):
    """The job was not done within the time that its caller gave it; it was cancelled."""

    code = "timed_out"
    status = 504


def timed_out(job: JobId, timeout_s: float | None) -> TimedOut:
    return TimedOut(f"job {job} was not done within {timeout_s or 0:g} s; it was cancelled", job=job)


class Abandoned:
    """Jobs that nobody waits for any more: each is cancelled in the background, whoever stopped waiting is not held up.

    What becomes of that concerns nobody: a job that nobody knows, or a node that does not answer, has ended anyway.
    """

    def __init__(self, cancel: Callable[[JobId], Awaitable[Any]]) -> None:
        self._cancel = cancel
        self._under_way: set[asyncio.Task[None]] = set()

    def call_off(self, job: JobId) -> None:
        task = asyncio.get_running_loop().create_task(self._told(job))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def settled(self) -> None:
        """Until all are told; what is not by then never is."""
        if self._under_way:
            await asyncio.wait(set(self._under_way), timeout=LAST_CALLS_S)
        for task in self._under_way:
            task.cancel()

    async def _told(self, job: JobId) -> None:
        with suppress(OutbidError, TimeoutError):
            async with asyncio.timeout(CALL_OFF_S):
                await self._cancel(job)
