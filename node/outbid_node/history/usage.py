"""What ran here, summed up by the hour: exact whatever rows are left out, and little enough to be kept for years."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from outbid_node.history.rows import Usage

if TYPE_CHECKING:
    from outbid_node.attempt import Attempt

HOUR_MS = 3_600_000

MOST_KEYS = 10_000
"""Sums kept apart between two flushes. Beyond it (a capability name or model cannot be made up, a submitter costs a
key of the mesh) the rest of the minute goes without submitter and owner.
"""

Key = tuple[int, str, str, str, str | None]


class Sum:
    __slots__ = ("cost_usd", "energy_j", "failed", "jobs", "seconds", "units")

    def __init__(self) -> None:
        self.jobs = self.failed = 0
        self.seconds = self.energy_j = self.cost_usd = 0.0
        self.units: dict[str, float] = {}


class UsageSums:
    """Since they were last taken."""

    def __init__(self) -> None:
        self._sums: dict[Key, Sum] = {}

    def add(self, attempt: Attempt, took_s: float, *, failed: bool) -> None:
        """About 2 microseconds: every run of this node comes through here."""
        job, spent = attempt.job, attempt.spent
        hour_ms = int(time.time()) // 3600 * HOUR_MS
        key = (hour_ms, job.submitter, job.owner, job.capability, attempt.model)
        found = self._sums.get(key)
        if found is None:
            found = self._begin(key)
        found.jobs += 1
        found.failed += failed
        found.seconds += took_s
        if spent is not None:
            found.energy_j += spent.energy_j
            found.cost_usd += spent.cost_usd
        for unit, (count, _) in attempt.measured.items():
            found.units[unit] = found.units.get(unit, 0.0) + count

    def _begin(self, key: Key) -> Sum:
        if len(self._sums) >= MOST_KEYS:
            key = (key[0], "", "", key[3], key[4])
        return self._sums.setdefault(key, Sum())

    def take(self) -> Iterator[Usage]:
        sums, self._sums = self._sums, {}
        for (hour_ms, submitter, owner, capability, model), found in sums.items():
            yield Usage(
                hour_ms=hour_ms,
                submitter=submitter,
                owner=owner,
                capability=capability,
                model=model,
                jobs=found.jobs,
                failed=found.failed,
                seconds=found.seconds,
                energy_j=found.energy_j,
                cost_usd=found.cost_usd,
                units=found.units,
            )
