"""The Auction screen: auctions of a real mesh as they are held, and one of them in full."""

from __future__ import annotations

import re
from typing import cast

import pytest
from textual.pilot import Pilot
from textual.widgets import Static

from outbid_contracts.policy import Policy
from outbid_tui.app import Dashboard
from outbid_tui.auctions import rows, sheet
from outbid_tui.looks import plain
from outbid_tui.screens.auction import AuctionScreen
from outbid_tui.widgets.sheet import Sheet
from outbid_tui.widgets.table import LiveTable
from tests.tui.conftest import NODES, Opened, shown
from tests.tui.made_up import NAMES, Still, auction, made_up
from tests.tui.made_up import sheet as made_up_sheet

pytestmark = pytest.mark.asyncio

NAME_OF: dict[str, str] = {str(node): name for node, name in NAMES.items()}

ASKED = {"text": "x", "delay_s": 0.05, "chunks": 4}
"""Long enough that bids are asked for."""


def listed(app: Dashboard) -> list[str]:
    """Jobs, from the top."""
    return [key.split()[0] for key, _ in app.screen.query_one(LiveTable).rows]


def told(app: Dashboard) -> str:
    return str(app.screen.query_one("#told", Static).content)


# -- one auction in full, without a mesh -----------------------------------------------------------------------------


async def test_every_bid_is_told_with_its_numbers_and_the_winner_is_marked_by_a_sign() -> None:
    held = auction(3)
    text = [plain(line) for line in sheet.told(held, NAME_OF, 120)]
    (won,) = [line for line in text if line.startswith("→ laptop") and "lan" in line]
    assert re.search(r"1\.20 s +3\.20 s +4\.80 s +200 J +\$0\.000017 +○", won)
    for considered in held.sheet.bids:
        assert any(considered.name in line and considered.bid.zone in line for line in text)
    assert any("×1.6: its promises ran short" in line for line in text)
    assert any(line.startswith("✗ pi") and "declined (busy): all 2 slots are taken" in line for line in text)
    assert text[-1] == held.sheet.why


async def test_who_is_excluded_is_told_with_the_reason_and_has_no_bar() -> None:
    text = [plain(line) for line in sheet.told(auction(9), NAME_OF, 120)]
    (line,) = [line for line in text if "excluded" in line]
    assert "rented-h100" in line
    assert "private keeps the job on the local network" in line


@pytest.mark.parametrize("width", [60, 76, 118, 200])
async def test_no_line_is_wider_than_its_room(width: int) -> None:
    for n in range(12):
        wide = [plain(line) for line in sheet.told(auction(n), NAME_OF, width)]
        tables = [line for line in wide if "█" in line or line.startswith(("→", "  "))]
        assert max(map(len, tables)) <= width


async def test_a_bar_is_as_long_as_its_score_and_its_parts_as_their_shares() -> None:
    best, *_, worst = [c for c in made_up_sheet(Policy(goal="green"), 0).bids if not c.excluded]
    assert len(plain(sheet.score_bar(worst, worst.score, 40))) == 40
    length = len(plain(sheet.score_bar(best, worst.score, 40)))
    assert abs(length - 40 * best.score / worst.score) <= 1
    energy = sum(len(text) for text, look in sheet.score_bar(best, best.score, 40) if look == "good")
    assert abs(energy - 40 * best.parts["energy"] / best.score) <= 1


async def test_the_newest_is_on_top_and_a_pause_holds_the_list_and_counts() -> None:
    app = Still("auction", made_up())
    async with app.run_test(size=(120, 40)) as pilot:
        await shown(pilot, lambda: len(listed(app)) == 12)
        assert listed(app)[0] == auction(11).job
        await pilot.press("space")
        for n in (12, 13):
            app.state.auctions.append(auction(n))
        screen = cast(AuctionScreen, app.screen)
        screen.show_state(screen.SHOWS)
        assert listed(app)[0] == auction(11).job
        assert "2 newer" in str(app.screen.query_one("#kinds", Static).content)
        await pilot.press("space")
        assert listed(app)[:2] == [auction(13).job, auction(12).job]


# -- a real mesh -----------------------------------------------------------------------------------------------------


async def test_an_auction_comes_up_as_it_is_held_with_every_bidder(dashboard: Opened) -> None:
    async with dashboard("auction") as (app, pilot):
        reply = await _hold(app, pilot)
        await shown(pilot, lambda: listed(app)[:1] == [reply["job"]])
        await shown(pilot, lambda: all(name in told(app) for name in NODES))
        (held,) = [one for one in app.state.auctions if one.job == reply["job"]]
        assert f"→ {reply['name']}" in told(app)
        assert held.sheet.why in told(app)
        assert plain(rows.cells(held, app.state)[7]) == f"→ {reply['name']}"


async def test_what_if_tells_who_would_have_won_under_each_policy(dashboard: Opened) -> None:
    async with dashboard("auction") as (app, pilot):
        reply = await _hold(app, pilot)
        await shown(pilot, lambda: listed(app)[:1] == [reply["job"]])
        await pilot.press("w")
        await shown(pilot, lambda: all(f"goal {goal}: " in told(app) for goal in ("fastest", "green", "private")))
        await pilot.press("y")
        await shown(pilot, lambda: isinstance(app.screen, Sheet))


async def _hold(app: Dashboard, pilot: Pilot[None]) -> dict[str, str]:
    """Jobs until the auction of one is heard: the nodes must have been told by then that somebody looks on."""
    while True:
        reply = cast(dict[str, str], await app.mesh.run("test.echo", ASKED))
        for _ in range(50):
            if any(one.job == reply["job"] for one in app.state.auctions):
                return reply
            await pilot.pause(0.02)
