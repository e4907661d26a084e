"""On battery: only work that the charge finishes with a margin, and never below a floor. The floor binds everybody."""

from __future__ import annotations

from outbid_contracts.messages import Resources
from outbid_node.config_sections import CourtesySection
from outbid_node.courtesy.parts import NOTHING, Part
from outbid_node.courtesy.readings import Readings

MARGIN = 0.7
"""Of the time that the charge should last; batteries tell their charge with some percent of error, old ones more."""

BAND_PERCENT = 3.0
"""How far above the floor it must come before it counts as above again."""

UNKNOWN_FULL_S = 3600.0
"""A full charge under load, where the battery tells only percent: laptops last one to two hours."""


class Unplugged:
    """`on_battery = "never"`: for nobody else."""

    def __init__(self, section: CourtesySection) -> None:
        self._never = section.on_battery == "never"

    def judge(self, readings: Readings) -> Part:
        if not self._never or not readings.resources.on_battery:
            return NOTHING
        return Part(said="on battery", refuse=True, gives_back=True)


class Charge:
    def __init__(self, section: CourtesySection) -> None:
        self._section = section
        self._below = False

    def judge(self, readings: Readings) -> Part:
        section, resources = self._section, readings.resources
        percent = resources.battery_percent
        if section.on_battery == "ignore" or not resources.on_battery or percent is None:
            self._below = False
            return NOTHING
        floor = section.battery_floor_percent
        self._below = percent <= floor + (BAND_PERCENT if self._below else 0.0)
        if self._below:
            said = f"on battery, {percent:.0f} %: its floor is {floor:g} % (courtesy.battery_floor_percent)"
            return Part(said=said, refuse=True, binds_own=True, gives_back=True)
        most_s = MARGIN * until_floor_s(resources, floor, 0.0 if readings.running else readings.extra_w)
        why = f"on battery, {percent:.0f} %"
        said = f"{why}: jobs of up to {_rounded(most_s)} s" if section.on_battery == "charge" else ""
        return Part(said=said, most_s=most_s, most_why=why, binds_own=True, gives_back=True)


def until_floor_s(resources: Resources, floor_percent: float, extra_w: float) -> float:
    """Seconds until the charge is at the floor if `extra_w` are drawn beside what is drawn now."""
    percent, left_s, watts = resources.battery_percent, resources.battery_left_s, resources.battery_w
    if percent is None or percent <= floor_percent:
        return 0.0
    share = (percent - floor_percent) / percent
    blind_s = UNKNOWN_FULL_S * (percent - floor_percent) / 100
    if left_s is None:
        return blind_s
    if watts is None or watts <= 0:
        return min(share * left_s, blind_s) if extra_w else share * left_s
    return share * left_s * watts / (watts + extra_w)


def _rounded(seconds: float) -> str:
    """Two digits: it changes by the second."""
    return f"{float(f'{seconds:.2g}'):.0f}"
