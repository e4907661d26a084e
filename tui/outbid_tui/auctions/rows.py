"""An auction as a row of the list. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from outbid_contracts.live import AuctionHeld
from outbid_tui.looks import Cell, clock
from outbid_tui.state import MeshState
from outbid_tui.widgets.table import Column

COLUMNS = (
    Column("time", 8, keep=8),
    Column("job", 20, keep=7),
    Column("capability", 14, keep=6),
    Column("model", 14, grow=1, keep=2),
    Column("policy", 8, keep=4),
    Column("how", 8, keep=3),
    Column("bids", 5, keep=6, right=True),
    Column("winner", 13, grow=1, keep=9),
    Column("score", 7, keep=1, right=True),
    Column("ms", 6, keep=5, right=True),
)


def key(auction: AuctionHeld) -> str:
    """A job may have several: one for each round."""
    return f"{auction.job} {auction.sheet.attempt} {auction.sheet.opened_ms}"


def cells(auction: AuctionHeld, state: MeshState) -> Sequence[Cell]:
    """One for each of COLUMNS."""
    sheet = auction.sheet
    best = next((c for c in sheet.bids if c.bid.node == sheet.winner), None)
    name = best.name if best else state.name_of(sheet.winner)
    return (
        clock(auction.told_ms),
        auction.job,
        auction.capability,
        auction.model or (best.bid.model or "" if best else ""),
        auction.policy.goal or "balanced",
        ((sheet.how, "dim" if sheet.how == "standing" else ""),),
        ((f"{len(sheet.bids)}/{max(sheet.asked, len(sheet.bids))}", "warn" if sheet.declines else ""),),
        ((f"→ {name}", "good"),) if sheet.winner else (("– nobody", "warn"),),
        f"{best.score:.3g}" if best and best.parts else "",
        f"{sheet.took_ms:.1f}",
    )
