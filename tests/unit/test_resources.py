"""What a machine has, read from a made-up /sys tree and a made-up NVML: GPUs and batteries are not everywhere."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from outbid_contracts.messages import Gpu, Resources
from outbid_node.resources import ResourceProbe, apple, battery, probe, temperatures
from outbid_node.resources.amd import Amd
from outbid_node.resources.files import Files
from outbid_node.resources.nvidia import Nvidia, NvmlMissing

GIB = 1 << 30


def tree(root: Path, files: Mapping[str, object]) -> Files:
    for name, content in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{content}\n")
    return Files(root)


def supply(name: str, **files: object) -> dict[str, object]:
    return {f"sys/class/power_supply/{name}/{file}": content for file, content in files.items()}


def mains(online: int) -> dict[str, object]:
    return supply("AC", type="Mains", online=online)


# -- battery ---------------------------------------------------------------------------------------------------------


def test_a_discharging_battery_tells_charge_time_left_and_watts(tmp_path: Path) -> None:
    pack = supply(
        "BAT0",
        type="Battery",
        present=1,
        status="Discharging",
        capacity=50,
        energy_now=30_000_000,
        energy_full=60_000_000,
        power_now=15_000_000,
    )
    assert battery.from_sysfs(tree(tmp_path, pack | mains(0))) == {
        "battery_percent": 50.0,
        "on_battery": True,
        "battery_left_s": 7200,
        "battery_w": 15.0,
    }


def test_watts_and_energy_follow_from_charge_current_and_voltage_whatever_the_currents_sign(tmp_path: Path) -> None:
    for sign in (1, -1):
        pack = supply(
            "BAT1",
            type="Battery",
            status="Discharging",
            capacity=40,
            charge_now=2_000_000,
            charge_full=5_000_000,
            current_now=sign * 1_000_000,
            voltage_now=12_000_000,
        )
        found = battery.from_sysfs(tree(tmp_path, pack))
        assert found == {"battery_percent": 40.0, "on_battery": True, "battery_left_s": 7200, "battery_w": 12.0}


def test_charging_has_negative_watts_and_no_time_left(tmp_path: Path) -> None:
    pack = supply("BAT0", type="Battery", status="Charging", capacity=90, energy_now=9, energy_full=10, power_now=2e6)
    found = battery.from_sysfs(tree(tmp_path, pack | mains(1)))
    assert (found["on_battery"], found["battery_left_s"], found["battery_w"]) == (False, None, -2.0)


def test_two_batteries_count_by_their_size(tmp_path: Path) -> None:
    small = supply("BAT0", type="Battery", status="Discharging", energy_now=20e6, energy_full=20e6, power_now=0)
    large = supply("BAT1", type="Battery", status="Discharging", energy_now=0, energy_full=80e6, power_now=10e6)
    found = battery.from_sysfs(tree(tmp_path, small | large | mains(0)))
    assert (found["battery_percent"], found["battery_left_s"]) == (20.0, 7200)


def test_a_mouse_and_an_empty_bay_are_no_battery_of_the_machine(tmp_path: Path) -> None:
    mouse = supply("hidpp_battery_0", type="Battery", scope="Device", capacity=5, status="Discharging")
    bay = supply("BAT1", type="Battery", present=0, capacity=0)
    assert battery.from_sysfs(tree(tmp_path, mouse | bay | mains(1))) == {}


def test_a_board_that_tells_only_a_percentage(tmp_path: Path) -> None:
    found = battery.from_sysfs(tree(tmp_path, supply("bat", type="Battery", status="Not charging", capacity=77)))
    assert found == {"battery_percent": 77.0, "on_battery": False, "battery_left_s": None, "battery_w": None}


# -- temperatures ----------------------------------------------------------------------------------------------------


def test_the_hottest_sensor_of_each_chip_counts_and_nonsense_does_not(tmp_path: Path) -> None:
    chips = {
        "sys/class/hwmon/hwmon0/name": "coretemp",
        "sys/class/hwmon/hwmon0/temp1_input": 41000,
        "sys/class/hwmon/hwmon0/temp2_input": 55500,
        "sys/class/hwmon/hwmon1/name": "nvme",
        "sys/class/hwmon/hwmon1/temp1_input": 38000,
        "sys/class/hwmon/hwmon2/name": "loose",
        "sys/class/hwmon/hwmon2/temp1_input": -273150,
        "sys/class/hwmon/hwmon3/name": "odd",
        "sys/class/hwmon/hwmon3/temp1_input": "not a number",
    }
    assert temperatures.from_sysfs(tree(tmp_path, chips)) == {"coretemp": 55.5, "nvme": 38.0}


def test_a_small_board_tells_its_temperature_through_a_thermal_zone(tmp_path: Path) -> None:
    zone = {"sys/class/thermal/thermal_zone0/type": "cpu-thermal", "sys/class/thermal/thermal_zone0/temp": 48312}
    assert temperatures.from_sysfs(tree(tmp_path, zone)) == {"cpu-thermal": 48.3}


# -- AMD -------------------------------------------------------------------------------------------------------------

CARD = "sys/class/drm/card1/device/"
RADEON = {
    f"{CARD}vendor": "0x1002",
    f"{CARD}device": "0x744c",
    f"{CARD}revision": "0xc8",
    f"{CARD}mem_info_vram_total": 24 * GIB,
    f"{CARD}mem_info_vram_used": 4 * GIB,
    f"{CARD}gpu_busy_percent": 37,
    f"{CARD}hwmon/hwmon4/temp1_input": 61000,
    f"{CARD}hwmon/hwmon4/power1_average": 214000000,
    f"{CARD}power/runtime_status": "active",
    "usr/share/libdrm/amdgpu.ids": "# table\n1.0.0\n744C,\tC8,\tAMD Radeon RX 7900 XTX\n",
}


def test_an_amd_card_tells_everything(tmp_path: Path) -> None:
    assert Amd(tree(tmp_path, RADEON)).read() == [
        Gpu(
            name="AMD Radeon RX 7900 XTX",
            vendor="amd",
            memory_mib=24576,
            memory_free_mib=20480,
            busy_percent=37.0,
            temperature_c=61.0,
            power_w=214.0,
        )
    ]


def test_a_sleeping_amd_card_keeps_its_name_and_its_sensors_are_left_alone(tmp_path: Path) -> None:
    amd = Amd(tree(tmp_path, RADEON))
    amd.read()
    tree(tmp_path, {f"{CARD}power/runtime_status": "suspended", f"{CARD}hwmon/hwmon4/temp1_input": 99000})
    assert amd.read() == [
        Gpu(
            name="AMD Radeon RX 7900 XTX",
            vendor="amd",
            memory_mib=24576,
            memory_free_mib=24576,
            busy_percent=0.0,
        )
    ]


def test_an_amd_card_that_tells_little_is_still_there_and_others_cards_are_not(tmp_path: Path) -> None:
    files = {
        f"{CARD}vendor": "0x1002",
        f"{CARD}device": "0x9999",
        f"{CARD}mem_info_vram_total": GIB,
        "sys/class/drm/card0/device/vendor": "0x8086",
        "sys/class/drm/card2/device/vendor": "0x1002",  # handed to a virtual machine: no amdgpu files
    }
    assert Amd(tree(tmp_path, files)).read() == [Gpu(name="AMD GPU 0x9999", vendor="amd", memory_mib=1024)]


# -- NVIDIA ----------------------------------------------------------------------------------------------------------


class FakeNvml:
    """The few functions of nvidia-ml-py that we call. `fails` maps a function's name to the code of its error."""

    NVML_ERROR_UNINITIALIZED, NVML_ERROR_NOT_SUPPORTED, NVML_ERROR_DRIVER_NOT_LOADED = 1, 3, 9
    NVML_ERROR_LIBRARY_NOT_FOUND, NVML_ERROR_GPU_IS_LOST = 12, 15

    class NVMLError(Exception):
        @property
        def value(self) -> int:
            code: int = self.args[0]
            return code

    def __init__(self) -> None:
        self.fails: dict[str, int] = {}
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        answers: dict[str, Any] = {
            "nvmlInit": None,
            "nvmlShutdown": None,
            "nvmlDeviceGetCount": 2,
            "nvmlDeviceGetHandleByIndex": "handle",
            "nvmlDeviceGetName": "NVIDIA GeForce RTX 4090",
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=24 * GIB, free=20 * GIB, used=4 * GIB),
            "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=88, memory=12),
            "nvmlDeviceGetTemperature": 64,
            "nvmlDeviceGetPowerUsage": 312_500,
        }
        if name not in answers:
            raise AttributeError(name)

        def call(*arguments: object) -> Any:
            self.calls.append(name)
            if name in self.fails:
                raise self.NVMLError(self.fails[name])
            return answers[name]

        return call


PCI = "sys/bus/pci/devices/0000:01:00.0/"
RTX = {f"{PCI}vendor": "0x10de", f"{PCI}class": "0x030000", f"{PCI}power/runtime_status": "active"}


def test_nvidia_tells_everything_of_each_card(tmp_path: Path) -> None:
    gpu = Gpu(
        name="NVIDIA GeForce RTX 4090",
        vendor="nvidia",
        memory_mib=24576,
        memory_free_mib=20480,
        busy_percent=88.0,
        temperature_c=64.0,
        power_w=312.5,
    )
    assert Nvidia(tree(tmp_path, RTX), FakeNvml()).read() == [gpu, gpu]


def test_what_one_card_does_not_support_is_unknown_and_the_rest_is_told(tmp_path: Path) -> None:
    nvml = FakeNvml()
    unsupported = ("nvmlDeviceGetMemoryInfo", "nvmlDeviceGetPowerUsage", "nvmlDeviceGetTemperature")
    nvml.fails = dict.fromkeys(unsupported, nvml.NVML_ERROR_NOT_SUPPORTED)
    gpu = Nvidia(Files(tmp_path), nvml).read()[0]
    assert gpu == Gpu(name="NVIDIA GeForce RTX 4090", vendor="nvidia", unified=True, busy_percent=88.0)


def test_no_driver_is_no_gpu_until_there_is_one(tmp_path: Path) -> None:
    nvml = FakeNvml()
    nvidia = Nvidia(Files(tmp_path), nvml)
    for code in (nvml.NVML_ERROR_LIBRARY_NOT_FOUND, nvml.NVML_ERROR_DRIVER_NOT_LOADED):
        nvml.fails = {"nvmlInit": code}
        assert nvidia.read() == []
    nvml.fails = {}
    assert len(nvidia.read()) == 2


def test_a_driver_that_was_reloaded_is_opened_again(tmp_path: Path) -> None:
    nvml = FakeNvml()
    nvidia = Nvidia(Files(tmp_path), nvml)
    nvidia.read()
    nvml.fails = {"nvmlDeviceGetName": nvml.NVML_ERROR_GPU_IS_LOST}
    with pytest.raises(nvml.NVMLError):
        nvidia.read()
    nvml.fails = {}
    assert len(nvidia.read()) == 2
    assert nvml.calls.count("nvmlInit") == 2


def test_a_sleeping_laptop_gpu_is_not_woken(tmp_path: Path) -> None:
    nvml = FakeNvml()
    nvidia = Nvidia(tree(tmp_path, RTX), nvml)
    nvidia.read()
    tree(tmp_path, {f"{PCI}power/runtime_status": "suspended"})
    nvml.calls.clear()
    assert [(gpu.memory_mib, gpu.busy_percent, gpu.power_w) for gpu in nvidia.read()] == [(24576, 0.0, None)] * 2
    assert nvml.calls == []


def test_an_nvidia_gpu_without_its_package_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    assert Nvidia(Files(tmp_path)).read() == []
    with pytest.raises(NvmlMissing, match="nvidia"):
        Nvidia(tree(tmp_path, RTX)).read()


# -- Apple -----------------------------------------------------------------------------------------------------------


def test_apple_silicon_has_unified_memory() -> None:
    told = {"hw.memsize": str(32 * GIB), "machdep.cpu.brand_string": "Apple M2 Max"}
    assert apple.read(told.__getitem__) == [Gpu(name="Apple M2 Max", vendor="apple", memory_mib=32768, unified=True)]


# -- the probe -------------------------------------------------------------------------------------------------------


@pytest.fixture
def probes() -> list[ResourceProbe]:
    return []


def until(true: Callable[[], bool], within_s: float = 10) -> None:
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


async def test_all_parts_come_together(tmp_path: Path, probes: list[ResourceProbe]) -> None:
    pack = supply("BAT0", type="Battery", status="Discharging", capacity=50)
    zone = {"sys/class/thermal/thermal_zone0/type": "cpu", "sys/class/thermal/thermal_zone0/temp": 50000}
    tree(tmp_path, RADEON | pack | zone)
    probes.append(ResourceProbe(tmp_path, root=tmp_path, nvml=FakeNvml(), platform="linux"))
    found = await probes[0].first(10)
    assert [gpu.vendor for gpu in found.gpus] == ["nvidia", "nvidia", "amd"]
    assert (found.gpu, found.gpu_memory_mib) == ("NVIDIA GeForce RTX 4090", 24576)
    assert (found.battery_percent, found.on_battery, found.temperatures_c) == (50.0, True, {"cpu": 50.0})
    assert found.cpu_count
    assert found.memory_mib > found.memory_free_mib > 0
    assert found.storage_mib == psutil.disk_usage(str(tmp_path)).total >> 20
    assert found.storage_free_mib is not None


async def test_a_real_machine_can_be_read(tmp_path: Path, probes: list[ResourceProbe]) -> None:
    probes.append(ResourceProbe(tmp_path))
    found = await probes[0].first(10)
    assert found.memory_mib > 0
    assert found.storage_free_mib is not None


async def test_a_part_that_fails_says_so_once_hurts_no_other_and_comes_back(
    tmp_path: Path, probes: list[ResourceProbe], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "GPU_AGE_S", 0.0)
    nvml = FakeNvml()
    nvml.fails = {"nvmlDeviceGetCount": 999}
    probes.append(ResourceProbe(tmp_path, root=tmp_path, nvml=nvml, platform="linux"))

    def reads(count: int) -> None:
        until(lambda: probes[0].read() is not None and nvml.calls.count("nvmlDeviceGetCount") >= count)

    reads(5)
    assert sum(getattr(record, "action", "") == "probe_failed" for record in caplog.records) == 1
    assert probes[0].read().storage_free_mib is not None
    nvml.fails = {}
    reads(7)
    until(lambda: len(probes[0].read().gpus) == 2)


async def test_a_part_that_hangs_holds_up_nobody(
    tmp_path: Path, probes: list[ResourceProbe], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network disk that went away: statvfs does not return."""
    monkeypatch.setattr(probe, "STUCK_S", 0.05)
    let_go, entered = threading.Event(), threading.Event()
    real = psutil.disk_usage

    def hangs(path: str) -> Any:
        entered.set()
        let_go.wait(30)
        return real(path)

    monkeypatch.setattr(psutil, "disk_usage", hangs)
    monkeypatch.setattr(probe, "BATTERY_AGE_S", 0.0)
    tree(tmp_path, supply("BAT0", type="Battery", status="Full", capacity=100))
    probes.append(ResourceProbe(tmp_path, root=tmp_path, nvml=FakeNvml(), platform="linux"))
    with caplog.at_level(logging.WARNING):
        until(lambda: probes[0].read() is not None and entered.is_set())
        until(lambda: probes[0].read() is not None and bool(caplog.records))
    tree(tmp_path, supply("BAT0", type="Battery", status="Full", capacity=60))
    until(lambda: probes[0].read().battery_percent == 60.0)
    assert probes[0].read().storage_free_mib is None
    let_go.set()
    until(lambda: probes[0].read().storage_free_mib is not None)


def test_reading_costs_the_event_loop_next_to_nothing(tmp_path: Path, probes: list[ResourceProbe]) -> None:
    """The promise is below 5 ms; a busy machine may take a reading away from us, hence the median."""
    probes.append(ResourceProbe(tmp_path, root=tmp_path, nvml=FakeNvml(), platform="linux"))
    took = []
    for _ in range(50):
        probes[0]._fast_due = float("-inf")
        begun = time.perf_counter()
        probes[0].read()
        took.append(time.perf_counter() - begun)
    assert sorted(took)[25] < 0.005


def test_the_first_reading_has_no_processor_load_and_the_next_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "FAST_AGE_S", 0.0)
    reader = ResourceProbe()
    assert reader.read().cpu_percent is None

    def load() -> float | None:
        return reader.read().cpu_percent

    until(lambda: load() is not None)
    found = load()
    assert found is None or 0 <= found <= 100


def test_old_messages_without_the_new_fields_are_still_read() -> None:
    assert Resources(cpu_count=2).gpus == ()
