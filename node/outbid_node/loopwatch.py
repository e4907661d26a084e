"""Watches that the event loop is never blocked for long (invariant 5): a blocked loop misses heartbeats for
everybody.
"""

from __future__ import annotations

import asyncio
import logging

log = logging.getLogger(__name__)

PERIOD_S = 0.25
BLOCKED_S = 0.05


class LoopWatch:
    """Counts wake-ups that came more than BLOCKED_S late. `worst_s` is the longest seen."""

    def __init__(self) -> None:
        self.blocked = 0
        self.worst_s = 0.0

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + PERIOD_S
            await asyncio.sleep(PERIOD_S)
            late_s = loop.time() - due
            self.worst_s = max(self.worst_s, late_s)
            if late_s > BLOCKED_S:
                self.blocked += 1
                log.warning("event loop was blocked for %.0f ms", late_s * 1000, extra={"action": "loop_blocked"})
