"""Plots in characters: lines of braille dots, a mark of its own for each line, axes. No Textual.

The colours are those of Okabe and Ito, which people with any kind of colour blindness can tell apart; nobody needs
them, because each line has its mark as well.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

COLOURS = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#0072B2", "#F0E442", "#999999")
MARKS = "●▲■◆○△□◇"
LINES = len(MARKS)
"""So many lines can be told apart."""

MARK_EVERY = 12
"""Characters between two marks of a line."""

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bits of a braille character by row and column."""

Point = tuple[float, float]
Piece = tuple[str, str]
"""Text and its colour; "" is that of the axes."""

Place = Callable[[Point], tuple[int, int]]
"""Where a point is, in dots from the upper left corner."""


@dataclass(frozen=True)
class Line:
    name: str
    points: Sequence[Point]
    """By growing x."""


@dataclass(frozen=True)
class Frame:
    """What the plot shows: x from `x0` to `x1` (Unix seconds), y from `low` to `high`. Two points more than `gap` apart
    are not joined. `level` is a value that is marked by a dotted line.
    """

    x0: float
    x1: float
    low: float
    high: float
    gap: float
    level: float | None = None
    ratio: bool = False
    """y is the binary logarithm of a ratio."""


@dataclass
class _Canvas:
    """Cells of braille dots. In a cell that lines share, the last one gives its colour; marks keep theirs."""

    width: int
    height: int
    bits: dict[tuple[int, int], int] = field(default_factory=dict)
    colours: dict[tuple[int, int], str] = field(default_factory=dict)
    marks: dict[tuple[int, int], Piece] = field(default_factory=dict)

    def dot(self, x: int, y: int, colour: str) -> None:
        cell = x // 2, y // 4
        if 0 <= cell[0] < self.width and 0 <= cell[1] < self.height:
            self.bits[cell] = self.bits.get(cell, 0) | _DOTS[y % 4][x % 2]
            self.colours[cell] = colour

    def stroke(self, x0: int, y0: int, x1: int, y1: int, colour: str) -> None:
        steps = max(abs(x1 - x0), abs(y1 - y0), 1)
        for n in range(steps + 1):
            self.dot(x0 + round((x1 - x0) * n / steps), y0 + round((y1 - y0) * n / steps), colour)

    def mark(self, x: int, y: int, mark: str, colour: str) -> None:
        cell = min(x // 2, self.width - 1), y // 4
        self.marks[cell] = mark, colour

    def row(self, y: int) -> Iterator[Piece]:
        for x in range(self.width):
            cell = x, y
            dots = chr(0x2800 + bits) if (bits := self.bits.get(cell)) else " "
            yield self.marks.get(cell) or (dots, self.colours.get(cell, ""))


def framed(lines: Sequence[Line], x0: float, x1: float, gap: float, *, ratio: bool = False) -> Frame:
    """From zero to a round number above all values; of ratios, from the same part below 1 as above."""
    values = [y for line in lines for _, y in line.points]
    if ratio:
        most = max(1.0, *(math.ceil(abs(y) - 1e-9) for y in values)) if values else 1.0
        return Frame(x0, x1, -most, most, gap, level=0.0, ratio=True)
    return Frame(x0, x1, 0.0, _round_above(max(values, default=0.0)), gap)


def _round_above(value: float) -> float:
    """
    >>> _round_above(0), _round_above(3.1), _round_above(47), _round_above(1000)
    (1.0, 4.0, 50.0, 1000.0)
    """
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(
        step * power for step in (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 8.0, 10.0) if value <= step * power * (1 + 1e-9)
    )


def plot(lines: Sequence[Line], frame: Frame, width: int, height: int) -> list[list[Piece]]:
    """So many rows of pieces that together are `width` wide. The last row has the times."""
    labels = _labels(frame, height - 1)
    margin = max(map(len, labels.values()), default=0)
    canvas = _Canvas(max(1, width - margin - 1), max(1, height - 1))
    _draw(canvas, lines, frame)
    rows: list[list[Piece]] = []
    for y in range(canvas.height):
        axis = "┤" if y in labels else "│"
        rows.append([(f"{labels.get(y, ''):>{margin}}{axis}", ""), *_joined(canvas.row(y))])
    rows.append([(" " * margin + "└" + _times(frame, canvas.width), "")])
    return rows


def _draw(canvas: _Canvas, lines: Sequence[Line], frame: Frame) -> None:
    across, down = 2 * canvas.width - 1, 4 * canvas.height - 1

    def place(point: Point) -> tuple[int, int]:
        x = (point[0] - frame.x0) / (frame.x1 - frame.x0)
        y = (point[1] - frame.low) / (frame.high - frame.low)
        return round(x * across), round((1 - min(1.0, max(0.0, y))) * down)

    if frame.level is not None:
        y = place((frame.x0, frame.level))[1]
        for x in range(0, across, 4):
            canvas.dot(x, y, "")
    for number, line in enumerate(lines):
        colour = COLOURS[number % LINES]
        _draw_line(canvas, [p for p in line.points if p[0] >= frame.x0], frame.gap, place, colour)
        _mark_line(canvas, [place(p) for p in line.points if p[0] >= frame.x0], number, colour)


def _draw_line(canvas: _Canvas, points: Sequence[Point], gap: float, place: Place, colour: str) -> None:
    for before, after in itertools.pairwise(points):
        if after[0] - before[0] <= gap:
            canvas.stroke(*place(before), *place(after), colour)
    for point in points:
        canvas.dot(*place(point), colour)


def _mark_line(canvas: _Canvas, places: Sequence[tuple[int, int]], number: int, colour: str) -> None:
    """On the newest point, and now and then before; each line elsewhere, so that marks seldom meet."""
    last = math.inf
    for n, (x, y) in enumerate(reversed(places)):
        due = MARK_EVERY + (number * 3 % MARK_EVERY if n and last == places[-1][0] else 0)
        if n == 0 or (last - x) / 2 >= due:
            canvas.mark(x, y, MARKS[number % LINES], colour)
            last = x


def _labels(frame: Frame, rows: int) -> dict[int, str]:
    """Values at the axis by row: top, bottom, and the middle where there is room."""
    places = {0: 1.0, rows - 1: 0.0}
    if rows >= 5:
        places[round((4 * rows - 1) / 2) // 4] = 0.5
    return {row: label(frame.low + part * (frame.high - frame.low), frame.ratio) for row, part in places.items()}


def label(value: float, ratio: bool = False) -> str:
    """
    >>> label(1500.0), label(0.25), label(12.0), label(-1.0, True), label(2.0, True), label(0.4, True)
    ('1.5k', '0.25', '12', '1/2×', '4×', '1.3×')
    """
    if ratio:
        return f"1/{2**-value:.3g}×" if value < 0 and value == round(value) else f"{2**value:.2g}×"
    return f"{value / 1000:.3g}k" if value >= 1000 else f"{value:.3g}"


def _times(frame: Frame, width: int) -> str:
    """Some times of day, or days where the plot has several."""
    form = "%H:%M" if frame.x1 - frame.x0 <= 2 * 86_400 else "%a %d"
    number = max(2, min(7, width // 12))
    row = [" "] * width
    for n in range(number):
        text = time.strftime(form, time.localtime(frame.x0 + (frame.x1 - frame.x0) * n / (number - 1)))
        begin = max(0, min(width - len(text), round(n * (width - 1) / (number - 1)) - len(text) // 2))
        row[begin : begin + len(text)] = text
    return "".join(row)


def legend(lines: Sequence[Line], width: int, ratio: bool = False) -> list[Piece]:
    """`● pi 47  ▲ laptop 61` with the newest values, as many as fit."""
    pieces: list[Piece] = []
    left = width
    for number, line in enumerate(lines):
        value = label(line.points[-1][1], ratio) if line.points else "–"
        text = f"{MARKS[number % LINES]} {line.name} {value}  "
        if len(text) > left:
            return [*pieces, ("…", "")] if left else pieces
        pieces.append((text, COLOURS[number % LINES]))
        left -= len(text)
    return pieces


def _joined(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """Neighbours of one colour as one."""
    text, colour = "", ""
    for more, next_colour in pieces:
        if next_colour != colour and text:
            yield text, colour
            text = ""
        text, colour = text + more, next_colour
    if text:
        yield text, colour
