"""The meter: sources read at a beat in a thread, and what attempts are charged; on a made-up /sys tree."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from outbid_contracts.messages import Resources
from outbid_node import aside
from outbid_node.config_sections import PowerSection
from outbid_node.power import meter as meter_module
from outbid_node.power import rapl
from outbid_node.power.meter import EnergyMeter
from outbid_node.power.processor import Processor, Runner, Worked
from outbid_node.resources import ResourceProbe
from tests.fleet import eventually
from tests.unit.test_power_sources import advance, domain
from tests.unit.test_resources import FakeNvml, tree

ME: Runner = ("me", None)
POWER = PowerSection(idle_w=30.0, busy_w=130.0, base_w=20.0, usd_per_kwh=3.6, tariff=())
USD_PER_J = 1e-6


class Watched:
    """A meter whose beats the test gives, so that it knows what each reading saw."""

    def __init__(self, root: Path, nvml: Any = None, resources: Resources | None = None) -> None:
        found = resources or Resources()
        self.meter = EnergyMeter(POWER, lambda: found, lambda: {ME: (os.getpid(), "cpu")}, root, nvml)
        self.read = asyncio.Event()
        self.meter.on_reading = self.read.set

    async def beat(self) -> None:
        self.read.clear()
        self.meter._read_at = float("-inf")
        self.meter.beat()
        await asyncio.wait_for(self.read.wait(), 20)


async def test_two_attempts_at_once_together_get_what_was_drawn_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Processor, "read", lambda self, pids: Worked(4.0, {ME: 3.0}, 0.5))
    tree(tmp_path, domain("intel-rapl:0", "package-0", 0))
    watched = Watched(tmp_path)
    await watched.beat()
    await watched.beat()  # idle: the counter stands still
    watched.meter.begin("a/1", "cpu", ME)
    watched.meter.begin("b/1", "cpu", ME)
    for _ in range(3):
        advance(tmp_path, rapl0=0.001)
        await watched.beat()
    a, b = watched.meter.end("a/1"), watched.meter.end("b/1")
    await watched.beat()
    assert a is not None
    assert b is not None
    assert a.source == b.source == "rapl"
    assert a.energy_j + b.energy_j + watched.meter.account.owed_j == pytest.approx(0.75 * 0.003, rel=1e-3)
    assert a.energy_j == pytest.approx(b.energy_j, rel=0.25)
    assert a.cost_usd == pytest.approx(a.energy_j * USD_PER_J)


async def test_the_machines_watts_are_told_with_its_resources(tmp_path: Path) -> None:
    tree(tmp_path, domain("intel-rapl:0", "package-0", 0))
    probe = ResourceProbe(root=tmp_path, nvml=FakeNvml(), platform="linux")
    watched = Watched(tmp_path)
    probe.drawn = watched.meter.drawn
    assert probe.read().power_w is None
    for _ in range(2):
        await watched.beat()
    found = probe.read()
    assert (found.power_w, found.power_source) == (20.0, "rapl")


async def test_a_machine_on_battery_tells_what_flows_out_of_it(tmp_path: Path) -> None:
    watched = Watched(tmp_path, resources=Resources(on_battery=True, battery_w=17.5))
    for _ in range(2):
        await watched.beat()
    assert watched.meter.drawn() == {"power_w": 17.5, "power_source": "battery"}
    plugged = Watched(tmp_path, resources=Resources(on_battery=False, battery_w=17.5))
    for _ in range(2):
        await plugged.beat()
    assert plugged.meter.drawn()["power_source"] == "declared"


async def test_counters_that_may_not_be_read_are_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(file: Path) -> str:
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(rapl, "read", refuse)
    watched = Watched(tree(tmp_path, domain("intel-rapl:0", "package-0", 0)).root)
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            await watched.beat()
    assert [getattr(record, "action", "") for record in caplog.records].count("rapl_denied") == 1
    assert watched.meter.drawn()["power_source"] == "declared"


async def test_a_driver_that_hangs_costs_the_cards_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meter_module, "STUCK_S", 0.2)
    monkeypatch.setattr(aside, "STUCK_S", 0.05)
    let_go = threading.Event()

    class HangingNvml(FakeNvml):
        def nvmlDeviceGetTotalEnergyConsumption(self, handle: object) -> int:
            let_go.wait(60)
            return 0

    watched = Watched(tmp_path, HangingNvml())
    running = asyncio.create_task(watched.meter.run())
    watched.meter.begin("a/1", "cpu", ME)
    try:
        await eventually(watched.meter.drawn, 20, "no watts were told")
    finally:
        let_go.set()
        running.cancel()
    assert watched.meter.drawn()["power_source"] == "declared"
    spent = watched.meter.end("a/1")
    assert spent is not None
    assert spent.energy_j >= 0


async def test_a_reading_that_raises_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(tmp_path)

    def fail(self: Processor, pids: object) -> Worked:
        raise RuntimeError("no /proc here")

    monkeypatch.setattr(Processor, "read", fail)
    await watched.beat()
    assert "power_unread" in [getattr(record, "action", "") for record in caplog.records]
    watched.meter.begin("a/1", "cpu", ME)
    assert watched.meter.end("a/1") is not None


def test_beginning_and_ending_read_nothing(tmp_path: Path) -> None:
    """They come 5,000 times a second."""

    def never() -> Any:
        raise AssertionError("read")

    meter = EnergyMeter(POWER, never, never, tmp_path / "nowhere")
    meter.begin("a/1", "cpu", ME)
    assert meter.end("a/1") is not None
