"""The dashboard: screens by number, one state, one connection."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from typing import Any, ClassVar, TypeVar

from textual.app import App
from textual.binding import Binding, BindingType
from textual.command import Provider
from textual.css.query import NoMatches

from outbid import Mesh, OutbidError
from outbid_tui import operations, themes
from outbid_tui.base import MeshScreen
from outbid_tui.commands import Command, MeshCommands
from outbid_tui.feed import Feed
from outbid_tui.screens import SCREENS
from outbid_tui.state import ALL, Kind, MeshState
from outbid_tui.widgets.dialogs import Ask, Sure
from outbid_tui.widgets.help import HelpScreen

PAINTS_PER_S = 4
"""How often what came from the mesh is painted. Keys are answered at once."""

Reply = TypeVar("Reply")


class Dashboard(App[None]):
    """`mesh` is not open yet; the app opens it, and closes it at the end. `start_on` is the name of a screen."""

    TITLE = "Outbid"
    CSS_PATH = "dashboard.tcss"
    MODES: ClassVar[dict[str, Any]] = dict(SCREENS)
    COMMANDS: ClassVar[set[type[Provider] | Callable[[], type[Provider]]]] = App.COMMANDS | {MeshCommands}
    BINDINGS: ClassVar[list[BindingType]] = [
        *(Binding(str(n), f"show('{name}')", screen.NAME, show=False) for n, (name, screen) in enumerate(SCREENS, 1)),
        *(
            Binding(f"f{n}", f"show('{name}')", screen.NAME, show=False, priority=True)
            for n, (name, screen) in enumerate(SCREENS, 1)
        ),
        Binding("question_mark", "help", "Help"),
        Binding("q", "quit", "Quit"),
    ]

    def __init__(self, mesh: Mesh, start_on: str = "mesh", graphics: Any = None) -> None:
        """`graphics`: how this terminal shows pictures; None: as half blocks."""
        super().__init__()
        self.graphics = graphics
        for theme in themes.OWN:
            self.register_theme(theme)
        self.theme = themes.DEFAULT
        self.ansi_theme_dark = themes.terminal(themes.DARK)
        self.ansi_theme_light = themes.terminal(themes.LIGHT)
        self.mesh = mesh
        self.state = MeshState()
        self.feed = Feed(mesh, self.state, self._changed)
        self._start_on = start_on
        self._dirty: set[Kind] = set(ALL)

    async def on_mount(self) -> None:
        await self.switch_mode(self._start_on)
        self.set_interval(1 / PAINTS_PER_S, self._paint)
        self.set_interval(1, self._look_around)
        self.run_worker(self.feed.run(), name="feed", exit_on_error=True)

    def _look_around(self) -> None:
        if kind := self.state.look_around():
            self._changed(kind)

    def _changed(self, kind: Kind) -> None:
        self._dirty.add(kind)

    @property
    def on_view(self) -> MeshScreen | None:
        """The screen that is shown, also where a dialog is above it."""
        return next((screen for screen in reversed(self.screen_stack) if isinstance(screen, MeshScreen)), None)

    def comes_on_view(self) -> None:
        self._dirty = set(ALL)
        self._paint()

    def _paint(self) -> None:
        screen = self.on_view
        if self._dirty and self.is_running and screen is not None and screen.whole:
            changed, self._dirty = frozenset(self._dirty), set()
            try:
                screen.paint(changed)
            except NoMatches:  # it is being taken down: its widgets go one after the other
                if self.is_running and screen.whole:
                    raise

    def action_show(self, name: str) -> None:
        if name != self.current_mode:
            self.switch_mode(name)

    def action_help(self) -> None:
        screen = self.on_view
        if screen is not None and not isinstance(self.screen, HelpScreen):
            self.push_screen(HelpScreen(help_of(screen)))

    def act(
        self, doing: Coroutine[Any, Any, Reply], done: str | Callable[[Reply], str] = "", *, sure: str = ""
    ) -> None:
        """Do it in the background; a toast says `done`, or what the mesh said against it. With `sure`, a question, only
        if the answer to it is yes.
        """
        if not sure:
            self.run_worker(self._do(doing, done), group="operations", exit_on_error=False)
            return

        def answered(yes: bool | None) -> None:
            if yes:
                self.act(doing, done)
            else:
                doing.close()

        self.push_screen(Sure(sure), answered)

    async def _do(self, doing: Coroutine[Any, Any, Reply], done: str | Callable[[Reply], str]) -> None:
        try:
            reply = await doing
        except OutbidError as error:
            self.notify(error.message, severity="error", timeout=8, markup=False)
        else:
            if told := done if isinstance(done, str) else done(reply):
                self.notify(told, markup=False)

    def ask(self, title: str, value: str, then: Callable[[str], None], *, hint: str = "") -> None:
        """Ask for a line of text; `then` is called with it, unless it was given up."""
        self.push_screen(Ask(title, value, hint), lambda text: None if text is None else then(text))

    def screen_commands(self) -> Iterator[Command]:
        for number, (name, screen) in enumerate(SCREENS, 1):
            yield Command(f"Go to {screen.NAME}", f"The screen of key {number}", partial(self.action_show, name))
        yield Command("Help on this screen", "Also while typing, where ? is a letter", self.action_help)

    def operations(self) -> Iterator[Command]:
        """Everything that can be done to a machine or a job."""
        return operations.commands(self)


def help_of(screen: MeshScreen) -> str:
    """Its own words, then its keys: those of the footer first."""
    keys: dict[str, str] = {}
    for active in sorted(screen.active_bindings.values(), key=lambda active: not active.binding.show):
        if active.enabled and (said := active.tooltip or active.binding.description):
            keys.setdefault(said, screen.app.get_key_display(active.binding))
    lines = [f"- `{key}` {said}" for said, key in keys.items()]
    return "\n".join([f"## {screen.NAME}", "", screen.HELP, "", "### Keys", "", *lines])
