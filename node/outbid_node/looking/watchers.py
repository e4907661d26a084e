"""Who looks on: what is wanted, and until when. Pure."""

from __future__ import annotations

import logging

from outbid_contracts.live import WATCH_FOR_S, Watch

NEVER = float("-inf")


class Watchers:
    """Watchers have no names: each word of one lengthens what it asks for. Times are of one monotonic clock."""

    def __init__(self) -> None:
        self._jobs = self._auctions = NEVER
        self._logs: dict[int, float] = {}

    def heard(self, watch: Watch, now: float) -> None:
        until = now + WATCH_FOR_S
        if watch.jobs:
            self._jobs = until
        if watch.auctions:
            self._auctions = until
        if watch.logs is not None:
            self._logs[number_of(watch.logs)] = until

    def jobs(self, now: float) -> bool:
        return now < self._jobs

    def auctions(self, now: float) -> bool:
        return now < self._auctions

    def logs(self, now: float) -> int | None:
        """The lowest level that somebody wants, as the logging module numbers them."""
        return min((level for level, until in self._logs.items() if now < until), default=None)


def number_of(level: str) -> int:
    return logging.getLevelNamesMapping()[level.upper()]
