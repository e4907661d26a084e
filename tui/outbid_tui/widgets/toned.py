"""Pieces with looks as content of a Static, in the colours of whatever theme there is."""

from __future__ import annotations

from collections.abc import Iterable

from textual.content import Content

from outbid_tui.looks import Cell, Look

STYLES: dict[Look, str] = {
    "": "",
    "dim": "$foreground 60%",
    "good": "$text-success",
    "warn": "$text-warning",
    "bad": "$text-error",
    "accent": "$text-primary",
    "bold": "bold",
}


def toned(cell: Cell) -> Content:
    pieces = ((cell, ""),) if isinstance(cell, str) else cell
    return Content.assemble(*((_plain(text), STYLES[look]) for text, look in pieces))


def lines(cells: Iterable[Cell]) -> Content:
    return Content("\n").join([toned(cell) for cell in cells])


def _plain(text: str) -> str:
    """Anybody on the network may have written it: nothing that steers a terminal."""
    return text if text.isprintable() else "".join(s if s.isprintable() or s == "\n" else "?" for s in text)
