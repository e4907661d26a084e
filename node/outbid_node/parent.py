"""A node that belongs to the program which started it (`--with-parent`) ends with that program, however it ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import sys
import threading
from collections.abc import Callable

LOOK_S = 1.0
"""How often the parent is looked at: a child that it forked may hold our standard input open after it died."""


def watch(gone: Callable[[], None]) -> None:
    """Call `gone` on the running loop once the other end of standard input is closed, or the parent is another."""
    loop, parent = asyncio.get_running_loop(), os.getppid()

    def wait() -> None:
        with contextlib.suppress(OSError, ValueError):  # ValueError: there is no standard input
            while _is_there(parent) and not _at_the_end():
                pass
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(gone)

    threading.Thread(target=wait, name="parent-watch", daemon=True).start()


def _is_there(parent: int) -> bool:
    return sys.platform == "win32" or os.getppid() == parent


def _at_the_end() -> bool:
    """Whether standard input has come to its end; waits for a moment to find out."""
    if sys.platform != "win32" and not select.select([0], [], [], LOOK_S)[0]:
        return False
    return not os.read(0, 4096)
