"""Auctions as they are held: bids, declines, the choice and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, VerticalScroll
from textual.widgets import Static

from outbid_contracts.live import AuctionHeld
from outbid_contracts.policy import Goal
from outbid_tui.auctions import rows, sheet
from outbid_tui.base import MeshScreen
from outbid_tui.jobs.views import why
from outbid_tui.looks import Cell
from outbid_tui.state import Kind
from outbid_tui.widgets.filter import Choice, Filter
from outbid_tui.widgets.lazy import LazyCells
from outbid_tui.widgets.table import LiveTable
from outbid_tui.widgets.toned import lines

WIDE = 150
"""From so many characters on the auction stands beside the list, not below it."""

COMPARED: tuple[Goal, ...] = ("fastest", "balanced", "green", "cheap", "private")

EMPTY = "no auction yet: they are shown as they are held, whichever machine asks for bids"


class AuctionScreen(MeshScreen):
    NAME = "Auction"
    HELP = """Every auction of the mesh as it is held, the newest on top: a machine that has a job calls for proposals,
each able machine bids or declines, and the bid with the lowest score for the job's policy wins.

The marked auction is shown in full; enter goes into it to scroll, escape comes back. **→** is the winner, **after** how
long its bid took to arrive, **●** a model that is loaded already. The bars are the scores, in seconds: time, and what
joules and dollars are worth under that policy. *standing*: awarded from the machines' standing offers, unasked."""
    SHOWS: ClassVar[frozenset[Kind]] = frozenset({"auctions", "nodes"})
    DEFAULT_CSS = """
    AuctionScreen > #auction { layout: vertical; height: 1fr; }
    AuctionScreen.-wide > #auction { layout: horizontal; }
    AuctionScreen #auctions { height: 2fr; }
    AuctionScreen #full { height: 3fr; background: $boost; padding: 0 1; scrollbar-size-vertical: 1; }
    AuctionScreen.-wide #auctions { width: 11fr; height: 1fr; }
    AuctionScreen.-wide #full { width: 9fr; height: 1fr; padding: 0 2; }
    AuctionScreen #full Static { height: auto; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space", "pause", "Pause", tooltip="Hold the list as it is; new ones are counted"),
        Binding("w", "what_if", "What if", tooltip="Who would have won under the other policies"),
        Binding("y", "why", "Why", tooltip="The job from its bids to its end"),
        Binding("slash", "filter", "Filter"),
        Binding("escape", "back", "Back", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.words = ""
        self.held: Sequence[AuctionHeld] | None = None
        """What is shown while it is paused."""
        self._compared: dict[str, Sequence[Cell]] = {}
        self._auctions: Mapping[str, AuctionHeld] = {}

    def body(self) -> ComposeResult:
        yield Filter()
        with Container(id="auction"):
            yield LiveTable(*rows.COLUMNS, empty=EMPTY, id="auctions")
            with VerticalScroll(id="full"):
                yield Static("", id="told")

    def on_mount(self) -> None:
        self.query_one(LiveTable).focus()

    def on_resize(self) -> None:
        self.set_class(self.size.width >= WIDE, "-wide")
        self.call_after_refresh(self._tell)

    # -- what is shown ---------------------------------------------------------------------------------------------

    def show_state(self, changed: frozenset[Kind]) -> None:
        if changed == {"nodes"}:
            return
        newest = self.held if self.held is not None else tuple(self.state.auctions)
        wanted = self.words.lower().split()
        shown = [one for one in reversed(newest) if all(word in self._text(one) for word in wanted)]
        self._auctions = {rows.key(one): one for one in shown}
        table = self.query_one(LiveTable)
        table.show([(key, LazyCells(partial(rows.cells, one, self.state))) for key, one in self._auctions.items()])
        table.say(EMPTY if not newest else "no auction is like that")
        self.query_one(Filter).show(self._kinds(len(newest)), "paused" if self.held is not None else "live")

    def _kinds(self, number: int) -> list[Choice]:
        if self.held is None:
            return [Choice("live", f"● live {number}")]
        newer = sum(one.told_ms > self.held[-1].told_ms for one in self.state.auctions) if self.held else 0
        return [Choice("paused", f"⏸ paused, {newer} newer")]

    def _text(self, auction: AuctionHeld) -> str:
        bidders = (considered.name for considered in auction.sheet.bids)
        parts = (auction.job, auction.capability, auction.model or "", auction.policy.goal or "balanced", *bidders)
        return " ".join(parts).lower()

    @property
    def marked(self) -> AuctionHeld | None:
        key = self.query_one(LiveTable).key
        return self._auctions.get(key) if key else None

    def on_live_table_chosen(self) -> None:
        self.query_one("#full").scroll_home(animate=False)
        self._tell()

    def _tell(self) -> None:
        auction, full = self.marked, self.query_one("#full")
        told: list[Cell] = []
        if auction is not None:
            told = list(sheet.told(auction, self._names(), full.scrollable_content_region.width))
            told += ["", *more] if (more := self._compared.get(rows.key(auction))) else []
        self.query_one("#told", Static).update(lines(told))

    def _names(self) -> dict[str, str]:
        return {str(node): machine.presence.name for node, machine in self.state.machines.items()}

    # -- keys ------------------------------------------------------------------------------------------------------

    def action_pause(self) -> None:
        self.held = tuple(self.state.auctions) if self.held is None else None
        self.show_state(self.SHOWS)

    def on_filter_kind(self) -> None:
        self.action_pause()

    def action_what_if(self) -> None:
        if (auction := self.marked) is not None:
            self.dashboard.act(self._what_if(auction))

    async def _what_if(self, auction: AuctionHeld) -> None:
        reply = await self.dashboard.mesh.what_if(job=auction.job, policy=COMPARED)
        self._compared[rows.key(auction)] = list(sheet.compared(reply, self._names()))
        self._tell()
        self.query_one("#full").scroll_end(animate=False)

    def action_why(self) -> None:
        if (auction := self.marked) is not None:
            self.app.push_screen(why(self.dashboard.mesh, self.state, auction.job))

    def on_live_table_opened(self) -> None:
        self.action_read()

    def action_read(self) -> None:
        self.query_one("#full").focus()

    def action_back(self) -> None:
        self.query_one(Filter).clear()
        self.query_one(LiveTable).focus()

    def action_filter(self) -> None:
        self.query_one(Filter).begin()

    def on_filter_changed(self, event: Filter.Changed) -> None:
        self.words = event.words
        self.show_state(self.SHOWS)

    def on_filter_left(self) -> None:
        self.query_one(LiveTable).focus()
