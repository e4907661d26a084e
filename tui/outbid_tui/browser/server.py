"""`outbid tui --web`: one dashboard process for each open page, loopback unless told otherwise."""

from __future__ import annotations

import contextlib
import secrets
import shlex
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from aiohttp import web
from textual_serve.server import Server

from outbid_tui.browser.entrance import LOOPBACK, TOKEN, Entrance

MOST_SESSIONS = 16
"""Pages at a time: each is a process of some 60 MiB."""

ANY = frozenset({"0.0.0.0", "::"})


class DashboardServer(Server):
    """`serve` until Ctrl-C. `port` 0 takes a free one. `arguments` are those of `python -m outbid_tui`."""

    def __init__(
        self, arguments: Sequence[str], *, host: str, port: int, token: str | None = None, public_url: str | None = None
    ) -> None:
        """`public_url`: where a proxy in front of it is reached. Raises OSError if the port is taken."""
        port = port or _free_port(host)
        super().__init__(
            _command([sys.executable, "-m", "outbid_tui", *arguments]),
            host=host,
            port=port,
            title="Outbid",
            public_url=public_url,
            templates_path=Path(__file__).with_name("page"),
        )
        self.token = token or secrets.token_urlsafe(24)
        self._behind = public_url
        self._sessions = 0

    @property
    def address(self) -> str:
        """What lets somebody in."""
        host = "127.0.0.1" if self.host in ANY else f"[{self.host}]" if ":" in self.host else self.host
        return f"{self._behind or f'http://{host}:{self.port}'}/?{TOKEN}={self.token}"

    def initialize_logging(self) -> None:
        """Standard error is for what goes wrong."""

    async def _make_app(self) -> web.Application:
        names = frozenset() if self._behind or self.host in ANY else LOOPBACK | {self.host}
        app = await super()._make_app()
        app.middlewares.append(Entrance(self.token, names).middleware)
        return app

    async def on_startup(self, app: web.Application) -> None:
        click.echo(f"The dashboard is at {self.address}", err=True)
        if self.host not in LOOPBACK | {"::1"}:
            click.echo(
                "Whoever has this address and reaches this machine commands the mesh; it is not encrypted.", err=True
            )
        click.echo("Ctrl-C ends it.", err=True)

    async def handle_index(self, request: web.Request) -> Any:
        if self._behind is None:  # whichever of this machine's names the page was asked under
            self.public_url = f"{request.scheme}://{request.host}"
        return await super().handle_index(request)

    async def handle_websocket(self, request: web.Request) -> web.WebSocketResponse:
        if self._sessions >= MOST_SESSIONS:
            raise web.HTTPServiceUnavailable(text=f"{MOST_SESSIONS} pages are open; close one\n")
        self._sessions += 1
        try:
            return await super().handle_websocket(request)
        finally:
            self._sessions -= 1


def _command(arguments: Sequence[str]) -> str:
    """textual-serve takes a line for the shell."""
    return subprocess.list2cmdline(arguments) if sys.platform == "win32" else f"exec {shlex.join(arguments)}"


def _free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
