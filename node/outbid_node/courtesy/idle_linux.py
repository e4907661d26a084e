"""Idle time on Linux: terminals that people logged in at, keyboards by their interrupts, X, GNOME, and logind."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from outbid_node.courtesy.idle import Source
from outbid_node.courtesy.x11 import X11

CHEAP_AGE_S = 2.0
PROGRAM_AGE_S = 10.0
TIMEOUT_S = 3.0

Ask = Callable[[Sequence[str]], str]
"""What a program says; raises OSError or SubprocessError."""


def sources(root: Path = Path("/")) -> list[Source]:
    return [
        Source("terminals", CHEAP_AGE_S, Terminals(root).read),
        Source("interrupts", CHEAP_AGE_S, Interrupts(root).read),
        Source("X11", CHEAP_AGE_S, X11().read),
        Source("Mutter", PROGRAM_AGE_S, Mutter().read),
        Source("logind", PROGRAM_AGE_S, Logind(root).read),
    ]


def ask(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT_S)
    return done.stdout


class Terminals:
    """As `w` does: a terminal's time of access is that of the last key, to some 8 s. Only terminals of logins count: a
    program that drives another through one is no person.
    """

    def __init__(self, root: Path, logins: Callable[[], Sequence[str]] | None = None) -> None:
        self._root = root
        self._logins = logins or _terminals_of_logins

    def read(self) -> float | None:
        touched = [at for name in self._logins() if (at := self._touched(name)) is not None]
        return time.time() - max(touched) if touched else None

    def _touched(self, name: str) -> float | None:
        if not re.fullmatch(r"(tty|pts/)\d+", name):  # `:0` is an X display
            return None
        try:
            return (self._root / "dev" / name).stat().st_atime
        except OSError:
            return None


def _terminals_of_logins() -> list[str]:
    return [user.terminal for user in psutil.users() if user.terminal]


class Interrupts:
    """Of the i8042, to which laptops' keyboards and touch pads are connected. Nothing else raises them. Known from the
    first one on; until then there may be no keyboard.
    """

    def __init__(self, root: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._file = root / "proc" / "interrupts"
        self._clock = clock
        self._count: int | None = None
        self._changed: float | None = None

    def read(self) -> float | None:
        count = sum(_counts(line) for line in self._file.read_text().splitlines() if line.rstrip().endswith(" i8042"))
        if self._count is not None and count != self._count:
            self._changed = self._clock()
        self._count = count
        return None if self._changed is None else self._clock() - self._changed


def _counts(line: str) -> int:
    """Of all processors: `  1:   9   0   IO-APIC   1-edge   i8042`."""
    total = 0
    for word in line.split()[1:]:
        if not word.isdecimal():
            break
        total += int(word)
    return total


class Mutter:
    """GNOME's compositor knows, also under Wayland."""

    COMMAND = (
        *("busctl", "--user", "--timeout=2", "call", "org.gnome.Mutter.IdleMonitor"),
        *("/org/gnome/Mutter/IdleMonitor/Core", "org.gnome.Mutter.IdleMonitor", "GetIdletime"),
    )

    def __init__(self, ask: Ask = ask, desktop: str | None = None) -> None:
        desktop = os.environ.get("XDG_CURRENT_DESKTOP", "") if desktop is None else desktop
        self._there = "GNOME" in desktop.upper() and shutil.which("busctl") is not None
        self._ask = ask

    def read(self) -> float | None:
        if not self._there:
            return None
        found = re.fullmatch(r"t (\d+)", self._ask(self.COMMAND).strip())
        return int(found[1]) / 1000 if found else None


class Logind:
    """Of each graphical session: a locked one is nobody; `IdleHint` says since when nobody is there. That it says
    nobody is idle counts only from a desktop that was seen to set the hint: many never do.
    """

    PROPERTIES = ("Id", "Type", "Class", "Remote", "LockedHint", "IdleHint", "IdleSinceHint")

    def __init__(self, root: Path, ask: Ask = ask) -> None:
        self._sessions = root / "run" / "systemd" / "sessions"
        self._there = shutil.which("loginctl") is not None
        self._ask = ask
        self._sets_hint: set[str] = set()

    def read(self) -> float | None:
        ids = sorted(file.name for file in self._sessions.glob("*") if file.name.isalnum()) if self._there else []
        if not ids:
            return None
        told = self._ask(["loginctl", "show-session", *ids, *(f"--property={name}" for name in self.PROPERTIES)])
        blocks = [dict(line.partition("=")[::2] for line in block.splitlines()) for block in told.split("\n\n")]
        known = [idle_s for block in blocks if (idle_s := self._idle_s(block)) is not None]
        return min(known, default=None)

    def _idle_s(self, session: dict[str, str]) -> float | None:
        graphical = session.get("Type") in ("x11", "wayland", "mir")
        if not graphical or session.get("Class") != "user" or session.get("Remote") == "yes":
            return None
        since_us = session.get("IdleSinceHint", "")
        if session.get("IdleHint") == "yes" and since_us.isdecimal() and int(since_us):
            self._sets_hint.add(session.get("Id", ""))
            return time.time() - int(since_us) / 1e6
        if session.get("LockedHint") == "yes" or session.get("Id") not in self._sets_hint:
            return None
        return 0.0
