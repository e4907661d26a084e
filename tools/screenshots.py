"""Make the pictures of docs/tui.md from a real mesh: `python tools/screenshots.py` (two minutes; needs what `make demo`
installs).

Three nodes of different speed start on this machine, chat and draw; then the dashboard opens in a terminal in memory,
keys are pressed as a person would, and each screen is kept as an SVG.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from textual.pilot import Pilot

from outbid import Mesh, Policy
from outbid_bench.nodes import Fleet
from outbid_contracts.policy import Goal
from outbid_tui.app import Dashboard
from outbid_tui.screens import SCREENS

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "images"
SIZE = (120, 36)
MACHINES = {
    "gaming-pc": ("limits.cpu_share=1.0", "power.idle_w=60", "power.busy_w=250"),
    "laptop": ("limits.cpu_share=0.6", "power.idle_w=6", "power.busy_w=45"),
    "pi": ("limits.cpu_share=0.35", "power.idle_w=3", "power.busy_w=9"),
}
PROMPTS = (
    "Why is the sky blue? Answer in one sentence.",
    "Name three birds.",
    "Write two sentences about a lighthouse.",
    "What is a contract net?",
    "Name two primary colours.",
    "Say hello in three languages.",
)


async def main() -> None:
    with tempfile.TemporaryDirectory(prefix="outbid-screens-", ignore_cleanup_errors=True) as folder:
        async with Fleet(Path(folder), ()) as fleet:
            for name, settings in MACHINES.items():
                await fleet.add(name, [word for one in settings for word in ("--set", one)])
            await fleet.until_whole()
            state = fleet.nodes[0].state
            async with Mesh(state=state) as mesh:
                await _work(mesh)
            await _shoot(Dashboard(Mesh(state=state)))


async def _work(mesh: Mesh) -> None:
    """So that there is something to see."""
    for name in MACHINES:
        await mesh.chat("Say hello.", max_tokens=8, policy=Policy(prefer=(name,))).reply()
    goals: tuple[Goal, ...] = ("fastest", "balanced", "green", "cheap")
    for number, prompt in enumerate(PROMPTS):
        await mesh.chat(prompt, max_tokens=48, policy=goals[number % len(goals)]).reply()
    job = await mesh.submit("llm.chat", {"prompt": "Name a river.", "max_tokens": 16})
    await job.result()
    await mesh.image("red apple", seed=7).result()


async def _shoot(app: Dashboard) -> None:
    async with app.run_test(size=SIZE) as pilot:
        await _until(pilot, lambda: app.state.connected and len(app.state.machines) == len(MACHINES))
        waiting = [asyncio.ensure_future(app.mesh.chat(p, max_tokens=64).reply()) for p in PROMPTS]
        for number, (name, _) in enumerate(SCREENS, 1):
            await pilot.press(f"f{number}")
            await pilot.pause(1.0)
            if name in ("chat", "studio"):
                await _ask(pilot, "Why do cats purr?" if name == "chat" else "red apple")
            await pilot.pause(6.0 if name in ("chat", "studio", "history") else 2.0)
            (FOLDER / f"tui-{name}.svg").write_text(app.export_screenshot(), "utf-8")
            sys.stderr.write(f"{name}\n")
        await asyncio.gather(*waiting, return_exceptions=True)


async def _ask(pilot: Pilot[None], text: str) -> None:
    for letter in text:
        await pilot.press("space" if letter == " " else "question_mark" if letter == "?" else letter)
    await pilot.press("enter")


async def _until(pilot: Pilot[None], true: Callable[[], object], within_s: float = 60) -> None:
    async with asyncio.timeout(within_s):
        while not true():
            await pilot.pause(0.05)


if __name__ == "__main__":
    asyncio.run(main())
