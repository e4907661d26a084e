"""What the machine draws, and how that is known, best first: battery, the processor's counters, the configuration.

The cards are read apart, because who uses a card and who uses the processor are different questions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from outbid_node.config_sections import PowerSection
from outbid_node.power.cards import Cards
from outbid_node.power.idle import Idle
from outbid_node.power.processor import Processor, Runner, Worked
from outbid_node.power.rapl import Rapl
from outbid_node.resources.files import Files


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """Mean watts from `began` to `ended` (seconds of the monotonic clock).

    `extra_w` is above idle: of the machine without its cards; `cards_extra_w` of the cards. `source` says how they are
    known.
    """

    began: float
    ended: float
    machine_w: float
    extra_w: float
    cards_extra_w: float
    source: str
    worked: Worked

    @property
    def seconds(self) -> float:
        return self.ended - self.began


@dataclass(frozen=True, slots=True)
class State:
    """What the event loop knows. `quiet`: nothing of ours ran since the last reading. `on_card`: something ran on a
    device other than the processor. `battery_w`: what flows out, if the machine runs on it.
    """

    quiet: bool
    on_card: bool = False
    battery_w: float | None = None
    pids: Mapping[Runner, int] = field(default_factory=dict)


class Sources:
    """Reads files and calls drivers: for a thread. Only one at a time."""

    def __init__(self, power: PowerSection, root: Path = Path("/"), nvml: Any = None, *, cards: bool = True) -> None:
        files = Files(root)
        self._power = power
        self._span_w = max(0.0, power.busy_w - power.idle_w)
        self.rapl = Rapl(files)
        self._cards = Cards(files, nvml) if cards else None
        self._processor = Processor()
        self._idle: defaultdict[str, Idle] = defaultdict(Idle)
        self._at: float | None = None

    def read(self, now: float, state: State) -> Draw | None:
        """None at the first reading."""
        began, self._at = self._at, now
        rapl_w, cards_w = self.rapl.watts(now), self._cards.watts(now) if self._cards else None
        worked = self._processor.read(state.pids)
        if began is None or now <= began:
            return None
        seconds, dark = now - began, cards_w is None and state.on_card
        source, rest_w = self._rest(state.battery_w, rapl_w, cards_w, worked)
        extra_w = self._extra(source, rest_w, seconds, quiet=state.quiet)
        cards_extra_w = 0.0 if cards_w is None else self._extra("cards", cards_w, seconds, quiet=state.quiet)
        if dark and source == "declared":
            cards_extra_w = self._span_w - extra_w
        return Draw(
            began=began,
            ended=now,
            machine_w=rest_w + (cards_extra_w if dark else cards_w or 0.0),
            extra_w=extra_w,
            cards_extra_w=cards_extra_w,
            source=f"{source}+{self._cards.source}" if self._cards and self._cards.source else source,
            worked=worked,
        )

    def _rest(
        self, battery_w: float | None, rapl_w: float | None, cards_w: float | None, worked: Worked
    ) -> tuple[str, float]:
        """The machine without its cards."""
        if battery_w is not None and battery_w > 0:
            return "battery", max(0.0, battery_w - (cards_w or 0.0))
        if rapl_w is not None:
            return "rapl", rapl_w + self._power.base_w
        return "declared", self._power.idle_w + worked.utilisation * self._span_w

    def _extra(self, source: str, watts: float, seconds: float, *, quiet: bool) -> float:
        idle = self._idle[source]
        if quiet:
            idle.note(watts, seconds)
        idle_w = self._power.idle_w if source == "declared" else idle.watts()
        if idle_w is None:
            idle_w = min(self._power.idle_w, watts) if source != "cards" else 0.0
        return max(0.0, watts - idle_w)
