"""Handing the outcome of attempts to their owners, however long that takes."""

from __future__ import annotations

import asyncio
import logging
import time

import msgspec

from outbid_contracts import subjects
from outbid_contracts.codec import encode
from outbid_contracts.errors import OutbidError, PayloadTooLarge
from outbid_contracts.ids import NodeId
from outbid_contracts.messages import Failed, Job, Settle, Settled
from outbid_node.client import Bus, NoResponders

log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 15 * 1024 * 1024
"""What fits the bus (16 MiB a message) with its headers."""

SETTLE_TRIES = 20
"""One-second tries to hand a result to its owner before it is dropped (an interactive caller is gone by then)."""

KEEP_DURABLE_S = 3600.0
"""How long the result of a durable job is offered to an owner that is away."""

DURABLE_TRY_S = 5.0
"""Its owner acknowledges it once it is on disk. Also the longest pause between two tries."""


class Settler:
    """`unsettled`: ended attempts whose owner has not taken the result yet."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.unsettled: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, job: Job, settle: Settle) -> None:
        self.unsettled.add(f"{settle.job}/{settle.attempt}")  # now: a lease check may come before the task's first step
        task = asyncio.create_task(self._settle(job, fitting(settle)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self, timeout_s: float) -> None:
        """Wait for the last ones to be delivered."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)

    async def _settle(self, job: Job, settle: Settle) -> None:
        key = f"{settle.job}/{settle.attempt}"
        self.unsettled.add(key)
        try:
            if not await (self._settle_durable(job, settle) if job.durable else self._settle_soon(job, settle)):
                log.warning("owner of %s never took its result", settle.job, extra={"action": "settle_dropped"})
        finally:
            self.unsettled.discard(key)

    async def _settle_soon(self, job: Job, settle: Settle) -> bool:
        for _ in range(SETTLE_TRIES):
            if await self._offer_result(job.owner, settle, timeout_s=1.0):
                return True
            await asyncio.sleep(0.5)
        return False

    async def _settle_durable(self, job: Job, settle: Settle) -> bool:
        until, pause_s = time.monotonic() + KEEP_DURABLE_S, 0.25
        while time.monotonic() < until:
            if await self._offer_result(job.owner, settle, timeout_s=DURABLE_TRY_S):
                return True
            await asyncio.sleep(pause_s)
            pause_s = min(DURABLE_TRY_S, 1.5 * pause_s)
        return False

    async def _offer_result(self, owner: NodeId, settle: Settle, *, timeout_s: float) -> bool:
        """False: ask again, the owner does not answer or cannot take it now."""
        try:
            reply: Settled = await self.bus.call(subjects.node(owner, "settle"), settle, Settled, timeout_s=timeout_s)
        except (NoResponders, TimeoutError):
            return False
        except OutbidError as error:
            log.warning("settling %s: %s", settle.job, error, extra={"action": "settle_refused"})
            return error.status < 500
        if not reply.accepted:
            log.info("stale result of %s was refused", settle.job, extra={"action": "settle_stale"})
        return True


def fitting(settle: Settle) -> Settle:
    size = len(encode(settle))
    if size <= MAX_MESSAGE_BYTES:
        return settle
    return msgspec.structs.replace(settle, outcome=too_large("the result", size, settle.outcome.chunks))


def too_large(what: str, size: int, chunks: int) -> Failed:
    message = f"{what} has {size / 2**20:.1f} MiB; a message may have {MAX_MESSAGE_BYTES // 2**20}"
    return Failed(error=PayloadTooLarge(message).body(), retry=False, chunks=chunks)
