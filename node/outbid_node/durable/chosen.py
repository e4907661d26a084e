"""Which node keeps copies of this node's durable jobs: chosen once, and remembered on disk."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

import msgspec

from outbid_contracts.ids import JobId, NodeId
from outbid_contracts.messages import Presence


class Chosen(msgspec.Struct, frozen=True):
    """`fenced`: the jobs that are, where that is known; any may be otherwise."""

    keeper: NodeId
    name: str
    fenced: tuple[JobId, ...] | None = None


class ChosenFile:
    """`keeper.json` in the state folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> Chosen | None:
        with suppress(OSError, msgspec.DecodeError):
            return msgspec.json.decode(self.path.read_bytes(), type=Chosen)
        return None

    async def write(self, chosen: Chosen | None) -> None:
        """Returns when it is on disk. Raises OSError."""
        await asyncio.to_thread(self._write, chosen)

    def _write(self, chosen: Chosen | None) -> None:
        if chosen is None:
            self.path.unlink(missing_ok=True)
            return
        fresh = self.path.with_name(self.path.name + ".new")
        with fresh.open("wb") as file:
            fresh.chmod(0o600)
            file.write(msgspec.json.encode(chosen))
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self.path)


def is_fit(presence: Presence, owner: NodeId) -> bool:
    """Whether that node could be this owner's keeper now."""
    return presence.always_on and presence.state == "up" and not presence.trouble and presence.node != owner


def rendezvous(owner: NodeId, nodes: Collection[NodeId]) -> NodeId:
    """One of them: always the same, and not the same for all owners (highest random weight, Thaler and Ravishankar
    1998).
    """
    return max(nodes, key=lambda node: hashlib.blake2b(f"{owner} {node}".encode()).digest())
