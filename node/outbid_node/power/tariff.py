"""What a kilowatt-hour costs when: rules such as `22:00-06:00 0.18`, `weekend 0.20`, `Mon-Fri 17:00-20:00 0.45`.

The first rule that fits counts, else the base price. A span over midnight belongs to the day on which it begins:
`Fri 22:00-06:00` ends on Saturday morning. Times are local; in the hour that a clock change repeats, a rule counts
twice.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass

from outbid_node.courtesy import hours
from outbid_node.courtesy.hours import Span

JOULES_PER_KWH = 3.6e6

HOW = '"22:00-06:00 0.18", "weekend 0.20" or "Mon-Fri 17:00-20:00 0.45"'
_DAYS = {"weekend": "Sat-Sun", "weekdays": "Mon-Fri"}
_HOURS = re.compile(r"\d\d:\d\d-\d\d:\d\d")
_PRICE = re.compile(r"\d+(\.\d+)?|\.\d+")


@dataclass(frozen=True, slots=True)
class Rule:
    span: Span
    usd_per_kwh: float


def parse(text: str) -> Rule:
    """Raises ValueError that shows the right form."""
    *when, price = text.split() or [""]
    if not 1 <= len(when) <= 2 or not _PRICE.fullmatch(price):
        raise ValueError(f"tariff: {text!r} is not a time and a price; write {HOW}")
    when[0] = _DAYS.get(when[0].lower(), when[0])
    if not _HOURS.fullmatch(when[-1]):
        when.append("00:00-24:00")
    try:
        return Rule(hours.parse(" ".join(when)), float(price))
    except ValueError as error:
        raise ValueError(f"tariff: {text!r}: {error}") from None


class Tariff:
    """Prices by Unix time. They change at whole minutes only, so the last answer is kept until the minute is over."""

    def __init__(self, usd_per_kwh: float, rules: Iterable[str] = ()) -> None:
        """Raises ValueError."""
        self._base = usd_per_kwh
        self._rules = tuple(parse(rule) for rule in rules)
        self._minute = -1
        self._price = usd_per_kwh

    def usd_per_kwh(self, at_s: float) -> float:
        if self._rules and self._minute != (minute := int(at_s // 60)):
            self._minute, self._price = minute, self._at(minute)
        return self._price

    def usd_per_j(self, begin_s: float, end_s: float) -> float:
        """The mean over that time, at which a steady draw pays."""
        if end_s <= begin_s or begin_s // 60 == end_s // 60:
            return self.usd_per_kwh(end_s) / JOULES_PER_KWH
        edges = [begin_s, *map(float, range((int(begin_s // 60) + 1) * 60, int(end_s) + 1, 60)), end_s]
        paid = sum(self.usd_per_kwh(a) * (b - a) for a, b in itertools.pairwise(edges))
        return paid / (end_s - begin_s) / JOULES_PER_KWH

    def _at(self, minute: int) -> float:
        local = time.localtime(minute * 60)
        now = local.tm_hour * 60 + local.tm_min
        return next((rule.usd_per_kwh for rule in self._rules if rule.span.holds(local.tm_wday, now)), self._base)
