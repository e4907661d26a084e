"""The life of one runner, as a pure state machine with one owner (`supervisor.Supervisor`).

Every change, timers included, is an event given to `step`; nothing else alters a state. The law, with n for the
attempts the runner has (held until it has loaded, or running), `free` for n < slots, and `…` for one order per slot
that is free and attempt that is held. An event that is not in the table changes nothing.

| phase                  | event   | when         | next     | orders    |
|------------------------|---------|--------------|----------|-----------|
| stopped dead           | TAKE    |              | starting | SPAWN     |
| stopped dead           | WARM    |              | starting | SPAWN     |
| starting               | TAKE    | free         | starting |           |
| ready busy             | TAKE    | free         | busy     | SEND      |
| starting busy          | TAKE    | full         | same     | REFUSE    |
| draining               | TAKE    |              | draining | REFUSE    |
| starting               | LOADED  | n=0          | ready    |           |
| starting               | LOADED  | n>0          | busy     | SEND…     |
| draining               | LOADED  | held         | draining | SEND…     |
| busy                   | ENDED   | n>1          | busy     | SEND…     |
| busy                   | ENDED   | n=1          | ready    |           |
| draining               | ENDED   | n>1          | draining | SEND…     |
| draining               | ENDED   | n=1          | draining | STOP      |
| starting busy          | DROPPED |              | same     |           |
| draining               | DROPPED | n>1          | draining |           |
| draining               | DROPPED | n=1          | draining | STOP      |
| ready                  | IDLE    |              | draining | STOP      |
| starting ready         | RETIRE  | n=0          | draining | STOP      |
| starting busy          | RETIRE  | n>0          | draining |           |
| draining               | LATE    | n=0 unbroken | draining | KILL      |
| starting ready         | BREAK   | n=0          | draining | KILL      |
| starting busy draining | BREAK   | n>0          | draining | FAIL KILL |
| draining               | BREAK   | n=0 unbroken | draining | KILL      |
| starting ready         | EXITED  | n=0          | dead     |           |
| starting busy draining | EXITED  | n>0          | dead     | FAIL      |
| draining               | EXITED  | n=0 unbroken | stopped  |           |
| draining               | EXITED  | broken       | dead     |           |

"""

from __future__ import annotations

from enum import Enum, StrEnum, auto

import msgspec
from msgspec.structs import replace


class Phase(StrEnum):
    STOPPED = auto()
    STARTING = auto()
    READY = auto()
    BUSY = auto()
    DRAINING = auto()
    DEAD = auto()


class Event(Enum):
    TAKE = auto()
    """An attempt wants a slot."""
    WARM = auto()
    """It is to be loaded though no attempt wants it yet."""
    LOADED = auto()
    """The runner is ready and said how many slots it has."""
    ENDED = auto()
    """A running attempt came to its end."""
    DROPPED = auto()
    """A held attempt was cancelled."""
    IDLE = auto()
    """Unused for long, or its memory is wanted; means nothing to one that is not idle."""
    RETIRE = auto()
    """No new work; what it has it may finish."""
    LATE = auto()
    """It was asked to stop and has not."""
    BREAK = auto()
    """It hung, talked garbage, or gave up: away with it."""
    EXITED = auto()
    """The process is gone, or could not be started."""


class Action(Enum):
    SPAWN = auto()
    SEND = auto()
    """Send the attempt that was held longest."""
    FAIL = auto()
    """All attempts of the runner have failed."""
    STOP = auto()
    """Ask the process to end."""
    KILL = auto()
    REFUSE = auto()
    """The attempt that was to be taken is not."""


Actions = tuple[Action, ...]
GONE = frozenset({Phase.STOPPED, Phase.DEAD})
OPEN = frozenset({Phase.STARTING, Phase.READY, Phase.BUSY})
"""Phases that may take an attempt."""


class State(msgspec.Struct, frozen=True):
    """`slots` is what was declared until the runner itself has said it. `broken`: its end counts as a crash."""

    slots: int = 1
    phase: Phase = Phase.STOPPED
    held: int = 0
    running: int = 0
    broken: bool = False

    @property
    def taken(self) -> int:
        return self.held + self.running

    @property
    def free(self) -> int:
        """Attempts it would take now, were it not for memory."""
        free = self.slots - self.held - self.running
        return free if free > 0 and self.phase is not Phase.DRAINING else 0


def step(state: State, event: Event, slots: int = 0) -> tuple[State, Actions]:
    """The next state and what is to be done, in this order. `slots` goes with LOADED."""
    match event:
        case Event.TAKE:
            return _take(state)
        case Event.WARM:
            starting = State(slots=state.slots, phase=Phase.STARTING)
            return (starting, (Action.SPAWN,)) if state.phase in GONE else (state, ())
        case Event.LOADED:
            return _loaded(state, slots)
        case Event.ENDED:
            return _ended(state)
        case Event.DROPPED:
            return _dropped(state)
        case Event.IDLE:
            return _drain(state) if state.phase is Phase.READY else (state, ())
        case Event.RETIRE:
            return _drain(state) if state.phase in OPEN else (state, ())
        case Event.LATE:
            late = state.phase is Phase.DRAINING and not state.taken and not state.broken
            return state, (Action.KILL,) if late else ()
        case Event.BREAK:
            return _broken(state)
        case Event.EXITED:
            return _exited(state)


def _take(state: State) -> tuple[State, Actions]:
    if state.phase in GONE:
        return State(slots=state.slots, phase=Phase.STARTING, held=1), (Action.SPAWN,)
    if state.free == 0:
        return state, (Action.REFUSE,)
    if state.phase is Phase.STARTING:
        return replace(state, held=state.held + 1), ()
    return State(state.slots, Phase.BUSY, state.held, state.running + 1), (Action.SEND,)


def _loaded(state: State, slots: int) -> tuple[State, Actions]:
    last_ones = state.phase is Phase.DRAINING and state.held and not state.running
    if state.phase is not Phase.STARTING and not last_ones:
        return state, ()
    return _fill(replace(state, slots=slots))


def _ended(state: State) -> tuple[State, Actions]:
    if not state.running:
        return state, ()
    return _leave_if_done(*_fill(State(state.slots, state.phase, state.held, state.running - 1, state.broken)))


def _dropped(state: State) -> tuple[State, Actions]:
    if not state.held:
        return state, ()
    return _leave_if_done(replace(state, held=state.held - 1), ())


def _fill(state: State) -> tuple[State, Actions]:
    """Give the free slots to held attempts."""
    n = min(state.held, state.slots - state.running)
    phase, held, running = state.phase, state.held - n, state.running + n
    if phase is not Phase.DRAINING:
        phase = Phase.BUSY if running else Phase.READY
    return State(state.slots, phase, held, running, state.broken), (Action.SEND,) * n


def _drain(state: State) -> tuple[State, Actions]:
    return _leave_if_done(replace(state, phase=Phase.DRAINING), ())


def _leave_if_done(state: State, actions: Actions) -> tuple[State, Actions]:
    if state.phase is Phase.DRAINING and not state.taken:
        return state, (*actions, Action.STOP)
    return state, actions


def _broken(state: State) -> tuple[State, Actions]:
    if state.phase in GONE or state.broken:
        return state, ()
    failed = (Action.FAIL,) if state.taken else ()
    return State(state.slots, Phase.DRAINING, broken=True), (*failed, Action.KILL)


def _exited(state: State) -> tuple[State, Actions]:
    if state.phase in GONE:
        return state, ()
    wanted = state.phase is Phase.DRAINING and not state.broken and not state.taken
    failed = (Action.FAIL,) if state.taken else ()
    return State(state.slots, Phase.STOPPED if wanted else Phase.DEAD), failed
