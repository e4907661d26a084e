"""One child process: spawned in a group of its own, its last words kept, ended together with its descendants.

Threads wait for it and read its standard error, so the loop's kind and the platform do not matter; what they find out
is told on the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import psutil

TAIL_BYTES = 128 * 1024
"""Of standard error, kept while it lives: faulthandler's dump of a hundred threads."""
REPORT_CHARS = 16 * 1024
KILL_GRACE_S = 2.0
"""Between the polite signal and the other one."""
_FATAL = "Fatal Python error"
_BLANK_LINE = "\n\n"
_WINDOWS = sys.platform == "win32"
_NEW_GROUP: int = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended. `status` is negative for a signal, as in `subprocess`; `tail` is its standard error."""

    status: int
    tail: str = ""
    by_us: bool = False

    def __str__(self) -> str:
        words = last_words(self.tail)
        return f"{self._how()}; last words: {words}" if words else self._how()

    def _how(self) -> str:
        if self.status >= 0:
            return f"ended with status {self.status:#x}" if self.status > 255 else f"ended with status {self.status}"
        try:
            name = signal.Signals(-self.status).name
        except ValueError:
            name = f"signal {-self.status}"
        memory = name == "SIGKILL" and not self.by_us
        return f"killed by {name}" + (" (out of memory?)" if memory else "")


class ChildProcess:
    """A running child. `on_exit` is called on the loop, once, after its standard error has been read."""

    def __init__(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        on_exit: Callable[[Exit], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """Raises OSError if it cannot be started.

        It gets a group of its own, so that the terminal's Ctrl-C passes it by, but stays in our session: if we die
        while it is paused, POSIX has the kernel hang up on it and wake it.
        """
        self._on_exit, self._loop = on_exit, loop
        self._gone = threading.Event()
        self._killing = False
        self._tail = bytearray()
        self._popen = subprocess.Popen(
            argv,
            env=env,
            stdin=subprocess.PIPE,  # held open: its end of file tells the child that we died
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            process_group=0,  # Windows: ignored
            creationflags=_NEW_GROUP,
        )
        self.pid = self._popen.pid
        self._reader = _thread(self._read, f"stderr-{self.pid}")
        _thread(self._wait, f"wait-{self.pid}")

    def kill(self, grace_s: float = KILL_GRACE_S) -> None:
        """End it and its descendants, politely first. Returns at once."""
        if not self._killing:
            self._killing = True
            _thread(lambda: self._kill(grace_s), f"kill-{self.pid}")

    def renice(self, nice: int) -> None:
        """All of its group; POSIX lets nobody but root go back. On Windows any niceness is "below normal"."""
        with contextlib.suppress(OSError, psutil.Error):
            if _WINDOWS:
                psutil.Process(self.pid).nice(getattr(psutil, "BELOW_NORMAL_PRIORITY_CLASS"))  # noqa: B009
            else:
                os.setpriority(os.PRIO_PGRP, self.pid, nice)

    def pause(self) -> None:
        if not self._killing and not self._gone.is_set():
            self._signal_all("suspend")

    def resume(self) -> None:
        if not self._gone.is_set():
            self._signal_all("resume")

    # -- threads ---------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        assert self._popen.stderr is not None
        with contextlib.suppress(OSError, ValueError):
            while piece := os.read(self._popen.stderr.fileno(), 65536):
                self._tail += piece
                del self._tail[:-TAIL_BYTES]

    def _wait(self) -> None:
        if not _WINDOWS:
            # While it is a zombie nobody else can have its number, so this ends its children and no stranger's.
            with contextlib.suppress(OSError):
                os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
            self._gone.set()
            with contextlib.suppress(OSError):
                os.killpg(self.pid, signal.SIGKILL)
        status = self._popen.wait()
        self._gone.set()
        self._reader.join(timeout=0.5)  # a descendant that left the group may hold the pipe open
        exit = Exit(status, report(self._tail.decode(errors="replace")), self._killing)
        with contextlib.suppress(OSError):
            assert self._popen.stdin is not None
            self._popen.stdin.close()
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._on_exit, exit)

    def _kill(self, grace_s: float) -> None:
        family = self._family()
        for process in family:
            with contextlib.suppress(psutil.Error):
                process.resume()
                process.terminate()
        self._gone.wait(grace_s)
        for process in family:  # psutil compares start times: a recycled number is not hit
            with contextlib.suppress(psutil.Error):
                process.kill()

    def _family(self) -> list[psutil.Process]:
        try:
            process = psutil.Process(self.pid)
            return [process, *process.children(recursive=True)]
        except psutil.Error:
            return []

    def _signal_all(self, verb: str) -> None:
        if not _WINDOWS:
            number = signal.SIGSTOP if verb == "suspend" else signal.SIGCONT
            with contextlib.suppress(OSError):
                os.killpg(self.pid, number)
            return
        for process in self._family():
            with contextlib.suppress(psutil.Error):
                getattr(process, verb)()


def report(tail: str) -> str:
    """What of standard error is passed on: its end, or, of faulthandler's dump, the stack that crashed."""
    fatal = tail.rfind(_FATAL)
    current = tail.find("\nCurrent thread", fatal)
    if fatal < 0 or current < 0:
        return tail[-REPORT_CHARS:]
    before, headline = tail[:fatal][-1000:], tail[fatal:].partition("\n")[0]
    return f"{before}{headline}\n{tail[current:].partition(_BLANK_LINE)[0]}\n"


def last_words(tail: str, limit: int = 300) -> str:
    """What of the end of standard error says most: the fatal error that faulthandler names, else the last line."""
    lines = [line.strip() for line in tail.splitlines() if line.strip()]
    fatal = [line for line in lines if line.startswith(_FATAL)]
    chosen = fatal or lines
    return chosen[-1][:limit] if chosen else ""


def _thread(target: Callable[[], None], name: str) -> threading.Thread:
    thread = threading.Thread(target=target, name=name, daemon=True)
    thread.start()
    return thread
