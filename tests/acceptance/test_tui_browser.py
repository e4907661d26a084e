"""`outbid tui --web` in a real browser: a page opens the dashboard, and keys pressed there command the mesh."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.chromium import PROGRAM, Page, page
from tests.fleet import NodeProcess, fleet, mesh_of
from tests.waiting import until

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="needs Chromium (Debian: apt install chromium)")


@contextmanager
def served(node: NodeProcess, folder: Path) -> Iterator[Path]:
    """The file of what it says."""
    said = folder / "web.log"
    command = [sys.executable, "-m", "outbid_tui", "--web", "--port", "0", "--state", str(node.state)]
    with said.open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        yield said
    finally:
        server.terminate()
        server.wait(20)


def address(said: Path) -> str:
    found = re.search(r"http://127\.0\.0\.1:\d+/\?token=\S+", said.read_text())
    return found[0] if found else ""


def words(browser: Page) -> str:
    """What was written to the terminal, without the codes for colours and places."""
    return re.sub(r"\x1b\[[0-9;?<>=$]*[a-zA-Z]", "", browser.received)


async def heard(browser: Page, text: str) -> bool:
    await browser.evaluate("0")
    await asyncio.sleep(0.05)
    return text in words(browser)


async def test_a_page_shows_the_mesh_and_its_keys_drain_a_node(tmp_path: Path) -> None:
    profile = tmp_path / "profile"
    profile.mkdir()
    with fleet(tmp_path) as nodes:
        (node,) = await nodes.start("kitchen-pi")
        with served(node, tmp_path) as said:
            await until(lambda: address(said), 30)
            async with page(profile) as browser:
                await browser.call("Network.enable")
                await browser.open(address(said))
                await until(lambda: heard(browser, "kitchen-pi"), 60)
                assert "token" not in await browser.evaluate("location.href")
                await browser.click(640, 400)
                await browser.press("d")
                async with mesh_of(node) as mesh:

                    async def draining() -> bool:
                        await browser.evaluate("0")
                        return (await mesh.nodes())[0].presence.state == "draining"

                    await until(draining, 30)
