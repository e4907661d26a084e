"""Where jobs wait while every able node is busy: at their owner, in order, until a slot is free (late binding)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from outbid_contracts.errors import Busy
from outbid_contracts.events import Waiting
from outbid_contracts.ids import NodeId
from outbid_contracts.messages import Job
from outbid_node.registry import OfferKey, Registry


class WaitingRoom:
    """One queue per (capability, model). A queue's head is let go as soon as the registry knows of a free slot for
    it.
    """

    def __init__(self, registry: Registry, limit: int) -> None:
        self._registry = registry
        self._limit = limit
        self._queues: dict[OfferKey, deque[asyncio.Future[None]]] = {}
        registry.on_change.append(self._node_changed)

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

    async def queue(self, job: Job, tell: Callable[[Any], None]) -> None:
        """A new job goes behind those that wait already for the same thing; with none it passes at once."""
        if self._queues.get((job.capability, job.model)):
            tell(Waiting(job=job.id, reason="other jobs wait already"))
            await self.wait(job, first=False)

    async def wait(self, job: Job, *, first: bool = True) -> None:
        """Wait for room. `first`: the job was at the head before and keeps its place. Raises Busy when too many
        wait.
        """
        if len(self) >= self._limit:
            raise Busy(f"{self._limit} jobs wait already; try again later or raise limits.max_waiting")
        key = (job.capability, job.model)
        queue = self._queues.setdefault(key, deque())
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.appendleft(turn) if first else queue.append(turn)
        self._let_go(key)
        try:
            await turn
        finally:
            if turn in queue:
                queue.remove(turn)
            if not queue and self._queues.get(key) is queue:
                del self._queues[key]

    def _node_changed(self, node: NodeId, what: str) -> None:
        for key in list(self._queues):
            self._let_go(key)

    def _let_go(self, key: OfferKey) -> None:
        """Let as many go as there are free slots; with nobody able left, let the head go to hear why."""
        queue = self._queues.get(key)
        if not queue:
            return
        standing = self._registry.standing(*key)
        free = sum(s.free for s in standing if not s.offer.blocked) if standing else 1
        while queue and free > 0:
            turn = queue.popleft()
            if not turn.done():
                turn.set_result(None)
                free -= 1
