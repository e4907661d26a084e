"""Which model, and by what the bids are ranked: the part of a form that chats and pictures share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar, cast

import click
from textual.app import ComposeResult
from textual.containers import Horizontal, VerticalScroll
from textual.widget import Widget
from textual.widgets import Checkbox, Input, Label, Select

from outbid.cli.running import duration
from outbid_contracts.errors import InvalidRequest
from outbid_contracts.policy import GOALS, Goal, Policy, Zone
from outbid_tui.state import MeshState

HOME: tuple[Zone, ...] = ("here", "lan")
"""Zones of a job that is not to leave the house."""

_SHOWN_GOALS = tuple(goal for goal in GOALS if goal != "custom")

Value = TypeVar("Value")


class Field(Horizontal):
    """A label and its input, on one line."""

    DEFAULT_CSS = """
    Field { height: 1; margin-bottom: 1; }
    Field > Label { width: 11; color: $text-muted; }
    Field > Input.-textual-compact { width: 1fr; background: $surface; padding: 0 1; }
    Field > Input.-textual-compact:focus { background: $primary-muted; }
    Field > Select { width: 1fr; height: 1; }
    Field > Select.-textual-compact > SelectCurrent { padding: 0 1; }
    Field > Checkbox { width: 1fr; }
    """

    def __init__(self, label: str, control: Widget) -> None:
        super().__init__(Label(label), control)


class Tick(Checkbox):
    """A checkbox that is empty while it is off: the usual one tells by colour alone."""

    def __init__(self, label: str, id: str) -> None:
        self.BUTTON_INNER = " "
        super().__init__(label, id=id, compact=True)

    def watch_value(self) -> None:
        self.BUTTON_INNER = "✓" if self.value else " "
        super().watch_value()


def line(id: str, hint: str = "", type: str = "text", value: str = "") -> Input:
    """An input of one line, `hint` shown while it is empty."""
    return Input(value, placeholder=hint, id=id, type=cast(Any, type), compact=True)


class Asking(VerticalScroll):
    """The fields that come with every job of a capability. `show` fills the lists from what is in the mesh."""

    DEFAULT_CSS = """
    Asking { padding: 1 1 0 1; scrollbar-size-vertical: 1; }
    Asking > Label.heading { text-style: bold; color: $accent; margin-bottom: 1; width: 1fr; }
    """

    def __init__(self, capability: str, *before: Widget, id: str | None = None, after: Sequence[Widget] = ()) -> None:
        super().__init__(id=id)
        self._capability = capability
        self._before = before
        self._after = after

    def compose(self) -> ComposeResult:
        yield from self._before
        yield Field("Model", Select[str]((), prompt="any", id="model", compact=True))
        goals = ((goal, goal) for goal in _SHOWN_GOALS)
        yield Field("Policy", Select[str](goals, prompt="as the node has it", id="goal", compact=True))
        yield Field("Prefer", Select[str]((), prompt="no machine", id="prefer", compact=True))
        yield Field("Avoid", Select[str]((), prompt="no machine", id="avoid", compact=True))
        yield Field("Deadline", line("deadline", "none; 30s, 5m"))
        yield Field("Private", Tick("stays in the house", "private"))
        yield from self._after

    def show(self, state: MeshState) -> None:
        models = {view.model for view in state.models.models if view.capability == self._capability}
        offer(self.query_one("#model", Select), models)
        names = {machine.presence.name for machine in state.machines.values()}
        for id in ("#prefer", "#avoid"):
            offer(self.query_one(id, Select), names)

    @property
    def model(self) -> str | None:
        return chosen(self.query_one("#model", Select))

    def choose_model(self, name: str) -> None:
        """If it is there."""
        choose(self.query_one("#model", Select), name)

    def policy(self) -> Policy:
        """Raises InvalidRequest."""
        goal, prefer, avoid = (chosen(self.query_one(id, Select)) for id in ("#goal", "#prefer", "#avoid"))
        private = self.query_one("#private", Checkbox).value
        return Policy(
            goal=cast(Goal | None, goal),
            deadline_s=seconds(self.query_one("#deadline", Input).value),
            prefer=(prefer,) if prefer else (),
            avoid=(avoid,) if avoid else (),
            zone=HOME if private else (),
        )


def seconds(text: str) -> float | None:
    """Of `30s`, `5m`; None of nothing. Raises InvalidRequest.

    >>> seconds("5m"), seconds(" ")
    (300.0, None)
    """
    if not text.strip():
        return None
    try:
        return duration(text.strip())
    except click.BadParameter as error:
        raise InvalidRequest(f"Deadline: {error.message}") from error


def offer(select: Select[str], values: Iterable[str]) -> None:
    """These are what can be chosen; what is chosen stays while it is among them, or the list is open."""
    wanted = sorted(values)
    if select.expanded or getattr(select, "offered", None) == wanted:
        return
    kept = chosen(select)
    select.offered = wanted  # type: ignore[attr-defined]
    with select.prevent(Select.Changed):
        select.set_options((value, value) for value in wanted)
        if kept in wanted:
            select.value = kept


def chosen(select: Select[Value]) -> Value | None:
    return None if select.value is Select.NULL else cast(Value, select.value)


def choose(select: Select[str], value: str | None) -> None:
    """None or what is not there: nothing in particular."""
    if value and value in getattr(select, "offered", ()):
        select.value = value
    else:
        select.clear()
