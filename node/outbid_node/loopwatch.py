"""Watches that the event loop is never blocked for long (invariant 5): a blocked loop misses heartbeats for
everybody.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from outbid_node import pace

log = logging.getLogger(__name__)

PERIOD_S = 0.25
BLOCKED_S = 0.05


class LoopWatch:
    """Counts wake-ups that came more than BLOCKED_S late. `worst_s` is the longest seen."""

    def __init__(self) -> None:
        self.blocked = 0
        self.worst_s = 0.0
        self.at_rest: Callable[[], bool] = lambda: False
        """While this node has nothing to do it looks once a second, with everything else it does then."""

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            pause_s = pace.left_s() if self.at_rest() else PERIOD_S
            due = loop.time() + pause_s
            await asyncio.sleep(pause_s)
            late_s = loop.time() - due
            self.worst_s = max(self.worst_s, late_s)
            if late_s > BLOCKED_S:
                self.blocked += 1
                log.warning("event loop was blocked for %.0f ms", late_s * 1000, extra={"action": "loop_blocked"})
