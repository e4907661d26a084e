"""The state machine of a runner keeps the law in its docstring: every row, every state, and long random lives."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from outbid_node.runners import machine
from outbid_node.runners.machine import GONE, Action, Event, Phase, State, step

Row = tuple[set[str], str, list[str], str, list[str]]
LOADED_SLOTS = 2


def rows() -> list[Row]:
    """The table of the module's docstring."""
    found = []
    for line in (machine.__doc__ or "").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) == 5 and cells[1] in Event.__members__:
            phases, event, when, following, orders = cells
            found.append((set(phases.split()), event, when.split(), following, orders.split()))
    return found


def states() -> Iterator[State]:
    """Every state with up to three slots that a life can reach."""
    for slots in (1, 2, 3):
        yield from (State(slots, phase) for phase in (Phase.STOPPED, Phase.DEAD, Phase.READY))
        yield State(slots, Phase.DRAINING, broken=True)
        for held in range(slots + 1):
            yield State(slots, Phase.STARTING, held)
            yield State(slots, Phase.DRAINING, held)
        for waiting in range(4):  # held beyond the slots: the runner had promised more than it has
            for running in range(1, slots + 1):
                if not waiting or running == slots:
                    yield State(slots, Phase.BUSY, waiting, running)
                    yield State(slots, Phase.DRAINING, waiting, running)


def applies(condition: str, state: State) -> bool:
    match = re.fullmatch(r"n([=>])(\d)", condition)
    if match:
        number = int(match[2])
        return state.taken == number if match[1] == "=" else state.taken > number
    return {
        "free": state.taken < state.slots,
        "full": state.taken >= state.slots,
        "held": state.held > 0 and state.running == 0,
        "unbroken": not state.broken,
        "broken": state.broken,
    }[condition]


def possible(event: Event, state: State) -> bool:
    """An end of a running attempt needs a running attempt, and so on: otherwise the event is stale."""
    if event is Event.ENDED:
        return state.running > 0
    return state.held > 0 if event is Event.DROPPED else True


def test_the_table_was_found() -> None:
    assert len(rows()) == 27


@pytest.mark.parametrize("event", Event, ids=lambda event: event.name)
def test_every_state_obeys_the_table(event: Event) -> None:
    for state in states():
        matching = [
            row
            for row in rows()
            if state.phase.value in row[0]
            and row[1] == event.name
            and possible(event, state)
            and all(applies(condition, state) for condition in row[2])
        ]
        assert len(matching) <= 1, (state, event, matching)
        following, actions = step(state, event, LOADED_SLOTS)
        if not matching:
            assert (following, actions) == (state, ()), (state, event)
            continue
        _, _, _, phase, orders = matching[0]
        assert following.phase.value == (state.phase.value if phase == "same" else phase), (state, event)
        assert [action.name for action in dict.fromkeys(actions)] == expected(orders, actions), (state, event)


def expected(orders: list[str], actions: machine.Actions) -> list[str]:
    """SEND… may be none."""
    return [order.rstrip("…") for order in orders if not order.endswith("…") or Action.SEND in actions]


class Life(RuleBasedStateMachine):
    """Random lives, with the attempts counted on the side."""

    @initialize(slots=st.integers(1, 4))
    def born(self, slots: int) -> None:
        self.state = State(slots)
        self.held = self.running = 0
        self.has_process = False

    def happen(self, event: Event, slots: int = 0) -> machine.Actions:
        before = self.state
        self.state, actions = step(before, event, slots)
        for action in actions:
            if action is Action.SPAWN:
                assert not self.has_process
                self.has_process = True
            elif action is Action.SEND:
                assert self.held > 0
                self.held, self.running = self.held - 1, self.running + 1
            elif action is Action.FAIL:
                self.held = self.running = 0
        return actions

    @rule()
    def take(self) -> None:
        self.held += 1
        if Action.REFUSE in self.happen(Event.TAKE):
            self.held -= 1

    @precondition(lambda self: self.state.phase is Phase.STARTING)
    @rule(slots=st.integers(1, 4))
    def load(self, slots: int) -> None:
        self.happen(Event.LOADED, slots)

    @precondition(lambda self: self.running)
    @rule()
    def end(self) -> None:
        self.running -= 1
        self.happen(Event.ENDED)

    @precondition(lambda self: self.held)
    @rule()
    def drop(self) -> None:
        self.held -= 1
        self.happen(Event.DROPPED)

    @rule(event=st.sampled_from([Event.IDLE, Event.RETIRE, Event.LATE, Event.BREAK]))
    def other(self, event: Event) -> None:
        self.happen(event)

    @precondition(lambda self: self.has_process)
    @rule()
    def exit(self) -> None:
        self.has_process = False
        self.happen(Event.EXITED)
        assert self.state.phase in GONE

    @invariant()
    def attempts_are_accounted_for(self) -> None:
        if hasattr(self, "state"):
            assert (self.state.held, self.state.running) == (self.held, self.running)

    @invariant()
    def no_more_run_than_there_are_slots(self) -> None:
        if hasattr(self, "state"):
            assert self.state.running <= self.state.slots

    @invariant()
    def none_waits_while_a_loaded_slot_idles(self) -> None:
        if hasattr(self, "state") and self.state.phase in (Phase.READY, Phase.BUSY) and self.state.held:
            assert self.state.running == self.state.slots

    @invariant()
    def phase_says_what_is_so(self) -> None:
        if not hasattr(self, "state"):
            return
        assert self.has_process == (self.state.phase not in GONE)
        assert self.state.phase is not Phase.READY or self.state.taken == 0
        assert self.state.phase is not Phase.BUSY or self.state.running > 0
        assert self.state.phase not in GONE or self.state.taken == 0


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
