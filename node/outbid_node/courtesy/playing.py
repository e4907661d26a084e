"""A game runs, or a program that is none of ours works on the graphics processor: it is the person's now."""

from __future__ import annotations

from collections.abc import Sequence

from outbid_node.config_sections import CourtesySection
from outbid_node.courtesy.lasting import Lasting
from outbid_node.courtesy.parts import NOTHING, Part
from outbid_node.courtesy.readings import GpuUse, Readings

SUSTAINED_S = 10.0
"""A desktop's effects and a page that is drawn anew keep a graphics processor busy for a moment."""


class Games:
    """By the names of processes (`courtesy.games`). At once, and until `back_after_s` after the last one has ended."""

    def __init__(self, section: CourtesySection) -> None:
        self._section = section
        self._lasting = Lasting(0.0, section.back_after_s)
        self._names: tuple[str, ...] = ()

    def judge(self, readings: Readings) -> Part:
        self._names = readings.games or self._names
        if not self._lasting.look(bool(readings.games), readings.at):
            return NOTHING
        verb = "plays" if readings.games else "played just now"
        return for_the_person(self._section, f"its person {verb} ({', '.join(self._names[:3])})")


class GpuTaken:
    """By load or memory of others' processes, once it lasts."""

    def __init__(self, section: CourtesySection) -> None:
        self._section = section
        self._lasting = Lasting(SUSTAINED_S, section.back_after_s)
        self._name = ""

    def judge(self, readings: Readings) -> Part:
        using = taken_by(readings.gpu_use, self._section)
        self._name = using.name if using else self._name
        if not self._lasting.look(using is not None, readings.at):
            return NOTHING
        by = f" ({self._name})" if self._name else ""
        verb = "is" if using else "was just now"
        return for_the_person(self._section, f"its graphics processor {verb} busy with something else{by}")


def taken_by(uses: Sequence[GpuUse], section: CourtesySection) -> GpuUse | None:
    """The first that counts as using the card."""
    for use in uses:
        if (use.busy_percent or 0.0) >= section.gpu_busy_percent or (
            use.memory_percent or 0.0
        ) >= section.gpu_memory_percent:
            return use
    return None


def for_the_person(section: CourtesySection, said: str) -> Part:
    match section.when_playing:
        case "ignore":
            return NOTHING
        case "lower":
            return Part(said=f"{said}: times x {section.lower_by:g}", slower=section.lower_by)
        case _:
            return Part(said=said, refuse=True, gives_back=section.hand_over, frees_memory=True)
