"""One auction in full: who was asked, what each promised and when, how the scores come about, who declined. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence

from outbid.cli import explaining, policies, sheets
from outbid.cli.sheets import dollars, figure, joules, seconds
from outbid_contracts.live import AuctionHeld
from outbid_contracts.messages import BidSheet, Considered
from outbid_contracts.what_if import WhatIfReply
from outbid_tui.looks import Cell, Look, Piece
from outbid_tui.widgets.cells import fitted

Names = Mapping[str, str]

PARTS: dict[str, tuple[str, Look]] = {
    "time": ("█", "accent"),
    "energy": ("▓", "good"),
    "money": ("▒", "warn"),
    "late": ("░", "bad"),
}
"""Of a score: the sign that its bar is made of."""

NAME = 14
BAR = 40
"""Characters of a score's bar, at most."""

INDENT = " " * (NAME + 2)

_WIDTHS = (("after", 8), ("start", 8), ("finish", 8), ("p90", 8), ("energy", 8), ("cost", 12))


def told(auction: AuctionHeld, names: Names, width: int) -> Iterator[Cell]:
    """Line by line, for a text that is `width` characters wide."""
    sheet = auction.sheet
    yield _head(auction, names)
    yield _call(sheet)
    if sheet.bids:
        yield ""
        yield from _numbers(auction, width)
        yield ""
        yield from _scores(sheet, auction, width)
    if sheet.declines:
        yield ""
        yield from _declines(auction, names)
    if sheet.why:
        yield ""
        yield ((sheet.why, "bold"),)


def _head(auction: AuctionHeld, names: Names) -> Cell:
    what = "  ".join(filter(None, (auction.capability, auction.model, ", ".join(policies.told(auction.policy)))))
    return ((f"{auction.job}  ", "bold"), (what, ""), (f"  owner {names.get(auction.owner, auction.owner)}", "dim"))


def _call(sheet: BidSheet) -> Cell:
    """What was asked, in the words of `outbid why`."""
    waited = f"waited {seconds(sheet.waited_s)}{f': {sheet.waited_for}' if sheet.waited_for else ''}; "
    bids = f"{len(sheet.bids)} bid{'' if len(sheet.bids) == 1 else 's'}"
    declined = f", {len(sheet.declines)} declined" if sheet.declines else ""
    pieces: list[Piece] = [(waited, "warn")] if sheet.waited_s >= explaining.WAITED_S else []
    return (*pieces, (f"{explaining.asked(sheet)}: {bids}{declined}; decided in {sheet.took_ms:.1f} ms", ""))


# -- what each promised ----------------------------------------------------------------------------------------------


def _numbers(auction: AuctionHeld, width: int) -> Iterator[Cell]:
    shown = _fitting(width)
    titles = "".join(fitted(title, size, True) for title, size in shown)
    yield ((f"  {fitted('node', NAME, False)}{titles}  warm  zone", "dim"),)
    for considered in auction.sheet.bids:
        values = _values(considered, auction)
        numbers = "".join(fitted(values[title], size, True) for title, size in shown)
        won, bid = considered.bid.node == auction.sheet.winner, considered.bid
        line = f"{fitted(considered.name, NAME, False)}{numbers}  {'●' if bid.warm else '○'}     {bid.zone}"
        later = " later" if bid.later else ""
        look: Look = "good" if won else "dim" if considered.excluded else ""
        yield (("→ " if won else "  ", "good"), (f"{line}{later}", look))


def _fitting(width: int) -> Sequence[tuple[str, int]]:
    """Where it is narrow cost goes first, then energy."""
    spare = width - NAME - 2 - 13
    shown = list(_WIDTHS)
    for title in ("cost", "energy", "after"):
        if sum(size for _, size in shown) > spare:
            shown = [one for one in shown if one[0] != title]
    return shown


def _values(considered: Considered, auction: AuctionHeld) -> Mapping[str, str]:
    bid = considered.bid
    after = auction.arrived_ms.get(bid.node)
    return {
        "after": "standing" if bid.standing else f"{after:.1f} ms" if after is not None else "–",
        "start": seconds(bid.start_s),
        "finish": seconds(bid.finish_s),
        "p90": seconds(bid.finish_p90_s),
        "energy": joules(bid.energy_j),
        "cost": dollars(bid.cost_usd),
    }


# -- how the scores come about ---------------------------------------------------------------------------------------


def _scores(sheet: BidSheet, auction: AuctionHeld, width: int) -> Iterator[Cell]:
    yield ((sheets.rates(auction.policy), "dim"),)
    yield _legend(sheet)
    most = max((c.score for c in sheet.bids if not c.excluded), default=0.0)
    room = max(8, min(BAR, width - NAME - 12))
    for considered in sheet.bids:
        won = considered.bid.node == sheet.winner
        name: Piece = (f"{'→' if won else ' '} {fitted(considered.name, NAME, False)}", "good" if won else "")
        if considered.excluded:
            first, *rest = _wrapped(f"excluded: {considered.excluded}", width)
            yield (name, (first, "warn"))
            yield from (((f"{INDENT}{line}", "warn"),) for line in rest)
            continue
        yield (name, *score_bar(considered, most, room), (f" {figure(considered.score)}", "bold"))
        for text in (sheets.arithmetic(considered, auction.policy), sheets.rests_on(considered)):
            yield from _below(text, width)


def _below(text: str, width: int) -> Iterator[Cell]:
    """Beside the bars, below the name."""
    return (((f"{INDENT}{line}", "dim"),) for line in _wrapped(text, width))


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(20, width - len(INDENT))) or [""]


def _legend(sheet: BidSheet) -> Cell:
    used = [name for name in PARTS if any(name in considered.parts for considered in sheet.bids)]
    return tuple(piece for name in used for piece in ((PARTS[name][0] * 2, PARTS[name][1]), (f" {name}  ", "dim")))


def score_bar(considered: Considered, most: float, room: int) -> tuple[Piece, ...]:
    """Its parts side by side; the longest bar of the sheet fills the room."""
    pieces: list[Piece] = []
    drawn, upto = 0, 0.0
    for name, value in considered.parts.items():
        upto += value
        end = round(room * upto / most) if most else 0
        sign, look = PARTS.get(name, ("█", ""))
        if end > drawn:
            pieces.append((sign * (end - drawn), look))
        drawn = max(drawn, end)
    return tuple(pieces) or (("▏", "dim"),)


def _declines(auction: AuctionHeld, names: Names) -> Iterator[Cell]:
    for decline in auction.sheet.declines:
        after = auction.arrived_ms.get(decline.node)
        when = f"  after {after:.1f} ms" if after is not None else ""
        name = fitted(names.get(decline.node, decline.node), NAME, False)
        yield ((f"✗ {name}", "warn"), (f"declined ({decline.code}): {decline.reason}", ""), (when, "dim"))


# -- under other policies --------------------------------------------------------------------------------------------


def compared(reply: WhatIfReply, names: Names) -> Iterator[Cell]:
    """One line for each policy: who would have won, and what that would have meant."""
    from outbid.cli.what_if import summary

    yield (("under other policies, by the same bids", "dim"),)
    base = reply.base.winner
    for case in reply.cases:
        best = case.winner
        changed = best is not None and (base is None or best.bid.node != base.bid.node)
        yield (("→ " if changed else "= ", "warn" if changed else "dim"), (summary(reply, case, names), ""))
