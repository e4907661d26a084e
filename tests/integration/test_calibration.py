"""A node tries what never ran on it: by itself once, when nobody needs the machine, and never in the way of a job."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from outbid_capabilities import testing
from outbid_capabilities.image.declaration import capabilities as images
from outbid_capabilities.llm.declaration import chat
from outbid_contracts.capability import Capability, Machine
from outbid_contracts.ids import JobId, NodeId
from outbid_contracts.messages import Accepted, Award, Job, Resources
from outbid_node.catalogue import Catalogue, Entry
from outbid_node.client import Bus
from outbid_node.config_sections import LimitsSection, PowerSection
from outbid_node.estimating import assembly
from outbid_node.estimating.assembly import Estimating
from outbid_node.estimating.speeds import Speeds
from outbid_node.estimating.trials import Interrupted
from outbid_node.estimating.trust import Trust
from outbid_node.history.interface import Note
from outbid_node.history.rows import Calibrations
from outbid_node.power.meter import EnergyMeter
from outbid_node.registry import Registry
from outbid_node.runners import RunnerPool
from outbid_node.runners.attempt import Nobody
from outbid_node.terms import Terms
from outbid_node.worker import Worker

ME = NodeId("me")
PACE = 3.0
"""So many times slower than the capability's guess is the machine."""

TRIALS = ({"text": "abc", "chunks": 3, "delay_s": 0.01}, {"text": "abcdef", "chunks": 6, "delay_s": 0.02})


class Notes:
    """A history that keeps rows in memory; what was there before is given."""

    def __init__(self) -> None:
        self.rows: list[Note] = []

    def note(self, note: Note) -> None:
        self.rows.append(note)

    async def read(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        return []

    async def ask(self, verb: str, payload: bytes, timeout_s: float) -> bytes:
        raise NotImplementedError

    @property
    def calibrations(self) -> list[Calibrations]:
        return [row for row in self.rows if isinstance(row, Calibrations)]


class Node:
    """The parts of a node that take part in a calibration, in this process; the runner is a real one."""

    def __init__(self, pool: RunnerPool, trials: Sequence[dict[str, Any]], slots: int) -> None:
        echo = dataclasses.replace(testing.echo, trials=tuple(trials))
        section = testing.TestSettings(enabled=True, pace=PACE, slots=slots)
        self.catalogue = Catalogue({echo.name: echo}, {"test": section}, Speeds(), Machine())
        meter = EnergyMeter(PowerSection(), lambda: self.resources, pool.processes)
        self.worker = Worker(node=ME, bus=Bus("test"), pool=pool, catalogue=self.catalogue, meter=meter, zone="lan")
        self.registry, self.history = Registry(ME), Notes()
        self.resources = Resources()
        self.pool = pool
        self.entry = self.catalogue.entries[echo.name]
        auctioneer = SimpleNamespace(stretch=None)
        owner: Any = SimpleNamespace(
            trust=Trust(), registry=self.registry, placer=SimpleNamespace(auctioneer=auctioneer)
        )
        limits = LimitsSection(calibrate=True)
        self.estimating = Estimating(self.worker, owner, self.history, lambda: self.resources, limits)

    @property
    def rate(self) -> float:
        """Seconds that a second of `test.echo` is believed to take here."""
        return self.catalogue.speed(self.entry.capability, None).rates["seconds"]

    @asynccontextmanager
    async def looking(self) -> AsyncIterator[Callable[[], int]]:
        """Let it look by itself whether there is something to be tried; how often it did."""
        looks, usable = 0, self.catalogue.usable

        def counted() -> list[Entry]:
            nonlocal looks
            looks += 1
            return usable()

        self.catalogue.usable = counted  # type: ignore[method-assign]
        await self.estimating.start()
        running = asyncio.create_task(self.estimating.run())
        yield lambda: looks
        running.cancel()

    def award(self) -> object:
        params = {"text": "x", "chunks": 1, "delay_s": 0.01}
        job = Job(id=JobId("real"), owner=ME, capability="test.echo", params=params, work={"chunks": 1.0})
        return self.worker.award(Award(job=job, attempt=1))


@asynccontextmanager
async def node(trials: Sequence[dict[str, Any]] = TRIALS, slots: int = 4) -> AsyncIterator[Node]:
    pool = RunnerPool(machine=Machine(), budget_mib=1000, keep_warm_s=600)
    await pool.start()
    try:
        yield Node(pool, trials, slots)
    finally:
        await pool.stop(0.0)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that has been idle long enough as soon as it starts."""
    monkeypatch.setattr(assembly, "IDLE_S", 0.0)
    monkeypatch.setattr(assembly, "LOOK_S", 0.01)


async def until(condition: Callable[[], Any], within_s: float = 30.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_a_calibration_finds_the_speed_notes_it_and_unloads() -> None:
    async with node() as n:
        assert n.rate == pytest.approx(1.0)
        believed, shown = await n.estimating.calibrate(n.entry, None)
        assert believed.rates["seconds"] == pytest.approx(1.0)
        assert shown.rates["seconds"] == pytest.approx(PACE, rel=0.3)
        assert n.rate == pytest.approx(PACE, rel=0.3)
        assert n.catalogue.speed(n.entry.capability, None).source == "calibration"
        (row,) = n.history.calibrations
        assert row.rates["seconds"] == pytest.approx(n.rate)
        await until(lambda: not n.pool.warm())


@pytest.mark.usefixtures("at_once")
async def test_an_idle_node_tries_what_never_ran_and_only_once() -> None:
    async with node() as n, n.looking() as looks:
        await until(lambda: n.history.calibrations and not n.pool.warm())
        seen = looks()
        await until(lambda: looks() > seen + 10)
        assert len(n.history.calibrations) == 1
        assert not n.pool.warm()


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("hindrance", ["battery", "person", "draining", "warm"])
async def test_it_waits_while_somebody_needs_the_machine_or_its_battery(hindrance: str) -> None:
    async with node() as n:
        n.resources = Resources(on_battery=hindrance == "battery")
        n.worker.draining = hindrance == "draining"
        n.worker.terms = lambda own: Terms(slower=2.0 if hindrance == "person" else 1.0)
        if hindrance == "warm":
            n.pool.run(n.entry.capability, None, dict(n.entry.settings), "other/1", {"text": "x"}, Nobody())
        async with n.looking() as looks:
            await until(lambda: looks() > 10)
        assert n.history.calibrations == []
        assert n.pool.warm() == [] or hindrance == "warm"


@pytest.mark.parametrize("loaded", [True, False])
async def test_a_job_goes_first(loaded: bool) -> None:
    """Also where the calibration has the only slot: the job is refused at most until that is free again."""
    endless = ({"text": "x", "chunks": 1, "delay_s": 600.0},)
    async with node(endless, slots=1) as n:
        calibrating = asyncio.create_task(n.estimating.calibrate(n.entry, None))
        await until(lambda: n.pool.warm() if loaded else n.estimating._trials.under_way)
        n.award()
        with pytest.raises(Interrupted):
            await asyncio.wait_for(calibrating, 10)

        def accepted() -> bool:
            return isinstance(n.award(), Accepted)

        await until(accepted, 10)
        await until(lambda: not n.worker.attempts, 10)
        assert n.history.calibrations == []
        assert n.rate == pytest.approx(1.0, abs=0.01) or n.catalogue.learner(n.entry.capability, None).runs == 1


async def test_what_cannot_be_tried_says_why() -> None:
    async with node(({"text": "x", "crash": "exception", "crash_after": 0},)) as n:
        with pytest.raises(Exception, match="crashed as asked"):
            await n.estimating.calibrate(n.entry, None)


@pytest.mark.parametrize("capability", [chat, *images()], ids=lambda capability: capability.name)
def test_the_trials_of_a_capability_are_requests_of_its_own(capability: Capability) -> None:
    for trial in capability.trials:
        assert sum(capability.work(msgspec.convert(trial, capability.params)).values()) > 0
