"""Run a long command with a line of progress on the terminal and its output in a log."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

_STEP = re.compile(rb"\[(\d+)/(\d+)\]|\[ *(\d+)%\]")


def run(
    command: Sequence[str | Path],
    what: str,
    *,
    log: Path,
    environ: dict[str, str] | None = None,
    gently: bool = False,
) -> None:
    """Run `command`; SystemExit with the end of its output where it fails. Standard input is closed.

    `gently` gives way to other programs, where the system has `nice`.
    """
    started = time.monotonic()
    nice = ["nice", "-n", "10"] if gently and shutil.which("nice") else []
    print(f"outbid: {what} …", flush=True)
    with log.open("wb") as output:
        child = subprocess.Popen(
            [*nice, *(str(part) for part in command)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environ,
        )
        try:
            code = _wait(child, started, log)
        except BaseException:
            child.terminate()
            raise
    if code != 0:
        tail = log.read_bytes()[-4000:].decode(errors="replace")
        raise SystemExit(f"{tail}\noutbid: failed ({code}): {what}\nThe whole output is in {log}")


def _wait(child: subprocess.Popen[bytes], started: float, log: Path) -> int:
    """A line that counts on a terminal; in a log file a line each half minute, so that nobody thinks it hangs."""
    terminal = sys.stdout.isatty()
    told = 0.0
    while True:
        try:
            code = child.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            spent = time.monotonic() - started
            if terminal:
                print(f"\r        {spent:4.0f} s  {_step(log)}\033[K", end="", flush=True)
            elif spent - told >= 30:
                told = spent
                print(f"        {spent:4.0f} s  {_step(log)}", flush=True)
            continue
        if terminal:
            print("\r\033[K", end="", flush=True)
        return code


def _step(log: Path) -> str:
    """The last progress mark of a compiler run (`[12/345]` or `[ 12%]`) near the end of its output."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 8192))
        found = _STEP.findall(file.read())
    if not found:
        return ""
    done, of, percent = found[-1]
    return f"{int(percent)} %" if percent else f"step {int(done)} of {int(of)}"
