"""One job per id, though several nodes may be handed the same id at the same moment."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from outbid_contracts.ids import JobId

AGAIN_S = 0.03
"""About how long a submit that met another's claim steps back."""


class Claims:
    """The ids that submits under way are about to make jobs of.

    A submit claims its ids, asks every other node, and goes on only if nobody knows or claims one of them; else it
    lets go, waits and asks again. Of two nodes that ask each other at least one sees the other's claim, since each
    claims before it asks.
    """

    def __init__(self) -> None:
        self._held: dict[JobId, asyncio.Event] = {}

    def among(self, ids: Collection[JobId]) -> tuple[JobId, ...]:
        return tuple(id for id in ids if id in self._held)

    async def until_free(self, ids: Collection[JobId]) -> None:
        """Until no other submit of this node claims one of them. Claim them before anything else can happen."""
        while held := [self._held[id] for id in ids if id in self._held]:
            await held[0].wait()

    @contextmanager
    def held(self, ids: Collection[JobId]) -> Iterator[None]:
        over = asyncio.Event()
        self._held.update(dict.fromkeys(ids, over))
        try:
            yield
        finally:
            for id in ids:
                del self._held[id]
            over.set()


async def step_back(turn: int) -> None:
    """Between two tries, long enough that one of those who met is through."""
    await asyncio.sleep(random.uniform(0.5, 1.5) * AGAIN_S * min(8, 2**turn))
