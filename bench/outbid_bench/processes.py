"""Helper processes: started on free ports, ready when they say so, ended by their process id."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

READY_TIMEOUT_S = 120.0
"""Loading a model on a busy machine included."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def end(process: subprocess.Popen[Any], timeout_s: float = 10.0) -> None:
    """SIGTERM, then SIGKILL."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Ours without OUTBID_*: a user's settings must not change what is measured."""
    return {key: value for key, value in os.environ.items() if not key.startswith("OUTBID_")} | dict(extra or {})


class Helper:
    """A module of this package in a process of its own, that answers JSON lines with JSON lines.

    Its first line says that it is ready. What it prints on standard error goes to `log`. `environ` is added to ours.
    """

    def __init__(self, module: str, *arguments: str, log: Path, environ: Mapping[str, str] | None = None) -> None:
        self._command = [sys.executable, "-m", f"outbid_bench.{module}", *arguments]
        self._log = log
        self._environ = clean_environment(environ)
        self.hello: dict[str, Any] = {}

    async def __aenter__(self) -> Helper:
        self._process = self._start()
        try:
            self.hello = await self._line()
        except BaseException:
            end(self._process)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        end(self._process)

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=self._environ
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ask(self, **question: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question).encode() + b"\n")
        self._process.stdin.flush()
        return await self._line()

    async def _line(self) -> dict[str, Any]:
        """The next line it writes. Raises RuntimeError with its log if it died."""
        assert self._process.stdout is not None
        async with asyncio.timeout(READY_TIMEOUT_S):
            line = await asyncio.to_thread(self._process.stdout.readline)
        if not line:
            raise RuntimeError(f"{self._command[2]} died:\n{self._log.read_text(errors='replace')[-2000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def serve_lines(hello: Mapping[str, Any], answer: Any) -> None:
    """A helper's side: say hello, then `answer(question)` for each line until standard input closes."""
    print(json.dumps(hello), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


def until_listening(port: int, process: subprocess.Popen[Any], timeout_s: float = 20.0) -> None:
    """Wait until the process takes connections there. Raises RuntimeError if it ended or the time is over."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise RuntimeError(f"nothing listens on port {port} ({_words(process.args)})")


def _words(args: Any) -> str:
    return " ".join(map(str, args)) if isinstance(args, Sequence) and not isinstance(args, str) else str(args)
