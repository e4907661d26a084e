"""Temperatures, one per chip: the hottest of its sensors."""

from __future__ import annotations

import psutil

from outbid_node.resources.files import Files, asleep, number, text

MOST = 8
"""They travel with each heartbeat."""


def from_sysfs(files: Files) -> dict[str, float]:
    """Degrees Celsius by chip name. Small boards have no hwmon for their processor, but a thermal zone."""
    found: dict[str, float] = {}
    for chip in files.glob("sys/class/hwmon/hwmon*"):
        if not asleep(chip / "device"):
            for sensor in sorted(chip.glob("temp*_input")):
                _note(found, text(chip / "name"), number(sensor))
    if not found:
        for zone in files.glob("sys/class/thermal/thermal_zone*"):
            _note(found, text(zone / "type"), number(zone / "temp"))
    return _hottest(found)


def from_psutil() -> dict[str, float]:
    """Where psutil knows how (FreeBSD); empty elsewhere."""
    if not hasattr(psutil, "sensors_temperatures"):
        return {}
    found: dict[str, float] = {}
    for chip, sensors in psutil.sensors_temperatures().items():
        for sensor in sensors:
            _note(found, chip, sensor.current * 1000)
    return _hottest(found)


def _note(found: dict[str, float], chip: str | None, millidegrees: float | None) -> None:
    """Sensors that are not connected say nonsense such as -273 or 255."""
    if millidegrees is None or not -40_000 < millidegrees < 150_000:
        return
    name = (chip or "unknown")[:32]
    found[name] = max(found.get(name, -273.0), round(millidegrees / 1000, 1))


def _hottest(found: dict[str, float]) -> dict[str, float]:
    names = sorted(found, key=lambda chip: -found[chip])[:MOST]
    return {name: found[name] for name in sorted(names)}
