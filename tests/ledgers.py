"""A real ledger for tests of what is written to it, which may be killed, frozen and left without disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil

from outbid_contracts.ids import NodeId, new_node_id
from outbid_node.bus import binary, ports
from outbid_node.bus.ledger import Ledger
from outbid_node.client import Bus
from outbid_node.identity.keys import MeshKey
from outbid_node.identity.node import Identity
from tests.waiting import until

PATIENCE_S = 40
"""Below the time-out of a test; a server may need long to come up beside a storm of others."""


class OwnLedger:
    """A ledger with its supervisor, and connections to it."""

    def __init__(self, folder: Path) -> None:
        self.node: NodeId = new_node_id()
        self.identity = Identity(MeshKey.new(), self.node, folder)
        self.identity.write()
        self.ledger = Ledger(
            identity=self.identity,
            folder=folder / "bus",
            binary=binary.find(),
            port=ports.free_port(),
            on_failure=lambda error: None,
            watch_s=0.05,
        )
        self.buses: list[Bus] = []

    async def connect(self) -> Bus:
        bus = Bus("test")
        await bus.connect(self.ledger.url, self.identity.node_creds)
        self.buses.append(bus)
        return bus

    @property
    def process(self) -> psutil.Process | None:
        pid = self.ledger.server.pid
        return psutil.Process(pid) if pid is not None else None

    async def kill(self) -> None:
        """SIGKILL; returns when its supervisor has it up again, and every connection is back."""
        before = self.ledger.server.restarts
        await until(lambda: self.ledger.server.state == "up", PATIENCE_S)
        if process := self.process:
            process.kill()
        await until(lambda: self.ledger.server.restarts > before and self.ledger.server.state == "up", PATIENCE_S)
        await until(lambda: all(bus.connected for bus in self.buses), PATIENCE_S)

    async def freeze(self) -> Callable[[], None]:
        """SIGSTOP; what it returns lets it go on."""
        process = self.process
        assert process is not None
        process.suspend()
        await until(lambda: process.status() == psutil.STATUS_STOPPED)
        return process.resume


@asynccontextmanager
async def own_ledger(folder: Path) -> AsyncIterator[OwnLedger]:
    own = OwnLedger(folder)
    await own.ledger.start()
    try:
        yield own
    finally:
        await asyncio.gather(*(bus.close() for bus in own.buses))
        await own.ledger.stop()
