"""Asking again while machines are away."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import msgspec

from outbid_contracts.durable import SubmitRequest
from outbid_contracts.errors import Draining, NodeUnreachable, NoNode, OutbidError

if TYPE_CHECKING:
    from outbid.link import Link

SUBMIT_PATIENCE_S = 30.0
"""How long a submit that got no answer is repeated."""

ANSWER_S = 15.0
"""How long a node may take to answer, beside what it was asked to wait: it gives an owner ten seconds itself."""

AWAY = (NodeUnreachable, NoNode, Draining)
"""Nobody answered: the same question may be answered in a moment."""


class Patience:
    """How long to ask again while nobody answers, counted from the last answer."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self.renew()

    def renew(self) -> None:
        self._since = time.monotonic()
        self._pause_s = 0.1

    async def after(self, error: OutbidError) -> None:
        """Wait a moment for the next try. Raises `error` when patience is at an end."""
        if time.monotonic() + self._pause_s - self._since > self._limit_s:
            raise error
        await asyncio.sleep(self._pause_s)
        self._pause_s = min(1.0, self._pause_s * 1.6)


async def insist(
    mesh: Link,
    subject: str,
    request: Any,
    type: Any,
    *,
    patience_s: float = SUBMIT_PATIENCE_S,
    answer_s: float = ANSWER_S,
) -> Any:
    """Ask until somebody answers: what is asked has the same effect however often it is."""
    patience = Patience(patience_s)
    while True:
        try:
            connection = await mesh.connected()
            return await connection.request(subject, request, type, timeout_s=answer_s)
        except AWAY as error:
            await patience.after(error)
        if isinstance(request, SubmitRequest):
            request = msgspec.structs.replace(request, new=False)
