"""Quiet hours: no work for others then, and before them only what is done in time."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta, tzinfo

from outbid_node.config_sections import CourtesySection
from outbid_node.courtesy.hours import MINUTE_S, Calendar
from outbid_node.courtesy.parts import NOTHING, Part
from outbid_node.courtesy.readings import Readings

AHEAD = timedelta(days=1)
"""How far ahead is looked: no job is promised for longer, and of longer quiet hours the end is not told."""

WORTH_SAYING_S = 3600.0


class QuietHours:
    def __init__(self, section: CourtesySection, zone: tzinfo | None = None) -> None:
        self.configured = section.quiet_hours if section.enabled else ()
        self._hand_over = section.hand_over
        self._zone = zone
        self.hold(None)

    def hold(self, ordered: Sequence[str] | None) -> None:
        """These hours from now on; None: those of the configuration. Raises ValueError, and nothing has changed."""
        hours = tuple(self.configured if ordered is None else ordered)
        self._calendar = Calendar(hours, self._zone)
        self.hours = hours
        self._known: tuple[int, bool, float | None] = (-1, False, None)

    def judge(self, readings: Readings) -> Part:
        quiet, changes_at = self._look(readings.clock_s)
        if quiet:
            until = "" if changes_at is None else f" until {self._calendar.time(changes_at)}"
            return Part(said=f"quiet hours{until}", refuse=True, gives_back=self._hand_over)
        if changes_at is None:
            return NOTHING
        left_s = max(0.0, changes_at - readings.clock_s)
        why = f"quiet hours begin at {self._calendar.time(changes_at)}"
        return Part(said=why if left_s < WORTH_SAYING_S else "", most_s=left_s, most_why=why)

    def _look(self, clock_s: float) -> tuple[bool, float | None]:
        """Once a minute: they begin and end on full ones."""
        minute = int(clock_s // MINUTE_S)
        if self._known[0] != minute:
            quiet = self._calendar.quiet(clock_s)
            self._known = minute, quiet, self._calendar.changes_at(clock_s, AHEAD)
        return self._known[1:]
