"""What a subset found, as text for a terminal and as Markdown for a page (`pages`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from outbid_bench.plots import Plot, draw


@dataclass(frozen=True, slots=True)
class Table:
    """`notes` say what each system promises and anything that a reader must know to compare."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Aim:
    """A target that was set before measuring, and whether this run met it."""

    what: str
    target: str
    measured: str
    met: bool


@dataclass(slots=True)
class Section:
    """One subset's findings."""

    name: str
    title: str
    about: str
    tables: list[Table] = field(default_factory=list)
    aims: list[Aim] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)

    def as_text(self) -> str:
        parts = [f"== {self.title}", self.about]
        for table in self.tables:
            parts += ["", f"-- {table.title}", _aligned([table.columns, *table.rows])]
            parts += [f"   * {note}" for note in table.notes]
        if self.aims:
            parts += ["", "-- Aims", _aligned([AIM_COLUMNS, *(_aim_row(aim) for aim in self.aims)])]
        return "\n".join(parts)

    def as_markdown(self, conditions: Sequence[str]) -> str:
        parts = [f"## {self.title}", self.about, _bullets(conditions)]
        parts += [f"![{plot.title}]({IMAGES}/{self._file(plot)})" for plot in self.plots]
        for table in self.tables:
            parts += [f"### {table.title}", _pipes(table.columns, table.rows)]
            if table.notes:
                parts.append(_bullets(table.notes))
        if self.aims:
            parts += ["### Aims", _pipes(AIM_COLUMNS, [_aim_row(aim) for aim in self.aims])]
        return "\n\n".join(parts)

    def draw(self, page: Path) -> None:
        """The plots, as files beside the page."""
        for plot in self.plots:
            draw(plot, page.parent / IMAGES / self._file(plot))

    def _file(self, plot: Plot) -> str:
        return f"bench-{self.name}-{plot.name}.svg"


IMAGES = "images"
AIM_COLUMNS = ("aim", "target", "measured", "met")


def _aim_row(aim: Aim) -> tuple[str, str, str, str]:
    return aim.what, aim.target, aim.measured, "yes" if aim.met else "NO"


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _pipes(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] + ["---:"] * (len(columns) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    return "\n".join(
        "   " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows
    )
