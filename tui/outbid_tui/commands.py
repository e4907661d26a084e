"""What the command palette offers: the screens, the operations on machines and jobs, and what the screen adds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple, cast

from textual.command import DiscoveryHit, Hit, Hits, Provider

from outbid_tui.base import MeshScreen

if TYPE_CHECKING:
    from outbid_tui.app import Dashboard


class Command(NamedTuple):
    title: str
    help: str
    run: Callable[[], object]


class MeshCommands(Provider):
    """Offered at once: what the screen adds, the screens and the help. The operations come up as one types."""

    async def discover(self) -> Hits:
        for command in (*self._of_screen(), *self._dashboard.screen_commands()):
            yield DiscoveryHit(command.title, command.run, help=command.help)

    async def search(self, query: str) -> Hits:
        matcher = self.matcher(query)
        for command in (*self._of_screen(), *self._dashboard.screen_commands(), *self._dashboard.operations()):
            if (score := matcher.match(command.title)) > 0:
                yield Hit(score, matcher.highlight(command.title), command.run, help=command.help)

    @property
    def _dashboard(self) -> Dashboard:
        return cast("Dashboard", self.app)

    def _of_screen(self) -> Iterator[Command]:
        if isinstance(self.screen, MeshScreen):
            yield from self.screen.commands()
