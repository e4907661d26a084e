"""What the dashboard knows of the mesh: filled by events, read by screens. No I/O, no Textual."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from outbid_contracts.admin import Sleeper
from outbid_contracts.events import AttemptLost, Awarded, Ended, Finished, JobEvent, Loading, Progressed, Waiting
from outbid_contracts.ids import JobId, NodeId
from outbid_contracts.live import AuctionHeld, LogLine
from outbid_contracts.messages import JobRecord, Presence
from outbid_contracts.requests import ModelList, NodeView
from outbid_tui.log_lines import merged

Kind = Literal["link", "nodes", "jobs", "models", "auctions", "logs"]
"""What may have changed since a screen was painted."""

ALL: frozenset[Kind] = frozenset(("link", "nodes", "jobs", "models", "auctions", "logs"))

SAMPLES = 120
"""Of each sparkline: two minutes, as presence comes each second."""

KEPT_JOBS = 1000
"""Beyond these the jobs that ended first are left out, whatever else goes on."""

KEPT_AUCTIONS = 500
KEPT_LOGS = 5000
MOST_UNKNOWN = 5000
"""Jobs whose records are wanted; where there are more, the listing is asked anyway."""

SILENT_BEATS = 4.0
"""A node not heard for the time of so many heartbeats is shown as away (its owners believe three missed ones)."""

FORGOTTEN_AFTER_S = 60.0
"""A node that no listing has had for so long is left out: one of the machines that are away, or not of this mesh."""


@dataclass(slots=True)
class Machine:
    """A node, with what it said last and the course of its readings."""

    presence: Presence
    seen_s: float
    """By the monotonic clock."""
    cpu: deque[float] = field(default_factory=lambda: deque(maxlen=SAMPLES))
    gpu: deque[float] = field(default_factory=lambda: deque(maxlen=SAMPLES))
    memory: deque[float] = field(default_factory=lambda: deque(maxlen=SAMPLES))
    """Percent taken: of the GPU's where it has its own, else of the machine's."""
    watts: deque[float] = field(default_factory=lambda: deque(maxlen=SAMPLES))
    battery: deque[float] = field(default_factory=lambda: deque(maxlen=SAMPLES))
    rtt_ms: float | None = None
    here: bool = False
    version: int = 0
    """Grows with each change: what was made from an older one is to be made anew."""

    def away(self, now_s: float) -> bool:
        return self.presence.state == "leaving" or now_s - self.seen_s > SILENT_BEATS * self.presence.beat_s

    def took(self, presence: Presence, seen_s: float) -> None:
        self.presence, self.seen_s = presence, seen_s
        self.version += 1
        resources = presence.resources
        readings = (
            (self.cpu, resources.cpu_percent),
            (self.gpu, max((gpu.busy_percent or 0.0 for gpu in resources.gpus), default=None)),
            (self.memory, memory_percent(presence)),
            (self.watts, resources.power_w),
            (self.battery, resources.battery_percent),
        )
        for course, value in readings:
            if value is not None:
                course.append(value)


@dataclass(slots=True)
class JobView:
    """A job as its record says, brought up to date by the events that came since."""

    record: JobRecord
    step: int = 0
    steps: int = 0
    eta_s: float | None = None
    note: str = ""


class Counts(NamedTuple):
    """Of machines, and of jobs."""

    up: int
    away: int
    running: int
    waiting: int


@dataclass(slots=True)
class MeshState:
    """`apply` takes what `Mesh.live` gives; `took_*` what the listings answer. All say what changed. `clock` is the
    monotonic one.
    """

    clock: Callable[[], float] = time.monotonic
    machines: dict[NodeId, Machine] = field(default_factory=dict)
    away: tuple[Sleeper, ...] = ()
    jobs: dict[JobId, JobView] = field(default_factory=dict)
    unknown: set[JobId] = field(default_factory=set)
    """Jobs of which an event came but no record yet: the feed asks for them."""
    models: ModelList = field(default_factory=ModelList)
    auctions: deque[AuctionHeld] = field(default_factory=lambda: deque(maxlen=KEPT_AUCTIONS))
    logs: deque[LogLine] = field(default_factory=lambda: deque(maxlen=KEPT_LOGS))
    logs_seen: int = 0
    """All that ever came: the last of `logs` has this number."""
    logs_told: int = 0
    """Grows when earlier lines come in between."""
    connected: bool = False
    trouble: str = ""
    """Why it is not connected."""
    unheard: str = ""
    """Why no log lines come, where this role may not hear them."""
    gone: frozenset[NodeId] = frozenset()
    """Nodes not heard any more when `look_around` was called."""

    def name_of(self, node: NodeId | None) -> str:
        machine = self.machines.get(node) if node else None
        if machine is not None:
            return machine.presence.name
        return next((sleeper.name for sleeper in self.away if sleeper.node == node), node or "")

    def here_name(self) -> str:
        """Of the node that the dashboard is connected to."""
        return next((machine.presence.name for machine in self.machines.values() if machine.here), "")

    def sleepers(self) -> list[Sleeper]:
        """Machines that are away and that no heartbeat came from."""
        return [sleeper for sleeper in self.away if sleeper.node not in self.machines]

    def counts(self) -> Counts:
        now_s = self.clock()
        silent = sum(machine.away(now_s) for machine in self.machines.values())
        states = Counter(view.record.state for view in self.jobs.values())
        away = silent + len(self.sleepers())
        return Counts(len(self.machines) - silent, away, states["running"], states["waiting"])

    def watts_now(self) -> float | None:
        """Of all machines that tell it and are there; None if none does."""
        now_s = self.clock()
        told = [machine.presence.resources.power_w for machine in self.machines.values() if not machine.away(now_s)]
        known = [value for value in told if value is not None]
        return sum(known) if known else None

    def running_on(self, node: NodeId) -> list[JobView]:
        return [view for view in self.jobs.values() if view.record.node == node and view.record.state == "running"]

    def apply(self, event: Presence | JobEvent | AuctionHeld | LogLine) -> Kind:
        match event:
            case Presence():
                self._presence(event)
                return "nodes"
            case AuctionHeld():
                self.auctions.append(event)
                return "auctions"
            case LogLine():
                self.took_logs((event,))
                return "logs"
            case _:
                self._job(event)
                return "jobs"

    def took_nodes(self, views: Iterable[NodeView], away: tuple[Sleeper, ...] = ()) -> Kind:
        listed = set()
        for view in views:
            listed.add(view.presence.node)
            self._presence(view.presence, age_s=view.age_s)
            machine = self.machines[view.presence.node]
            machine.rtt_ms, machine.here = view.rtt_ms, view.here
        self.away = away
        self._forget(listed)
        return "nodes"

    def took_jobs(self, records: Iterable[JobRecord]) -> Kind:
        for record in records:
            self.unknown.discard(record.id)
            known = self.jobs.get(record.id)
            if known is None:
                self.jobs[record.id] = JobView(record)
            elif record.ended_ms is not None or known.record.ended_ms is None:  # an answer may be older than the last
                if len(record.attempts) != len(known.record.attempts) or record.ended_ms is not None:
                    known.note, known.eta_s = "", None
                known.record = record
        self._bound_jobs()
        return "jobs"

    def took_logs(self, lines: Iterable[LogLine]) -> Kind:
        for line in lines:
            self.logs.append(line)
            self.logs_seen += 1
        return "logs"

    def recalled_logs(self, lines: Iterable[LogLine]) -> Kind:
        """Lines from before, some of which may be known."""
        self.logs = deque(merged(self.logs, lines), maxlen=KEPT_LOGS)
        self.logs_told += 1
        return "logs"

    def look_around(self) -> Kind | None:
        """Nothing tells of a node that fell silent: to be called each second."""
        now_s = self.clock()
        gone = frozenset(node for node, machine in self.machines.items() if machine.away(now_s))
        if gone == self.gone:
            return None
        self.gone = gone
        return "nodes"

    def _presence(self, presence: Presence, age_s: float = 0.0) -> None:
        seen_s = self.clock() - age_s
        machine = self.machines.get(presence.node)
        if machine is None:
            machine = self.machines[presence.node] = Machine(presence, seen_s)
        elif machine.presence.boot == presence.boot and machine.presence.seq >= presence.seq:
            machine.seen_s = max(machine.seen_s, seen_s)
            return
        machine.took(presence, seen_s)

    def _forget(self, listed: set[NodeId]) -> None:
        now_s = self.clock()
        for node, machine in list(self.machines.items()):
            silent_s = now_s - machine.seen_s
            known_away = any(sleeper.node == node for sleeper in self.away) and machine.away(now_s)
            if node not in listed and (known_away or silent_s > FORGOTTEN_AFTER_S):
                del self.machines[node]

    def _bound_jobs(self) -> None:
        over = len(self.jobs) - KEPT_JOBS
        if over <= 0:
            return
        ended = [view.record for view in self.jobs.values() if view.record.ended_ms is not None]
        for record in sorted(ended, key=lambda record: record.ended_ms or 0)[:over]:
            del self.jobs[record.id]

    def _job(self, event: JobEvent) -> None:
        view = self.jobs.get(event.job)
        if view is None:
            self._want(event.job)
            return
        match event:
            case Progressed():
                view.step, view.steps, view.eta_s, view.note = event.step, event.steps, event.eta_s, event.note
            case Loading():
                view.note = f"loads {event.model or 'its model'}"
            case Waiting():
                view.note = event.reason
                self._want(event.job)
            case Awarded() | AttemptLost() | Finished() | Ended():  # its record has changed: the feed asks for it
                self._want(event.job)
            case _:
                pass

    def _want(self, job: JobId) -> None:
        if len(self.unknown) < MOST_UNKNOWN:
            self.unknown.add(job)


def memory_percent(presence: Presence) -> float | None:
    """Taken, of the memory that models live in: the GPUs' own where there is some, else the machine's."""
    resources = presence.resources
    own = [gpu for gpu in resources.gpus if gpu.memory_mib and not gpu.unified and gpu.memory_free_mib is not None]
    whole = sum(gpu.memory_mib or 0 for gpu in own) or resources.memory_mib
    free = sum(gpu.memory_free_mib or 0 for gpu in own) if own else resources.memory_free_mib
    return 100 * (1 - free / whole) if whole else None
