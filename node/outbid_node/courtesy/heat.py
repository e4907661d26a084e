"""Too hot: no new work until it has cooled down by 5 degrees; nearly too hot: longer times. It binds everybody."""

from __future__ import annotations

from collections.abc import Iterator

from outbid_node.config_sections import CourtesySection
from outbid_node.courtesy.lasting import Lasting
from outbid_node.courtesy.parts import NOTHING, Part
from outbid_node.courtesy.readings import Readings

BAND_C = 5.0
"""Below the limit: there it grows slower, and down to there it has to cool."""

BELOW_CRITICAL_C = 10.0
SLOWEST = 1.5
SUSTAINED_S = 10.0
"""A processor that turns up its clock is at its limit for seconds, by design."""

CPU_CHIPS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "cpu-thermal", "soc_thermal", "soc-thermal")
"""Names of drivers; that a disk is hot is no reason not to compute."""


class Heat:
    def __init__(self, section: CourtesySection) -> None:
        self._section = section
        self._hot: dict[str, Lasting] = {}

    def judge(self, readings: Readings) -> Part:
        parts = [self._judge_one(what, c, limit_c, readings.at) for what, c, limit_c in self._looked_at(readings)]
        return max(parts, key=lambda part: (part.refuse, part.slower), default=NOTHING)

    def _looked_at(self, readings: Readings) -> Iterator[tuple[str, float, float]]:
        for chip, celsius in readings.resources.temperatures_c.items():
            limit_c = self._cpu_limit_c(readings.critical_c.get(chip))
            if chip.startswith(CPU_CHIPS) and limit_c is not None:
                yield f"processor ({chip})", celsius, limit_c
        for number, gpu in enumerate(readings.resources.gpus):
            if gpu.temperature_c is not None:
                yield f"graphics processor {number}", gpu.temperature_c, self._section.max_gpu_c

    def _cpu_limit_c(self, critical_c: float | None) -> float | None:
        chosen = self._section.max_cpu_c
        if chosen != "auto":
            return chosen
        return None if critical_c is None else critical_c - BELOW_CRITICAL_C

    def _judge_one(self, what: str, celsius: float, limit_c: float, at: float) -> Part:
        hot = self._hot.setdefault(what, Lasting(SUSTAINED_S, 0.0))
        above = limit_c - BAND_C if hot.on else limit_c
        if hot.look(celsius >= above, at):
            said = f"its {what} is at {celsius:.0f} °C, cools down below {limit_c - BAND_C:.0f}"
            return Part(said=said, refuse=True, passes=True, binds_own=True)
        near = (celsius - (limit_c - BAND_C)) / BAND_C
        if near <= 0:
            return NOTHING
        slower = 1 + (SLOWEST - 1) * min(1.0, near)
        return Part(said=f"its {what} is at {celsius:.0f} °C: times x {slower:.2g}", slower=slower, binds_own=True)
