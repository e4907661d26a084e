"""The one owner of one runner's state: its messages, its process's end and its timers all become events here."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import secrets
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from outbid_contracts import runner as wire
from outbid_contracts.capability import Capability, ModelFile
from outbid_node.prefix import PrefixCache
from outbid_node.runners import machine
from outbid_node.runners.attempt import Attempt, Nobody, failure, tell
from outbid_node.runners.host import Host
from outbid_node.runners.limits import BackOff, Pulse
from outbid_node.runners.machine import Action, Event, Phase, State
from outbid_node.runners.memory import Memory
from outbid_node.runners.process import ChildProcess, Exit
from outbid_node.runners.throttle import Throttle

Key = tuple[str, str | None]
"""Runner class and model: capabilities that name the same share a process."""

KIT = "outbid_capabilities.runner_kit"
_LAST_MESSAGES_S = 0.05
"""After a process died unasked: what it had already sent may still be on its way through ZeroMQ."""


class Supervisor:
    """One runner: at most one process at a time, the attempts it has, and the state that says what may happen."""

    def __init__(
        self, host: Host, capability: Capability, model: ModelFile | None, options: Mapping[str, Any], python: str
    ) -> None:
        self.target = capability.runner
        self.model = model
        self.options = dict(options)
        self.state = State(slots=capability.slots)
        self.ready: wire.Ready | None = None
        self.cache: PrefixCache | None = None
        self.memory = stated(model)
        """As the model states it, or as the runner measured it."""
        self.last_used = self.loaded_at = self._spawned_at = 0.0
        self.pause_s = math.inf
        """From the end of its work to the next job for it, the last time."""
        self.load_s = 0.0
        """From the start of the process until it was ready, the last time; 0 before the first."""
        self.pinned = False
        """It stays in memory, however long it is idle and whoever wants the room."""
        self.back_off = BackOff()
        self.process: ChildProcess | None = None
        self._host = host
        self._python = python
        self._loop = asyncio.get_running_loop()
        self._held: deque[Attempt] = deque()
        self._running: dict[wire.AttemptKey, Attempt] = {}
        self._identity = b""
        self._connected = self._batches = False
        self._fault: wire.Crashed | None = None
        self._throttle: Throttle | None = None
        self._timers: dict[Event, asyncio.TimerHandle] = {}
        self._leaving: asyncio.TimerHandle | None = None
        self._pulse = Pulse()

    @property
    def key(self) -> Key:
        return self.target, self.model.name if self.model else None

    @property
    def name(self) -> str:
        return name_of(self.key)

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process else None

    def log(self, level: int, action: str, text: str, *args: Any) -> None:
        self._host.log.log(level, f"runner %s: {text}", self.name, *args, extra={"action": action, "pid": self.pid})

    # -- what the pool asks ----------------------------------------------------------------------------------------

    def take(self, attempt: Attempt) -> bool:
        """Run it now or once loaded. False if there is no free slot."""
        self._held.append(attempt)
        if Action.REFUSE in self._step(Event.TAKE):
            self._held.remove(attempt)
            return False
        return True

    def cancel(self, key: wire.AttemptKey, *, save: bool = False) -> None:
        attempt = self._running.get(key)
        if attempt is not None:
            self._cancel_running(attempt, save=save)
            return
        for held in self._held:
            if held.key == key:
                self._held.remove(held)
                self._host.forget(key)
                self._step(Event.DROPPED)
                tell(held.sink.stopped)
                return

    def warm_up(self) -> None:
        """Load it, if it is not in memory."""
        self._step(Event.WARM)

    def pin(self, pinned: bool) -> None:
        self.pinned = pinned
        if not pinned and self.state.phase is Phase.READY:
            self._leave_when_idle()

    def leave(self) -> None:
        """Stop it if it is idle."""
        self._step(Event.IDLE)

    def retire(self) -> None:
        """No new attempts; stop when it has none left."""
        self._step(Event.RETIRE)

    def give_up(self, message: str, code: str = "runner_crashed", traceback: str = "") -> None:
        """Fail all its attempts for this reason and kill it."""
        self._fault = self._fault or wire.Crashed(message=f"{self.name}: {message}", code=code, traceback=traceback)
        self._step(Event.BREAK)

    def tick(self) -> None:
        """Each `ping_s`: look for signs of life, ask for one if there was none."""
        if self.process is None or self._leaving is not None:
            return
        limits = self._host.limits
        ticks = self._pulse.tick()
        patience_s = (limits.hang_s if self.ready else limits.load_hang_s) / self._host.cpu_share
        if ticks * limits.ping_s >= patience_s:
            self.give_up(f"it hung: no sign of life for {ticks * limits.ping_s:.1f} s")
        elif ticks and self._connected:
            there = self._host.channel.send(self._identity, wire.Ping(n=ticks))
            if not there and ticks > 1:  # the second time: had it died, we would know its last words by now
                self.give_up("it closed its connection")

    # -- orders of the state machine -------------------------------------------------------------------------------

    def _step(self, event: Event, slots: int = 0) -> machine.Actions:
        before = self.state
        self.state, actions = machine.step(before, event, slots)
        for action in actions:
            self._ORDERS[action](self)
        if self.state.phase is not before.phase:
            self._phase_changed()
        self._host.moved(self, before)
        return actions

    def _phase_changed(self) -> None:
        phase = self.state.phase
        if self._throttle is not None:
            self._throttle.active(phase in (Phase.STARTING, Phase.BUSY))
        if phase is Phase.READY:
            self.last_used = self._loop.time()
            self._leave_when_idle()

    def _leave_when_idle(self) -> None:
        if Event.IDLE not in self._timers and not self.pinned:
            self._after(self._host.limits.keep_warm_s, Event.IDLE)

    def _after(self, delay_s: float, event: Event) -> None:
        if delay_s < 1e8:  # an infinite one never comes
            self._timers[event] = self._loop.call_later(delay_s, self._timer, event)

    def _timer(self, event: Event) -> None:
        del self._timers[event]
        if event is Event.IDLE and self.pinned:
            return
        if event is Event.IDLE:  # set once for many jobs; what is left of it begins at the last one's end
            left_s = self.last_used + self._host.limits.keep_warm_s - self._loop.time()
            if left_s > 0.001:
                self._after(left_s, Event.IDLE)
                return
        self._step(event)

    def _send_next(self) -> None:
        attempt = self._held.popleft()
        self._running[attempt.key] = attempt
        run = wire.Run(
            attempt=attempt.key,
            capability=attempt.capability.name,
            params=attempt.params,
            files=tuple(attempt.files),
            heard=attempt.heard,
        )
        if attempt.files or not self._batches:
            self._host.channel.send(self._identity, run, tuple(attempt.files.values()))
        else:
            self._host.channel.send_soon(self._identity, run)

    def _fail_all(self) -> None:
        attempts = [*self._running.values(), *self._held]
        self._running.clear()
        self._held.clear()
        fault = self._fault or wire.Crashed(message=f"{self.name} went away")
        for attempt in attempts:
            self._close(attempt)
        for attempt in attempts:
            attempt.fail(fault)

    def _stop(self) -> None:
        if not self._connected:
            self._kill()
            return
        self._host.channel.send(self._identity, wire.Stop())
        self._after(self._host.limits.stop_s, Event.LATE)

    def _kill(self) -> None:
        if self._throttle is not None:
            self._throttle.close()
        if self.process is not None:
            self.process.kill(self._host.limits.kill_grace_s)
        else:
            self._gone_soon(0.0)

    def _spawn_when_admitted(self) -> None:
        self._fault = None
        self._host.admit(self)

    def spawn(self) -> None:
        """Start the process. Called by the pool when there is memory for it."""
        if self.state.phase is not Phase.STARTING or self.process is not None:
            return
        token = secrets.token_hex(16)
        self._identity, self._connected, self._pulse = token.encode(), False, Pulse()
        self._host.channel.register(self._identity, self)
        env = os.environ | {"OUTBID_RUNNER_ENDPOINT": self._host.channel.endpoint, "OUTBID_RUNNER_TOKEN": token}
        env["PYTHONSAFEPATH"] = "1"  # a zmq.py in the folder where the daemon was started is not meant
        try:
            self.process = ChildProcess([self._python, "-m", KIT, self.target], env, self._on_exit, self._loop)
        except OSError as error:
            self._fault = wire.Crashed(message=f"{self.name} cannot be started: {error}", code="runner_unavailable")
            self._gone_soon(0.0)
            return
        self._spawned_at = self._loop.time()
        if self._host.nice:
            self.process.renice(self._host.nice)
        self.log(logging.INFO, "runner_started", "started")
        if self._host.cpu_share < 1:
            self._throttle = Throttle(self.process, self._host.cpu_share, self._loop)
            self._throttle.active(True)

    _ORDERS: Mapping[Action, Callable[[Supervisor], None]] = {
        Action.SPAWN: _spawn_when_admitted,
        Action.SEND: _send_next,
        Action.FAIL: _fail_all,
        Action.STOP: _stop,
        Action.KILL: _kill,
        Action.REFUSE: lambda self: None,
    }

    # -- its end ---------------------------------------------------------------------------------------------------

    def _on_exit(self, exit: Exit) -> None:
        self._host.channel.drain()
        asked = self.state.phase not in machine.OPEN
        if self._fault is None and (not asked or self.state.taken):
            self._fault = wire.Crashed(message=f"{self.name} {exit}", traceback=exit.tail)
        self.log(logging.INFO, "runner_exited", "%s", exit)
        wait = self.state.taken > 0
        self.retire()  # what died takes no more
        self._gone_soon(_LAST_MESSAGES_S if wait else 0.0)

    def _gone_soon(self, delay_s: float) -> None:
        if self._leaving is None:
            self._leaving = self._loop.call_later(delay_s, self._gone)

    def _gone(self) -> None:
        """The process is no more: first put away all of it, then say so; a sink may start the next one at once."""
        self._host.channel.forget(self._identity)
        if self._throttle is not None:
            self._throttle.close()
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        was_ready = self.ready is not None
        self.process = self.ready = self.cache = self._throttle = self._leaving = None
        self._connected = False
        if self._fault is not None and self._fault.code != "draining":
            self._count_crash(self._fault)
            if not was_ready:
                self._host.load_failed(self, self._loop.time() - self._spawned_at, self._fault.message)
        self._step(Event.EXITED)

    def _count_crash(self, fault: wire.Crashed) -> None:
        delay_s = self.back_off.crashed(fault.message, self._loop.time())
        if delay_s:
            self._loop.call_later(delay_s, self._host.changed)
        self.log(logging.WARNING, "runner_crashed", "%s (next start in %.1f s)", fault.message, delay_s)

    # -- messages of the runner ------------------------------------------------------------------------------------

    def on_message(self, message: wire.FromRunner, payloads: list[bytes]) -> None:
        self._pulse.heard = True
        self._HANDLERS[type(message)](self, message, payloads)

    def on_garbage(self, reason: str) -> None:
        self.give_up(reason)

    def _on_hello(self, message: wire.Hello, payloads: list[bytes]) -> None:
        if message.protocol != wire.PROTOCOL:
            self.give_up(
                f"it speaks protocol {message.protocol}, this node {wire.PROTOCOL}; update outbid in its environment",
                "runner_unavailable",
            )
        elif self._connected:
            self.on_garbage("it said hello twice")
        else:
            self._connected, self._batches = True, message.batches
            model = None if self.model is None else msgspec.structs.asdict(self.model)
            self._host.channel.send(self._identity, wire.Load(model=model, options=self.options, batches=True))

    def _on_loading(self, message: wire.LoadProgress, payloads: list[bytes]) -> None:
        for attempt in tuple(self._held):
            tell(attempt.sink.loading, message.fraction, message.note)

    def _on_ready(self, message: wire.Ready, payloads: list[bytes]) -> None:
        if self.ready is not None or message.slots < 1 or not self._connected:
            self.on_garbage(f"it said out of turn that it is ready, with {message.slots} slots")
            return
        since_s = self._loop.time() - self._spawned_at  # the start of the process counts too
        self.ready = message = msgspec.structs.replace(message, load_s=max(message.load_s, since_s))
        self.cache = PrefixCache(message.slots)
        self._measured(message)
        self.log(logging.INFO, "runner_ready", "ready after %.2f s, %d slots", message.load_s, message.slots)
        self._step(Event.LOADED, message.slots)
        self._host.loaded(self)

    def _measured(self, message: wire.Ready) -> None:
        """Without a word about the card what was stated for it stays; with no card it is in `memory_mib` already."""
        self.loaded_at = self._loop.time()
        self.load_s = self.loaded_at - self._spawned_at
        ram_mib, gpu_mib = message.memory_mib, message.gpu_memory_mib
        if gpu_mib is None:
            gpu_mib = self.memory.gpu_mib if ram_mib is None or self._host.has_card else 0.0
        self.memory = Memory(self.memory.ram_mib if ram_mib is None else max(0.0, ram_mib), max(0.0, gpu_mib))

    def _on_chunk(self, message: wire.ChunkData, payloads: list[bytes]) -> None:
        self._chunk(message.attempt, message.data, payloads)

    def _on_chunks(self, message: wire.ChunkBatch, payloads: list[bytes]) -> None:
        for key, data in message.items:
            self._chunk(key, data, payloads)

    def _chunk(self, key: wire.AttemptKey, data: dict[str, Any], payloads: list[bytes]) -> None:
        attempt = self._running.get(key)
        if attempt is None:  # it has ended
            return
        if misfit := attempt.misfit(attempt.capability.chunk, data):
            self._reject(attempt, f"the runner gave a chunk that does not fit: {misfit}")
        else:
            tell(attempt.sink.chunk, data, payloads)

    def _on_progress(self, message: wire.StepProgress, payloads: list[bytes]) -> None:
        if attempt := self._running.get(message.attempt):
            tell(attempt.sink.progress, message.step, message.steps, message.note, message.eta_s)

    def _on_checkpoint(self, message: wire.CheckpointData, payloads: list[bytes]) -> None:
        attempt = self._running.get(message.attempt)
        if attempt is not None and len(payloads) == 1:
            tell(attempt.sink.checkpoint, message.step, message.steps, payloads[0])

    def _on_done(self, message: wire.RunDone, payloads: list[bytes]) -> None:
        attempt = self._end(message, message.result)
        if attempt is None:
            return
        self.back_off.succeeded()
        if misfit := attempt.misfit(attempt.capability.result, message.result):
            reason = wire.Crashed(
                message=f"the runner gave a result that does not fit: {misfit}", code="attempt_failed"
            )
            tell(attempt.sink.failed, failure(attempt.key, reason))
        else:
            tell(attempt.sink.done, message, payloads)

    def _on_failed(self, message: wire.RunFailed, payloads: list[bytes]) -> None:
        if attempt := self._end(message):
            tell(attempt.sink.failed, message)

    def _on_cancelled(self, message: wire.RunCancelled, payloads: list[bytes]) -> None:
        attempt = self._end(message)
        if attempt is None:
            return
        if attempt.cancelled:
            tell(attempt.sink.stopped)
        else:
            reason = wire.Crashed(message="the runner stopped it unasked", code="attempt_failed")
            tell(attempt.sink.failed, failure(attempt.key, reason))

    def _on_ends(self, message: wire.EndBatch, payloads: list[bytes]) -> None:
        for end in message.items:
            self._HANDLERS[type(end)](self, end, [])

    def _on_crashed(self, message: wire.Crashed, payloads: list[bytes]) -> None:
        self.give_up(message.message, message.code, message.traceback)

    def _on_log(self, message: wire.Log, payloads: list[bytes]) -> None:
        level = logging.getLevelNamesMapping().get(message.level.upper(), logging.INFO)
        self.log(level, "runner_log", "%s", message.message)

    _HANDLERS: Mapping[type, Callable[[Supervisor, Any, list[bytes]], None]] = {
        wire.Hello: _on_hello,
        wire.LoadProgress: _on_loading,
        wire.Ready: _on_ready,
        wire.ChunkData: _on_chunk,
        wire.ChunkBatch: _on_chunks,
        wire.StepProgress: _on_progress,
        wire.CheckpointData: _on_checkpoint,
        wire.RunDone: _on_done,
        wire.RunFailed: _on_failed,
        wire.RunCancelled: _on_cancelled,
        wire.EndBatch: _on_ends,
        wire.Pong: lambda self, message, payloads: None,
        wire.Crashed: _on_crashed,
        wire.Log: _on_log,
    }

    # -- attempts --------------------------------------------------------------------------------------------------

    def _end(self, message: wire.End, result: dict[str, Any] | None = None) -> Attempt | None:
        """The attempt's slot is free from here on; None for one that had ended before."""
        attempt = self._running.pop(message.attempt, None)
        if attempt is not None:
            if message.kept is not None and self.cache is not None:
                self.cache.note(message.kept, self._host.prefixes.read(attempt.capability, attempt.params, result))
            self._close(attempt)
            self._step(Event.ENDED)
        return attempt

    def _close(self, attempt: Attempt) -> None:
        self._host.forget(attempt.key)
        if attempt.timer is not None:
            attempt.timer.cancel()

    def _cancel_running(self, attempt: Attempt, *, save: bool = False) -> None:
        if attempt.cancelled:
            return
        attempt.cancelled = True
        self._host.channel.send(self._identity, wire.Cancel(attempt=attempt.key, save=save))
        attempt.timer = self._loop.call_later(self._host.limits.cancel_s, self._cancel_late, attempt)

    def _cancel_late(self, attempt: Attempt) -> None:
        if self._running.get(attempt.key) is attempt:
            self.give_up(f"it did not stop an attempt within {self._host.limits.cancel_s:g} s")

    def _reject(self, attempt: Attempt, reason: str) -> None:
        """Fail it now; its slot stays taken until the runner has let go of it."""
        sink, attempt.sink = attempt.sink, Nobody()
        self._cancel_running(attempt)
        tell(sink.failed, failure(attempt.key, wire.Crashed(message=reason, code="attempt_failed")))


def stated(model: ModelFile | None) -> Memory:
    return Memory(model.memory_mib, model.gpu_memory_mib) if model else Memory()


def name_of(key: Key) -> str:
    """As people see it: the class and the model."""
    module, _, cls = key[0].partition(":")
    return f"{cls or module} {key[1]}" if key[1] else cls or module
