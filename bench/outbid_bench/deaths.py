"""The stage of `failure`: five nodes, and the ways in which their processes die (SIGKILL, all of them)."""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psutil

from outbid import Mesh, Policy
from outbid.chaos.door import Door
from outbid.chaos.record import Event, Notes, load
from outbid.chaos.victims import children, send, until_up
from outbid.connection import local_node
from outbid.daemons import Daemon, stop
from outbid_contracts import subjects
from outbid_contracts.errors import OutbidError
from outbid_contracts.ids import NodeId
from outbid_contracts.requests import NodeList

ECHO = "test.echo"
WORKERS = ("b", "c", "d")
OWNER, KEEPER = "owner", "keeper"
ADOPT_AFTER_S = 2.0
"""The keeper's patience: the least that may be set, so that each such kill takes seconds."""

WHOLE_S = 60.0
KNOWN_S = 10.0
POLL_S = 0.02

RUNNER, DAEMON, MACHINE, LEDGER = "runner", "daemon", "machine", "ledger"
OWNER_BACK, OWNER_AWAY = "owner, back at once", "owner, away"
NODE_DEATHS = (DAEMON, MACHINE)
"""Those in which a node that runs jobs is gone."""


@dataclass(frozen=True, slots=True)
class Kill:
    """`node` lost what `death` says. `mono_s` is on the machine's monotonic clock, right before the first signal;
    `gone_s`: until the last of the other nodes logged that it is gone, None where it is not or was back before.
    """

    death: str
    node: NodeId
    name: str
    mono_s: float
    gone_s: float | None = None


class Stage:
    """One node that is asked and owns the jobs, one that keeps copies of them, three that run them."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.trace, self.notes = folder / "trace", Notes(folder / "notes")
        mesh = f"bench-{secrets.token_hex(5)}"
        environment = {
            "OUTBID_KEYRING": str(folder / "keyring"),
            "OUTBID_COURTESY_ENABLED": "false",
            "OUTBID_LIMITS_CALIBRATE": "false",
        }
        settings = {"log.trace": self.trace, "durable.adopt_after_s": ADOPT_AFTER_S}
        roles: Mapping[str, Mapping[str, object]] = {
            OWNER: {"node.always_on": "true"},
            KEEPER: {"node.always_on": "true"},
            **{name: {"node.always_on": "false", "test.enabled": "true"} for name in WORKERS},
        }
        self.nodes = {
            name: Daemon(folder / name, name, mesh, _flags({**settings, **role}), environment)
            for name, role in roles.items()
        }
        self._doors = {name: Door(name, daemon.state) for name, daemon in self.nodes.items()}
        self.ended_alone: list[str] = []
        """Daemons that ended though nobody had killed them."""

    async def __aenter__(self) -> Stage:
        try:
            for daemon in self.nodes.values():
                daemon.spawn()
            for daemon in self.nodes.values():
                await until_up(daemon)
            await self.until_whole()
            for name in WORKERS:
                await self.warm(name)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(door.close() for door in self._doors.values()), return_exceptions=True)
        await asyncio.to_thread(stop, self.nodes.values())

    def mesh(self, name: str) -> Mesh:
        return Mesh(state=self.nodes[name].state)

    def history(self) -> list[Event]:
        return load([self.trace, self.notes.path])

    async def until_whole(self) -> None:
        """Until every node lists all of them. Raises RuntimeError."""
        deadline = time.monotonic() + WHOLE_S
        seen: list[int] = []
        while time.monotonic() < deadline:
            seen = [await self._sees(door) for door in self._doors.values()]
            if all(count == len(self.nodes) for count in seen):
                return
            await asyncio.sleep(POLL_S)
        raise RuntimeError(f"the mesh of {len(self.nodes)} nodes is not whole: they see {seen}")

    async def _sees(self, door: Door) -> int:
        with suppress(OutbidError):
            found: NodeList = await door.ask(subjects.NODES, None, NodeList, timeout_s=2)
            return len(found.nodes)
        return 0

    async def warm(self, name: str) -> None:
        """Have its runner started."""
        async with self.mesh(OWNER) as mesh:
            await mesh.run(ECHO, {"text": "warm"}, policy=Policy(prefer=(name,)), timeout_s=WHOLE_S)

    # -- dying and coming back ----------------------------------------------------------------------------------------

    def kill(self, death: str, name: str) -> Kill:
        daemon = self.nodes[name]
        node, victims = local_node(daemon.state).node, _victims(daemon, death)
        if not victims:
            raise RuntimeError(f"{name} has no {death} that could be killed")
        with self.notes.kill(death if death in (RUNNER, LEDGER) else "daemon", node):
            began = time.monotonic()
            for pid in victims:
                send(pid, signal.SIGKILL)
            if daemon.pid in victims:
                daemon.kill()  # collects it
        if death == OWNER_BACK:
            daemon.spawn()
        return Kill(death, node, name, began)

    async def known_s(self, kill: Kill) -> float:
        """Seconds from the kill until the last of the others logged that the node is gone. Raises TimeoutError."""
        began = time.time() - (time.monotonic() - kill.mono_s)
        others = [daemon for daemon in self.nodes.values() if daemon.name != kill.name]
        async with asyncio.timeout(KNOWN_S):
            while True:
                times = [_gone(daemon.log, kill.name, began) for daemon in others]
                known = [at for at in times if at is not None]
                if len(known) == len(others):
                    return max(known) - began
                await asyncio.sleep(POLL_S)

    async def mend(self, kill: Kill) -> None:
        """All nodes up and together again, those that run jobs warm."""
        daemon = self.nodes[kill.name]
        if daemon.exit_code is not None:
            daemon.spawn()
        await until_up(daemon)
        for other in self.nodes.values():
            if other.exit_code is not None:
                self.ended_alone.append(f"{other.name} ({other.exit_code})")
                other.spawn()
                await until_up(other)
        await self.until_whole()
        if kill.name in WORKERS:
            await self.warm(kill.name)


def _victims(daemon: Daemon, death: str) -> Sequence[int]:
    """The daemon first. Where only it is killed, its children go with it by the kernel's SIGTERM."""
    if death in (RUNNER, LEDGER):
        return children(daemon, death)
    if death == MACHINE:
        return [daemon.pid, *(child.pid for child in psutil.Process(daemon.pid).children(recursive=True))]
    return [daemon.pid]


def _flags(settings: Mapping[str, object]) -> list[str]:
    return ["--json-logs", *(word for key, value in settings.items() for word in ("--set", f"{key}={value}"))]


def _gone(log: Path, name: str, since: float) -> float | None:
    """When (Unix time) it logged that the node `name` is gone."""
    for line in reversed(log.read_text(errors="replace").splitlines()):
        with suppress(ValueError):
            entry = json.loads(line)
            at = datetime.fromisoformat(entry["time"]).timestamp()
            if at < since - 0.002:  # logs count in milliseconds
                return None
            if entry.get("action") == "node_gone" and str(entry["message"]).startswith(f"node {name} "):
                return at
    return None
