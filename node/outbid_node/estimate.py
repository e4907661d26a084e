"""From an offer and a job's work to the numbers of a bid, and from finished jobs back to the offer's rates.

Pure apart from `Speeds`, the node's memory of what its runners measured. Prior first (the capability's guess from model
size and memory bandwidth), then the runner's own warm-up, then an exponentially weighted mean of real jobs.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from outbid_contracts.capability import Prior
from outbid_contracts.messages import Offer, Work
from outbid_contracts.runner import Ready, RunDone

log = logging.getLogger(__name__)

WEIGHT = 0.3
"""Weight of the newest job in the running mean: three jobs move a rate two thirds of the way."""

JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds from now, joules and dollars for the whole job."""

    finish_s: float
    finish_p90_s: float
    energy_j: float
    cost_usd: float


def estimate(offer: Offer, work: Work) -> Estimate:
    """What a standing offer promises for this work. A unit without a known rate counts as free."""
    crowd = 1.0 + offer.crowding * max(0, offer.slots - offer.free)
    run_s = (offer.fixed_s + sum(n * offer.rates.get(unit, 0.0) for unit, n in work.items())) * crowd
    finish_s = run_s + (0.0 if offer.warm else offer.load_s)
    return Estimate(
        finish_s=finish_s,
        finish_p90_s=finish_s * max(1.0, offer.spread),
        energy_j=offer.watts * finish_s,
        cost_usd=offer.usd_per_s * finish_s,
    )


@dataclass(slots=True)
class Speed:
    """What is known about one (capability, model) here. Times in seconds; `spread` is p90 over p50 of actual /
    estimated.
    """

    load_s: float
    fixed_s: float
    rates: dict[str, float]
    crowding: float = 0.0
    spread: float = 2.0
    jobs: int = 0
    source: str = "prior"
    ratios: list[float] = field(default_factory=list)

    def learn_ready(self, ready: Ready) -> None:
        self.load_s = ready.load_s
        if self.jobs == 0:
            self.rates |= ready.rates
            self.fixed_s = ready.fixed_s if ready.fixed_s is not None else self.fixed_s
            self.source = "warm-up"

    def learn_job(self, done: RunDone, *, running: int, promised_s: float | None, took_s: float | None) -> None:
        """`running`: jobs that shared the runner, this one not counted; their crowding is taken out of the rates."""
        crowd = 1.0 + self.crowding * running
        for unit, (count, seconds) in done.measured.items():
            if count > 0 and seconds >= 0:
                self.rates[unit] = _mean(self.rates.get(unit), seconds / count / crowd)
        if not done.measured and took_s is not None:
            self.fixed_s = _mean(self.fixed_s, took_s / crowd)
        if promised_s and took_s is not None:
            self.ratios = [*self.ratios[-49:], took_s / promised_s]
            self.spread = _spread(self.ratios)
        self.jobs += 1
        self.source = f"{self.jobs} job{'s' if self.jobs > 1 else ''}"


def _mean(old: float | None, new: float) -> float:
    return new if old is None else (1 - WEIGHT) * old + WEIGHT * new


def _spread(ratios: list[float]) -> float:
    """p90 of actual over promised, between 1 and 10; with few jobs the prior's caution stays."""
    if len(ratios) < 5:
        return 2.0
    ordered = sorted(ratios)
    return min(10.0, max(1.0, ordered[int(len(ordered) * 0.9)]))


class Speeds:
    """The speeds of this node, kept over restarts in one small JSON file (a history database comes on top of it)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._speeds: dict[tuple[str, str | None], Speed] = {}
        self._saved: dict[str, dict[str, object]] = _read(path)

    def of(self, capability: str, model: str | None, prior: Prior) -> Speed:
        key = (capability, model)
        if key not in self._speeds:
            self._speeds[key] = self._restore(_name(key)) or Speed(
                prior.load_s, prior.fixed_s, dict(prior.rates), prior.crowding
            )
        return self._speeds[key]

    def save(self) -> None:
        """Write the file anew (atomically). A full disk costs only the memory of speeds; it is logged."""
        data = self._saved | {
            _name(key): asdict(speed) for key, speed in self._speeds.items() if speed.source != "prior"
        }
        try:
            beside = self._path.with_suffix(".new")
            beside.write_text(json.dumps(data))
            beside.replace(self._path)
        except OSError as error:
            log.warning("speeds were not saved: %s", error, extra={"action": "speeds_not_saved"})

    def _restore(self, name: str) -> Speed | None:
        saved = self._saved.get(name)
        try:
            return Speed(**saved) if saved else None  # type: ignore[arg-type]
        except TypeError:  # written by another version
            return None


def _name(key: tuple[str, str | None]) -> str:
    return f"{key[0]} {key[1] or '-'}"


def _read(path: Path) -> dict[str, dict[str, object]]:
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, Mapping) else {}  # type: ignore[return-value]


def energy_price(joules: float, usd_per_kwh: float) -> float:
    return joules / JOULES_PER_KWH * usd_per_kwh
