"""Quiet hours as people write them: `22:00-07:00`, `Sat-Sun 00:00-09:00`. Pure; local time is the caller's."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
FORM = '"22:00-07:00", "Fri 20:00-24:00" or "Sat-Sun 00:00-09:00"'
_SHAPE = re.compile(r"(?:([A-Za-z]{3})(?:-([A-Za-z]{3}))? +)?(\d{2}):(\d{2})-(\d{2}):(\d{2})")
_DAY_MINUTES = 24 * 60
MINUTE_S = 60


@dataclass(frozen=True, slots=True)
class Span:
    """Minutes of the day; `end` may lie on the day after. `days` are those on which it begins (0 is Monday)."""

    days: frozenset[int]
    begin: int
    end: int

    def holds(self, weekday: int, minute: int) -> bool:
        """The evening of its own day, or the morning after."""
        return (weekday in self.days and self.begin <= minute < self.end) or (
            (weekday - 1) % 7 in self.days and minute < self.end - _DAY_MINUTES
        )


def parse(text: str) -> Span:
    """Raises ValueError that shows the right form."""
    found = _SHAPE.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is not a time of the week; write {FORM}")
    first, last, *numbers = found.groups()
    begin, end = _minute(text, *numbers[:2]), _minute(text, *numbers[2:])
    if begin in (end, _DAY_MINUTES):
        raise ValueError(f"{text!r} has no length; a whole day is 00:00-24:00")
    return Span(_days(text, first, last), begin, end if end > begin else end + _DAY_MINUTES)


def _minute(text: str, hours: str, minutes: str) -> int:
    total = int(hours) * 60 + int(minutes)
    if int(minutes) > 59 or total > _DAY_MINUTES:
        raise ValueError(f"{text!r} has a time that is none: {hours}:{minutes}; write {FORM}")
    return total


def _days(text: str, first: str | None, last: str | None) -> frozenset[int]:
    if first is None:
        return frozenset(range(7))
    begin = _day(text, first)
    length = (_day(text, last) - begin) % 7 if last else 0
    return frozenset((begin + n) % 7 for n in range(length + 1))


def _day(text: str, name: str) -> int:
    if name.capitalize() not in DAYS:
        raise ValueError(f"{text!r}: {name!r} is no day; days are {', '.join(DAYS)}")
    return DAYS.index(name.capitalize())


class Calendar:
    """Whether it is quiet at a Unix time, and when that changes. `zone` None: the machine's.

    Changes are looked for minute by minute on the clock that never jumps, so that days of 23 and 25 hours need no
    thought: a day takes some 2 ms.
    """

    def __init__(self, texts: Iterable[str], zone: tzinfo | None = None) -> None:
        self._spans = tuple(parse(text) for text in texts)
        self._zone = zone

    def quiet(self, clock_s: float) -> bool:
        local = datetime.fromtimestamp(clock_s, self._zone)
        minute = local.hour * 60 + local.minute
        return any(span.holds(local.weekday(), minute) for span in self._spans)

    def changes_at(self, clock_s: float, within: timedelta) -> float | None:
        """When quiet hours begin, or end if it is quiet now, on a full minute; None if not within that time."""
        if not self._spans:
            return None
        now = self.quiet(clock_s)
        minute = int(clock_s // MINUTE_S + 1) * MINUTE_S
        for at in range(minute, int(clock_s + within.total_seconds()) + 1, MINUTE_S):
            if self.quiet(at) != now:
                return float(at)
        return None

    def time(self, clock_s: float) -> str:
        return datetime.fromtimestamp(clock_s, self._zone).strftime("%H:%M")
