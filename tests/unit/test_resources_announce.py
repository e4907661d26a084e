"""What is announced of a node's resources: coarse, steady, and within what DNS-SD allows."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from outbid_contracts.messages import Gpu, Offer, Resources
from outbid_node.resources import announcement
from outbid_node.resources.announce import MAX_TOTAL_BYTES


def offer(capability: str) -> Offer:
    return Offer(capability=capability, model="m", warm=True, slots=1, free=1, load_s=0, fixed_s=0, rates={})


def laptop(**changes: object) -> Resources:
    plain: dict[str, object] = {"cpu_count": 8, "memory_mib": 16384, "storage_free_mib": 130 * 1024}
    return Resources(**(plain | changes))  # type: ignore[arg-type]


def test_what_is_not_there_is_not_said() -> None:
    assert announcement(Resources(cpu_count=4, memory_mib=4096)) == {"cpus": "4", "mem_gib": "4"}


def test_a_full_machine() -> None:
    gpu = Gpu(name="NVIDIA GeForce RTX 4090", vendor="nvidia", memory_mib=24576)
    machine = laptop(gpu=gpu.name, gpu_memory_mib=24576, gpus=(gpu, gpu), battery_percent=83.0, on_battery=True)
    assert announcement(machine, [offer("llm.chat"), offer("image.generate"), offer("test.noop")]) == {
        "cpus": "8",
        "mem_gib": "16",
        "gpu": "NVIDIA GeForce RTX 4090",
        "gpu_mib": "24576",
        "gpus": "2",
        "battery": "85",
        "power": "battery",
        "disk_gib": "100",
        "caps": "image.generate,llm.chat",
    }


def test_the_battery_is_told_in_steps_of_five_and_does_not_swing_between_two() -> None:
    told: dict[str, str] = announcement(laptop(battery_percent=52.4, on_battery=True))
    steps = [told["battery"]]
    for percent in (52.6, 52.4, 52.6, 51, 49, 45.1, 45, 47, 43, 40, 1, 0):
        told = announcement(laptop(battery_percent=float(percent), on_battery=True), previous=told)
        steps.append(told["battery"])
    assert steps == ["50"] * 7 + ["45", "45", "45", "40", "0", "0"]


def test_a_full_battery_is_told_as_full() -> None:
    told = announcement(laptop(battery_percent=97.0))
    assert announcement(laptop(battery_percent=100.0), previous=told)["battery"] == "100"


def test_pulling_the_plug_changes_the_announcement_at_once() -> None:
    told = announcement(laptop(battery_percent=80.0, on_battery=False))
    now = announcement(laptop(battery_percent=80.0, on_battery=True), previous=told)
    assert (told["power"], now["power"]) == ("plug", "battery")


def test_free_storage_is_coarse_and_does_not_swing_at_a_step() -> None:
    told: dict[str, str] = {}
    steps = []
    for gib in (101, 99, 101, 99.5, 109, 111, 180, 60):
        told = announcement(laptop(storage_free_mib=int(gib * 1024)), previous=told)
        steps.append(told["disk_gib"])
    assert steps == ["100", "50", "50", "50", "50", "100", "100", "50"]


def test_load_memory_and_gpu_use_change_nothing() -> None:
    quiet = announcement(laptop(cpu_percent=1.0, memory_free_mib=9000))
    assert announcement(laptop(cpu_percent=99.0, memory_free_mib=10), previous=quiet) == quiet


@given(
    st.text(max_size=400),
    st.lists(st.from_regex(r"[a-z]{1,30}\.[a-z]{1,30}", fullmatch=True), max_size=60),
    st.floats(0, 100),
    st.integers(0, 1 << 50),
    st.dictionaries(st.sampled_from(["battery", "disk_gib"]), st.text(max_size=5)),
)
def test_it_always_fits(gpu: str, capabilities: list[str], percent: float, free: int, before: dict[str, str]) -> None:
    machine = laptop(gpu=gpu, gpu_memory_mib=1 << 40, battery_percent=percent, on_battery=True, storage_free_mib=free)
    told = announcement(machine, map(offer, capabilities), before)
    entries = [f"{key}={value}".encode() for key, value in told.items()]
    assert all(len(entry) <= 255 for entry in entries)
    assert sum(len(entry) + 1 for entry in entries) <= MAX_TOTAL_BYTES
    names = told.get("caps", "").split(",") if "caps" in told else []
    assert len(names) + int(told.get("capsmore", "0")) == len({n for n in capabilities if not n.startswith("test.")})
