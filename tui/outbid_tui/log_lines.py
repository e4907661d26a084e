"""Lines of the nodes' logs: which are wanted, and how they read. Pure."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, NamedTuple, get_args

from outbid_contracts.live import LogLevel, LogLine
from outbid_tui.looks import LEVEL_MARKS, Cell, clock

LEVELS: tuple[LogLevel, ...] = get_args(LogLevel)
RANK = {level: rank for rank, level in enumerate(LEVELS)}

NODE_WIDTH = 10
ACTION_WIDTH = 18
ACTIONS_FROM = 100
"""Columns from which the action has one of its own."""


class Wanted(NamedTuple):
    """`text` is looked for in the text, the action, the node's name and the fields, without regard to case."""

    level: LogLevel = "info"
    node: str = ""
    action: str = ""
    text: str = ""

    def has(self, line: LogLine) -> bool:
        if RANK[line.level] < RANK[self.level] or (self.node and line.node != self.node):
            return False
        if self.action and line.action != self.action:
            return False
        return not self.text or self.text.lower() in f"{line.name} {line.action} {said(line)}".lower()


def said(line: LogLine) -> str:
    """The text, with the fields that are not in it already."""
    if not line.fields:
        return line.text
    return f"{line.text} {' '.join(f'{key}={_short(value)}' for key, value in line.fields.items())}".lstrip()


def _short(value: Any) -> str:
    text = str(value)
    return repr(text) if " " in text or not text else text


def as_cell(line: LogLine, width: int) -> Cell:
    """One line of any length; it begins with columns of the same width."""
    letter, look = LEVEL_MARKS[line.level]
    prefix: Cell = ((f"{clock(line.time_ms)} ", "dim"), (f"{letter} ", look), (f"{line.name:<{NODE_WIDTH}.10} ", "dim"))
    if width >= ACTIONS_FROM:
        prefix = (*prefix, (f"{line.action:<{ACTION_WIDTH}.18} ", "accent"))
    tail = ((line.text, look if RANK[line.level] >= RANK["warning"] else ""),)
    if line.fields:
        fields = said(line)[len(line.text) :]
        return (*prefix, *tail, (fields, "dim"))
    return (*prefix, *tail)


def indent(width: int) -> int:
    """Where the text begins."""
    return 8 + 1 + 2 + NODE_WIDTH + 1 + (ACTION_WIDTH + 1 if width >= ACTIONS_FROM else 0)


def as_text(line: LogLine) -> str:
    """For a file or the clipboard: everything, one line."""
    when = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(line.time_ms / 1000))
    return f"{when}.{line.time_ms % 1000:03} {line.level} {line.name} {line.action} {said(line)}".replace("\n", " ")


def merged(known: Iterable[LogLine], recalled: Iterable[LogLine]) -> list[LogLine]:
    """By time, each once: what a node remembers may have been heard as well."""
    found = {(line.node, line.time_ms, line.action, line.text): line for line in (*recalled, *known)}
    return sorted(found.values(), key=lambda line: line.time_ms)
