"""What the daemons of all nodes log, as it happens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.events import ScreenResume
from textual.widgets import Input, Static

from outbid_contracts.errors import OutbidError
from outbid_contracts.ids import NodeId
from outbid_contracts.live import LogLine
from outbid_tui.base import MeshScreen
from outbid_tui.commands import Command
from outbid_tui.log_lines import LEVELS, Wanted, as_text
from outbid_tui.looks import LEVEL_MARKS
from outbid_tui.state import KEPT_LOGS, Kind
from outbid_tui.widgets.log_view import LogView

COPIED = 500
"""Newest lines that one copy takes: terminals refuse more."""


class NotWritten(OutbidError):
    """The file cannot be written."""

    code = "not_written"


class LogsScreen(MeshScreen):
    NAME = "Logs"
    HELP = """What the nodes' daemons log, the newest at the bottom. It follows them until you look back; `end` follows
again.

The letter is the level: **D**ebug, **I**nfo, **W**arning, **E**rror, **C**ritical. Only administrators may read logs.
Up to 5,000 lines are kept here; each node remembers its last 200, which are asked for when this screen is opened."""
    SHOWS: ClassVar[frozenset[Kind]] = frozenset({"logs", "nodes"})
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "search", "Search", tooltip="Lines with this text in them; escape ends it"),
        Binding("l", "level", "Level", tooltip="From which level up"),
        Binding("n", "node", "Node", tooltip="Of one node after the other, then of all"),
        Binding("a", "same_action", "Action", tooltip="Lines with the same action as the chosen one; again: all"),
        Binding("f", "follow", "Follow", tooltip="Follow the newest line, or hold still"),
        Binding("w", "wrap", "Wrap", tooltip="Wrap long lines, or cut them off"),
        Binding("c", "copy", "Copy", tooltip="The chosen line, or all that are shown, to the clipboard"),
        Binding("s", "save", "Save", tooltip="What is shown, to a file"),
        Binding("escape", "leave_search", "Back", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._seen = 0
        self._told = 0

    def body(self) -> ComposeResult:
        with Horizontal(id="log-bar"):
            yield Input(placeholder="/ to search", id="log-search", compact=True)
            yield Static(id="log-filters")
        yield LogView(KEPT_LOGS, id="log-lines")

    @property
    def view(self) -> LogView:
        return self.query_one(LogView)

    def on_mount(self) -> None:
        self.view.focus()
        self._tell_filters()

    def on_screen_resume(self, event: ScreenResume) -> None:
        self.dashboard.feed.recall_logs()

    def show_state(self, changed: frozenset[Kind]) -> None:
        if changed == {"nodes"}:
            return
        state = self.state
        if state.logs_told != self._told:
            self._told = state.logs_told
            self.view.replace(state.logs)
        elif (new := state.logs_seen - self._seen) > 0:
            self.view.add(islice(state.logs, max(0, len(state.logs) - new), None))
        self._seen = state.logs_seen
        self.view.say(state.unheard or ("no line fits" if self.view.count else "nothing was logged yet"))
        self._tell_filters()

    def _tell_filters(self) -> None:
        wanted = self.view.wanted
        parts = [f"{LEVEL_MARKS[wanted.level][0]} {wanted.level}+"]
        parts.append(self.state.name_of(NodeId(wanted.node)) if wanted.node else "all nodes")
        parts += [wanted.action] if wanted.action else []
        parts.append("▼ follows" if self.view.following else "‖ holds still")
        self.query_one("#log-filters", Static).update(" · ".join(parts))

    @on(LogView.Followed)
    def _followed(self) -> None:
        self._tell_filters()

    @on(Input.Changed, "#log-search")
    def _search(self, event: Input.Changed) -> None:
        self.view.want(self.view.wanted._replace(text=event.value.strip()))

    @on(Input.Submitted, "#log-search")
    def _searched(self) -> None:
        self.view.focus()

    def action_search(self) -> None:
        self.query_one("#log-search").focus()

    def action_leave_search(self) -> None:
        search = self.query_one("#log-search", Input)
        if search.has_focus:
            search.value = ""
        self.view.focus()

    def action_level(self) -> None:
        wanted = self.view.wanted
        level = LEVELS[(LEVELS.index(wanted.level) + 1) % len(LEVELS)]
        self.dashboard.feed.hear_logs("debug" if level == "debug" else "info")
        self._want(wanted._replace(level=level))

    def action_node(self) -> None:
        machines = sorted(self.state.machines.values(), key=lambda machine: machine.presence.name)
        nodes = ["", *(machine.presence.node for machine in machines)]
        at = nodes.index(self.view.wanted.node) if self.view.wanted.node in nodes else 0
        self._want(self.view.wanted._replace(node=nodes[(at + 1) % len(nodes)]))

    def action_same_action(self) -> None:
        chosen = self.view.chosen
        if self.view.wanted.action:
            self._want(self.view.wanted._replace(action=""))
        elif chosen is not None:
            self._want(self.view.wanted._replace(action=chosen.action))
        else:
            self.notify("choose a line with ↑ first")

    def _want(self, wanted: Wanted) -> None:
        self.view.want(wanted)
        self._tell_filters()

    def action_follow(self) -> None:
        self.view.follow(not self.view.following)

    def action_wrap(self) -> None:
        self.view.wrap = not self.view.wrap
        self.view.lay_out()

    def action_copy(self) -> None:
        chosen = self.view.chosen
        lines = [chosen] if chosen is not None else self.view.shown()[-COPIED:]
        self.app.copy_to_clipboard("\n".join(map(as_text, lines)))
        self.notify(f"copied {len(lines)} {'line' if len(lines) == 1 else 'lines'}")

    def action_save(self) -> None:
        name = time.strftime("outbid-logs-%Y%m%d-%H%M%S.txt")
        self.dashboard.ask("Save what is shown to", name, self._save)

    def _save(self, name: str) -> None:
        lines = self.view.shown()
        self.dashboard.act(_write(Path(name).expanduser(), lines), f"wrote {len(lines)} lines to {name}")

    def commands(self) -> Iterable[Command]:
        yield Command("Save these lines", "To a file", self.action_save)
        yield Command("Copy these lines", "To the clipboard", self.action_copy)


async def _write(file: Path, lines: list[LogLine]) -> None:
    """Raises NotWritten."""
    try:
        await asyncio.to_thread(file.write_text, "".join(f"{as_text(line)}\n" for line in lines), encoding="utf-8")
    except OSError as error:
        raise NotWritten(f"{file} cannot be written: {error.strerror}") from error
