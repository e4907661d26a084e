"""Who gets into the dashboard in a browser: the real server, asked as browsers and as attackers would ask it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp.test_utils import TestServer

from outbid_tui.browser.entrance import COOKIE, host_of
from outbid_tui.browser.server import DashboardServer

TOKEN = "the-right-token"


@pytest.fixture
async def server() -> AsyncIterator[TestServer]:
    dashboard = DashboardServer(["--help"], host="127.0.0.1", port=0, token=TOKEN)
    running = TestServer(await dashboard._make_app())
    await running.start_server()
    yield running
    await running.close()


@pytest.fixture
async def browser() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        yield session


async def status(browser: aiohttp.ClientSession, server: TestServer, path: str, **headers: str) -> int:
    async with browser.get(server.make_url(path), headers=headers, allow_redirects=False) as answer:
        return answer.status


@pytest.mark.parametrize("path", ["/", "/ws", "/static/js/textual.js", "/download/1", "/?token=wrong", "/?token="])
async def test_without_the_token_nothing_is_shown(
    browser: aiohttp.ClientSession, server: TestServer, path: str
) -> None:
    assert await status(browser, server, path) == 401
    assert await status(browser, server, path, Cookie=f"{COOKIE}=guess") == 401


async def test_the_token_lets_in_once_and_leaves_the_address(
    browser: aiohttp.ClientSession, server: TestServer
) -> None:
    async with browser.get(server.make_url(f"/?token={TOKEN}"), allow_redirects=False) as answer:
        assert answer.status == 303
        assert answer.headers["Location"] == "/"
        cookie = answer.cookies[COOKIE]
        assert (cookie["httponly"], cookie["samesite"]) == (True, "Strict")
        assert TOKEN not in cookie.value
    async with browser.get(server.make_url("/")) as page:
        assert page.status == 200
        text = await page.text()
    assert f"ws://127.0.0.1:{server.port}/ws" in text
    assert "googleapis" not in text  # nothing is fetched from elsewhere
    assert await status(browser, server, "/static/js/textual.js") == 200


async def test_a_page_of_another_site_gets_nowhere_even_with_the_cookie(
    browser: aiohttp.ClientSession, server: TestServer
) -> None:
    assert await status(browser, server, f"/?token={TOKEN}") == 303
    assert await status(browser, server, "/ws", Origin="http://evil.example") == 403
    assert await status(browser, server, "/ws", Origin=f"http://127.0.0.1:{(server.port or 0) + 1}") == 403
    assert await status(browser, server, "/", Host="evil.example") == 403


async def test_pages_are_bounded(
    browser: aiohttp.ClientSession, server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outbid_tui.browser.server.MOST_SESSIONS", 0)
    assert await status(browser, server, f"/?token={TOKEN}") == 303
    assert await status(browser, server, "/ws") == 503


@pytest.mark.parametrize(
    ("netloc", "host"),
    [
        ("localhost", "localhost"),
        ("localhost:80", "localhost"),
        ("[::1]:80", "[::1]"),
        ("[::1]", "[::1]"),
        ("a.b:x", "a.b:x"),
    ],
)
def test_a_host_is_known_without_its_port(netloc: str, host: str) -> None:
    assert host_of(netloc) == host


def test_the_address_carries_the_token_and_a_free_port() -> None:
    made = DashboardServer([], host="127.0.0.1", port=0)
    assert made.address == f"http://127.0.0.1:{made.port}/?token={made.token}"
    assert len(made.token) >= 32
    assert made.port > 0
    assert DashboardServer([], host="127.0.0.1", port=1, public_url="https://x.y").address.startswith("https://x.y/?")
