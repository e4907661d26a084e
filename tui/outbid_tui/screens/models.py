"""Who has which model."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Mapping
from functools import partial
from typing import ClassVar, TypeVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Static

from outbid_contracts.admin import EvictReply, PinReply
from outbid_contracts.files import PullEvent
from outbid_contracts.ids import NodeId
from outbid_tui.base import MeshScreen
from outbid_tui.commands import Command
from outbid_tui.looks import Cell, size
from outbid_tui.models import entries, rows
from outbid_tui.models.entries import Entry, Group, One, Pull, Unused
from outbid_tui.models.pulling import PullForm, PullOrder
from outbid_tui.state import Kind
from outbid_tui.widgets.filter import Choice, Filter
from outbid_tui.widgets.lazy import LazyCells
from outbid_tui.widgets.table import LiveTable
from outbid_tui.widgets.toned import lines

EMPTY = "no machine has a model; p pulls one"

T = TypeVar("T")

PICK = "mark one machine: this model is on several"


class ModelsScreen(MeshScreen):
    NAME = "Models"
    HELP = """Every model with the machines that have it: **●** in memory, **○** on disk only, **✗** blocked.
Enter folds and unfolds the machines of a model.

*Pin* keeps a model in memory on that machine, over restarts; *evict* takes it out of memory when nothing runs on it (it
is loaded again when a job wants it); *delete* removes the files of a model that was pulled. A pull comes from a machine
of the mesh that has the model, else from where it is, and goes on when the dashboard is closed."""
    SHOWS: ClassVar[frozenset[Kind]] = frozenset({"models", "nodes"})
    DEFAULT_CSS = """
    ModelsScreen > #about { height: 2; background: $boost; padding: 0 1; text-wrap: nowrap; text-overflow: ellipsis; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("p", "pull", "Pull", tooltip="Fetch a model to a machine"),
        Binding("n", "pin", "Pin", tooltip="Keep it in memory there; again: no longer"),
        Binding("e", "evict", "Evict", tooltip="Take it out of memory there"),
        Binding("d", "delete", "Delete", tooltip="Remove the files of a pulled model"),
        Binding("x", "stop", "Stop pull", tooltip="Stop a pull and throw away what came"),
        Binding("slash", "filter", "Filter"),
        Binding("escape", "back", "Back", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.words = ""
        self.pulls: dict[tuple[str, str], PullEvent] = {}
        """Those that this dashboard asked for, by node and source."""
        self._turned: set[str] = set()
        self._entries: Mapping[str, Entry] = {}

    def body(self) -> ComposeResult:
        yield Filter()
        yield LiveTable(*rows.COLUMNS, empty=EMPTY, id="models")
        yield Static("", id="about")

    def on_mount(self) -> None:
        self.query_one(LiveTable).focus()

    # -- what is shown ---------------------------------------------------------------------------------------------

    def show_state(self, changed: frozenset[Kind]) -> None:
        found = entries.listed(self.state, self.pulls, self._turned, self.words)
        self._entries = {entry.key: entry for entry in found}
        table = self.query_one(LiveTable)
        table.show([(key, LazyCells(partial(rows.cells, entry))) for key, entry in self._entries.items()])
        table.say("no model is like that" if self.words else EMPTY)
        number, warm, mib = entries.counts(self.state)
        told = f"{number} models, {warm} copies in memory, {size(mib)} on the disks"
        self.query_one(Filter).show([Choice("all", told)], "", f"↓ {len(self.pulls)}" if self.pulls else "")
        self._about()

    @property
    def marked(self) -> Entry | None:
        key = self.query_one(LiveTable).key
        return self._entries.get(key) if key else None

    def _about(self) -> None:
        about, shown = self.query_one("#about", Static), lines(_about(self.marked))
        if about.content != shown:
            about.update(shown)

    def on_live_table_chosen(self) -> None:
        self._about()

    def on_live_table_opened(self) -> None:
        entry = self.marked
        if isinstance(entry, Group):
            self._turned ^= {entry.key}
            self.show_state(self.SHOWS)

    def action_filter(self) -> None:
        self.query_one(Filter).begin()

    def action_back(self) -> None:
        self.query_one(Filter).clear()

    def on_filter_changed(self, event: Filter.Changed) -> None:
        self.words = event.words
        self.show_state(self.SHOWS)

    def on_filter_left(self) -> None:
        self.query_one(LiveTable).focus()

    # -- one model on one machine ----------------------------------------------------------------------------------

    def _one(self) -> One | None:
        """What is marked, if that is one; else it says so."""
        entry = self.marked
        if isinstance(entry, One):
            return entry
        if isinstance(entry, Group) and len(entry.ones) == 1:
            return entry.ones[0]
        self.notify(PICK if isinstance(entry, Group) else "mark a model on a machine", severity="warning")
        return None

    def action_pin(self) -> None:
        if one := self._one():
            view, node = one.view, self.dashboard.mesh.node(one.view.node)
            # It may have been pinned by another capability of its family: taking that back names none.
            doing = node.unpin(view.model) if one.pinned else node.pin(view.model, capability=view.capability)
            self.dashboard.act(self._then(doing), partial(_pinned, view.name))

    def action_evict(self) -> None:
        if one := self._one():
            view, node = one.view, self.dashboard.mesh.node(one.view.node)
            self.dashboard.act(
                self._then(node.evict(view.model, capability=view.capability)), partial(_evicted, view.name)
            )

    def action_delete(self) -> None:
        entry = self.marked
        view = entry.view if isinstance(entry, Unused) else one.view if (one := self._one()) else None
        if view is not None:
            removing = self.dashboard.mesh.remove_model(view.model, on=view.node)
            sure = f"Delete the files of {view.model} on {view.name}? Pulling it again may take long."
            told = f"{view.model} is gone from {view.name}"
            self.dashboard.act(self._then(removing), lambda removed: f"{told}, {size(removed.size / 2**20)}", sure=sure)

    async def _then(self, doing: Awaitable[T]) -> T:
        """The list tells at once, not with the next listing."""
        reply = await doing
        await self._ask()
        return reply

    async def _ask(self) -> None:
        self.state.models = await self.dashboard.mesh.model_list()
        self.show_state(self.SHOWS)

    def commands(self) -> Iterable[Command]:
        yield Command("Pull a model", "Fetch one to a machine of the mesh", self.action_pull)
        if isinstance(entry := self.marked, One):
            what = f"{entry.view.model} on {entry.view.name}"
            pin = "Let go of" if entry.pinned else "Pin"
            yield Command(f"{pin} {what}", "Keep it in memory there, or no longer", self.action_pin)
            yield Command(f"Evict {what}", "Take it out of memory there", self.action_evict)
            yield Command(f"Delete {what}", "Remove the files of a pulled model", self.action_delete)

    # -- pulling ---------------------------------------------------------------------------------------------------

    def action_pull(self) -> None:
        machines = {str(node): machine.presence.name for node, machine in self.state.machines.items()}
        entry = self.marked
        node = entry.view.node if isinstance(entry, One) else None
        self.app.push_screen(PullForm(machines, node), self._pull)

    def _pull(self, order: PullOrder | None) -> None:
        if order is not None:
            name = self.state.name_of(NodeId(order.node))
            self.dashboard.act(self._follow(order), lambda done: _pulled(done, name))

    async def _follow(self, order: PullOrder) -> PullEvent:
        """Until it is here; every event shows in the list."""
        key = (order.node, order.source)
        last = self.pulls[key] = PullEvent(state="resolving", source=order.source, name=order.name)
        try:
            async for last in self.dashboard.mesh.pull(order.source, name=order.name, on=order.node):
                self.pulls[key] = last
                self._show_pulls()
        finally:
            del self.pulls[key]
            self._show_pulls()
        await self._ask()
        return last

    def _show_pulls(self) -> None:
        if self.is_current:
            self.show_state(self.SHOWS)

    def action_stop(self) -> None:
        entry = self.marked
        if not isinstance(entry, Pull):
            self.notify("mark a pull that is under way", severity="warning")
            return
        sure = f"Stop pulling {entry.model or entry.source} to {entry.name}, and throw away what came?"
        self.dashboard.act(self._stop(entry), f"{entry.source} is not being pulled any more", sure=sure)

    async def _stop(self, entry: Pull) -> None:
        async for _ in self.dashboard.mesh.pull(entry.source, on=entry.node, cancel=True):
            pass


def _pinned(name: str, reply: PinReply) -> str:
    if not reply.pinned:
        return f"{reply.model} may leave the memory of {name} again"
    return f"{reply.model} stays in the memory of {name}{'; it is being loaded' if reply.loading else ''}"


def _evicted(name: str, reply: EvictReply) -> str:
    if reply.busy:
        return f"{reply.model} goes when the jobs on {name} that use it are done"
    return f"{reply.model} is out of the memory of {name}" if reply.was_warm else f"it was not in the memory of {name}"


def _pulled(done: PullEvent, name: str) -> str:
    use = f", for {', '.join(done.capabilities)}" if done.capabilities else f"; {done.note}" if done.note else ""
    return f"{done.name} is on {name}{use}"


def _about(entry: Entry | None) -> list[Cell]:
    """Two lines: what a row has no room for."""
    match entry:
        case One(view=view):
            uses = ", ".join(view.capability for view in entry.views)
            facts = "  ".join(filter(None, (uses, size(view.size_mib), view.licence, view.source)))
            name = f"{view.model} on {view.name}  "
            rests = f"speed known from: {entry.offers}" if entry.offers else ""
            return [((name, "bold"), (facts, "")), ((entry.blocked, "bad"),) if entry.blocked else ((rests, "dim"),)]
        case Group():
            uses = ", ".join(entry.capabilities)
            return [((f"{entry.view.model}  ", "bold"), (uses, "")), rows.who(entry.ones)]
        case Pull():
            return [((entry.source, "bold"), (f"  to {entry.name}", "")), (("x stops it", "dim"),)]
        case Unused(view=unused):
            return [((f"{unused.model} on {unused.name}", "bold"), (f"  {unused.source}", "")), ""]
    return [""]
