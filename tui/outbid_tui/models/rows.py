"""Rows of the list of models. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from outbid_tui.looks import Cell, Piece, joined, size
from outbid_tui.models.entries import Entry, Group, One, Pull, Unused
from outbid_tui.widgets.gauge import gauge
from outbid_tui.widgets.table import Column

COLUMNS = (
    Column("model", 26, grow=1, keep=9),
    Column("capability", 14, keep=4),
    Column("state", 9, keep=9),
    Column("slots free", 10, keep=6, right=True),
    Column("size", 8, keep=7, right=True),
    Column("marks", 18, keep=8),
    Column("licence", 12, keep=3),
    Column("source", 20, grow=1, keep=2),
    Column("note", 16, grow=3, keep=5),
)

STATES: dict[str, Piece] = {"warm": ("● warm", "good"), "cold": ("○ cold", "dim"), "blocked": ("✗ blocked", "bad")}

GAUGE = 18
"""Characters of a pull's bar: the column of the marks has room for it."""


def cells(entry: Entry) -> Sequence[Cell]:
    """One for each of COLUMNS."""
    match entry:
        case Group():
            return _group(entry)
        case One():
            return _one(entry)
        case Pull():
            return _pull(entry)
        case Unused():
            view = entry.view
            name: Cell = ((f"  {view.model} on {view.name}", "dim"),)
            note = "pulled, and not used by a capability there"
            return (name, "–", "", "", size(view.size_mib), "", view.licence, view.source, ((note, "warn"),))


def _group(group: Group) -> Sequence[Cell]:
    ones = group.ones
    views = [one.view for one in ones]
    warm = sum(one.state == "warm" for one in ones)
    return (
        (("▾ " if group.unfolded else "▸ ", "accent"), (group.view.model, "bold")),
        used_for(group),
        ((f"{'●' if warm else '○'} {warm} of {len(ones)}", "good" if warm else "dim"),),
        f"{sum(view.free for view in views)} of {sum(view.slots for view in views)}",
        next((size(view.size_mib) for view in views if view.size_mib), ""),
        "" if group.unfolded else _marks(pinned=any(o.pinned for o in ones), default=all(o.default for o in ones)),
        next((view.licence for view in views if view.licence), ""),
        next((view.source for view in views if view.source), ""),
        "" if group.unfolded else who(ones),
    )


def used_for(group: Group) -> str:
    """`llm.chat`, `image.edit generate`, `image.* (4)`."""
    first, *rest = group.capabilities
    if len(rest) > 1:
        return f"{first.partition('.')[0]}.* ({len(rest) + 1})"
    return " ".join([first, *(name.partition(".")[2] for name in rest)])


def who(ones: Sequence[One]) -> Cell:
    """Everybody who has it: ● in memory, ○ on disk only, ✗ blocked."""
    chips: list[Cell] = [((STATES[one.state][0][0], STATES[one.state][1]), (f" {one.view.name}", "")) for one in ones]
    return joined(chips)


def _one(one: One) -> Sequence[Cell]:
    view = one.view
    return (
        f"    {view.name}",
        "",
        (STATES[one.state],),
        ((f"{view.free} of {view.slots}", "" if view.free else "warn"),),
        ((size(view.size_mib) if view.size_mib else "", "dim"),),
        _marks(pinned=one.pinned, default=one.default),
        "",
        "",
        ((one.blocked, "bad"),) if one.blocked else ((one.offers, "dim"),),
    )


def _pull(pull: Pull) -> Sequence[Cell]:
    percent = pull.percent or 0.0
    event = pull.mine
    state: Piece = (f"↓ {percent:.0f} %" if pull.percent is not None else "↓ …", "accent")
    told: str = "" if event is None else event.state
    if event is not None and event.bytes_s:
        told = f"{event.bytes_s / 1e6:.1f} MB/s from {', '.join(event.sources)}"
    return (
        ((pull.model or pull.source, "bold"), (f" → {pull.name}", "")),
        "",
        (state,),
        "",
        size(pull.size_mib) if pull.size_mib else "",
        gauge(percent / 100, GAUGE),
        "",
        pull.source,
        ((told, "dim"),),
    )


def _marks(*, pinned: bool, default: bool) -> Cell:
    return joined([(("▲ pinned", "accent"),) if pinned else "", "default" if default else ""])
