"""Who may come in: a token in the first address, a cookie from then on, and no page of another site in between."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from aiohttp import web

TOKEN = "token"
COOKIE = "outbid_dashboard"
LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Entrance:
    """A middleware. The cookie is a second secret: who reads it, cannot make the address that lets others in."""

    def __init__(self, token: str, names: frozenset[str]) -> None:
        """`names`: what the Host header may say, without a port; another name is a page of another site whose name was
        pointed at this machine (DNS rebinding). Empty: any, for a server that is meant to be reached by many names.
        """
        self._token = token.encode()
        self._cookie = secrets.token_urlsafe(32)
        self._names = names

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if self._names and host_of(request.host) not in self._names:
            return _refused(403, f"this dashboard is not served under the name {host_of(request.host)!r}")
        if not self._same_site(request):
            return _refused(403, "another site's page may not use this dashboard")
        given = request.query.get(TOKEN)
        if given is not None:
            return self._welcome(request) if hmac.compare_digest(given.encode(), self._token) else _wrong()
        if not hmac.compare_digest(request.cookies.get(COOKIE, "").encode(), self._cookie.encode()):
            return _wrong()
        return await handler(request)

    def _welcome(self, request: web.Request) -> web.StreamResponse:
        """On to the address without the token, so that it stays in no history and no bookmark."""
        answer = web.Response(status=303, headers={"Location": request.path, "Referrer-Policy": "no-referrer"})
        answer.set_cookie(COOKIE, self._cookie, httponly=True, samesite="Strict", secure=request.secure, path="/")
        return answer

    @staticmethod
    def _same_site(request: web.Request) -> bool:
        """Browsers say where a websocket comes from; the cookie alone would let other local servers' pages in, because
        cookies do not tell ports apart.
        """
        origin = request.headers.get("Origin")
        return origin is None or urlsplit(origin).netloc == request.host


def host_of(netloc: str) -> str:
    """Without the port: `[::1]:80` gives `[::1]`."""
    head, _, tail = netloc.rpartition(":")
    return head if head and tail.isdigit() and not head.endswith(":") else netloc


def _wrong() -> web.Response:
    return _refused(401, "open the address that `outbid tui --web` printed: it has the token that lets you in")


def _refused(status: int, sentence: str) -> web.Response:
    return web.Response(status=status, text=f"{sentence}\n")
