"""Battery: charge, whether the plug is in, time left, watts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from outbid_node.resources.files import Files, number, scaled, text

Values = dict[str, Any]


def from_sysfs(files: Files) -> Values:
    """Linux, from /sys/class/power_supply: all batteries of the machine together. Empty if there is none."""
    supplies = files.glob("sys/class/power_supply/*")
    packs = [pack for supply in supplies if _powers_the_machine(supply) if (pack := _pack(supply)) is not None]
    if not packs:
        return {}
    watts = [pack.watts for pack in packs if pack.watts is not None]
    plugged = _plugged(supplies)
    return {
        "battery_percent": _percent(packs),
        "on_battery": any(pack.discharging for pack in packs) if plugged is None else not plugged,
        "battery_left_s": _left_s(packs),
        "battery_w": round(sum(watts), 2) if watts else None,
    }


def from_psutil() -> Values:
    """Elsewhere. psutil tells no watts."""
    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    if battery is None:
        return {}
    left_s = battery.secsleft if isinstance(battery.secsleft, int) and battery.secsleft > 0 else None
    return {
        "battery_percent": round(min(100.0, float(battery.percent)), 1),
        "on_battery": None if battery.power_plugged is None else not battery.power_plugged,
        "battery_left_s": None if battery.power_plugged else left_s,
    }


@dataclass(frozen=True, slots=True)
class _Pack:
    """`energy_wh` and `full_wh` are None where the driver tells only a percentage. `watts` flow out; in if negative."""

    percent: float | None
    energy_wh: float | None
    full_wh: float | None
    watts: float | None
    discharging: bool


def _powers_the_machine(supply: Path) -> bool:
    """Not the battery of a mouse, and not an empty bay."""
    return (
        text(supply / "type") == "Battery"
        and text(supply / "scope") != "Device"
        and text(supply / "present") not in ("0",)
    )


def _pack(supply: Path) -> _Pack | None:
    volts = scaled(supply / "voltage_now", 1e-6)
    energy_wh, full_wh = _energy_wh(supply, "now", volts), _energy_wh(supply, "full", volts)
    percent = number(supply / "capacity")
    if percent is None and energy_wh is not None and full_wh:
        percent = 100 * energy_wh / full_wh
    if percent is None:
        return None
    status = (text(supply / "status") or "").lower()
    return _Pack(percent, energy_wh, full_wh, _watts(supply, volts, status), status == "discharging")


def _energy_wh(supply: Path, which: str, volts: float | None) -> float | None:
    energy_wh = scaled(supply / f"energy_{which}", 1e-6)
    charge_ah = scaled(supply / f"charge_{which}", 1e-6)
    if energy_wh is None and charge_ah is not None and volts is not None:
        return charge_ah * volts
    return energy_wh


def _watts(supply: Path, volts: float | None, status: str) -> float | None:
    """Drivers disagree on the sign of what they tell, so it follows from the status."""
    watts = scaled(supply / "power_now", 1e-6)
    amperes = scaled(supply / "current_now", 1e-6)
    if watts is None and amperes is not None and volts is not None:
        watts = amperes * volts
    if watts is None:
        return None
    return {"discharging": abs(watts), "charging": -abs(watts)}.get(status, 0.0)


def _percent(packs: Iterable[_Pack]) -> float:
    """Weighted by size where every battery tells its own."""
    known = list(packs)
    full_wh = sum(pack.full_wh or 0.0 for pack in known)
    if full_wh and all(pack.full_wh and pack.energy_wh is not None for pack in known):
        percent = 100 * sum(pack.energy_wh or 0.0 for pack in known) / full_wh
    else:
        percent = sum(pack.percent or 0.0 for pack in known) / len(known)
    return round(min(100.0, max(0.0, percent)), 1)


def _left_s(packs: Iterable[_Pack]) -> float | None:
    """Until empty at the present draw; None while charging, or where the driver does not tell enough."""
    known = list(packs)
    watts = sum(pack.watts or 0.0 for pack in known)
    if watts <= 0 or any(pack.energy_wh is None for pack in known):
        return None
    return round(3600 * sum(pack.energy_wh or 0.0 for pack in known) / watts)


def _plugged(supplies: Iterable[Path]) -> bool | None:
    """None if there is no plug that says so; then the batteries' status has to do."""
    plugs = [supply for supply in supplies if text(supply / "type") in ("Mains", "USB")]
    online = [state for plug in plugs if (state := number(plug / "online")) is not None]
    return any(state > 0 for state in online) if online else None
