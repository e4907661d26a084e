"""Real nodes for tests: `outbid up` in processes of their own, in a mesh of its own, with their own state folders."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from outbid import Mesh
from outbid.connection import local_node
from outbid_contracts.errors import OutbidError
from outbid_contracts.places import LocalNode

TEST_CAPABILITY = ("--set", "test.enabled=true")

PATIENCE_S = 60.0
"""A start takes a second, and twenty of that where others want the processors too. Below the time-out of a test."""


class NodeProcess:
    """One daemon. Its standard error (JSON lines) goes to `log`."""

    def __init__(self, state: Path, name: str, mesh: str, flags: Sequence[str]) -> None:
        self.state = state
        self.name = name
        self.mesh = mesh
        self.flags = list(flags)
        self.log = state.with_name(f"{state.name}.log")
        self.environment: dict[str, str] = {"OUTBID_COURTESY_ENABLED": "false", "OUTBID_LIMITS_CALIBRATE": "false"}
        """A person at the keyboard, a laptop on battery or a hot one must not change what tests find."""
        self.module = "outbid_node"
        """The program: a test may run one that is broken on purpose."""
        self.process: subprocess.Popen[bytes] | None = None

    def spawn(self) -> None:
        command = [sys.executable, "-m", self.module, "up", "--state", str(self.state)]
        command += ["--name", self.name, "--mesh", self.mesh, "--json-logs", *self.flags]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("OUTBID_")}
        environment |= {"OUTBID_KEYRING": str(self.state.with_name("keyring"))} | self.environment
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stderr=log, stdin=subprocess.DEVNULL, env=environment)

    async def until_up(self, timeout_s: float = PATIENCE_S) -> LocalNode:
        assert self.process is not None
        process = self.process

        def up() -> LocalNode | None:
            if process.poll() is not None:
                raise AssertionError(f"node {self.name} ended with {process.returncode}:\n{self.text()}")
            with contextlib.suppress(OutbidError):
                local = local_node(self.state)
                return local if local.pid == process.pid else None
            return None

        found: LocalNode = await eventually(up, timeout_s, lambda: f"node {self.name} did not come up:\n{self.text()}")
        return found

    @property
    def local(self) -> LocalNode:
        return local_node(self.state)

    @property
    def node_creds(self) -> str:
        """Credentials with which a test may act as a node."""
        return str(self.state / "identity" / "node.creds")

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def kill(self) -> None:
        """SIGKILL, as a crash or the out-of-memory killer would."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def stop(self, timeout_s: float = PATIENCE_S) -> int:
        """SIGTERM; returns the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"node {self.name} did not stop:\n{self.text()}") from None

    def text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def lines(self, action: str) -> list[dict[str, Any]]:
        """The log lines of one action."""
        found = []
        for line in self.text().splitlines():
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                if entry.get("action") == action:
                    found.append(entry)
        return found


class Fleet:
    """Several nodes of one mesh with a random name, so that tests never meet. Ends them all when it closes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mesh = f"test-{secrets.token_hex(5)}"
        self.nodes: list[NodeProcess] = []

    def node(self, name: str, *flags: str) -> NodeProcess:
        """Not started yet."""
        node = NodeProcess(self.folder / name, name, self.mesh, flags)
        self.nodes.append(node)
        return node

    def add(self, name: str, *flags: str) -> NodeProcess:
        node = self.node(name, *flags)
        node.spawn()
        return node

    async def start(self, *names: str, flags: Sequence[str] = TEST_CAPABILITY) -> list[NodeProcess]:
        """Start nodes and wait until each sees all the others."""
        nodes = [self.add(name, *flags) for name in names]
        await asyncio.gather(*(node.until_up() for node in nodes))
        await self.until_whole()
        return nodes

    async def until_whole(self, timeout_s: float = PATIENCE_S) -> None:
        """Until every running node lists exactly the running nodes."""
        running = [node for node in self.nodes if node.process is not None and node.process.poll() is None]
        names = sorted(node.name for node in running)

        async def seen(node: NodeProcess) -> list[str]:
            async with Mesh(state=node.state) as mesh:
                return sorted(view.presence.name for view in await mesh.nodes())

        deadline = time.monotonic() + timeout_s
        lists: list[list[str]] = []
        while time.monotonic() < deadline:
            with contextlib.suppress(OutbidError):
                lists = await asyncio.gather(*(seen(node) for node in running))
                if all(found == names for found in lists):
                    return
            await asyncio.sleep(0.05)
        logs = "\n".join(node.text() for node in running)
        raise AssertionError(f"the mesh of {names} is not whole: {lists}\n{logs}")

    def close(self) -> None:
        for node in self.nodes:
            if node.process is not None and node.process.poll() is None:
                node.process.send_signal(signal.SIGTERM)
        for node in self.nodes:
            if node.process is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    node.process.wait(10)
                node.kill()


@contextlib.contextmanager
def fleet(folder: Path) -> Iterator[Fleet]:
    nodes = Fleet(folder)
    try:
        yield nodes
    finally:
        nodes.close()


@contextlib.asynccontextmanager
async def mesh_of(node: NodeProcess) -> AsyncIterator[Mesh]:
    async with Mesh(state=node.state) as mesh:
        yield mesh


async def eventually(check: Callable[[], Any], timeout_s: float, failure: str | Callable[[], str]) -> Any:
    """The first truthy value of `check`, asked every 20 ms. `failure` may be made when it is needed."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        value = check()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        await asyncio.sleep(0.02)
    raise AssertionError(failure if isinstance(failure, str) else failure())
