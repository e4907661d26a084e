"""Stopping work that somebody here does not want any more."""

from __future__ import annotations

import asyncio
import contextlib

from outbid import Mesh, OutbidError

CANCEL_TIMEOUT_S = 8.0


async def call_off(mesh: Mesh, job: str) -> None:
    """Cancel it within a few seconds, whatever the node does."""
    with contextlib.suppress(OutbidError, TimeoutError, RuntimeError):  # RuntimeError: the dashboard closes
        async with asyncio.timeout(CANCEL_TIMEOUT_S):
            await mesh.cancel(job)
