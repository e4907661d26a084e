"""The node's own server: JetStream in a domain named after the node, loopback only. Everything local talks to it."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from outbid_contracts.errors import InvalidConfig, OutbidError
from outbid_node.bus import config_text, ports
from outbid_node.bus.carry_over import carry_over
from outbid_node.bus.files import private_folder
from outbid_node.bus.process import Server, ServerFailed
from outbid_node.identity.node import Identity

log = logging.getLogger("outbid.bus")

USUAL_PORT = 4222
"""Where the `nats` command line looks when told nothing."""

NEEDED_MIB = 64
"""Free space to start JetStream with."""

LOW_MIB = 16
"""Free space below which durable work is to be refused: after one failed write a stream answers nothing, until the
server is restarted (seen with 2.15.1).
"""


class Ledger:
    """Implements `process.Role` for its server."""

    name = "ledger"
    gives_up = True

    def __init__(
        self,
        *,
        identity: Identity,
        folder: Path,
        binary: Path,
        port: int | None,
        on_failure: Callable[[OutbidError], None],
        watch_s: float = 5.0,
    ) -> None:
        """Write the identity first. `port` None: the last one if free, else 4222, else any. `watch_s`: how often free
        space is looked at.
        """
        self.server_name = f"{identity.node}-ledger"
        self.jetstream_error: str | None = None
        self._identity = identity
        self._wanted = port
        self._port = 0
        self._settled = False
        self._leaf_port: int | None = None
        self._ports_file = folder / "ports.json"
        self._folder = folder
        self._store = folder / "jetstream"
        self._core_only = False
        self._full = False
        self._on_failure = on_failure
        self._watch_s = watch_s
        self._watcher: asyncio.Task[None] | None = None
        self.server = Server(self, private_folder(folder), binary)

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self._port}"

    @property
    def port(self) -> int:
        return self._port

    async def start(self) -> None:
        """Returns once it answers. Raises InvalidConfig naming who holds the port, ServerFailed with the reason.

        JetStream that cannot start is not an error: see `jetstream_error`.
        """
        await self.server.start()
        self._settled = True
        if refusal := await self._identity.enter(self._port):
            raise ServerFailed(f"the ledger does not let its own node in: {refusal}")
        with suppress(OSError):  # a full disk
            ports.remember(self._ports_file, ledger=self._port)
        self._watcher = asyncio.create_task(self._watch_space(), name="watch the ledger's disk")

    async def link(self, leaf_port: int | None) -> None:
        """Be a leaf of the router at this loopback port, or of none."""
        self._leaf_port = leaf_port
        await self.server.apply()

    async def stop(self) -> None:
        if self._watcher:
            self._watcher.cancel()
            with suppress(asyncio.CancelledError):
                await self._watcher
        await self.server.stop()

    def health(self) -> dict[str, Any]:
        seen = self.server.health() | {"url": self.url}
        return seen | ({"jetstream_error": self.jetstream_error} if self.jetstream_error else {})

    # -- process.Role --------------------------------------------------------------------------------------------

    @property
    def ready_at(self) -> tuple[str, int]:
        return "127.0.0.1", self._port

    @property
    def ready_tls(self) -> None:
        return None

    def prepare(self, last_words: str) -> None:
        self._choose_port()
        self._choose_jetstream(last_words)
        carry_over(self._folder, self._store, self._identity.account)

    def config(self) -> str:
        return config_text.ledger(
            server_name=self.server_name,
            port=self._port,
            log_file=self.server.log_file,
            domain=self._identity.node,
            store=None if self._core_only else self._store.absolute(),
            leaf_port=self._leaf_port,
            identity=self._identity,
        )

    def gave_up(self, error: OutbidError) -> None:
        self._on_failure(error)

    # -- choices -------------------------------------------------------------------------------------------------

    def _choose_port(self) -> None:
        """Once it was up, the port stays: clients are waiting to reconnect there."""
        if self._wanted is None and not self._settled:
            self._port = ports.free_port(ports.remembered(self._ports_file).get("ledger"), USUAL_PORT)
            return
        self._port = self._wanted if self._wanted is not None else self._port
        if not ports.is_free(self._port):
            raise InvalidConfig(
                f"port {self._port} is taken by {ports.holder(self._port)}; stop it or set OUTBID_PORT",
                port=self._port,
            )

    def _choose_jetstream(self, last_words: str) -> None:
        free_mib = self._free_mib()
        self._full = free_mib < NEEDED_MIB
        if "Can't start JetStream" in last_words and not self._core_only:
            reason: str | None = f"JetStream does not start: {last_words}; {free_mib:.0f} MiB free in {self._store}"
        elif self._full:
            reason = _too_full(free_mib, self._store)
        else:
            reason = None
        self._core_only = reason is not None
        self._say(reason)

    def _say(self, reason: str | None) -> None:
        if (reason is None) != (self.jetstream_error is None):
            level, action = (logging.INFO, "jetstream_back") if reason is None else (logging.ERROR, "jetstream_off")
            log.log(level, "%s", reason or "there is space again", extra={"action": action})
        self.jetstream_error = reason

    def _free_mib(self) -> float:
        place = self._store if self._store.exists() else self._store.parent
        return shutil.disk_usage(place).free / 2**20

    async def _watch_space(self) -> None:
        """Say when the disk fills; restart (the only cure for a stream that failed to write) when there is room."""
        while True:
            await asyncio.sleep(self._watch_s)
            with suppress(OSError):
                free_mib = self._free_mib()
                if self._full and free_mib >= NEEDED_MIB and self.server.state == "up":
                    await self.server.restart()
                elif self.jetstream_error is None and free_mib < LOW_MIB:
                    self._full = True
                    self._say(_too_full(free_mib, self._store))


def _too_full(free_mib: float, store: Path) -> str:
    return (
        f"the disk is nearly full: {free_mib:.0f} MiB free where {NEEDED_MIB} MiB are needed for {store};"
        " durable jobs are off until there is space"
    )
