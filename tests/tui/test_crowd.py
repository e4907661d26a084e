"""The dashboard at a node that sees a hundred others, which are played on its real bus."""

from __future__ import annotations

import time
from pathlib import Path

from outbid import Mesh
from outbid_bench.crowd import Crowd
from outbid_tui.app import Dashboard
from tests.fleet import fleet
from tests.tui.conftest import shown

NODES, JOBS = 100, 1000


async def test_a_hundred_machines_and_a_thousand_jobs_are_on_view_and_operated(tmp_path: Path) -> None:
    with fleet(tmp_path) as nodes:
        (real,) = await nodes.start("here")
        async with Crowd(real.local.url, real.node_creds, nodes=NODES, jobs=JOBS) as crowd:
            app = Dashboard(Mesh(state=real.state))
            async with app.run_test(size=(120, 40)) as pilot:
                await shown(pilot, lambda: len(app.state.machines) == NODES + 1)
                await shown(pilot, lambda: len(app.state.jobs) >= JOBS)
                await shown(pilot, lambda: app.state.auctions)
                for key in "12368":
                    await pilot.press(key, *["down"] * 5)
                await shown(pilot, lambda: sum(view.step > 0 for view in app.state.jobs.values()) > 10)
                gone = crowd.members.pop()
                machines = app.state.machines
                await shown(pilot, lambda: machines[gone.node].away(time.monotonic()))  # its heartbeats have stopped
                assert sum(not machine.away(time.monotonic()) for machine in machines.values()) == NODES
