"""What a subset found, as text for a terminal and as Markdown for docs/benchmarks.md."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

PAGE_HEAD = """# Benchmarks

Written by `make bench ARGS="--write docs/benchmarks.md"`; do not edit. Each section says when, on what machine and by
which command it was measured. Absolute numbers depend on the machine and on what else it does; the ratios are between
systems measured in turns within the same run. Cells are medians over rounds, with (lowest–highest).
"""


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

    def as_text(self) -> str:
        parts = [f"== {self.title}", self.about]
        for table in self.tables:
            parts += ["", f"-- {table.title}", _aligned([table.columns, *table.rows])]
            parts += [f"   * {note}" for note in table.notes]
        if self.aims:
            parts += ["", "-- Aims", _aligned([_AIM_COLUMNS, *(_aim_row(aim) for aim in self.aims)])]
        return "\n".join(parts)

    def as_markdown(self, conditions: Sequence[str]) -> str:
        parts = [f"## {self.title}", self.about, _bullets(conditions)]
        for table in self.tables:
            parts += [f"### {table.title}", _pipes(table.columns, table.rows)]
            if table.notes:
                parts.append(_bullets(table.notes))
        if self.aims:
            parts += ["### Aims", _pipes(_AIM_COLUMNS, [_aim_row(aim) for aim in self.aims])]
        return "\n\n".join(parts)


_AIM_COLUMNS = ("aim", "target", "measured", "met")


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


def write_page(page: Path, sections: dict[str, str]) -> None:
    """Put `sections` (name: Markdown) into the page; those of earlier runs that are not among them stay, and so does
    what stands before the first.
    """
    before = page.read_text("utf-8") if page.exists() else ""
    kept = dict(_SECTION.findall(before))
    head = before.partition("<!-- ")[0].rstrip() + "\n" if before else PAGE_HEAD
    merged = {name: body.strip() for name, body in (kept | sections).items()}
    bodies = [f"<!-- {name} begins -->\n\n{merged[name]}\n\n<!-- {name} ends -->" for name in sorted(merged)]
    page.write_text("\n".join([head, "\n\n".join(bodies), ""]), "utf-8")


_SECTION = re.compile(r"<!-- (\w+) begins -->(.*?)<!-- \1 ends -->", re.DOTALL)
