"""Who waits and which slots are free, followed through a history: invariants 3 and 4."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from outbid.chaos.record import Event, Violation

Kind = tuple[str | None, str | None]
"""Capability and model."""

Attempt = tuple[str, int]
"""Job and number."""


@dataclass
class _Work:
    """One kind of work at a node. `free_since`: seconds, None while it is full."""

    slots: int = 0
    live: set[Attempt] = field(default_factory=set)
    free_since: float | None = None


@dataclass
class _Node:
    """A node to which something was last done at `disturbed` (seconds); `away`: killed, frozen or cut off."""

    boot: str = ""
    disturbed: float = float("-inf")
    away: set[str] = field(default_factory=set)
    work: dict[Kind, _Work] = field(default_factory=dict)


@dataclass
class _Job:
    owner: str = ""
    kind: Kind = (None, None)
    since: float | None = None
    """Ready and without an attempt since then."""
    live: set[tuple[str, int]] = field(default_factory=set)
    """Attempts under way: node and number."""
    failed_on: set[str] = field(default_factory=set)
    ended: bool = False
    blamed: bool = False


class Slots:
    """Feed it a history in order; `violations` has what it found.

    A job is ready from its acceptance until an attempt of it starts, and again when the last of its attempts failed or
    lost its node. A slot is able once its node ran such a job in this boot. A node where an attempt at it failed
    does not count: its owner avoids that one.
    """

    def __init__(self, tolerance_s: float, calm_s: float) -> None:
        self.violations: list[Violation] = []
        self._tolerance_s = tolerance_s
        self._calm_s = calm_s
        self._nodes: dict[str, _Node] = {}
        self._jobs: dict[str, _Job] = {}
        self._waiting: dict[str, dict[str, float]] = {}
        """By owner, the jobs that wait and since when, the longest first."""

    def take(self, event: Event) -> None:
        now = event["mono"] / 1e9
        self._find_idle(event, now)
        if "boot" in event:
            self._alive(event, now)
        handle = getattr(self, f"_{event['what']}", None)
        if handle is not None:
            handle(event, now)

    # -- nodes come and go ----------------------------------------------------------------------------------------

    def _alive(self, event: Event, now: float) -> None:
        node = self._node(event["node"])
        if node.boot != event["boot"]:
            self._die(event["node"], now)
            node.boot = event["boot"]
            node.away.discard("killed")

    def _down(self, event: Event, now: float) -> None:
        self._disturb(event["node"], now).away.add("killed")

    def _killed(self, event: Event, now: float) -> None:
        self._disturb(event["node"], now)
        if event.get("process") == "daemon":
            self._die(event["node"], now)
            self._node(event["node"]).away.add("killed")

    def _frozen(self, event: Event, now: float) -> None:
        self._disturb(event["node"], now).away.add("frozen")

    def _resumed(self, event: Event, now: float) -> None:
        self._disturb(event["node"], now).away.discard("frozen")

    def _cut(self, event: Event, now: float) -> None:
        for name in event["nodes"]:
            self._disturb(name, now).away.add("cut")

    def _healed(self, event: Event, now: float) -> None:
        for name in event["nodes"]:
            self._disturb(name, now).away.discard("cut")

    def _node(self, name: str) -> _Node:
        return self._nodes.setdefault(name, _Node())

    def _disturb(self, name: str, now: float) -> _Node:
        node = self._node(name)
        node.disturbed = now
        return node

    def _die(self, name: str, now: float) -> None:
        """Its attempts are gone; the jobs it owns wait for it to come back."""
        node = self._disturb(name, now)
        lost = [attempt for work in node.work.values() for attempt in work.live]
        node.work.clear()
        for id in list(self._waiting.get(name, {})):
            self._stop_waiting(id)
        for id, number in lost:
            self._attempt_over(id, name, number, now)

    # -- the life of a job ----------------------------------------------------------------------------------------

    def _accepted(self, event: Event, now: float) -> None:
        job = self._owned(event)
        job.kind = (event.get("capability"), event.get("model"))
        self._wait(event, now)

    def _recovered(self, event: Event, now: float) -> None:
        self._owned(event)
        self._wait(event, now)

    _adopted = _recovered

    def _owned(self, event: Event) -> _Job:
        """A node that did not know it was moved away may still have it: it does not wait there."""
        self._stop_waiting(event["job"])
        job = self._jobs.setdefault(event["job"], _Job())
        job.owner = event["node"]
        return job

    def _moved(self, event: Event, now: float) -> None:
        if self._job(event).owner == event["node"]:
            self._stop_waiting(event["job"])

    def _started(self, event: Event, now: float) -> None:
        job, kind = self._job(event), (event.get("capability"), event.get("model"))
        work = self._node(event["node"]).work.setdefault(kind, _Work())
        work.slots = event["slots"]
        work.live.add((event["job"], event["attempt"]))
        if max(len(work.live), event["running"]) > work.slots:
            what = f"{event['node']} runs {max(len(work.live), event['running'])} jobs in {work.slots} slots"
            self.violations.append(Violation(invariant=4, job=event["job"], what=what, events=(event,)))
        self._count(work, now)
        self._stop_waiting(event["job"])
        job.live.add((event["node"], event["attempt"]))

    def _stopped(self, event: Event, now: float) -> None:
        for work in self._node(event["node"]).work.values():
            work.live.discard((event["job"], event["attempt"]))
            self._count(work, now)
        self._attempt_over(event["job"], event["node"], event["attempt"], now, done=event["outcome"] == "done")

    def _settled(self, event: Event, now: float) -> None:
        if event["accepted"] and event["outcome"] == "done":
            self._stop_waiting(event["job"])

    def _ended(self, event: Event, now: float) -> None:
        self._job(event).ended = True
        self._stop_waiting(event["job"])

    _inherited = _ended

    def _job(self, event: Event) -> _Job:
        return self._jobs.setdefault(event["job"], _Job())

    @staticmethod
    def _count(work: _Work, now: float) -> None:
        if len(work.live) >= work.slots:
            work.free_since = None
        elif work.free_since is None:
            work.free_since = now

    def _attempt_over(self, id: str, node: str, number: int, now: float, *, done: bool = False) -> None:
        job = self._jobs.get(id)
        if job is None or (node, number) not in job.live:
            return
        job.live.discard((node, number))
        owner = self._node(job.owner)
        if not done:
            job.failed_on.add(node)
        if not done and not job.live and not job.ended and "killed" not in owner.away:
            self._start_waiting(id, job, now)

    def _wait(self, event: Event, now: float) -> None:
        job = self._job(event)
        if not job.live and not job.ended and not event.get("held"):
            self._start_waiting(event["job"], job, now)

    def _start_waiting(self, id: str, job: _Job, now: float) -> None:
        self._stop_waiting(id)
        job.since = now
        self._waiting.setdefault(job.owner, {})[id] = now

    def _stop_waiting(self, id: str) -> None:
        job = self._jobs.get(id)
        if job is not None and job.since is not None:
            job.since = None
            self._waiting[job.owner].pop(id, None)

    # -- idle slots -----------------------------------------------------------------------------------------------

    def _find_idle(self, event: Event, now: float) -> None:
        """What held until this moment, before the event changes it."""
        free = [(name, kind, since) for name, kind, since in self._free(now) if now - since > self._tolerance_s]
        if not free:
            return
        for owner, waiting in self._waiting.items():
            for id, since in waiting.items():
                if now - max(since, self._calm_from(owner)) <= self._tolerance_s:
                    break
                self._blame_idle(id, max(since, self._calm_from(owner)), free, event, now)

    def _free(self, now: float) -> Iterator[tuple[str, Kind, float]]:
        for name, node in self._nodes.items():
            for kind, work in node.work.items():
                if work.free_since is not None:
                    yield name, kind, max(work.free_since, self._calm_from(name))

    def _calm_from(self, name: str) -> float:
        node = self._node(name)
        return float("inf") if node.away else node.disturbed + self._calm_s

    def _blame_idle(self, id: str, since: float, free: list[tuple[str, Kind, float]], event: Event, now: float) -> None:
        job = self._jobs[id]
        for name, kind, free_since in free:
            waited_s = now - max(since, free_since)
            if job.blamed or name in job.failed_on or not _fits(job.kind, kind) or waited_s <= self._tolerance_s:
                continue
            job.blamed = True
            what = f"it waited {waited_s:.1f} s at {job.owner} while {name} had a free slot"
            self.violations.append(Violation(invariant=3, job=id, what=what, events=(event,)))


def _fits(wanted: Kind, offered: Kind) -> bool:
    """None: the trace does not say, or any model will do."""
    return wanted[0] in (None, offered[0]) and wanted[1] in (None, offered[1])
