"""The temperatures that chips call critical, from /sys/class/hwmon."""

from __future__ import annotations

from outbid_node.resources.files import Files, asleep, number, text

LEAST_C, MOST_C = 50.0, 130.0
"""Drivers that do not know say 0, or 65261."""


def critical_c(files: Files) -> dict[str, float]:
    """By the chip's name, the lowest of its sensors."""
    found: dict[str, float] = {}
    for chip in files.glob("sys/class/hwmon/hwmon*"):
        name = text(chip / "name")
        if name is None or asleep(chip / "device"):
            continue
        told = [value / 1000 for file in sorted(chip.glob("temp*_crit")) if (value := number(file)) is not None]
        sound = [celsius for celsius in told if LEAST_C <= celsius <= MOST_C]
        if sound:
            found[name[:32]] = min([*sound, found.get(name[:32], MOST_C)])
    return found
