"""How long jobs took to run again after what ran them was killed, from a history."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from outbid.chaos.record import Event


class Recoveries(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds from SIGKILL to the job's next start, by what was killed. Of a daemon only jobs of other owners count:
    those it owned itself wait for it to come back.
    """

    runner: tuple[float, ...] = ()
    daemon: tuple[float, ...] = ()


class _Hit(NamedTuple):
    """An attempt that lost what ran it. `at`: seconds of the monotonic clock."""

    process: str
    start: Event
    at: float


def recoveries(history: Iterable[Event]) -> Recoveries:
    found: defaultdict[str, list[float]] = defaultdict(list)
    live: defaultdict[str, dict[str, Event]] = defaultdict(dict)
    hit: dict[str, _Hit] = {}
    for event in history:
        now = event["mono"] / 1e9
        if event["what"] == "started":
            if (lost := hit.pop(event["job"], None)) and event["attempt"] > lost.start["attempt"]:
                found[lost.process].append(now - lost.at)
            live[event["node"]][event["job"]] = event
        elif event["what"] == "stopped":
            live[event["node"]].pop(event["job"], None)
            if event["outcome"] == "done":
                hit.pop(event["job"], None)
        elif event["what"] == "killed":
            _killed(event, live[event["node"]], hit, int(event.get("sent") or event["mono"]) / 1e9)
    return Recoveries(runner=tuple(found["runner"]), daemon=tuple(found["daemon"]))


def _killed(event: Event, live: dict[str, Event], hit: dict[str, _Hit], now: float) -> None:
    process = event.get("process", "")
    if process == "daemon":
        for job in [job for job, lost in hit.items() if lost.start["owner"] == event["node"]]:
            del hit[job]
    if process not in ("runner", "daemon"):
        return
    for job, start in live.items():
        if process == "runner" or start["owner"] != event["node"]:
            hit[job] = _Hit(process, start, now)
    if process == "daemon":
        live.clear()


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The smallest value that so many percent do not exceed; None without values."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(len(ranked) * percent / 100) - 1)] if ranked else None
