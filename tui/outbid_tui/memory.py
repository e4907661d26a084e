"""The garbage collector in a process that is the dashboard's own."""

from __future__ import annotations

import gc


def settle() -> None:
    """What was imported is not walked again, and a thousand rows made anew for each paint are no reason to look for
    cycles: that was half of the CPU time at rest, and every wait of more than 50 ms after a key (docs/benchmarks.md).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
