"""What an attempt takes in joules and dollars, and what the machine draws: the sources read at a beat, and shared."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from outbid_contracts.messages import Resources
from outbid_node import aside, pace
from outbid_node.config_sections import PowerSection
from outbid_node.power.account import Account, Spent
from outbid_node.power.processor import Runner
from outbid_node.power.sources import Draw, Sources, State
from outbid_node.power.tariff import Tariff

__all__ = ["EnergyMeter", "Meter", "Spent"]

log = logging.getLogger(__name__)

BEAT_S = 0.1
"""Between readings while attempts are under way: RAPL and the cards' counters are good for milliseconds, and what a job
takes after the last reading is a guess.
"""
REST_BEATS = 2
REST_S = REST_BEATS * pace.BEAT_S
"""Between readings while nothing runs."""
SHOWN_S = 1.0
"""What is told of the machine is the mean of so long at least."""
STUCK_S = 10.0
"""A reading that takes longer (a driver that hangs) is given up, and the cards with it; the next such, and all are."""

Processes = Mapping[Runner, tuple[int, str]]
"""Process id and kind of device of each runner that is alive."""


class Meter(Protocol):
    """`key` names an attempt; those under way at once share what is drawn. `device` is the kind (cpu, cuda, mps), empty
    while not known; `runner` is the runner's class and model.
    """

    def begin(self, key: str, device: str, runner: Runner) -> None: ...

    def end(self, key: str) -> Spent | None:
        """None if it never began, or has ended."""

    def watts(self, device: str, runner: Runner) -> float:
        """The extra watts expected while such an attempt runs, in its usual company; for bids."""

    def usd_per_s(self, watts: float) -> float:
        """What a second of it costs now, rent and electricity; for bids."""


class EnergyMeter:
    """The node's own. `begin` and `end` are for the event loop and take microseconds; files are read in a thread.

    `resources` and `processes` are asked at each beat. `root` and `nvml` are for tests.
    """

    def __init__(
        self,
        power: PowerSection,
        resources: Callable[[], Resources],
        processes: Callable[[], Processes],
        root: Path = Path("/"),
        nvml: Any = None,
    ) -> None:
        self._power = power
        self._tariff = Tariff(power.usd_per_kwh, power.tariff)
        self._resources = resources
        self._processes = processes
        self._root, self._nvml = root, nvml
        self.account = Account(prior_w=max(0.0, power.busy_w - power.idle_w), usd_per_h=power.usd_per_h)
        self._sources = Sources(power, root, nvml)
        self._stuck = 0
        self._reader: Reader | None = None
        self._read_at = float("-inf")
        self._second = (0.0, 0.0)
        self._now: dict[str, Any] = {}
        self._denied = False
        self._begun = asyncio.Event()
        self.recall: Callable[[], Awaitable[None]] = _nothing
        """Asked once: what attempts took before this start."""
        self.on_reading: Callable[[], None] = lambda: None
        """After each one; for tests."""

    def begin(self, key: str, device: str, runner: Runner) -> None:
        if not self.account.active:
            self._begun.set()
        self.account.begin(key, device, runner, time.monotonic())

    def end(self, key: str) -> Spent | None:
        return self.account.end(key, time.monotonic())

    def watts(self, device: str, runner: Runner) -> float:
        return self.account.watts(device, runner)

    def usd_per_s(self, watts: float) -> float:
        return self.account.usd_per_s + watts * self.account.usd_per_j

    def drawn(self) -> dict[str, Any]:
        """`power_w` and `power_source` of the machine, as in Resources: the mean over the last second."""
        return self._now

    async def run(self) -> None:
        """Read until cancelled."""
        recalling = asyncio.ensure_future(self.recall())
        try:
            while True:
                self.beat()
                await self._until_next()
        finally:
            recalling.cancel()
            if self._reader is not None:
                self._reader.close()

    async def _until_next(self) -> None:
        """A beat while attempts are under way; while nothing runs one wake-up in REST_S is enough."""
        if not self.account.active:
            self._begun.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pace.left_s(REST_BEATS)):
                    await self._begun.wait()
                    await asyncio.sleep(BEAT_S)
            return
        await asyncio.sleep(BEAT_S)

    def beat(self) -> None:
        """Ask for a reading if one is due. Nothing waits for it."""
        now, wall = time.monotonic(), time.time()
        self.account.usd_per_j = self._tariff.usd_per_j(wall, wall)
        if self._reader is not None and self._reader.busy:
            if now - self._read_at > STUCK_S and self._stuck < 2:
                self._give_up()
            return
        if not self.account.active and now - self._read_at < REST_S - BEAT_S:
            return
        self._read_at = now
        state, sources = self._state(), self._sources
        self._reader = self._reader or Reader(self._take)
        self._reader.ask(lambda: sources.read(time.monotonic(), state))

    def _state(self) -> State:
        processes, resources = self._processes(), self._resources()
        self.account.devices |= {runner: device for runner, (_, device) in processes.items() if device}
        return State(
            quiet=not self.account.active,
            on_card=self.account.on_card,
            battery_w=resources.battery_w if resources.on_battery else None,
            pids={runner: pid for runner, (pid, _) in processes.items()},
        )

    def _take(self, draw: Draw | None) -> None:
        if draw is not None:
            wall = time.time() - (time.monotonic() - draw.ended)
            self.account.close(draw, self._tariff.usd_per_j(wall - draw.seconds, wall))
            self._show(draw)
        self._say_if_denied()
        self.on_reading()

    def _show(self, draw: Draw) -> None:
        joules, seconds = self._second
        joules, seconds = joules + draw.machine_w * draw.seconds, seconds + draw.seconds
        if seconds >= SHOWN_S or not self._now:
            self._now = {"power_w": round(joules / seconds, 1), "power_source": draw.source}
            joules = seconds = 0.0
        self._second = joules, seconds

    def _say_if_denied(self) -> None:
        if self._sources.rapl.denied and not self._denied:
            text = "the processor counts its joules, but this user may not read them; `outbid doctor` says what to do"
            log.info(text, extra={"action": "rapl_denied"})
        self._denied = self._sources.rapl.denied

    def _give_up(self) -> None:
        """At first the cards, whose drivers are what hangs; then the watts that were learned have to do."""
        self._stuck += 1
        what = "graphics cards are" if self._stuck == 1 else "machine is"
        text = "no watts were told for %.0f s; the %s not asked any more"
        log.warning(text, STUCK_S, what, extra={"action": "power_stuck"})
        if self._reader is not None and self._stuck == 1:
            self._reader.close()
            self._reader = None
            self._sources = Sources(self._power, self._root, self._nvml, cards=False)


class Reader:
    """Reads one thing at a time in `aside` and tells the loop the result. One that hangs holds nobody up."""

    def __init__(self, tell: Callable[[Draw | None], None]) -> None:
        self.busy = False
        self._tell = tell
        self._loop = asyncio.get_running_loop()

    def ask(self, read: Callable[[], Draw | None]) -> None:
        self.busy = True
        aside.do(partial(self._read, read))

    def close(self) -> None:
        self._tell = lambda draw: None

    def _read(self, read: Callable[[], Draw | None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._done, _tried(read))

    def _done(self, draw: Draw | None) -> None:
        self.busy = False
        self._tell(draw)


async def _nothing() -> None:
    pass


def _tried(read: Callable[[], Draw | None]) -> Draw | None:
    try:
        return read()
    except Exception:
        log.exception("the watts cannot be read", extra={"action": "power_unread"})
        return None
