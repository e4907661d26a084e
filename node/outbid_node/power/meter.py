"""What an attempt took: the meter's interface, and the simplest one, by the watts in the configuration."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

from outbid_node.config_sections import PowerSection
from outbid_node.estimate import energy_price


@dataclass(frozen=True, slots=True)
class Spent:
    """`source` says how it is known (rapl, nvml, battery, declared)."""

    energy_j: float
    cost_usd: float
    source: str = "declared"


class Meter(Protocol):
    """`key` names an attempt; those under way at once share what is drawn. `device` is the kind (cpu, cuda, mps)."""

    def begin(self, key: str, device: str) -> None: ...

    def end(self, key: str) -> Spent | None:
        """None if it never began."""

    def watts(self, device: str) -> float:
        """The extra watts expected while such an attempt runs alone; for bids."""

    def usd_per_s(self, watts: float) -> float:
        """What a second of it costs now, rent and electricity; for bids."""


class DeclaredMeter:
    """Declared busy minus idle watts times seconds."""

    def __init__(self, power: PowerSection) -> None:
        self._power = power
        self._began: dict[str, float] = {}

    def begin(self, key: str, device: str) -> None:
        self._began[key] = time.monotonic()

    def end(self, key: str) -> Spent | None:
        began = self._began.pop(key, None)
        if began is None:
            return None
        seconds, watts = time.monotonic() - began, self.watts("")
        return Spent(energy_j=watts * seconds, cost_usd=self.usd_per_s(watts) * seconds)

    def watts(self, device: str) -> float:
        return max(0.0, self._power.busy_w - self._power.idle_w)

    def usd_per_s(self, watts: float) -> float:
        return self._power.usd_per_h / 3600 + energy_price(watts, self._power.usd_per_kwh)
