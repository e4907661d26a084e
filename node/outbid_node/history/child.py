"""The process that keeps the history, as the daemon sees it: orders go in, reports come out, and it ends with us."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from outbid_node.history.frames import LENGTH, Order, Report, Settings, framed, report_of

log = logging.getLogger(__name__)

CLOSE_S = 10.0
"""How long it may take to write the rest and to close the file."""


class Child:
    """One such process. `on_report` is called for each report; `ended` is done when it is gone."""

    def __init__(self, process: asyncio.subprocess.Process, on_report: Callable[[Report], None]) -> None:
        self._process = process
        self._on_report = on_report
        self.ended = asyncio.create_task(self._listen())
        self._errors = asyncio.create_task(self._log_errors())

    @staticmethod
    async def start(folder: Path, settings: Settings, on_report: Callable[[Report], None]) -> Child:
        """Raises OSError."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "outbid_node.history.process",
            str(folder),
            msgspec.json.encode(settings).decode(),
            stdin=asyncio.subprocess.PIPE,  # its end of file tells the child that we died
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        return Child(process, on_report)

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, order: Order) -> None:
        """Lost if the process has ended."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, RuntimeError):
            self._process.stdin.write(framed(order))

    async def stop(self) -> None:
        """Let it write the rest; after CLOSE_S it is killed."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, RuntimeError):
            self._process.stdin.close()
        _, late = await asyncio.wait({self.ended}, timeout=CLOSE_S)
        if late:
            log.warning("the history did not close in time", extra={"action": "history_killed"})
            self.kill()
            await asyncio.wait({self.ended}, timeout=1.0)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def _listen(self) -> int:
        """Its exit status, once it is gone."""
        out = self._process.stdout
        assert out is not None
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                size = int.from_bytes(await out.readexactly(LENGTH), "big")
                self._on_report(report_of(await out.readexactly(size)))
        return await self._process.wait()

    async def _log_errors(self) -> None:
        err = self._process.stderr
        assert err is not None
        with contextlib.suppress(ValueError):  # a line that is longer than the stream's limit
            while line := await err.readline():
                text = line.decode(errors="replace").rstrip()
                log.warning("history: %s", text, extra={"action": "history_failed"})
