"""What tests of the bus wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import nats.errors
from nats.aio.client import Client


async def until(true: Callable[[], Any], within_s: float = 15) -> None:
    """Until `true()`, or what it returns when awaited, is so; looked at every 5 ms. Raises TimeoutError."""
    async with asyncio.timeout(within_s):
        while True:
            seen = true()
            if await seen if isinstance(seen, Awaitable) else seen:
                return
            await asyncio.sleep(0.005)


async def hears(nc: Client, subject: str) -> bool:
    """A new subscription needs a moment to be known on every node; until then the bus says that nobody answers."""
    try:
        await nc.request(subject, b"", timeout=0.5)
    except (nats.errors.Error, TimeoutError):
        return False
    return True
