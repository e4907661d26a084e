"""The choosing rules of other systems, in good faith, on the same machines and events.

Each is written as a central router that hears of every start and end at once and loses no time on messages: better
than the products do. A job lost with its machine begins again elsewhere (in most products the caller must ask again).
Early binding: the router sends a job to a machine at once, where it waits in that machine's queue.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence

from outbid_bench.simulate.clock import cpu_s
from outbid_bench.simulate.fleets import Absence
from outbid_bench.simulate.hosts import Host, Run
from outbid_bench.simulate.machines import CHAT
from outbid_bench.simulate.traces import Task
from outbid_bench.simulate.world import MISSED_S, World


class Router:
    """Common to all: which machines it believes to be there, and what becomes of jobs on one that is not."""

    name = ""
    world: World

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.gone: set[str] = set()
        self.homeless: deque[Task] = deque()
        """Jobs that no machine can take now."""

    def begin(self, world: World) -> None:
        self.world = world

    def arrive(self, task: Task) -> None:
        began = cpu_s()
        self.route(task)
        self.world.spent_s += cpu_s() - began

    def route(self, task: Task) -> None:
        raise NotImplementedError

    def take_back(self, host: Host) -> list[Task]:
        """What waits for that machine."""
        return []

    def able(self, capability: str) -> list[Host]:
        """The machines that it would send such a job to."""
        return [host for host in self.world.able(capability) if host.name not in self.gone and not host.quiet]

    def left(self, host: Host, lost: Sequence[Run], absence: Absence) -> None:
        tasks = [run.task for run in lost]
        if absence.abrupt:
            self.world.loop.call_later(MISSED_S, self._noticed, host, tasks)
        else:
            self._noticed(host, tasks)

    def _noticed(self, host: Host, lost: Sequence[Task]) -> None:
        """Also of one that is back by now: what ran there is lost all the same."""
        if not host.up:
            self.gone.add(host.name)
            lost = [*lost, *self.take_back(host)]
        for task in lost:
            self.route(task)

    def back(self, host: Host) -> None:
        self.gone.discard(host.name)
        self.room(host)

    def quiet(self, host: Host) -> None:
        self.room(host)

    def room(self, host: Host) -> None:
        """That machine may take more now."""
        for _ in range(len(self.homeless)):
            self.route(self.homeless.popleft())

    def ended(self, run: Run, host: Host) -> None:
        self.world.done(run, host)
        self.room(host)

    def run(self, host: Host, task: Task) -> None:
        self.world.start(host, task, lambda run: self.ended(run, host))

    def end(self) -> None:
        pass


class RandomFree(Router):
    """nex: the winner of an auction is drawn at random from the machines with room; jobs wait while there is none."""

    name = "random with room (nex)"

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.waiting: deque[Task] = deque()

    def route(self, task: Task) -> None:
        self.waiting.append(task)
        self._serve()

    def room(self, host: Host) -> None:
        self._serve()

    def _serve(self) -> None:
        full: set[str] = set()
        for _ in range(len(self.waiting)):
            task = self.waiting.popleft()
            free = [] if task.capability in full else [h for h in self.able(task.capability) if h.free(task.capability)]
            if free:
                self.run(self.rng.choice(free), task)
            else:
                full.add(task.capability)
                self.waiting.append(task)


class EarlyBinding(Router):
    """A queue at every machine and for each kind of work, first come first served."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.queues: dict[tuple[str, str], deque[Task]] = {}

    def pick(self, task: Task, able: Sequence[Host]) -> Host:
        raise NotImplementedError

    def queue(self, host: Host, capability: str) -> deque[Task]:
        return self.queues.setdefault((host.name, capability), deque())

    def in_flight(self, host: Host, capability: str) -> int:
        """Sent there and not done."""
        return host.count(capability) + len(self.queue(host, capability))

    def all_in_flight(self, host: Host) -> int:
        return sum(self.in_flight(host, capability) for capability in host.plan.machine.engines)

    def route(self, task: Task) -> None:
        able = self.able(task.capability)
        if not able:
            self.homeless.append(task)
            return
        host = self.pick(task, able)
        self.queue(host, task.capability).append(task)
        self.feed(host)

    def room(self, host: Host) -> None:
        self.feed(host)
        super().room(host)

    def feed(self, host: Host) -> None:
        for capability in host.plan.machine.engines:
            queue = self.queue(host, capability)
            while queue and host.free(capability):
                self.run(host, queue.popleft())

    def take_back(self, host: Host) -> list[Task]:
        waiting: list[Task] = []
        for capability in host.plan.machine.engines:
            queue = self.queue(host, capability)
            waiting += queue
            queue.clear()
        return waiting


class RoundRobin(EarlyBinding):
    """GPUStack: the running instances of a model in turn."""

    name = "round robin (GPUStack)"

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.turns: dict[str, int] = {}

    def pick(self, task: Task, able: Sequence[Host]) -> Host:
        turn = self.turns[task.capability] = self.turns.get(task.capability, -1) + 1
        return able[turn % len(able)]


class FewestInFlight(EarlyBinding):
    """LocalAI: the machine with the fewest requests under way; among equals, any."""

    name = "fewest in flight (LocalAI)"

    def pick(self, task: Task, able: Sequence[Host]) -> Host:
        fewest = min(self.all_in_flight(host) for host in able)
        return self.rng.choice([host for host in able if self.all_in_flight(host) == fewest])


class QueueThenBand(EarlyBinding):
    """NVIDIA PAIR: the shortest queue, then the lowest band of GPU utilisation (a quarter each), then the id."""

    name = "queue, utilisation, id (PAIR)"

    def pick(self, task: Task, able: Sequence[Host]) -> Host:
        return min(able, key=lambda host: (self._queued(host), self._band(host), host.name))

    def _queued(self, host: Host) -> int:
        return sum(len(self.queue(host, capability)) for capability in host.plan.machine.engines)

    def _band(self, host: Host) -> int:
        """A machine at work is utilised by the share of its slots that are taken."""
        slots = sum(engine.slots for engine in host.plan.machine.engines.values())
        return min(3, 4 * len(host.running) // slots)


class ScoreByLatency(EarlyBinding):
    """ollama-herd: its published score of those signals that differ here. A loaded model +50, else +10, and how well it
    fits; -6 for each job in the queue of that machine and model, 30 at most; the expected wait (jobs there times the
    75th percentile of their latency) at a point for ten seconds, 25 at most; a small model on a small machine +15, on
    a bigger one +8. Every 5 s: where 3 and more are queued or run, the second-best machine loads the model; of a queue
    of 4 and more half the jobs, 3 at most, move to the best-scored other machine that has the model loaded and fewer.
    The first registered wins a tie.
    """

    name = "score with p75 latency (ollama-herd)"
    HOT, COLD, FIT = 50.0, 10.0, 20.0
    REBALANCE_S, PRE_WARM, THRESHOLD, MOVES = 5.0, 3, 4, 3
    KEPT = 100
    UNKNOWN_S = 2.5
    """Its guess before any measurement, for a model of 2.5 GB: 100 tokens at 40 a second."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.latencies: dict[tuple[str, str], deque[float]] = {}

    def begin(self, world: World) -> None:
        super().begin(world)
        self._timer = world.loop.call_later(self.REBALANCE_S, self._rebalance)

    def end(self) -> None:
        self._timer.cancel()

    def pick(self, task: Task, able: Sequence[Host]) -> Host:
        return max(able, key=lambda host: self.score(host, task.capability))

    def score(self, host: Host, capability: str) -> float:
        depth = self.in_flight(host, capability)
        hot = host.warm(capability)
        wait_s = depth * self._p75_s(host, capability)
        small = capability != CHAT or host.plan.machine.usd_per_h == 0
        return (
            (self.HOT if hot else self.COLD)
            + self.FIT
            - min(30.0, 6.0 * depth)
            - min(25.0, wait_s / 10.0)
            + (15.0 if small else 8.0)
        )

    def ended(self, run: Run, host: Host) -> None:
        known = self.latencies.setdefault((host.name, run.task.capability), deque(maxlen=self.KEPT))
        known.append(self.world.loop.time() - run.began_s)
        super().ended(run, host)

    def _p75_s(self, host: Host, capability: str) -> float:
        known = sorted(self.latencies.get((host.name, capability), ()))
        return known[int(len(known) * 0.75)] if known else self.UNKNOWN_S

    def _rebalance(self) -> None:
        self._timer = self.world.loop.call_later(self.REBALANCE_S, self._rebalance)
        for (name, capability), queue in list(self.queues.items()):
            self._pre_warm(name, capability)
            if len(queue) < self.THRESHOLD:
                continue
            others = [host for host in self.able(capability) if host.name != name and host.warm(capability)]
            others = [host for host in others if self.in_flight(host, capability) < self.THRESHOLD]
            if others:
                best = max(others, key=lambda host: self.score(host, capability))
                for _ in range(min(len(queue) // 2, self.MOVES)):
                    self.queue(best, capability).append(queue.pop())
                self.feed(best)

    def _pre_warm(self, name: str, capability: str) -> None:
        able = self.able(capability)
        deep = any(host.name == name and self.in_flight(host, capability) >= self.PRE_WARM for host in able)
        if deep and len(able) > 1:
            sorted(able, key=lambda host: -self.score(host, capability))[1].load(capability)


BASELINES: tuple[type[Router], ...] = (RandomFree, RoundRobin, FewestInFlight, QueueThenBand, ScoreByLatency)
