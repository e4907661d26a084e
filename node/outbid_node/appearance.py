"""What others see of this node: its presence on the bus, its announcement by multicast, its file for local programs."""

from __future__ import annotations

import asyncio
import functools
import importlib.metadata
import os
from typing import TYPE_CHECKING

from outbid_contracts.messages import Presence
from outbid_contracts.places import LocalNode
from outbid_node.declarations import broken_among
from outbid_node.identity.nats_context import write_context
from outbid_node.joining.sealed import public_of
from outbid_node.resources import announcement

if TYPE_CHECKING:
    from outbid_node.wiring import Wiring


@functools.cache
def version() -> str:
    return importlib.metadata.version("outbid")


class Appearance:
    def __init__(self, node: Wiring) -> None:
        self._node = node
        self._seq = 0
        self._on_air: dict[str, str] = {}
        self._told: Presence | None = None
        self._background: set[asyncio.Task[None]] = set()

    def _missing(self) -> dict[str, str]:
        """What is installed and cannot run here, with why: capabilities, and packages whose declaration is broken."""
        entries = self._node.catalogue.entries
        missing = {name: entry.missing for name, entry in entries.items() if entry.missing}
        return missing | dict(broken_among(self._node.declarations))

    def presence(self) -> Presence:
        node = self._node
        self._seq += 1
        self._told = Presence(
            node=node.id,
            name=node.name,
            version=version(),
            boot=node.boot,
            seq=self._seq,
            state=node.state,
            zone=node.config.node.zone,
            always_on=node.always_on,
            keeps_artifacts=node.artifacts.for_others,
            files=node.files.addresses,
            pulled=node.files.held(),
            offers=node.worker.offers(),
            missing=self._missing(),
            box=self._box,
            revoked=node.admin.revoked_digest(),
            trouble=self._trouble(),
            held=node.durable.mirroring.trouble,
            in_use=node.courtesy.in_use,
            resources=node.resources.read(),
            running=len(node.worker.attempts),
            waiting=len(node.waiting),
            macs=node.waking.macs,
            guest=node.is_guest,
            wants=node.waiting.wants(),
        )
        return self._told

    @functools.cached_property
    def _box(self) -> str:
        return public_of(self._node.private_key).hex()

    def _trouble(self) -> tuple[str, ...]:
        error = self._node.backbone.jetstream_error
        return (*((f"durable storage is off: {error}",) if error else ()), *self._node.history.trouble)

    def announce(self) -> None:
        """Tell the programs of this machine where the node is and what to show it."""
        node = self._node
        local = LocalNode(
            node=node.id,
            name=node.name,
            url=node.backbone.url,
            pid=os.getpid(),
            version=version(),
            creds=str(node.identity.local_creds),
        )
        node.home.announce(local)
        if node.config.bus.nats_context and node.home.is_usual:
            write_context(local)

    def update_on_air(self) -> None:
        """What others see of this node by multicast, if it is not what they see already: as in its last presence."""
        node, told = self._node, self._told or self.presence()
        txt = announcement(told.resources, told.offers, self._on_air) | node.admin.announced()
        if txt != self._on_air:
            self._on_air = txt
            task = asyncio.create_task(node.backbone.update_txt(txt))
            self._background.add(task)
            task.add_done_callback(self._background.discard)
