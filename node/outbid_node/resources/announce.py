"""What of a node's resources is announced by multicast: coarse, so that it seldom changes; within DNS-SD's limits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from outbid_contracts.messages import Offer, Resources

BATTERY_STEP = 5
STORAGE_STEPS_GIB = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
MAX_ENTRY_BYTES = 255
"""One TXT entry, `key=value` (RFC 6763, 6.1)."""
MAX_TOTAL_BYTES = 900
"""All of ours with their length bytes. RFC 6763 (6.2) wants less than 1200; the node's own entries come on top."""


def announcement(
    resources: Resources, offers: Iterable[Offer] = (), previous: Mapping[str, str] | None = None
) -> dict[str, str]:
    """TXT entries. Announce again when they differ from `previous`, which keeps values from swinging between two steps.

    `gpu`, `gpu_mib`: the largest one and its memory. `gpus`: how many, if several. `battery`: percent, in steps of 5.
    `power`: battery or plug. `disk_gib`: free space, rounded down. `cpus`, `mem_gib`. `caps`: capabilities that can be
    had here, and `capsmore` how many did not fit.
    """
    before = previous or {}
    entries = {
        "cpus": str(resources.cpu_count),
        "mem_gib": f"{resources.memory_mib / 1024:.0f}",
        **_gpu(resources),
        **_battery(resources, before.get("battery", "")),
        **_storage(resources, before.get("disk_gib", "")),
    }
    entries = {key: _clip(key, value) for key, value in entries.items()}
    return entries | _capabilities(offers, MAX_TOTAL_BYTES - _size(entries))


def _gpu(resources: Resources) -> dict[str, str]:
    if resources.gpu is None:
        return {}
    memory = {} if resources.gpu_memory_mib is None else {"gpu_mib": str(resources.gpu_memory_mib)}
    several = {"gpus": str(len(resources.gpus))} if len(resources.gpus) > 1 else {}
    return {"gpu": resources.gpu, **memory, **several}


def _battery(resources: Resources, before: str) -> dict[str, str]:
    percent = resources.battery_percent
    if percent is None:
        return {}
    power = {} if resources.on_battery is None else {"power": "battery" if resources.on_battery else "plug"}
    step = round(percent / BATTERY_STEP) * BATTERY_STEP
    if before.isdecimal() and abs(percent - int(before)) < BATTERY_STEP and 0 < percent < 100:
        step = int(before)
    return {"battery": str(step), **power}


def _storage(resources: Resources, before: str) -> dict[str, str]:
    if resources.storage_free_mib is None:
        return {}
    free_gib = resources.storage_free_mib / 1024
    step = max((step for step in STORAGE_STEPS_GIB if step <= free_gib), default=0)
    if before.isdecimal() and step > int(before) and free_gib < step * 1.1:
        step = int(before)  # barely above the next step
    return {"disk_gib": str(step)}


def _capabilities(offers: Iterable[Offer], room: int) -> dict[str, str]:
    """As many names as fit into one entry and into `room`."""
    names = sorted({offer.capability for offer in offers if not offer.capability.startswith("test.")})
    room = min(room - len("capsmore=99") - 2, MAX_ENTRY_BYTES) - len("caps=")
    taken: list[str] = []
    for name in names:
        if len(",".join([*taken, name]).encode()) > room:
            break
        taken.append(name)
    left = len(names) - len(taken)
    return ({"caps": ",".join(taken)} if taken else {}) | ({"capsmore": str(left)} if left else {})


def _clip(key: str, value: str) -> str:
    return value.encode()[: MAX_ENTRY_BYTES - 1 - len(key)].decode(errors="ignore")


def _size(entries: Mapping[str, str]) -> int:
    return sum(len(key.encode()) + len(value.encode()) + 2 for key, value in entries.items())
