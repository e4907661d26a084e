"""What truly happens on a machine: jobs share its engines, models load, the battery drains, it goes and comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from outbid_bench.simulate.fleets import Plan
from outbid_bench.simulate.machines import USD_PER_KWH, Engine
from outbid_bench.simulate.traces import Task

FLOOR = 0.2
"""Of the battery's charge: the owner's wish. A scheduler that knows nothing of it drains the battery to EMPTY."""
EMPTY = 0.03
CHARGING_W = 45.0
JOULES_PER_WH = 3600.0

TICK_S = 1e-6
"""asyncio fires a timer up to a nanosecond early."""


@dataclass(eq=False, slots=True)
class Run:
    """One attempt under way. `left_s` is what is left of it, in seconds of a job alone."""

    task: Task
    engine: Engine
    total_s: float
    left_s: float
    began_s: float
    cold: bool
    beside: int
    on_end: Callable[[Run], None]
    energy_j: float = 0.0

    @property
    def fraction(self) -> float:
        return 1.0 - self.left_s / self.total_s


@dataclass(eq=False, slots=True)
class Host:
    """A machine. Raises AssertionError where a scheduler asks what it cannot: so no scheduler can cheat."""

    plan: Plan
    loop: asyncio.AbstractEventLoop
    noise: Callable[[Task, str], float]
    """By what factor this task takes longer here than its work says."""
    running: list[Run] = field(default_factory=list)
    up: bool = True
    quiet: bool = False
    on_battery: bool = False
    warm_s: dict[str, float] = field(default_factory=dict)
    """When each engine's model is loaded (it may be under way)."""
    charge_wh: float = 0.0
    energy_j: float = 0.0
    active_s: float = 0.0
    lowest_charge: float = 1.0
    on_flat: Callable[[Host], None] = lambda host: None
    _since_s: float = 0.0
    _timer: asyncio.TimerHandle | None = None

    def __post_init__(self) -> None:
        self.charge_wh = self.plan.charge * self.plan.machine.battery_wh
        self.lowest_charge = self.charge

    @property
    def name(self) -> str:
        return self.plan.name

    @property
    def charge(self) -> float:
        return self.charge_wh / self.plan.machine.battery_wh if self.plan.machine.battery_wh else 1.0

    def engine(self, capability: str) -> Engine | None:
        return self.plan.machine.engines.get(capability)

    def count(self, capability: str) -> int:
        return sum(run.task.capability == capability for run in self.running)

    def free(self, capability: str) -> int:
        """Slots for more of its kind now; 0 where it takes none."""
        engine = self.engine(capability)
        return engine.slots - self.count(capability) if engine and self.up and not self.quiet else 0

    def warm(self, capability: str) -> bool:
        return self.warm_s.get(capability, float("inf")) <= self.loop.time()

    def alone_s(self, task: Task, fraction: float = 0.0) -> float:
        """Seconds that the rest of it takes here alone, the model loaded; all of it with `fraction` 0. Whoever goes on
        with a chat reads again what is written.
        """
        engine = self.plan.machine.engines[task.capability]
        whole = engine.alone_s(task.true)
        again_s = task.true.get("new_tokens", 0.0) * fraction * engine.rates.get("prompt_tokens", 0.0)
        begin_s = engine.alone_s({unit: n for unit, n in task.true.items() if unit == "prompt_tokens"})
        rest_s = begin_s + (whole - begin_s) * (1 - fraction) + again_s
        return max(1e-6, rest_s) * self.noise(task, self.plan.machine.kind)

    # -- jobs -----------------------------------------------------------------------------------------------------

    def start(self, task: Task, on_end: Callable[[Run], None], fraction: float = 0.0) -> Run:
        now_s, engine = self.loop.time(), self.engine(task.capability)
        assert engine is not None, f"{self.name} cannot do {task.id}"
        assert self.free(task.capability) > 0, f"{self.name} has no slot for {task.id}"
        assert now_s >= task.arrives_s - TICK_S, f"{task.id} would start before it came"
        self.advance()
        cold = not self.warm(task.capability)
        self.warm_s.setdefault(task.capability, now_s + engine.load_s)
        total_s = self.alone_s(task, fraction)
        run = Run(task, engine, total_s, total_s, now_s, cold, self.count(task.capability), on_end)
        self.running.append(run)
        self._plan_next()
        return run

    def load(self, capability: str) -> None:
        """Before anybody needs it."""
        engine = self.engine(capability)
        if engine is not None and self.up and capability not in self.warm_s:
            self.warm_s[capability] = self.loop.time() + engine.load_s

    def leave(self) -> list[Run]:
        """It is gone: what ran there is returned, undone. Models are to be loaded again."""
        self.advance()
        self.up = False
        undone, self.running = self.running, []
        self.warm_s.clear()
        self._plan_next()
        return undone

    def come_back(self) -> None:
        self.advance()
        self.up = True
        self._plan_next()

    def plug(self, on_battery: bool) -> None:
        self.advance()
        self.on_battery = on_battery
        self._plan_next()

    # -- physics --------------------------------------------------------------------------------------------------

    def _speeds(self) -> list[tuple[Run, float]]:
        """How fast each run goes: engines at work at once share the machine evenly, jobs of one engine crowd."""
        now_s = self._since_s
        at_work = [run for run in self.running if self.warm_s[run.task.capability] <= now_s]
        engines = len({run.task.capability for run in at_work})
        return [
            (run, 1.0 / engines / (1.0 + run.engine.crowding * (self.count(run.task.capability) - 1)))
            for run in at_work
        ]

    def advance(self) -> None:
        """Bring its state to this moment."""
        now_s = self.loop.time()
        passed_s = now_s - self._since_s
        if passed_s > 0:
            for run, speed in self._speeds():
                run.left_s -= passed_s * speed
            self._spend(passed_s)
        self._since_s = now_s

    def _spend(self, passed_s: float) -> None:
        machine = self.plan.machine
        if self.running:
            joules = machine.extra_w * passed_s
            self.energy_j += joules
            self.active_s += passed_s
            for run in self.running:
                run.energy_j += joules / len(self.running)
        if not machine.battery_wh:
            return
        drawn_w = (machine.busy_w if self.running else machine.idle_w) if self.up else 0.0
        flow_w = -drawn_w if self.on_battery else CHARGING_W
        self.charge_wh = min(machine.battery_wh, max(0.0, self.charge_wh + flow_w * passed_s / JOULES_PER_WH))
        if self.running:
            self.lowest_charge = min(self.lowest_charge, self.charge)

    def _plan_next(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waits = list(self._waits())
        if waits:
            self._timer = self.loop.call_later(max(0.0, min(waits)), self._next)

    def _waits(self) -> Iterable[float]:
        """Seconds until the next thing happens here."""
        for run, speed in self._speeds():
            yield run.left_s / speed
        for ready_s in self.warm_s.values():
            if ready_s > self._since_s:
                yield ready_s - self._since_s
        if self.on_battery and self.up and self.plan.machine.battery_wh:
            drawn_w = self.plan.machine.busy_w if self.running else self.plan.machine.idle_w
            yield (self.charge - EMPTY) * self.plan.machine.battery_wh * JOULES_PER_WH / drawn_w

    def _next(self) -> None:
        self._timer = None
        self.advance()
        ended = [run for run in self.running if run.left_s <= 1e-9]
        for run in ended:
            run.left_s = 0.0
            self.running.remove(run)
        if self.on_battery and self.up and self.charge <= EMPTY + 1e-9:
            self.on_flat(self)
        self._plan_next()
        for run in ended:
            run.on_end(run)

    @property
    def cost_usd(self) -> float:
        """Rent while it works, and the electricity of that work."""
        return self.plan.machine.usd_per_h * self.active_s / 3600 + self.energy_j / 3.6e6 * USD_PER_KWH
