"""What `test.files` does: files of given sizes, and a look at the one it was given."""

from __future__ import annotations

import hashlib
import os
import random
import time
from typing import Any

from outbid_capabilities.runner_kit import Attempt

BLOCK = 2**20


def run(attempt: Attempt) -> None:
    begun = time.perf_counter()
    params = attempt.params
    attempt.cancelled.wait(params.get("delay_s", 0.0))
    if attempt.cancelled.is_set():
        return
    sizes, seed = params.get("sizes", ()), params.get("seed", 0)
    contents = [content(seed + number, size) for number, size in enumerate(sizes)]
    source = attempt.files.get("source")
    result: dict[str, Any] = {
        "files": [{"name": f"{number}.bin", "type": "application/octet-stream"} for number in range(len(sizes))],
        "source_sha256": hashlib.sha256(source).hexdigest() if source is not None else "",
        "others": sorted(set(params) & {"source", "source_from"}),
        "pid": os.getpid(),
        "seconds": time.perf_counter() - begun,
    }
    attempt.done(result, payloads=contents[: len(contents) - params.get("withhold", 0)])


def content(seed: int, size: int) -> bytes:
    """The same for the same seed."""
    generator = random.Random(seed)
    blocks = [generator.randbytes(min(BLOCK, size - start)) for start in range(0, size, BLOCK)]
    return b"".join(blocks)
