"""Killing, freezing and cutting off nodes at random moments, until it is enough.

Only what is handed in as a victim is touched. Each victim suffers one thing at a time, and at most half of them are
down, frozen or cut off.
"""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from random import Random

from outbid.chaos.record import Notes
from outbid.chaos.victims import Victim, children, send, until_up
from outbid.connection import local_node

WEIGHTS = {"runner": 35, "daemon": 30, "router": 12, "ledger": 12, "freeze": 7, "cut": 4}
"""What happens how often."""

CHILDREN = frozenset({"runner", "router", "ledger"})
PROCESSES = CHILDREN | {"daemon"}

Cut = Callable[[Sequence[Victim]], Callable[[], None]]
"""Cuts these victims from the others; what it returns heals that."""


class Storm:
    """`run` until it is told to stop; then every victim runs again, and `hits` says what happened how often."""

    def __init__(
        self,
        victims: Sequence[Victim],
        notes: Notes,
        random: Random,
        *,
        pause_s: tuple[float, float],
        down_s: tuple[float, float] = (0.2, 2.0),
        cut: Cut | None = None,
        weights: Mapping[str, int] = WEIGHTS,
    ) -> None:
        """`pause_s`: the least and the most time between two hits; `down_s`: before a killed daemon is started again.
        Without `cut`, a router is frozen instead.
        """
        self.hits: Counter[str] = Counter()
        self._victims = list(victims)
        self._ids = {victim.name: local_node(victim.state).node for victim in victims}
        self._notes = notes
        self._random = random
        self._pause_s = pause_s
        self._down_s = down_s
        self._cut = cut
        self._weights = dict(weights)
        self._suffering: dict[str, asyncio.Task[None]] = {}
        self._parted = False
        self._stopped: set[int] = set()
        """Processes under SIGSTOP."""

    @property
    def kills(self) -> int:
        return sum(count for what, count in self.hits.items() if what in PROCESSES)

    async def run(self, more: Callable[[], bool]) -> None:
        """Hit victims while `more()` says so. Raises NotBack."""
        try:
            while more():
                await asyncio.sleep(self._random.uniform(*self._pause_s))
                self._hit()
                self._raise_failures()
            await asyncio.gather(*self._suffering.values())
        finally:
            await self._end()

    def _raise_failures(self) -> None:
        for name, task in list(self._suffering.items()):
            if task.done():
                del self._suffering[name]
                task.result()

    def _hit(self) -> None:
        well = [victim for victim in self._victims if victim.name not in self._suffering]
        self._random.shuffle(well)
        what = self._random.choices(list(self._weights), list(self._weights.values()))[0]
        if what in CHILDREN:
            well = [victim for victim in well if children(victim, what)][:1]
        elif len(self._suffering) >= max(1, len(self._victims) // 2) or (what == "cut" and self._parted):
            return
        if well:
            self._suffer(what, well[:2] if what == "cut" and self._cut else well[:1])

    def _suffer(self, what: str, victims: Sequence[Victim]) -> None:
        match what:
            case "daemon":
                work = self._kill_daemon(victims[0])
            case "freeze":
                work = self._freeze(victims[0])
            case "cut":
                work = self._part(victims) if self._cut else self._freeze_router(victims[0])
            case _:
                work = self._kill_child(victims[0], what)
        task = asyncio.create_task(work)
        self._suffering |= {victim.name: task for victim in victims}

    # -- what may happen ------------------------------------------------------------------------------------------

    async def _kill_daemon(self, victim: Victim) -> None:
        with self._noted("daemon", victim):
            victim.kill()
        await asyncio.sleep(self._random.uniform(*self._down_s))
        victim.spawn()
        await until_up(victim)

    async def _kill_child(self, victim: Victim, what: str) -> None:
        """A runner or a server; the daemon sees to it that another takes its place."""
        pids = children(victim, what)
        if pids:
            with self._noted(what, victim):
                send(self._random.choice(pids), signal.SIGKILL)
        await asyncio.sleep(0.1)

    async def _freeze(self, victim: Victim) -> None:
        await self._stop([victim.pid], victim, self._random.uniform(0.5, 5.0))

    async def _freeze_router(self, victim: Victim) -> None:
        await self._stop(children(victim, "router"), victim, self._random.uniform(1.0, 5.0))

    async def _part(self, victims: Sequence[Victim]) -> None:
        assert self._cut is not None
        everybody = list(self._ids.values())
        self._notes.note("cut", nodes=everybody)
        heal, self._parted = self._cut(victims), True
        self.hits["cut"] += 1
        try:
            await asyncio.sleep(self._random.uniform(1.0, 6.0))
        finally:
            heal()
            self._parted = False
            self._notes.note("healed", nodes=everybody)

    async def _stop(self, pids: Sequence[int], victim: Victim, seconds: float) -> None:
        node = self._ids[victim.name]
        self._notes.note("frozen", node=node)
        self.hits["freeze"] += 1
        for pid in pids:
            self._stopped.add(pid)
            send(pid, signal.SIGSTOP)
        await asyncio.sleep(seconds)
        self._resume(pids)
        self._notes.note("resumed", node=node)

    def _resume(self, pids: Sequence[int]) -> None:
        for pid in pids:
            send(pid, signal.SIGCONT)
            self._stopped.discard(pid)

    def _noted(self, process: str, victim: Victim) -> AbstractContextManager[None]:
        self.hits[process] += 1
        return self._notes.kill(process, self._ids[victim.name])

    async def _end(self) -> None:
        self._resume(list(self._stopped))
        for task in self._suffering.values():
            task.cancel()
        await asyncio.gather(*self._suffering.values(), return_exceptions=True)
