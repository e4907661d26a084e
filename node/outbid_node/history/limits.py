"""How little a process that runs SQL may take: called first in each of them."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import psutil

MEMORY_SHARE, MEMORY_BYTES = 1 / 2, 1536 * 2**20
"""Of the machine's memory, at most so much: beyond it a query fails with an error."""


def keep_small() -> None:
    """Give way to everything else, and be the first to go when memory runs out."""
    if sys.platform == "win32":
        return
    import resource

    limit = min(MEMORY_BYTES, int(psutil.virtual_memory().total * MEMORY_SHARE))
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    with contextlib.suppress(OSError):
        os.nice(5)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")
