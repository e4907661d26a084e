"""The machines of the mesh: as cards where there is room for them, else as rows; one of them in detail."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import ClassVar, Literal

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.events import Resize

from outbid_contracts.admin import Sleeper
from outbid_contracts.ids import NodeId
from outbid_tui import operations
from outbid_tui.base import MeshScreen
from outbid_tui.commands import Command
from outbid_tui.looks import NODE_MARKS, Cell, ago
from outbid_tui.machine_details import details, sleeper_details
from outbid_tui.machines import CARD_HEIGHT, CARD_WIDTH, COLUMNS, card, in_order, mark, row, sleeper_row
from outbid_tui.state import Kind, Machine
from outbid_tui.widgets.cards import Card, CardGrid
from outbid_tui.widgets.pane import TextPane
from outbid_tui.widgets.table import LiveTable, Row

WIDE = 100
"""From so many columns machines are cards, if they all fit."""

BESIDE = 150
"""From so many the details stand beside the machines, else below."""

DETAILS_WIDE = 48
DETAILS_TALL = 12

View = Literal["auto", "rows", "cards"]


class NodesScreen(MeshScreen):
    NAME = "Mesh"
    HELP = """The machines of the mesh: what they are doing now, and what they can do. Those at the end are away.

`●` works, `◐` drains, `◒` is in use by its person (or hot, or on battery), `▲` has trouble, `?` fell silent, `○` is
away; `⌂` is the machine that the dashboard is connected to. *free* is how many of the slots of the models in memory
are free; `▶` counts jobs that run there, `◷` those that wait at it.

Draining hands over what runs there; pausing keeps the machine from working for others, also over restarts."""
    SHOWS: ClassVar[frozenset[Kind]] = frozenset({"nodes", "jobs"})
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("d", "drain", "Drain", tooltip="Take no more work and hand over what runs; again: take work again"),
        Binding("p", "pause", "Pause", tooltip="Work for nobody else until it is resumed; again: resume"),
        Binding("u", "quiet", "Quiet", tooltip="Hours in which it works for nobody else"),
        Binding("w", "wake", "Wake", tooltip="Send the magic packet to a machine that is away"),
        Binding("v", "view", "View", tooltip="Rows or cards"),
        Binding("i", "details", "Info", tooltip="Show or hide the details"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.chosen: str | None = None
        self._view: View = "auto"
        self._made: dict[str, tuple[object, Row]] = {}
        """Rows, with what they were made of."""

    def body(self) -> ComposeResult:
        with Container(id="machines"):
            yield LiveTable(*COLUMNS, empty="no machine has been heard yet", id="rows")
            yield CardGrid(CARD_WIDTH, CARD_HEIGHT, id="cards")
            yield TextPane(id="details")

    def on_mount(self) -> None:
        self.query_one("#rows").focus()

    def on_resize(self, event: Resize) -> None:
        self.dashboard.comes_on_view()

    @property
    def cards_shown(self) -> bool:
        if self._view != "auto":
            return self._view == "cards"
        wide, tall = self.size
        beside = wide >= BESIDE
        across = (wide - (DETAILS_WIDE if beside else 0)) // CARD_WIDTH
        fit = across * ((tall - 3 - (0 if beside else DETAILS_TALL)) // CARD_HEIGHT)
        return wide >= WIDE and 0 < len(self.state.machines) + len(self.state.sleepers()) <= fit

    def show_state(self, changed: frozenset[Kind]) -> None:
        turned = self._lay_out()
        shown: CardGrid | LiveTable
        if self.cards_shown:
            shown = self.query_one(CardGrid)
            shown.show(list(self._cards()))
        else:
            shown = self.query_one(LiveTable)
            shown.show(list(self._rows()))
        if turned and self.chosen:
            shown.choose(self.chosen)
        self._show_details()

    def _lay_out(self) -> bool:
        """Whether rows became cards, or cards rows."""
        self.set_class(self.size.width >= BESIDE, "beside")
        self.set_class(self.size.height >= 32, "tall")
        cards = self.cards_shown
        if cards == self.has_class("cards"):
            return False
        had_focus = self.focused is None or self.focused.id in ("rows", "cards")
        self.set_class(cards, "cards")
        if had_focus:
            self.query_one("#cards" if cards else "#rows").focus()
        return True

    def _rows(self) -> Iterator[Row]:
        table = self.query_one(LiveTable)
        widths = {column.name: table.width_of(column.name) or column.width for column in COLUMNS}
        now_s = self.state.clock()
        machines, sleepers = in_order(self.state)
        made, self._made = self._made, {}
        for machine in machines:
            node = machine.presence.node
            of = (machine.version, mark(machine, now_s), machine.rtt_ms, machine.here, tuple(widths.values()))
            known = made.get(node)
            self._made[node] = known if known and known[0] == of else (of, (node, tuple(row(machine, now_s, widths))))
            yield self._made[node][1]
        for sleeper in sleepers:
            yield sleeper.node, tuple(sleeper_row(sleeper))

    def _cards(self) -> Iterator[Card]:
        now_s = self.state.clock()
        machines, sleepers = in_order(self.state)
        for machine in machines:
            presence = machine.presence
            title = f"{presence.name} ⌂" if machine.here else presence.name
            lines = partial(card, machine)
            yield Card(presence.node, machine.version, title, (mark(machine, now_s),), lines)
        for sleeper in sleepers:
            yield Card(sleeper.node, 0, sleeper.name, (NODE_MARKS["away"],), partial(_sleeper_card, sleeper))

    def _show_details(self) -> None:
        pane = self.query_one(TextPane)
        if not pane.display:
            return
        if (machine := self._machine()) is not None:
            heading: Cell = (f"{machine.presence.name}  ", "bold"), (machine.presence.node, "dim")
            pane.show([("", [heading]), *details(machine, self.state)])
        elif (sleeper := self._sleeper()) is not None:
            pane.show([("", [((sleeper.name, "bold"),)]), *sleeper_details(sleeper)])
        else:
            pane.show([])

    def _machine(self) -> Machine | None:
        return self.state.machines.get(NodeId(self.chosen)) if self.chosen else None

    def _sleeper(self) -> Sleeper | None:
        return next((sleeper for sleeper in self.state.sleepers() if sleeper.node == self.chosen), None)

    @on(LiveTable.Chosen)
    @on(CardGrid.Chosen)
    def _choose(self, event: LiveTable.Chosen | CardGrid.Chosen) -> None:
        if isinstance(event, CardGrid.Chosen) == self.cards_shown and event.key is not None:
            self.chosen = event.key
            self._show_details()

    def action_view(self) -> None:
        self._view = "rows" if self.cards_shown else "cards"
        self.show_state(self.SHOWS)

    def action_details(self) -> None:
        pane = self.query_one(TextPane)
        pane.display = not pane.display
        self._show_details()

    def action_drain(self) -> None:
        self._order(operations.drain)

    def action_pause(self) -> None:
        self._order(operations.pause)

    def action_quiet(self) -> None:
        self._order(operations.quiet)

    def action_wake(self) -> None:
        sleeper = self._sleeper()
        if sleeper is not None:
            operations.wake(self.dashboard, sleeper)
        elif (machine := self._machine()) is not None:
            self.notify(f"{machine.presence.name} is there already", markup=False)

    def _order(self, order: operations.Order) -> None:
        if (machine := self._machine()) is not None:
            order(self.dashboard, machine)
        elif (sleeper := self._sleeper()) is not None:
            self.notify(f"{sleeper.name} is away", severity="warning", markup=False)

    def commands(self) -> Iterable[Command]:
        yield Command("Rows or cards", "How the machines are shown", self.action_view)
        yield Command("Show or hide the details", "Of the chosen machine", self.action_details)


def _sleeper_card(sleeper: Sleeper, width: int) -> list[Cell]:
    seen = f"last seen {ago(sleeper.last_seen_ms)}" if sleeper.last_seen_ms else ""
    return ["", ((seen, "dim"),), (("w wakes it" if sleeper.wakeable else "cannot be woken from here", "dim"),)]
