"""Servers do not outlive their daemon: the system's help where it gives any, a pid file everywhere."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import psutil

from outbid_node.bus.files import write_private

_PR_SET_PDEATHSIG = 1


def spawn(argv: Sequence[str], stderr: Path) -> subprocess.Popen[bytes]:
    """Start a server in a session of its own, so that Ctrl-C reaches the daemon only and the daemon stops it in order.

    On Linux it gets SIGTERM when the *thread* that called this ends: call it from a thread that lives as long as the
    daemon (the event loop's), never from a pool.
    """
    with _sink(stderr) as sink:
        if sys.platform == "win32":
            flags = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW
            return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, creationflags=flags)
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            start_new_session=True,
            preexec_fn=_die_with(os.getpid()) if sys.platform == "linux" else None,
        )


def _sink(path: Path) -> IO[bytes]:
    try:
        return path.open("wb")
    except OSError:  # a full disk
        return Path(os.devnull).open("wb")


def _die_with(parent: int) -> Callable[[], None]:
    prctl = ctypes.CDLL(None).prctl  # looked up before the fork: no allocation, no import after it

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
        if os.getppid() != parent:  # it died before we asked
            os._exit(1)

    return ask


def record(pid_file: Path, process: subprocess.Popen[bytes], argv: Sequence[str]) -> None:
    write_private(pid_file, json.dumps({"pid": process.pid, "argv": list(argv)}))


def kill_leftover(pid_file: Path, patience_s: float = 2.0) -> int | None:
    """Stop the server an earlier daemon of this state folder left running; its pid, or None if there was none.

    Ours means: the recorded pid runs the recorded command line, which names a configuration file in our own state
    folder. (The creation time would be weaker: on Linux psutil derives it from the wall clock, which jumps on
    machines without a clock battery, and then a true orphan would be spared.)
    """
    process = _leftover(pid_file)
    if process is None:
        return None
    with suppress(psutil.NoSuchProcess):
        process.terminate()
        if not _ended(process, patience_s):
            process.kill()
            _ended(process, patience_s)
    return process.pid


def _ended(process: psutil.Process, patience_s: float) -> bool:
    """A zombie counts: a frozen daemon collects no child."""
    until = time.monotonic() + patience_s
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > until:
            return False
        time.sleep(0.005)
    return True


def _leftover(pid_file: Path) -> psutil.Process | None:
    try:
        found = json.loads(pid_file.read_text())
        process = psutil.Process(int(found["pid"]))
        return process if process.cmdline() == found["argv"] else None
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):
        return None
