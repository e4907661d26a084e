"""The last pictures of the mesh, small, side by side."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, HorizontalScroll
from textual.message import Message
from textual.widgets import Label

from outbid import Artifact, OutbidError
from outbid.cli import picture
from outbid_tui.studio.view import HalfBlocks

if TYPE_CHECKING:
    from PIL.Image import Image

SHOWN = 24
"""Newest pictures."""

LARGEST_BYTES = 8 * 2**20
"""Larger files are not fetched for the gallery."""

COLUMNS, LINES = 10, 5
"""Of a small picture, in cells."""


@dataclass
class Drawn:
    """A picture as it can be shown."""

    artifact: Artifact
    image: Image

    @property
    def told(self) -> dict[str, str]:
        """What is written into the file; nothing in formats that have it elsewhere."""
        return {
            str(name): str(value) for name, value in self.image.info.items() if isinstance(value, str | int | float)
        }


async def fetch(artifact: Artifact) -> Drawn | None:
    """None where it is no picture, or cannot be decoded here. Raises OutbidError."""
    if not artifact.type.startswith("image/") or artifact.size > LARGEST_BYTES:
        return None
    data = await artifact.read()
    image = await asyncio.to_thread(picture.decode, data)
    return Drawn(artifact, image) if image is not None else None


class Thumb(Container, can_focus=True):
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter,space", "choose", "Show"),
        Binding("left", "app.focus_previous", "Newer", show=False),
        Binding("right", "app.focus_next", "Older", show=False),
    ]

    DEFAULT_CSS = f"""
    Thumb {{ width: {COLUMNS + 2}; height: {LINES + 2}; border: round $surface; align: center middle; }}
    Thumb:hover {{ border: round $primary-muted; }}
    Thumb:focus {{ border: round $accent; }}
    Thumb.-shown {{ border: round $primary; }}
    """

    @dataclass
    class Chosen(Message):
        drawn: Drawn

    def __init__(self, drawn: Drawn) -> None:
        small = HalfBlocks(drawn.image)
        small.styles.width, small.styles.height = picture.cells(drawn.image.size, COLUMNS, LINES)
        super().__init__(small)
        self.drawn = drawn

    def on_mount(self) -> None:
        if seed := self.drawn.told.get("seed"):
            self.border_subtitle = seed

    def action_choose(self) -> None:
        self.post_message(self.Chosen(self.drawn))

    def on_click(self) -> None:
        self.action_choose()


class Gallery(HorizontalScroll):
    """The newest picture is on the left."""

    DEFAULT_CSS = f"""
    Gallery {{ height: {LINES + 3}; scrollbar-size-horizontal: 1; }}
    Gallery > Label {{ color: $text-muted; padding: 2 1; }}
    """

    def compose(self) -> ComposeResult:
        yield Label("What the mesh drew is kept here.")

    async def take(self, drawn: Drawn) -> None:
        """A new one."""
        if self._has(drawn.artifact):
            return
        self.query(Label).remove()
        await self.mount(Thumb(drawn), before=0 if self.children else None)
        for thumb in self.query(Thumb)[SHOWN:]:
            await thumb.remove()

    async def fill(self, artifacts: list[Artifact]) -> None:
        """Those among the newest that are not there yet; what cannot be fetched is left out."""
        wanted = [one for one in artifacts if one.type.startswith("image/")][:SHOWN]
        for artifact in reversed(wanted):
            if self._has(artifact):
                continue
            try:
                drawn = await fetch(artifact)
            except OutbidError:
                continue
            if drawn is not None:
                await self.take(drawn)

    def mark(self, drawn: Drawn) -> None:
        for thumb in self.query(Thumb):
            thumb.set_class(thumb.drawn.artifact.id == drawn.artifact.id, "-shown")

    def _has(self, artifact: Artifact) -> bool:
        return any(thumb.drawn.artifact.id == artifact.id for thumb in self.query(Thumb))
