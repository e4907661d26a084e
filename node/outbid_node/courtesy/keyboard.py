"""Somebody types or moves the mouse: promise longer times, so that other machines win where they can."""

from __future__ import annotations

from outbid_node.config_sections import CourtesySection
from outbid_node.courtesy.parts import NOTHING, Part
from outbid_node.courtesy.readings import Readings


class Keyboard:
    """In use until `back_after_s` after the last key: as the time only grows while nobody is there, it cannot flap."""

    def __init__(self, section: CourtesySection) -> None:
        self._section = section

    def judge(self, readings: Readings) -> Part:
        section, idle_s = self._section, readings.idle_s
        if section.when_in_use == "ignore" or idle_s is None or idle_s >= section.back_after_s:
            return NOTHING
        if section.when_in_use == "withdraw":
            return Part(said="its person is at the keyboard", refuse=True, gives_back=section.hand_over)
        said = f"its person is at the keyboard: times x {section.lower_by:g}"
        return Part(said=said, slower=section.lower_by)
