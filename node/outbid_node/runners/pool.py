"""All runners of a node: started on demand, kept warm within a memory budget, never beyond their slots."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from outbid_contracts.capability import Capability, Machine, ModelFile
from outbid_contracts.errors import Refused
from outbid_contracts.runner import AttemptKey, Ready
from outbid_node.runners.attempt import Attempt, AttemptSink
from outbid_node.runners.channel import MAX_MESSAGE_BYTES, Channel
from outbid_node.runners.limits import Limits
from outbid_node.runners.machine import GONE, OPEN, Phase, State
from outbid_node.runners.supervisor import Supervisor

__all__ = ["AttemptSink", "Limits", "Room", "RunnerPool", "RunnerView"]

Key = tuple[str, str | None]
"""Runner class and model: capabilities that name the same share a process."""

_WARM = frozenset({Phase.READY, Phase.BUSY})


@dataclass(frozen=True, slots=True)
class Room:
    """What a (capability, model) could take now. `ready` is what its runner said of itself when it had loaded.

    `blocked` says why it can take nothing, other than that its slots are taken; `temporary`: waiting may help.
    """

    warm: bool
    slots: int
    free: int
    blocked: str = ""
    ready: Ready | None = None
    temporary: bool = True


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
        keep_warm_s: float,
        log: logging.Logger | None = None,
        python: str = sys.executable,
        limits: Limits | None = None,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        watch_in_thread: bool = False,
    ) -> None:
        self.log = log or logging.getLogger(__name__)
        self.budget_mib = budget_mib
        self.limits = replace(limits or Limits(), keep_warm_s=keep_warm_s)
        self.cpu_share = machine.cpu_share
        self.channel = Channel(max_message_bytes, watch_in_thread)
        self.on_change: Callable[[], None] = lambda: None
        self.evicted = 0
        self._python = python
        self._runners: dict[Key, Supervisor] = {}
        self._attempts: dict[AttemptKey, Supervisor] = {}
        self._admissions: list[Supervisor] = []
        self._was_short = False
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
        if self._ticker is not None:
            self._ticker.cancel()
        self.channel.close()

    def room(self, capability: Capability, model: ModelFile | None) -> Room:
        """What it could take now; cheap enough to be asked for every bid."""
        supervisor = self._runners.get((capability.runner, model.name if model else None))
        if self._stopping:
            return Room(False, capability.slots, 0, "this node is stopping", temporary=False)
        if supervisor is not None:
            state = supervisor.state
            if state.phase in OPEN:
                return Room(supervisor.ready is not None, state.slots, state.free, "", supervisor.ready)
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
        payloads: tuple[bytes, ...] = (),
    ) -> None:
        """Start an attempt, and its runner if need be. Raises Refused, with the reason; then `sink` hears nothing."""
        if key in self._attempts:
            raise Refused(f"attempt {key} runs already")
        supervisor = self._runners.get((capability.runner, model.name if model else None))
        if self._stopping or supervisor is None or supervisor.state.phase not in OPEN:
            supervisor = self._cold(capability, model, settings)
        self._attempts[key] = supervisor
        if not supervisor.take(Attempt(key, capability, params, payloads, sink)):
            del self._attempts[key]
            raise Refused(f"all {supervisor.state.slots} slots are taken")

    def cancel(self, key: AttemptKey) -> None:
        """Stop an attempt: its sink hears `stopped`, or how it ended if it was quicker. Unknown ones are ignored."""
        supervisor = self._attempts.get(key)
        if supervisor is not None:
            supervisor.cancel(key)

    def warm(self) -> list[Key]:
        """(runner, model) of all that are loaded."""
        return [key for key, supervisor in self._runners.items() if supervisor.ready is not None]

    def views(self) -> list[RunnerView]:
        return [_view(supervisor) for supervisor in self._runners.values()]

    def stats(self) -> dict[str, float]:
        """Counters since the start, and what is in use now."""
        return {
            "runners": len(self._live()),
            "attempts": len(self._attempts),
            "memory_mib": self._in_memory(),
            "messages": self.channel.received,
            "garbage": self.channel.garbage,
            "unknown": self.channel.unknown,
            "evicted": self.evicted,
        }

    # -- memory ----------------------------------------------------------------------------------------------------

    def _cold_room(self, capability: Capability, model: ModelFile | None, supervisor: Supervisor | None) -> Room:
        slots = supervisor.state.slots if supervisor else capability.slots
        if supervisor is not None and (blocked := supervisor.back_off.blocked(self._loop.time())):
            return Room(False, slots, 0, blocked)
        need = supervisor.need_mib if supervisor else model.memory_mib if model else 0.0
        if need > self.budget_mib:
            return Room(False, slots, 0, f"needs {_gib(need)}, the budget is {_gib(self.budget_mib)}", temporary=False)
        live = self._live()
        kept = sum(other.need_mib for other in live if other.state.phase in (Phase.STARTING, Phase.BUSY))
        short = need + kept - self.budget_mib
        if short > 0:
            self._was_short = True
            busy = ", ".join(other.name for other in live if other.state.phase is not Phase.READY)
            return Room(False, slots, 0, f"needs {_gib(short)} more memory than the budget leaves beside {busy}")
        return Room(False, slots, slots)

    def _cold(self, capability: Capability, model: ModelFile | None, settings: Mapping[str, Any]) -> Supervisor:
        """The supervisor of a runner that is to be started. Raises Refused."""
        room = self.room(capability, model)
        if room.free <= 0:
            raise Refused(room.blocked or "its runner is just being stopped")
        key = (capability.runner, model.name if model else None)
        supervisor = self._runners.get(key)
        if supervisor is None:
            supervisor = Supervisor(self, capability, model, settings, capability.python or self._python)
            self._runners[key] = supervisor
        supervisor.options = dict(settings)
        return supervisor

    def admit(self, supervisor: Supervisor) -> None:
        """Make room by stopping the idle runners that were not used for longest, and spawn when they are gone."""
        self._evict_for(supervisor)
        self._admissions.append(supervisor)
        self._spawn_admitted()
        self._all_gone.clear()

    def loaded(self, supervisor: Supervisor) -> None:
        """Its memory is measured now; that may be more than was thought."""
        self._evict_for(supervisor)
        used = self._in_memory()
        if used > self.budget_mib:
            text = "runners take %.0f MiB, the budget is %.0f MiB"
            self.log.warning(text, used, self.budget_mib, extra={"action": "memory_over_budget"})

    def _evict_for(self, supervisor: Supervisor) -> None:
        idle = [other for other in self._live() if other.state.phase is Phase.READY and other is not supervisor]
        idle.sort(key=lambda other: other.last_used)
        while idle and self._promised() > self.budget_mib:
            victim = idle.pop(0)
            if victim.need_mib > 0:
                self.evicted += 1
                victim.log(logging.INFO, "runner_evicted", "evicted for %s", supervisor.name)
                victim.leave()

    def _promised(self) -> float:
        return sum(other.need_mib for other in self._live() if other.state.phase is not Phase.DRAINING)

    def _in_memory(self) -> float:
        return sum(other.need_mib for other in self._live() if other.process is not None)

    def _spawn_admitted(self) -> None:
        waiting, self._admissions = self._admissions, []
        for supervisor in waiting:
            if supervisor.state.phase is not Phase.STARTING or supervisor.process is not None:
                continue
            leaving = any(other.state.phase is Phase.DRAINING for other in self._live())
            if leaving and self._in_memory() + supervisor.need_mib > self.budget_mib:
                self._admissions.append(supervisor)
            else:
                supervisor.spawn()

    # -- what supervisors report -----------------------------------------------------------------------------------

    def moved(self, supervisor: Supervisor, before: State) -> None:
        """A supervisor's state changed."""
        state = supervisor.state
        full_changed = (state.free > 0) != (before.free > 0)
        if state.phase is before.phase and not full_changed:
            return
        if state.phase in GONE:
            self._on_gone()
        if not full_changed and state.phase in _WARM and before.phase in _WARM:
            if state.phase is Phase.BUSY or not self._was_short:
                return
            self._was_short = False  # its memory can be had now
        self.changed()

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


def _view(supervisor: Supervisor) -> RunnerView:
    state = supervisor.state
    return RunnerView(
        runner=supervisor.target,
        model=supervisor.model.name if supervisor.model else None,
        phase=state.phase,
        pid=supervisor.pid,
        slots=state.slots,
        running=state.running,
        waiting=state.held,
        memory_mib=supervisor.need_mib,
        crashes=supervisor.back_off.crashes,
    )


def _gib(mib: float) -> str:
    return f"{mib / 1024:.1f} GiB" if mib >= 1024 else f"{mib:.0f} MiB"
