"""A picture in the terminal: by the terminal's graphics (kitty, sixel) where it has such, else in half-blocks.

Decoding needs Pillow and the graphics textual-image, which come with the extras that draw; a machine that only asks
others to draw may have neither.
"""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image
    from rich.console import Console, ConsoleOptions, RenderResult

COLUMNS = 64
"""Widest picture, in character cells: a small one is enlarged to it."""

PREVIEW_COLUMNS = 32

LARGEST_PIXELS = 64 * 2**20
"""A file that says it has more is not decoded: it comes from the mesh, but costs memory here."""

IN_A_ROW = 4


class HalfBlocks:
    """A picture of which each character shows two pixels, one above the other."""

    def __init__(self, image: Image) -> None:
        """An even height."""
        self._image = image.convert("RGB")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.color import Color
        from rich.segment import Segment
        from rich.style import Style

        for row in rows(self._image):
            for upper, lower in row:
                yield Segment("▀", Style(color=Color.from_rgb(*upper), bgcolor=Color.from_rgb(*lower)))
            yield Segment.line()


Pixel = tuple[int, int, int]


def rows(image: Image) -> Iterator[list[tuple[Pixel, Pixel]]]:
    """(upper, lower) pixels for each character, row by row."""
    width, height = image.size
    data = image.tobytes()
    pixels = [(data[at], data[at + 1], data[at + 2]) for at in range(0, len(data), 3)]
    for top in range(0, height - 1, 2):
        upper, lower = (pixels[y * width : (y + 1) * width] for y in (top, top + 1))
        yield list(zip(upper, lower, strict=True))


def cells(size: tuple[int, int], columns: int, lines: int) -> tuple[int, int]:
    """Columns and lines for a picture of this size in pixels, as large as fits; a cell is twice as high as wide.

    >>> cells((64, 64), 80, 20)
    (40, 20)
    >>> cells((1024, 256), 64, 20)
    (64, 8)
    """
    width, height = size
    wide = max(1, min(columns, round(2 * lines * width / height)))
    return wide, max(1, min(lines, round(wide * height / width / 2)))


def decode(data: bytes) -> Image | None:
    """The picture, or the first frame of a film; None where it is not one, or Pillow is not there."""
    try:
        import PIL.Image
    except ImportError:
        return None
    try:
        image = PIL.Image.open(io.BytesIO(data))
        if image.width * image.height > LARGEST_PIXELS:
            return None
        image.load()
        return image.convert("RGB")
    except Exception:  # what PIL raises for files that are none is no closed set
        return None


def half_blocks(image: Image, columns: int, lines: int) -> HalfBlocks:
    """Scaled to fit; pixels of small pictures are kept sharp."""
    wide, high = cells(image.size, columns, lines)
    return HalfBlocks(_scaled(image, wide, 2 * high))


def preview(data: bytes, console: Console) -> HalfBlocks | None:
    image = decode(data)
    return half_blocks(image, min(PREVIEW_COLUMNS, console.width), max(1, console.height - 4)) if image else None


def show(files: Iterable[bytes]) -> None:
    """The pictures on standard output, side by side, if that is a terminal and can show them."""
    if not sys.stdout.isatty():
        return
    images = [image for image in map(decode, files) if image is not None]
    if not images:
        return
    from rich.console import Console

    console = Console(highlight=False)
    sheet = images[0] if len(images) == 1 else side_by_side(images)
    columns, lines = min(COLUMNS * min(len(images), IN_A_ROW), console.width), max(4, console.height - 4)
    console.print(_graphics(sheet, columns, lines) or half_blocks(sheet, columns, lines))


def side_by_side(images: Sequence[Image]) -> Image:
    """One picture of them all, each in a place of the first one's size, with a margin between."""
    import PIL.Image

    width, height = images[0].size
    gap = max(1, width // 32)
    across, down = min(IN_A_ROW, len(images)), -(-len(images) // IN_A_ROW)
    sheet = PIL.Image.new("RGB", (across * (width + gap) - gap, down * (height + gap) - gap))
    for n, image in enumerate(images):
        place = (n % IN_A_ROW * (width + gap), n // IN_A_ROW * (height + gap))
        sheet.paste(image if image.size == (width, height) else image.resize((width, height)), place)
    return sheet


def _scaled(image: Image, width: int, height: int) -> Image:
    import PIL.Image

    enlarged = width >= image.width
    return image.resize((width, height), PIL.Image.Resampling.NEAREST if enlarged else PIL.Image.Resampling.LANCZOS)


def _graphics(image: Image, columns: int, lines: int) -> Any:
    """What shows it by the terminal's own graphics; None where it has none, or nobody could ask it: it answers on
    standard input.
    """
    if not sys.stdin.isatty():
        return None
    logging.getLogger("textual_image").setLevel(logging.ERROR)  # it warns of terminals that tell nothing
    try:
        from textual_image import renderable  # asks the terminal, some tenths of a second if that is silent
    except Exception:  # not installed, or a terminal that it does not get on with
        return None
    if renderable.Image not in (renderable.SixelImage, renderable.TGPImage):
        return None
    wide, high = cells(image.size, columns, lines)
    return renderable.Image(image, width=wide, height=high)
