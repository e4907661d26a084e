"""A drill: durable jobs go in while a storm rages, then everything that was recorded is checked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from outbid.chaos.history import check
from outbid.chaos.record import Event, Seen, Violation, load
from outbid.chaos.recovery import percentile, recoveries
from outbid.chaos.storm import Storm
from outbid.chaos.workload import Workload

PATIENCE_S = 60.0
"""How long jobs may take to end once the storm is over."""

NOTED_S = 5.0
"""An end can be read as soon as its record is on disk; its owner's note in the trace comes after that."""

READ_AGAIN_S = 0.25


class Recovery(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds from a kill to the job running again."""

    count: int
    p50_s: float | None
    p99_s: float | None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a drill did and found. `lost`: acknowledged jobs whose end nobody can tell. `refused`: what submits were
    answered that should have been accepted.
    """

    seed: int
    seconds: float
    submitted: int
    acknowledged: int
    done: int
    lost: tuple[str, ...]
    hits: dict[str, int]
    kills: int
    after_runner: Recovery
    after_daemon: Recovery
    refused: tuple[str, ...]
    violations: tuple[Violation, ...]

    @property
    def clean(self) -> bool:
        return not (self.lost or self.refused or self.violations)


async def drill(
    workload: Workload, storm: Storm, traces: Sequence[Path], *, seed: int, seconds: float, jobs: int, kills: int = 0
) -> Report:
    """Submit `jobs` while the storm rages, at least `seconds` long and until `kills` were made."""
    started = time.monotonic()

    def raging() -> bool:
        return time.monotonic() - started < seconds or storm.kills < kills

    async with asyncio.TaskGroup() as both:
        both.create_task(storm.run(raging))
        both.create_task(workload.submit(lambda submitted: submitted < jobs))
    await workload.finish(PATIENCE_S)
    took_s = time.monotonic() - started
    return report(await recorded(traces, workload.seen), workload, storm, seed=seed, seconds=took_s)


async def recorded(traces: Sequence[Path], seen: Mapping[str, Seen]) -> list[Event]:
    """What was recorded, as soon as it tells the end of every job whose end was read, or after NOTED_S: the note of an
    owner that was killed never comes.
    """
    until = time.monotonic() + NOTED_S
    while True:
        history = load(traces)
        told = {event["job"] for event in history if event["what"] in ("ended", "inherited")}
        if time.monotonic() > until or all(job in told for job, found in seen.items() if found.state):
            return history
        await asyncio.sleep(READ_AGAIN_S)


def report(history: Sequence[Event], workload: Workload, storm: Storm, *, seed: int, seconds: float) -> Report:
    seen: Mapping[str, Seen] = workload.seen
    times = recoveries(history)
    return Report(
        seed=seed,
        seconds=round(seconds, 1),
        submitted=workload.submitted,
        acknowledged=len(seen),
        done=workload.done,
        lost=tuple(job for job, found in seen.items() if not found.state),
        hits=dict(sorted(storm.hits.items())),
        kills=storm.kills,
        after_runner=_recovery(times.runner),
        after_daemon=_recovery(times.daemon),
        refused=tuple(workload.refused),
        violations=tuple(check(history, seen)),
    )


def _recovery(seconds: Sequence[float]) -> Recovery:
    return Recovery(count=len(seconds), p50_s=percentile(seconds, 50), p99_s=percentile(seconds, 99))
