"""What the machine draws, read from a made-up /sys tree and a made-up NVML: few machines have all of these."""

from __future__ import annotations

import os
from collections import namedtuple
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

from outbid_node.config_sections import PowerSection
from outbid_node.power import rapl
from outbid_node.power.cards import Cards
from outbid_node.power.idle import WINDOW_S, Idle
from outbid_node.power.processor import Processor, Runner, Worked
from outbid_node.power.rapl import Rapl
from outbid_node.power.sources import Draw, Sources, State
from outbid_node.resources.files import Files
from tests.unit.test_resources import CARD, PCI, RADEON, RTX, FakeNvml, tree

RANGE_UJ = 262_143_328_850
ME: Runner = ("me", None)
POWER = PowerSection(idle_w=30.0, busy_w=130.0, base_w=20.0)


def domain(name: str, called: str, joules: float) -> dict[str, object]:
    folder = f"sys/class/powercap/{name}"
    return {
        f"{folder}/name": called,
        f"{folder}/energy_uj": int(joules * 1e6),
        f"{folder}/max_energy_range_uj": RANGE_UJ,
    }


def two_sockets(root: Path) -> Files:
    found = domain("intel-rapl:0", "package-0", 100) | domain("intel-rapl:0:0", "core", 60)
    found |= domain("intel-rapl:0:1", "dram", 10) | domain("intel-rapl:1", "package-1", 200)
    found |= domain("intel-rapl:2", "psys", 999) | domain("intel-rapl-mmio:0", "package-0", 100)
    return tree(root, found | {"sys/class/powercap/intel-rapl/enabled": 1})


def advance(root: Path, **joules: float) -> None:
    for name, value in joules.items():
        file = root / "sys/class/powercap" / name.replace("rapl", "intel-rapl:").replace("_", ":") / "energy_uj"
        file.write_text(str(int(file.read_text()) + int(value * 1e6)))


# -- RAPL --------------------------------------------------------------------------------------------------------------


def test_packages_and_memory_are_counted_and_parts_of_packages_are_not(tmp_path: Path) -> None:
    counters = Rapl(two_sockets(tmp_path))
    assert counters.watts(0.0) is None, "a counter says nothing until it is read again"
    advance(tmp_path, rapl0=50, rapl0_0=40, rapl0_1=5, rapl1=25, rapl2=500)
    assert counters.watts(2.0) == pytest.approx(40.0)


def test_a_counter_that_runs_over_goes_on(tmp_path: Path) -> None:
    near_end_j = RANGE_UJ / 1e6 - 10
    counters = Rapl(tree(tmp_path, domain("intel-rapl:0", "package-0", near_end_j)))
    counters.watts(0.0)
    tree(tmp_path, domain("intel-rapl:0", "package-0", 30))
    assert counters.watts(1.0) == pytest.approx(40.0, abs=0.01)


def test_a_counter_that_began_anew_is_unknown_once_and_then_counts_again(tmp_path: Path) -> None:
    counters = Rapl(tree(tmp_path, domain("intel-rapl:0", "package-0", 5000)))
    counters.watts(0.0)
    tree(tmp_path, domain("intel-rapl:0", "package-0", 3))
    assert counters.watts(1.0) is None
    tree(tmp_path, domain("intel-rapl:0", "package-0", 33))
    assert counters.watts(2.0) == pytest.approx(30.0)


def test_a_counter_that_vanishes_makes_the_whole_unknown_until_it_is_back(tmp_path: Path) -> None:
    counters = Rapl(two_sockets(tmp_path))
    counters.watts(0.0)
    file = tmp_path / "sys/class/powercap/intel-rapl:1/energy_uj"
    content = file.read_text()
    file.write_text("not a number")
    assert counters.watts(1.0) is None
    file.write_text(content)
    assert counters.watts(2.0) is None
    advance(tmp_path, rapl0=30)
    assert counters.watts(3.0) == pytest.approx(30.0)


def test_counters_that_only_root_may_read_are_denied_and_not_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may read all files, so the refusal is played where the tests run as root."""
    counters = Rapl(two_sockets(tmp_path))

    def refuse(file: Path) -> str:
        raise PermissionError(13, "Permission denied", str(file))

    with monkeypatch.context() as patched:
        patched.setattr(rapl, "read", refuse)
        assert counters.watts(0.0) is None
        assert counters.denied
    counters.watts(1.0)
    assert not counters.denied
    assert not Rapl(Files(tmp_path / "empty")).denied


# -- the cards ---------------------------------------------------------------------------------------------------------


class CountingNvml(FakeNvml):
    """Cards that count their joules, as Volta and later do."""

    millijoules = 7_000_000

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: object) -> int:
        return self.millijoules


def test_cards_that_only_tell_watts_are_added_up(tmp_path: Path) -> None:
    cards = Cards(tree(tmp_path, RTX | RADEON), FakeNvml())
    assert cards.watts(0.0) == pytest.approx(2 * 312.5 + 214.0)
    assert cards.source == "nvml+amdgpu"


def test_cards_that_count_joules_tell_the_mean_since_the_last_reading(tmp_path: Path) -> None:
    nvml = CountingNvml()
    cards = Cards(Files(tmp_path), nvml)
    assert cards.watts(0.0) is None
    nvml.millijoules += 50_000
    assert cards.watts(0.5) == pytest.approx(200.0)
    nvml.millijoules = 0
    assert cards.watts(1.0) is None, "the driver was loaded anew"
    nvml.millijoules += 10_000
    assert cards.watts(2.0) == pytest.approx(20.0)


def test_the_graphics_inside_a_processor_is_no_card(tmp_path: Path) -> None:
    files = tree(tmp_path, RADEON)
    (tmp_path / CARD / "gpu_metrics").write_bytes(bytes((0, 1, 2, 1)) + bytes(100))
    assert Cards(files).watts(0.0) is None
    (tmp_path / CARD / "gpu_metrics").write_bytes(bytes((0, 1, 1, 3)) + bytes(100))
    assert Cards(files).watts(0.0) == pytest.approx(214.0)


def test_a_sleeping_card_is_not_woken_to_be_asked(tmp_path: Path) -> None:
    nvml = CountingNvml()
    cards = Cards(tree(tmp_path, RTX | {f"{PCI}power/runtime_status": "suspended"}), nvml)
    cards.watts(0.0)
    assert nvml.calls == []


def test_a_driver_that_fails_leaves_the_cards_unknown_and_comes_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nvml = FakeNvml()
    cards = Cards(Files(tmp_path), nvml)
    nvml.fails = {"nvmlDeviceGetCount": 999}
    assert [cards.watts(float(second)) for second in range(3)] == [None] * 3
    assert [getattr(record, "action", "") for record in caplog.records] == ["cards_unread"]
    nvml.fails = {}
    assert cards.watts(4.0) == pytest.approx(625.0)


# -- idle --------------------------------------------------------------------------------------------------------------


def test_idle_is_what_the_machine_falls_back_to_and_not_what_others_make_it_draw() -> None:
    idle = Idle()
    assert idle.watts() is None
    idle.note(40.0, 1.0)
    assert idle.watts() == 40.0
    for watts in [50.0] * 20 + [200.0] * 80:
        idle.note(watts, WINDOW_S)
    assert idle.watts() == pytest.approx(50.0)


# -- all of them -------------------------------------------------------------------------------------------------------

Times = namedtuple("Times", "user system idle iowait guest")


class FakeProcessor:
    """Of four cores: `busy` and `idle` seconds since the start."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.busy = self.idle = 0.0
        monkeypatch.setattr(psutil, "cpu_times", lambda: Times(self.busy, 0.0, self.idle / 2, self.idle / 2, self.busy))

    def pass_by(self, busy: float, idle: float) -> None:
        self.busy += busy
        self.idle += idle


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> FakeProcessor:
    return FakeProcessor(monkeypatch)


def read(
    sources: Sources, now: float, *, quiet: bool = False, on_card: bool = False, battery_w: float | None = None
) -> Draw:
    draw = sources.read(now, State(quiet=quiet, on_card=on_card, battery_w=battery_w))
    assert draw is not None
    return draw


def test_without_any_counter_the_declared_watts_follow_the_load(tmp_path: Path, processor: FakeProcessor) -> None:
    sources = Sources(POWER, tmp_path)
    assert sources.read(0.0, State(quiet=True)) is None
    processor.pass_by(busy=1.0, idle=3.0)
    draw = read(sources, 1.0)
    assert (draw.source, draw.machine_w, draw.extra_w, draw.cards_extra_w) == ("declared", 55.0, 25.0, 0.0)


def test_a_card_that_tells_no_watts_counts_as_the_whole_machine_while_it_works(
    tmp_path: Path, processor: FakeProcessor
) -> None:
    sources = Sources(POWER, tmp_path)
    sources.read(0.0, State(quiet=True))
    processor.pass_by(busy=1.0, idle=3.0)
    draw = read(sources, 1.0, on_card=True)
    assert (draw.machine_w, draw.extra_w, draw.cards_extra_w) == (130.0, 25.0, 75.0)


def test_counters_cards_and_the_declared_rest_make_the_machine(tmp_path: Path, processor: FakeProcessor) -> None:
    tree(tmp_path, domain("intel-rapl:0", "package-0", 0) | RADEON)
    sources = Sources(POWER, tmp_path)
    sources.read(0.0, State(quiet=True))
    advance(tmp_path, rapl0=10)
    idle = read(sources, 1.0, quiet=True)
    assert (idle.machine_w, idle.extra_w, idle.cards_extra_w) == (10.0 + 20.0 + 214.0, 0.0, 0.0)
    advance(tmp_path, rapl0=75)
    tree(tmp_path, {f"{CARD}hwmon/hwmon4/power1_average": 300_000_000})
    busy = read(sources, 2.0)
    assert (busy.source, busy.extra_w, busy.cards_extra_w) == ("rapl+amdgpu", 65.0, 86.0)


def test_a_machine_on_battery_is_measured_whole(tmp_path: Path, processor: FakeProcessor) -> None:
    tree(tmp_path, domain("intel-rapl:0", "package-0", 0))
    sources = Sources(POWER, tmp_path)
    sources.read(0.0, State(quiet=True))
    assert read(sources, 1.0, quiet=True, battery_w=8.0).extra_w == 0.0
    draw = read(sources, 2.0, battery_w=28.0)
    assert (draw.source, draw.machine_w, draw.extra_w) == ("battery", 28.0, 20.0)
    advance(tmp_path, rapl0=12)
    assert read(sources, 3.0).source == "rapl", "the plug is in again"


def test_when_the_counters_fall_silent_the_configuration_takes_over(tmp_path: Path, processor: FakeProcessor) -> None:
    tree(tmp_path, domain("intel-rapl:0", "package-0", 0))
    sources = Sources(POWER, tmp_path)
    sources.read(0.0, State(quiet=True))
    assert read(sources, 1.0).source == "rapl"
    (tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj").unlink()
    processor.pass_by(busy=4.0, idle=0.0)
    draw = read(sources, 2.0)
    assert (draw.source, draw.extra_w) == ("declared", 100.0)


# -- processor time ----------------------------------------------------------------------------------------------------


def test_processor_time_is_told_by_runner_and_a_process_that_is_gone_is_left_out() -> None:
    reader = Processor()
    pids: Mapping[Runner, int] = {ME: os.getpid(), ("gone", None): 2**22 + 1}
    reader.read(pids)
    began = psutil.Process().cpu_times()
    while (now := psutil.Process().cpu_times()).user + now.system - began.user - began.system < 0.2:
        sum(range(10_000))
    worked: Worked = reader.read(pids)
    assert set(worked.runners_s) == {ME}
    assert worked.runners_s[ME] >= 0.15
    assert worked.all_s > 0
    assert 0 < worked.utilisation <= 1
