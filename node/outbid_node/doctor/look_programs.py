"""The daemon and its ledger as this machine sees them from outside: files they left, processes, greetings."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import filelock
import msgspec
import psutil

from outbid_contracts.places import NODE_FILE, LocalNode
from outbid_node.bus.files import tail
from outbid_node.doctor.facts import Greeting, Life, Program
from outbid_node.home import NodeSelf

T = TypeVar("T")

GREETING_S = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Traces:
    """What the files in the state folder say. `synced` and `last_error` are of the ledger, see `facts.Server`."""

    node: str = ""
    local: LocalNode | None = None
    daemon: Program
    command: tuple[str, ...] = ()
    """The daemon's command line; empty if it does not run."""
    ledger: Program
    synced: bool | None = None
    last_error: str = ""

    @property
    def port(self) -> int:
        return (urlsplit(self.local.url).port or 0) if self.local else 0


def read_traces(state: Path) -> Traces:
    known = _read(state / "identity.json", NodeSelf)
    local = _read(state / NODE_FILE, LocalNode)
    locked = _is_locked(state / "lock")
    pid = local.pid if local else 0
    life = _life(pid) if locked and pid else "none"
    ledger = _server(state / "bus" / "ledger.pid")
    return Traces(
        node=known.node if known else local.node if local else "",
        local=local,
        daemon=Program(pid=pid, life=life, announced=local is not None, locked=locked),
        command=_command(pid) if life != "none" else (),
        ledger=ledger,
        synced=_synced(state / "bus" / "ledger.conf"),
        last_error=_last_error(state / "bus" / "ledger.log", ledger.pid),
    )


def _read(file: Path, type: type[T]) -> T | None:
    try:
        return msgspec.json.decode(file.read_bytes(), type=type)
    except (OSError, msgspec.DecodeError):
        return None


def _is_locked(file: Path) -> bool:
    """Tried for the blink of an eye; only a lock that somebody made is tried."""
    if not file.exists():
        return False
    lock = filelock.FileLock(file)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        return True
    except OSError:
        return False
    lock.release()
    return False


def _life(pid: int) -> Life:
    try:
        status = psutil.Process(pid).status()
    except psutil.Error:
        return "none"
    if status in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
        return "none"
    return "suspended" if status in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP) else "running"


def _command(pid: int) -> tuple[str, ...]:
    try:
        return tuple(psutil.Process(pid).cmdline())
    except psutil.Error:
        return ()


def _server(pid_file: Path) -> Program:
    try:
        found = json.loads(pid_file.read_text())
        pid = int(found["pid"])
        ours = psutil.Process(pid).cmdline() == found["argv"]
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):
        return Program()
    return Program(pid=pid, life=_life(pid) if ours else "none", announced=True)


def _synced(file: Path) -> bool | None:
    with suppress(OSError):
        text = file.read_text(errors="replace")
        return "sync_interval: always" in text if "jetstream {" in text else None
    return None


def _last_error(log: Path, pid: int) -> str:
    mine = [line for line in tail(log).splitlines() if line.startswith(f"[{pid}] ")]
    errors = [line for line in mine if "[ERR]" in line or "[FTL]" in line]
    return errors[-1].partition("] ")[2] if errors else ""


async def greet(port: int, name: str) -> Greeting:
    """Who speaks on this loopback port: every NATS server says its name at once."""
    try:
        async with asyncio.timeout(GREETING_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                line = await reader.readline()
            finally:
                writer.close()
        said = json.loads(line.removeprefix(b"INFO "))
        return "ours" if isinstance(said, dict) and said.get("server_name") == name else "other"
    except TimeoutError:
        return "silent"
    except OSError:
        return "closed"
    except ValueError:
        return "other"
