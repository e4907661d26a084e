"""What each part of a node does once a second, all of them do in the same moment: a wake-up of the process costs more
than most of them (0.12 ms against some microseconds; docs/decisions/0020-cost-at-rest.md).
"""

from __future__ import annotations

import asyncio
import random

BEAT_S = 1.0

_OFFSET_S = random.random()
"""Nodes on one machine, and those that share a clock, are not to wake at the same moment."""


async def next_beat(beats: int = 1) -> None:
    """Sleep until the next of the moments that this process has every so many times BEAT_S."""
    await asyncio.sleep(left_s(beats))


def left_s(beats: int = 1) -> float:
    """Until that moment, of which each is also one with fewer beats that divide these: from 1 ms to `beats` and 1 ms,
    because timers are exact to a millisecond, and one that is early must not find the moment it just had.
    """
    period_s = beats * BEAT_S
    seconds = period_s - (asyncio.get_running_loop().time() + _OFFSET_S) % period_s
    return seconds if seconds > 0.001 else seconds + period_s
