"""A lean daemon: what its imports and the garbage collector need not do. Only the daemon's own process imports this,
before all else of ours.
"""

from __future__ import annotations

import gc
import sys

gc.disable()  # collections amid the imports find nothing and take a tenth of their time


def _load_nats() -> None:
    """nats-py loads aiohttp where it is installed, for web sockets, which no node uses: 100 ms of CPU time and 9 MB."""
    if "aiohttp" in sys.modules:
        return
    sys.modules["aiohttp"] = None  # type: ignore[assignment]
    try:
        import nats.aio.client  # noqa: F401
    finally:
        del sys.modules["aiohttp"]


_load_nats()


def settle_imports() -> None:
    """What was imported stays for good; hardly any of it is garbage."""
    gc.freeze()
    gc.enable()


def settle_memory() -> None:
    """What was loaded stays for good: the garbage collector need not walk it again and again (7 % of the time at full
    load), nor look for cycles at every few jobs.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
