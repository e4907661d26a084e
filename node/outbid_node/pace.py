"""What each part of a node does once a second, all of them do in the same moment: a wake-up of the process costs more
than most of them (0.12 ms against some microseconds; docs/decisions/0020-cost-at-rest.md).
"""

from __future__ import annotations

import asyncio
import random

BEAT_S = 1.0

_OFFSET_S = random.random()
"""Nodes on one machine, and those that share a clock, are not to wake at the same moment."""


async def next_beat() -> None:
    """Sleep until the next of the moments that this process has every BEAT_S."""
    await asyncio.sleep(left_s())


def left_s() -> float:
    """Until that moment: from 1 ms to BEAT_S and 1 ms, because timers are exact to a millisecond, and one that is early
    must not find the moment it just had.
    """
    seconds = BEAT_S - (asyncio.get_running_loop().time() + _OFFSET_S) % BEAT_S
    return seconds if seconds > 0.001 else seconds + BEAT_S
