"""A picture on the screen: in half-blocks, or by the terminal's own graphics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.color import Color
from rich.segment import Segment
from rich.style import Style
from textual.app import ComposeResult
from textual.containers import Container
from textual.events import Resize
from textual.strip import Strip
from textual.widget import Widget
from textual.widgets import Static

from outbid.cli import picture

if TYPE_CHECKING:
    from PIL.Image import Image


def strips(image: Image, columns: int, lines: int) -> list[Strip]:
    """The picture scaled to exactly so many cells; a cell shows two pixels, one above the other."""
    import PIL.Image

    way = PIL.Image.Resampling.NEAREST if columns >= image.width else PIL.Image.Resampling.LANCZOS
    scaled = image.resize((columns, 2 * lines), way)
    return [
        Strip(
            [Segment("▀", Style(color=Color.from_rgb(*up), bgcolor=Color.from_rgb(*low))) for up, low in row], columns
        )
        for row in picture.rows(scaled)
    ]


class HalfBlocks(Widget):
    """As large as its styles say, which whoever shows a picture sets to the picture's proportions."""

    def __init__(self, image: Image) -> None:
        super().__init__()
        self._image = image
        self._strips: list[Strip] = []

    @property
    def image(self) -> Image:
        return self._image

    @image.setter
    def image(self, image: Image) -> None:
        self._image, self._strips = image, []
        self.refresh()

    def on_resize(self) -> None:
        self._strips = []

    def render_line(self, y: int) -> Strip:
        width, height = self.size
        if not self._strips and width and height:
            self._strips = strips(self._image, width, height)
        return self._strips[y] if y < len(self._strips) else Strip.blank(width)


class PictureView(Container):
    """The picture as large as fits, or a sentence where there is none."""

    DEFAULT_CSS = """
    PictureView { align: center middle; }
    PictureView > Static { width: 1fr; height: auto; text-align: center; color: $text-muted; }
    """

    def __init__(self, id: str | None = None, *, graphics: Any = None) -> None:
        """`graphics`: what `ask_terminal` found."""
        super().__init__(id=id)
        self._kind = graphics or HalfBlocks
        self._shown: Any = None
        self.image: Image | None = None

    def compose(self) -> ComposeResult:
        yield Static(markup=False)

    def say(self, text: str) -> None:
        """In place of a picture."""
        self.image = None
        if self._shown is not None:
            self._shown.display = False
        self.query_one(Static).display = True
        self.query_one(Static).update(text)

    def show(self, image: Image) -> None:
        self.image = image
        self.query_one(Static).display = False
        if self._shown is None:
            self._shown = self._kind(image)
            self.mount(self._shown)
        else:
            self._shown.image = image
            self._shown.display = True
        self._fit()

    def on_resize(self, _: Resize) -> None:
        self._fit()

    def _fit(self) -> None:
        if self.image is not None and self._shown is not None and self.size.area:
            wide, high = picture.cells(self.image.size, self.size.width, self.size.height)
            self._shown.styles.width, self._shown.styles.height = wide, high
