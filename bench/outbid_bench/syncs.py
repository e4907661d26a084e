"""What a disk's sync costs here, and how many of them a process asks for."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from outbid_bench.stats import percentile

PROBES = 100
CALLS = ("fsync", "fdatasync")


def probe(folder: Path) -> float:
    """Seconds (median) that appending 512 bytes to a file takes until they are on disk."""
    found = []
    path = folder / "probe"
    with path.open("ab", buffering=0) as file:
        for _ in range(PROBES):
            begun = time.perf_counter()
            file.write(bytes(512))
            os.fsync(file.fileno())
            found.append(time.perf_counter() - begun)
    path.unlink()
    return percentile(found, 0.5)


def counted(summary: str) -> int:
    """The syncs in what `strace -c` wrote."""
    return sum(int(calls) for calls in _ROW.findall(summary))


_ROW = re.compile(rf"^\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?(?:{'|'.join(CALLS)})$", re.MULTILINE)


class Syncs:
    """Counts the syncs of a process while it is entered; `count` stays None without strace or the right to use it."""

    def __init__(self, pid: int, folder: Path) -> None:
        self._pid = pid
        self._summary = folder / f"syncs-{pid}"
        self.count: int | None = None

    async def __aenter__(self) -> Syncs:
        self._process = await self._attach() if shutil.which("strace") else None
        return self

    async def _attach(self) -> asyncio.subprocess.Process | None:
        """Returns when strace says that it watches; None if it may not."""
        self._summary.unlink(missing_ok=True)
        words = ["strace", "-f", "-c", "-e", f"trace={','.join(CALLS)}", "-o", str(self._summary), "-p", str(self._pid)]
        process = await asyncio.create_subprocess_exec(*words, stderr=asyncio.subprocess.PIPE)
        assert process.stderr is not None
        said = await process.stderr.readline()
        if b"attached" in said:
            return process
        await process.wait()
        return None

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):  # it ends with the process that it watches
                self._process.send_signal(signal.SIGINT)
            await self._process.communicate()
            self.count = counted(self._summary.read_text())
