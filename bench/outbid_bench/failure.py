"""`failure`: processes killed under way. How soon their jobs run elsewhere, how long streams pause, what is lost."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random

from outbid import Policy
from outbid.chaos.history import check
from outbid.chaos.record import Event, Seen, Violation
from outbid_bench.deaths import (
    ADOPT_AFTER_S,
    DAEMON,
    KEEPER,
    LEDGER,
    MACHINE,
    NODE_DEATHS,
    OWNER,
    OWNER_AWAY,
    OWNER_BACK,
    RUNNER,
    WORKERS,
    Kill,
    Stage,
)
from outbid_bench.options import Options
from outbid_bench.plots import Plot, Steps
from outbid_bench.report import Aim, Section, Table
from outbid_bench.stats import percentile
from outbid_bench.watched import PACE_S, PIECES, Stream, hand_in, read, watch

TOGETHER = 2
"""Streams, and as many durable jobs, under way at each kill."""

KILLS = {RUNNER: 10, DAEMON: 10, MACHINE: 10, LEDGER: 8, OWNER_BACK: 8, OWNER_AWAY: 8}
QUICK_KILLS = {RUNNER: 2, DAEMON: 2, MACHINE: 2, LEDGER: 1, OWNER_BACK: 2, OWNER_AWAY: 1}
UNDER_WAY_S = (0.3, 0.9)
COPIED_S = (0.8, 1.0)
"""After the start: the keeper has its copy half a second after the job was handed in."""

NAMES = {
    RUNNER: "runner of the jobs",
    DAEMON: "daemon of the node that runs them",
    MACHINE: "every process of the node that runs them",
    LEDGER: "ledger (nats-server) of the node that runs them",
    OWNER_BACK: "daemon of the owner, started again at once",
    OWNER_AWAY: "daemon of the owner, not started again",
}
SIGNS = {OWNER_BACK: "recovered"} | dict.fromkeys((RUNNER, DAEMON, MACHINE, LEDGER, OWNER_AWAY), "started")
"""In the trace: that a durable job goes on. A restarted owner takes the attempt on that still runs."""

WINNER = (RUNNER, *NODE_DEATHS)
ELSEWHERE_S, KNOWN_S = 0.5, 0.3


@dataclass(frozen=True, slots=True)
class Blow:
    """One kill, the jobs that were under way, and what clients were told about them."""

    kill: Kill
    streams: Sequence[Stream]
    durable: Mapping[str, Seen]


@dataclass(slots=True)
class Found:
    blows: list[Blow] = field(default_factory=list)
    again_s: dict[str, list[float]] = field(default_factory=dict)
    """By death: until durable jobs that were hit ran again."""
    violations: list[Violation] = field(default_factory=list)
    ended_alone: list[str] = field(default_factory=list)

    def of(self, *deaths: str) -> list[Blow]:
        return [blow for blow in self.blows if blow.kill.death in deaths]

    def pauses_s(self, *deaths: str) -> list[float]:
        return [s.pause_s(b.kill.mono_s) for b in self.of(*deaths) for s in b.streams if not s.lost]

    def known_s(self, *deaths: str) -> list[float]:
        return [blow.kill.gone_s for blow in self.of(*deaths) if blow.kill.gone_s is not None]


async def run(options: Options) -> Section:
    found = Found()
    async with Stage(options.folder / "failure") as stage:
        plan = list(in_turns(options.few_or_many(QUICK_KILLS, KILLS)))
        for number, (death, victim) in enumerate(plan):
            if number % 10 == 0:
                options.say(f"failure: kill {number + 1} of {len(plan)}")
            found.blows.append(await _strike(stage, death, victim))
        found.ended_alone = stage.ended_alone
        history = stage.history()
    found.violations = check(history, {job: seen for blow in found.blows for job, seen in blow.durable.items()})
    for blow in found.blows:
        found.again_s.setdefault(blow.kill.death, []).extend(until_again(history, blow.kill, blow.durable))
    return _section(found)


def in_turns(kills: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """Each death and the node it comes to, well mixed."""
    workers, left = itertools.cycle(WORKERS), dict(kills)
    while any(left.values()):
        for death in [death for death, count in left.items() if count]:
            left[death] -= 1
            yield death, OWNER if death in (OWNER_BACK, OWNER_AWAY) else next(workers)


async def _strike(stage: Stage, death: str, victim: str) -> Blow:
    """Jobs are begun, `victim` is hit, and all is waited for that they come to."""
    policy = Policy(prefer=(victim if victim in WORKERS else WORKERS[0],))
    async with stage.mesh(KEEPER) as reader, stage.mesh(OWNER) as mesh:
        jobs = await hand_in(mesh, policy, TOGETHER)
        # Streams of a machine that is away are away with it.
        streams, followed = watch(mesh, policy, 0 if death == OWNER_AWAY else TOGETHER)
        await asyncio.gather(*(stream.begun.wait() for stream in streams))
        await asyncio.sleep(Random().uniform(*(COPIED_S if death == OWNER_AWAY else UNDER_WAY_S)))
        kill = stage.kill(death, victim)
        seen = await read(reader, jobs)
        await asyncio.gather(*followed)
        if death in (*NODE_DEATHS, OWNER_AWAY):
            kill = replace(kill, gone_s=await stage.known_s(kill))
    await stage.mend(kill)
    return Blow(kill, streams, seen)


def until_again(history: Iterable[Event], kill: Kill, jobs: Iterable[str]) -> list[float]:
    """Seconds from the kill until each of these jobs went on; one that needed no new attempt is left out."""
    killed, wanted = kill.mono_s * 1e9, set(jobs)
    first: dict[str, float] = {}
    for event in history:
        if event["what"] == SIGNS[kill.death] and event["mono"] > killed and event["job"] in wanted:
            first.setdefault(event["job"], (event["mono"] - killed) / 1e9)
    return list(first.values())


# -- what is said about it ---------------------------------------------------------------------------------------------


def _section(found: Found) -> Section:
    section = Section(
        "failure",
        "Failure: processes killed under way",
        "Five nodes on one machine: one is asked and owns the jobs, one keeps copies of them, three can run them. "
        f"{len(found.blows)} times something is killed by SIGKILL while {TOGETHER} streams of {PIECES} pieces "
        f"({1 / PACE_S:.0f} a second) and {TOGETHER} durable jobs of the same length run on one node.",
    )
    section.tables = [_again_table(found), _pause_table(found), _known_table(found)]
    section.aims, section.plots = _aims(found), _plots(found)
    return section


def _again_table(found: Found) -> Table:
    rows = []
    for death, again_s in found.again_s.items():
        blows = found.of(death)
        jobs = sum(len(blow.durable) for blow in blows)
        rows.append((NAMES[death], str(len(blows)), str(jobs), *_quantiles(again_s), str(_lost_jobs(blows))))
    notes = (
        "From the signal to the note of the node that takes the next attempt, on one clock. A restarted owner goes on "
        "with the attempt that still runs: until it notes that. `-`: no new attempt was needed.",
        f"An owner that stays away is waited for: {ADOPT_AFTER_S:.0f} s here (`durable.adopt_after_s`, 10 minutes if "
        "not given), then its keeper takes over.",
        "Lost: the result did not come within a minute at another node, or was wrong.",
        "Celery with `task_acks_late` and Redis, by its documentation: a task whose worker is gone is delivered again "
        "after the visibility timeout, one hour if not given "
        "(docs.celeryq.dev, “Using Redis”, “Visibility timeout”). Not measured here.",
    )
    columns = ("killed", "kills", "jobs", "p50", "p90", "max", "lost")
    return Table("Durable jobs: from the kill to running again", columns, rows, notes)


def _lost_jobs(blows: Iterable[Blow]) -> int:
    return sum(seen.state != "done" or bool(seen.wrong) for blow in blows for seen in blow.durable.values())


def _pause_table(found: Found) -> Table:
    rows = []
    for death in found.again_s:
        streams = [stream for blow in found.of(death) for stream in blow.streams]
        if streams:
            lost, astray = sum(stream.lost for stream in streams), sum(stream.astray for stream in streams)
            counts = (str(len(found.of(death))), str(len(streams)))
            rows.append((NAMES[death], *counts, *_quantiles(found.pauses_s(death)), str(lost), str(astray)))
    notes = (
        f"The longest time without a piece at the client, which reads `mesh.stream`; {PACE_S * 1000:.0f} ms without a "
        "kill. Astray: pieces that are missing, doubled or out of order.",
        "The design promises a pause and no error, but no length of it. An owner asks after its attempts every 0.25 s.",
    )
    columns = ("killed", "kills", "streams", "p50", "p90", "max", "lost", "astray")
    return Table("Streams: the longest pause", columns, rows, notes)


def _known_table(found: Found) -> Table:
    rows = []
    for death in (*NODE_DEATHS, OWNER_AWAY):
        seconds = found.known_s(death)
        rows.append((NAMES[death], str(len(seconds)), *_quantiles(seconds)))
    notes = (
        "A daemon's router lives a moment longer and says goodbye. Where every process is killed at one blow nobody "
        "does, and the nodes that have no jobs there learn it from whoever watches it next, within about a second.",
    )
    columns = ("killed", "kills", "p50", "p90", "max")
    return Table("From the kill until the last of the other four nodes knows", columns, rows, notes)


def _quantiles(seconds: Sequence[float]) -> tuple[str, str, str]:
    if not seconds:
        return "-", "-", "-"
    p50, p90 = percentile(seconds, 0.5), percentile(seconds, 0.9)
    return f"{p50:.2f} s", f"{p90:.2f} s", f"{max(seconds):.2f} s"


def _aims(found: Found) -> list[Aim]:
    lost = _lost_jobs(found.blows) + sum(stream.lost for blow in found.blows for stream in blow.streams)
    jobs = sum(len(blow.streams) + len(blow.durable) for blow in found.blows)
    astray = sum(stream.astray for blow in found.blows for stream in blow.streams)
    again_s = [seconds for death in WINNER for seconds in found.again_s.get(death, ())]
    return [
        Aim("jobs lost", "0", f"{lost} of {jobs}", lost == 0),
        Aim("pieces of streams missing, doubled or out of order", "0", str(astray), astray == 0),
        Aim("broken promises in the nodes' traces", "0", _counted(found.violations), not found.violations),
        Aim("daemons that ended without being killed", "0", _counted(found.ended_alone), not found.ended_alone),
        _within("winner killed, durable job runs again, p99", again_s, ELSEWHERE_S),
        _within("winner killed, pause of a stream, p99", found.pauses_s(*WINNER), ELSEWHERE_S),
        _within("killed daemon known as gone by all, p99", found.known_s(DAEMON, OWNER_AWAY), KNOWN_S),
    ]


def _counted(found: Sequence[object]) -> str:
    return f"{len(found)}: {found[0]}".splitlines()[0] if found else "0"


def _within(what: str, seconds: Sequence[float], below_s: float) -> Aim:
    p99 = percentile(seconds, 0.99)
    return Aim(what, f"< {below_s:.1f} s", f"{p99:.2f} s", p99 < below_s)


def _plots(found: Found) -> list[Plot]:
    pauses = {NAMES[death]: values for death in found.again_s if (values := found.pauses_s(death))}
    again = {NAMES[death]: values for death in WINNER if (values := found.again_s.get(death, []))}
    return [
        Steps("pauses", "Streams: longest pause after a kill", "seconds", pauses),
        Steps("again", "Durable jobs: from the kill to running again", "seconds", again),
    ]
