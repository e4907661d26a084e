"""All rules, in the order in which people hear of them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import tzinfo
from typing import Protocol

from outbid_node.config_sections import CourtesySection
from outbid_node.courtesy.charge import Charge, Unplugged
from outbid_node.courtesy.heat import Heat
from outbid_node.courtesy.keyboard import Keyboard
from outbid_node.courtesy.parts import Part
from outbid_node.courtesy.pausing import Paused
from outbid_node.courtesy.playing import Games, GpuTaken
from outbid_node.courtesy.quiet import QuietHours
from outbid_node.courtesy.readings import Readings


class Rule(Protocol):
    def judge(self, readings: Readings) -> Part:
        """What follows from the readings, and from those before where it must not flap."""


def rules(section: CourtesySection, zone: tzinfo | None = None, quiet: QuietHours | None = None) -> Sequence[Rule]:
    """`quiet`: the quiet hours in force, if they are not simply the section's."""
    quiet = quiet or QuietHours(section, zone)
    if not section.enabled:
        return [Paused(), quiet]
    return [
        Paused(),
        Games(section),
        GpuTaken(section),
        Keyboard(section),
        quiet,
        Unplugged(section),
        Charge(section),
        Heat(section),
    ]
