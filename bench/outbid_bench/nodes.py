"""Real nodes to measure: `outbid up` in processes of their own, in a mesh with a random name."""

from __future__ import annotations

import asyncio
import json
import secrets
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from outbid import Mesh, Policy
from outbid.connection import local_node
from outbid_bench.processes import clean_environment, end
from outbid_contracts.errors import OutbidError
from outbid_contracts.places import LocalNode

UP_TIMEOUT_S = 60.0
NOOP = "test.noop"
NOOP_FLAGS = ("--set", "test.enabled=true")

UNCALIBRATED = ("--set", "limits.calibrate=false")
"""Else each fresh node tries its engines after a minute, in the middle of what is measured."""


class Node:
    """One daemon. Its log is beside its state folder."""

    def __init__(self, folder: Path, name: str, mesh: str, flags: Sequence[str]) -> None:
        self.name = name
        self.state = folder / name
        self._log = folder / f"{name}.log"
        self._logged = len(self._log.read_text(errors="replace")) if self._log.exists() else 0
        command = [sys.executable, "-m", "outbid_node", "up", "--state", str(self.state), "--name", name]
        command += ["--mesh", mesh, "--json-logs", *UNCALIBRATED, *flags]
        environment = clean_environment({"OUTBID_KEYRING": str(folder / "keyring")})
        self.started = time.monotonic()
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(command, stderr=log, stdin=subprocess.DEVNULL, env=environment)

    async def until_up(self, timeout_s: float = UP_TIMEOUT_S) -> LocalNode:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and self.process.poll() is None:
            if local := self.local():
                return local
            await asyncio.sleep(0.005)
        raise RuntimeError(f"node {self.name} did not come up:\n{self._log.read_text(errors='replace')[-2000:]}")

    def local(self) -> LocalNode | None:
        """Where it listens; None while it does not."""
        with suppress(OutbidError):
            local = local_node(self.state)
            return local if local.pid == self.process.pid else None
        return None

    @property
    def creds(self) -> str:
        """Credentials that may use subjects of their own, which a caller's may not."""
        return str(self.state / "identity" / "node.creds")

    def servers(self) -> list[psutil.Process]:
        """Its nats-servers: ledger, and router if it has one."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if "nats-server" in child.name()]

    def lines(self, action: str) -> list[dict[str, Any]]:
        """The log lines of one action since this daemon was started."""
        found = []
        for line in self._log.read_text(errors="replace")[self._logged :].splitlines():
            with suppress(ValueError):
                entry = json.loads(line)
                if entry.get("action") == action:
                    found.append(entry)
        return found

    def ledger(self) -> psutil.Process:
        return next(server for server in self.servers() if "ledger" in " ".join(server.cmdline()))


class Fleet:
    """Nodes of one mesh. Ends them all, and with them their servers and runners."""

    def __init__(self, folder: Path, flags: Sequence[str] = NOOP_FLAGS) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder
        self._flags = flags
        self._mesh = f"bench-{secrets.token_hex(5)}"
        self.nodes: list[Node] = []

    async def __aenter__(self) -> Fleet:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for node in self.nodes:
            if node.process.poll() is None:
                node.process.terminate()
        for node in self.nodes:
            await asyncio.to_thread(end, node.process)

    def spawn(self, name: str, flags: Sequence[str] = ()) -> Node:
        node = Node(self._folder, name, self._mesh, [*self._flags, *flags])
        self.nodes.append(node)
        return node

    async def add(self, name: str, flags: Sequence[str] = ()) -> Node:
        node = self.spawn(name, flags)
        await node.until_up()
        return node

    async def grow(self, count: int) -> None:
        """Have this many nodes (n0, n1, …), each of which sees all the others."""
        while len(self.nodes) < count:
            await self.add(f"n{len(self.nodes)}")
        await self.until_whole()

    async def until_whole(self, timeout_s: float = UP_TIMEOUT_S) -> None:
        deadline = time.monotonic() + timeout_s
        seen: list[int] = []
        while time.monotonic() < deadline:
            seen = [await _sees(node) for node in self.nodes]
            if all(count == len(self.nodes) for count in seen):
                return
            await asyncio.sleep(0.2)
        raise RuntimeError(f"the mesh of {len(self.nodes)} nodes is not whole: they see {seen}")


async def _sees(node: Node) -> int:
    with suppress(OutbidError):
        async with Mesh(state=node.state) as mesh:
            return len(await mesh.nodes())
    return 0


async def warm_noop(owner: Node, *others: Node) -> None:
    """Have the runner for `test.noop` started on these nodes."""
    async with Mesh(state=owner.state) as mesh:
        for node in (owner, *others):
            await mesh.run(NOOP, {}, policy=Policy(prefer=(node.name,)), timeout_s=60)
