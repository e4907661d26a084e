"""Nodes that may be killed, and the processes they consist of."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from outbid.connection import local_node
from outbid_contracts.errors import OutbidError

BACK_S = 60.0
"""A killed daemon that is not up again after this is broken."""

POLL_S = 0.02


class Victim(Protocol):
    """`spawn` starts its daemon again; `kill` is SIGKILL and waits for the end."""

    name: str
    state: Path

    @property
    def pid(self) -> int: ...

    def spawn(self) -> None: ...

    def kill(self) -> None: ...


class NotBack(OutbidError):
    """A node that was killed does not come back."""

    code = "not_back"


async def until_up(victim: Victim, timeout_s: float = BACK_S) -> None:
    """Until its present daemon has announced itself. Raises NotBack."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with suppress(OutbidError):
            if local_node(victim.state).pid == victim.pid:
                return
        await asyncio.sleep(POLL_S)
    raise NotBack(f"node {victim.name} was not up within {timeout_s:.0f} s; see its log")


def children(victim: Victim, kind: str) -> list[int]:
    """Pids of its runners, its router or its ledger that live."""
    import psutil

    found = []
    with suppress(psutil.Error):
        for child in psutil.Process(victim.pid).children():
            with suppress(psutil.Error):
                if _kind(child.cmdline()) == kind and child.status() != psutil.STATUS_ZOMBIE:
                    found.append(child.pid)
    return found


def _kind(command: Sequence[str]) -> str:
    for role in ("router", "ledger"):
        if command and command[-1].endswith(f"{role}.conf"):
            return role
    return "runner" if command and "nats-server" not in command[0] else ""


def send(pid: int, number: signal.Signals) -> None:
    """A signal to a process that may be gone."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)
