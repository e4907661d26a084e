"""A daemon whose time of day a test may move: `python -m tests.acceptance.jumping_clock up …` with the environment
variable JUMP, a file with the seconds to add. What it measures durations with is not moved.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from outbid_node.__main__ import main

_real = time.time_ns
_file = Path(os.environ.get("JUMP", os.devnull))


def _time_ns() -> int:
    return _real() + int(_file.read_text() or 0) * 1_000_000_000


def _time() -> float:
    return _time_ns() / 1e9


if __name__ == "__main__":
    time.time_ns, time.time = _time_ns, _time
    sys.exit(main())
