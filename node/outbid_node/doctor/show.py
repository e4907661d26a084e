"""A checkup for people: one line for each check, the remedy under it."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from outbid_contracts.doctor import Checkup, Finding, Level

if TYPE_CHECKING:
    from rich.text import Text

STYLES: dict[Level, str] = {"ok": "green", "note": "cyan", "warning": "yellow", "problem": "red"}
WIDTH = 110
"""Of lines that go to no terminal."""
NARROW = 60


def show(checkups: Sequence[Checkup]) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDTH
    for place, checkup in enumerate(checkups):
        for line in ([""] if place else []) + list(_lines(checkup, max(width, NARROW))):
            console.print(line)


def _lines(checkup: Checkup, width: int) -> Iterator[Text | str]:
    from rich.text import Text

    rest = "  ".join(part for part in (checkup.node, checkup.state) if part)
    yield Text.assemble((plain(checkup.name), "bold"), "  ", (plain(rest), "dim"))
    yield ""
    column = max((len(finding.check) for finding in checkup.findings), default=0)
    for finding in checkup.findings:
        yield from _finding(finding, column, width)
    yield ""
    yield Text(verdict(checkup.findings), style="bold")


def _finding(finding: Finding, column: int, width: int) -> Iterator[Text]:
    from rich.text import Text

    style, indent = STYLES[finding.level], len("  problem  ") + column + 2
    first, *more = textwrap.wrap(plain(finding.found), width - indent) or [""]
    dim = "dim" if finding.level == "ok" else ""
    head = (f"  {finding.level:7}  ", f"bold {style}"), f"{plain(finding.check):{column}}  "
    yield Text.assemble(*head, (first, dim))
    for line in more:
        yield Text(" " * indent + line, style=dim)
    for line in textwrap.wrap(plain(finding.remedy), width - indent):
        yield Text(" " * indent + line, style=style)


def verdict(findings: Sequence[Finding]) -> str:
    count = Counter(finding.level for finding in findings)
    bad: tuple[Level, ...] = ("problem", "warning")
    told = [f"{count[level]} {level}{'s' if count[level] > 1 else ''}" for level in bad if count[level]]
    return ", ".join(told) if told else "all is well"


def plain(text: str) -> str:
    """Other machines wrote some of it: nothing that steers a terminal."""
    return "".join(sign if sign.isprintable() else " " for sign in text)
