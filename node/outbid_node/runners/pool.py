"""All runners of a node: started on demand, kept warm within the memory budgets, never beyond their slots."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import msgspec

from outbid_contracts.capability import Capability, Machine, ModelFile
from outbid_contracts.errors import Refused
from outbid_contracts.runner import AttemptKey, Ready
from outbid_node.prefix import PrefixCache, Prefixes
from outbid_node.runners.attempt import Attempt, AttemptSink
from outbid_node.runners.channel import MAX_MESSAGE_BYTES, Channel
from outbid_node.runners.limits import Limits
from outbid_node.runners.machine import GONE, OPEN, Phase, State
from outbid_node.runners.memory import Memory
from outbid_node.runners.sharing import Sharing, Wanted
from outbid_node.runners.supervisor import Key, Supervisor, stated

__all__ = ["AttemptSink", "Limits", "Room", "RunnerPool", "RunnerView", "Wanted", "wanted"]

_WARM = frozenset({Phase.READY, Phase.BUSY})


class Room(msgspec.Struct, frozen=True):
    """What a (capability, model) could take now. `ready` is what its runner said of itself when it had loaded.

    `blocked` says why it can take nothing, other than that its slots are taken; `temporary`: waiting may help.
    """

    warm: bool
    slots: int
    free: int
    blocked: str = ""
    ready: Ready | None = None
    temporary: bool = True
    cache: PrefixCache | None = None
    """What it keeps of the jobs it did."""


@dataclass(frozen=True, slots=True)
class RunnerView:
    """One runner, for people."""

    runner: str
    model: str | None
    phase: str
    pid: int | None
    slots: int
    running: int
    waiting: int
    memory_mib: float
    gpu_memory_mib: float
    gives_way_to: str
    """The runner for which this one makes room, as its turn is over; empty if it goes on."""
    crashes: int


class RunnerPool:
    """Runs attempts in runners. All calls and callbacks are on the loop that called `start`.

    `on_change` is called, at most once per turn of the loop, when room appeared or went other than by one attempt more
    or less: a full runner has a free slot again, one became warm or cold, a reason for being blocked is gone.
    """

    def __init__(
        self,
        *,
        machine: Machine,
        budget_mib: float,
        gpu_budget_mib: float = 0.0,
        keep_warm_s: float,
        log: logging.Logger | None = None,
        python: str = sys.executable,
        limits: Limits | None = None,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        watch_in_thread: bool = False,
    ) -> None:
        self.log = log or logging.getLogger(__name__)
        self.limits = replace(limits or Limits(), keep_warm_s=keep_warm_s)
        self.prefixes = Prefixes()
        self.cpu_share = machine.cpu_share
        self.nice = 0
        """Of the runners that are started from now on."""
        self.channel = Channel(max_message_bytes, watch_in_thread)
        self.on_change: Callable[[], None] = lambda: None
        self.on_load_failed: Callable[[Key, float, str], None] = lambda key, after_s, why: None
        self._python = python
        self._runners: dict[Key, Supervisor] = {}
        self.sharing = Sharing(Memory(budget_mib, gpu_budget_mib), self.limits, self._runners, self.changed)
        self._attempts: dict[AttemptKey, Supervisor] = {}
        self._admissions: list[Supervisor] = []
        self._change_due = False
        self._stopping = False
        self._all_gone = asyncio.Event()
        self._ticker: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.channel.open()
        self._tick()

    async def stop(self, grace_s: float) -> None:
        """Take nothing new, let running attempts end for `grace_s`, then end every process. Safe to call twice."""
        self._stopping = True
        for supervisor in self._live():
            supervisor.retire()
        await self._until_all_gone(grace_s)
        for supervisor in self._live():
            supervisor.give_up("this node is stopping", "draining")
        await self._until_all_gone(self.limits.kill_grace_s + 5)
        self.sharing.close()
        if self._ticker is not None:
            self._ticker.cancel()
        self.channel.close()

    def room(self, capability: Capability, model: ModelFile | None) -> Room:
        """What it could take now; cheap enough to be asked for every bid."""
        key = key_of(capability, model)
        supervisor = self._runners.get(key)
        if self._stopping:
            return Room(False, capability.slots, 0, "this node is stopping", temporary=False)
        if supervisor is not None:
            state = supervisor.state
            if state.phase in OPEN:
                blocked = self._turn_over(key) if self.sharing.demanded else ""
                warm, free = supervisor.ready is not None, 0 if blocked else state.free
                return Room(warm, state.slots, free, blocked, supervisor.ready, cache=supervisor.cache)
            if state.phase is Phase.DRAINING:
                return Room(False, state.slots, 0)
        return self._cold_room(capability, model, supervisor)

    def run(
        self,
        capability: Capability,
        model: ModelFile | None,
        settings: Mapping[str, Any],
        key: AttemptKey,
        params: dict[str, Any],
        sink: AttemptSink,
        files: Mapping[str, bytes] = MappingProxyType({}),
        *,
        heard: bool = True,
    ) -> None:
        """Start an attempt, and its runner if need be. Raises Refused, with the reason; then `sink` hears nothing.

        `files`: the parameters that hold bytes, by name, and `checkpoint`. `heard`: somebody listens to its progress.
        """
        if key in self._attempts:
            raise Refused(f"attempt {key} runs already")
        supervisor = self._runners.get(key_of(capability, model))
        if self._stopping or supervisor is None or supervisor.state.phase not in OPEN:
            supervisor = self._cold(capability, model, settings)
        elif self.sharing.demanded and (blocked := self._turn_over(supervisor.key)):
            raise Refused(blocked)
        self._attempts[key] = supervisor
        if not supervisor.take(Attempt(key, capability, params, files, sink, heard)):
            del self._attempts[key]
            raise Refused(f"all {supervisor.state.slots} slots are taken")
        self.sharing.taken(supervisor.key)

    def cancel(self, key: AttemptKey, *, save: bool = False) -> None:
        """Stop an attempt: its sink hears `stopped`, or how it ended if it was quicker. Unknown ones are ignored.

        `save`: a last checkpoint first, where the runner can.
        """
        supervisor = self._attempts.get(key)
        if supervisor is not None:
            supervisor.cancel(key, save=save)

    def warm(self) -> list[Key]:
        """(runner, model) of all that are loaded."""
        return [key for key, supervisor in self._runners.items() if supervisor.ready is not None]

    def views(self) -> list[RunnerView]:
        return [self._view(supervisor) for supervisor in self._runners.values()]

    def processes(self) -> dict[Key, tuple[int, str]]:
        """Process id and kind of device of each runner that has a process."""
        return {
            key: (supervisor.pid, device_kind(supervisor.ready))
            for key, supervisor in self._runners.items()
            if supervisor.pid is not None
        }

    def stats(self) -> dict[str, float]:
        """Counters since the start, and what is in use now."""
        used = self.sharing.in_use()
        return {
            "runners": len(self._live()),
            "attempts": len(self._attempts),
            "memory_mib": used.ram_mib,
            "gpu_memory_mib": used.gpu_mib,
            "messages": self.channel.received,
            "garbage": self.channel.garbage,
            "unknown": self.channel.unknown,
            "evicted": self.sharing.evicted,
        }

    # -- courtesy --------------------------------------------------------------------------------------------------

    def be_nice(self, nice: int) -> None:
        """Run all runners, also those to come, at this niceness."""
        self.nice = nice
        for supervisor in self._live():
            if supervisor.process is not None:
                supervisor.process.renice(nice)

    def unload(self, idle_s: float) -> None:
        """Stop the runners that have been idle for so long, so that others have their memory."""
        now = self._loop.time()
        for supervisor in self._live():
            if supervisor.state.phase is Phase.READY and now - supervisor.last_used >= idle_s:
                supervisor.leave()

    def leave(self, key: Key) -> None:
        """Stop this runner, if it is idle."""
        if (supervisor := self._runners.get(key)) is not None:
            supervisor.leave()

    # -- what administrators order ---------------------------------------------------------------------------------

    def pin(
        self, capability: Capability, model: ModelFile | None, settings: Mapping[str, Any], load_s: float
    ) -> Supervisor:
        """It is not stopped any more, neither for others nor for being idle; `load_pinned` loads it. Raises Refused if
        it can never fit.
        """
        key = key_of(capability, model)
        known = self._runners.get(key)
        if never := self.sharing.never_fits(key, known.memory if known else stated(model)):
            raise Refused(never)
        supervisor = self._supervisor(capability, model, settings)
        supervisor.pin(True)
        self.sharing.pin(supervisor.key, Wanted(supervisor.key, supervisor.memory, load_s))
        return supervisor

    def unpin(self, key: Key) -> None:
        self.sharing.pin(key, None)
        if (supervisor := self._runners.get(key)) is not None:
            supervisor.pin(False)

    def is_pinned(self, key: Key) -> bool:
        return key in self.sharing.pinned

    def load_pinned(self, may: bool = True) -> None:
        """Load what is pinned and not in memory, as far as there is room for it now. To be called again and again."""
        now = self._loop.time()
        cold = [one for one in self._runners.values() if one.pinned and one.state.phase in GONE]
        wanted = [one for one in cold if may and not self._stopping and not one.back_off.blocked(now)]
        self.sharing.call(one.key for one in wanted)
        for supervisor in wanted:
            if not self.sharing.refusal(supervisor.key, supervisor.memory)[0]:
                supervisor.warm_up()

    def evict(self, key: Key) -> tuple[bool, bool]:
        """Stop this runner once it has finished what it has. Whether it was in memory, and whether it is busy yet."""
        supervisor = self._runners.get(key)
        if supervisor is None or supervisor.state.phase in GONE:
            return False, False
        supervisor.retire()
        return True, supervisor.state.taken > 0

    # -- memory ----------------------------------------------------------------------------------------------------

    @property
    def has_card(self) -> bool:
        return self.sharing.budget.gpu_mib > 0

    def want(self, wanted: Iterable[Wanted]) -> None:
        """For which models jobs wait on the mesh now: they take turns where they do not fit together."""
        if not self._stopping:
            self.sharing.want(wanted)

    def heed(self, budget: Memory, whole: Memory, free: Memory) -> None:
        """What this machine has now: the budgets, all of its memory, and what of it is free."""
        if not self._stopping:
            self.sharing.heed(budget, whole, free)

    def _turn_over(self, key: Key) -> str:
        other = self.sharing.gives_way_to(key)
        return f"makes room for {other}, whose jobs have waited long enough" if other else ""

    def _cold_room(self, capability: Capability, model: ModelFile | None, supervisor: Supervisor | None) -> Room:
        slots = supervisor.state.slots if supervisor else capability.slots
        if supervisor is not None and (blocked := supervisor.back_off.blocked(self._loop.time())):
            return Room(False, slots, 0, blocked)
        memory = supervisor.memory if supervisor else stated(model)
        blocked, temporary = self.sharing.refusal(key_of(capability, model), memory)
        return Room(False, slots, 0 if blocked else slots, blocked, temporary=temporary)

    def _cold(self, capability: Capability, model: ModelFile | None, settings: Mapping[str, Any]) -> Supervisor:
        """The supervisor of a runner that is to be started. Raises Refused."""
        room = self.room(capability, model)
        if room.free <= 0:
            raise Refused(room.blocked or "its runner is just being stopped")
        return self._supervisor(capability, model, settings)

    def _supervisor(self, capability: Capability, model: ModelFile | None, settings: Mapping[str, Any]) -> Supervisor:
        key = key_of(capability, model)
        supervisor = self._runners.get(key)
        if supervisor is None:
            supervisor = Supervisor(self, capability, model, settings, capability.python or self._python)
            self._runners[key] = supervisor
        supervisor.options = dict(settings)
        return supervisor

    def admit(self, supervisor: Supervisor) -> None:
        """Stop the idle runners whose memory it needs, and spawn when they are gone."""
        self.sharing.evict_for(supervisor)
        self._admissions.append(supervisor)
        self._spawn_admitted()
        self._all_gone.clear()

    def loaded(self, supervisor: Supervisor) -> None:
        """Its memory is measured now; that may be more than was thought."""
        self.sharing.evict_for(supervisor)
        used, budget = self.sharing.in_use(), self.sharing.budget
        if not used.fits(budget):
            text = "runners take %.0f MiB and %.0f MiB of GPU memory, the budgets are %.0f MiB and %.0f MiB"
            numbers = (used.ram_mib, used.gpu_mib, budget.ram_mib, budget.gpu_mib)
            self.log.warning(text, *numbers, extra={"action": "memory_over_budget"})

    def load_failed(self, supervisor: Supervisor, after_s: float, why: str) -> None:
        """Its process ended before it was ready."""
        self.on_load_failed(supervisor.key, after_s, why)

    def _spawn_admitted(self) -> None:
        waiting, self._admissions = self._admissions, []
        for supervisor in waiting:
            if supervisor.state.phase is not Phase.STARTING or supervisor.process is not None:
                continue
            leaving = any(other.state.phase is Phase.DRAINING for other in self._live())
            with_it = self.sharing.in_use() + self.sharing.need(supervisor)
            if leaving and not with_it.fits(self.sharing.budget):
                self._admissions.append(supervisor)
            else:
                supervisor.spawn()

    # -- what supervisors report -----------------------------------------------------------------------------------

    def moved(self, supervisor: Supervisor, before: State) -> None:
        """A supervisor's state changed."""
        state = supervisor.state
        full_changed = (state.free > 0) != (before.free > 0)
        if state.phase is not before.phase:
            self.sharing.moved(supervisor, before.phase)
        elif not full_changed:
            return
        if state.phase in GONE:
            self._on_gone()
        stays_warm = not full_changed and state.phase in _WARM and before.phase in _WARM
        if stays_warm and (state.phase is Phase.BUSY or not self.sharing.was_short()):
            return
        self.changed()  # a slot is free, or its memory can be had now

    def forget(self, key: AttemptKey) -> None:
        self._attempts.pop(key, None)

    def _on_gone(self) -> None:
        if self._admissions:
            self._loop.call_soon(self._spawn_admitted)
        if not self._live():
            self._all_gone.set()

    def changed(self) -> None:
        if not self._change_due:
            self._change_due = True
            self._loop.call_soon(self._tell_change)

    def _tell_change(self) -> None:
        self._change_due = False
        try:
            self.on_change()
        except Exception:
            self.log.exception("on_change failed", extra={"action": "sink_failed"})

    def _view(self, supervisor: Supervisor) -> RunnerView:
        state, need = supervisor.state, self.sharing.need(supervisor)
        return RunnerView(
            runner=supervisor.target,
            model=supervisor.model.name if supervisor.model else None,
            phase=state.phase,
            pid=supervisor.pid,
            slots=state.slots,
            running=state.running,
            waiting=state.held,
            memory_mib=need.ram_mib,
            gpu_memory_mib=need.gpu_mib,
            gives_way_to=self.sharing.gives_way_to(supervisor.key),
            crashes=supervisor.back_off.crashes,
        )

    # -- all of them -----------------------------------------------------------------------------------------------

    def _live(self) -> list[Supervisor]:
        return [supervisor for supervisor in self._runners.values() if supervisor.state.phase not in GONE]

    def _tick(self) -> None:
        for supervisor in self._live():
            supervisor.tick()
        self._ticker = self._loop.call_later(self.limits.ping_s, self._tick)

    async def _until_all_gone(self, timeout_s: float) -> None:
        if self._live():
            try:
                async with asyncio.timeout(timeout_s):
                    await self._all_gone.wait()
            except TimeoutError:
                self.log.info("runners are still there", extra={"action": "runners_linger"})


def wanted(capability: Capability, model: ModelFile | None, load_s: float) -> Wanted:
    """For `RunnerPool.want`."""
    return Wanted(key_of(capability, model), stated(model), load_s)


def device_kind(ready: Ready | None) -> str:
    """cpu, cuda, mps, as a runner said of itself, without the number of the card; empty where it did not."""
    return str(ready.info.get("device", "")).partition(":")[0] if ready else ""


def key_of(capability: Capability, model: ModelFile | None) -> Key:
    return capability.runner, model.name if model else None
