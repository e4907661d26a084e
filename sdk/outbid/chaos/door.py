"""A way into the mesh through one node that may be killed at any moment."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import nats.errors

from outbid.connection import local_node
from outbid.mesh import Mesh
from outbid_contracts.errors import NodeUnreachable, OutbidError
from outbid_contracts.ids import NodeId

Call = Callable[[Callable[[], Coroutine[Any, Any, Any]]], Awaitable[Any]]
"""Runs what it is given where that node can be reached (a test's network namespace)."""


async def _here(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    return await work()


class Door:
    """Requests to the node with that state folder; a new connection whenever the daemon is a new one."""

    def __init__(self, name: str, state: Path | None, call: Call = _here) -> None:
        self.name = name
        self._state = state
        self._call = call
        self._lock = asyncio.Lock()
        self._mesh: Mesh | None = None
        self._pid = 0

    @property
    def node(self) -> NodeId:
        """Raises NoNode before its first start and after an orderly stop."""
        return local_node(self._state).node

    async def ask(self, subject: str, message: Any, type: Any, *, timeout_s: float) -> Any:
        """Raises OutbidError: NoNode and NodeUnreachable while the node is away."""
        try:
            return await self._call(lambda: self._ask(subject, message, type, timeout_s))
        except (OSError, nats.errors.Error) as error:
            raise NodeUnreachable(f"the connection to {self.name} broke: {error}") from error

    async def close(self) -> None:
        await self._call(self._leave)

    async def _ask(self, subject: str, message: Any, type: Any, timeout_s: float) -> Any:
        async with self._lock:
            mesh = await self._entered()
        connection = await mesh.connected()
        return await connection.request(subject, message, type, timeout_s=timeout_s)

    async def _entered(self) -> Mesh:
        pid = local_node(self._state).pid
        if self._mesh is not None and pid == self._pid:
            return self._mesh
        await self._leave()
        mesh = Mesh(state=self._state)
        await mesh.__aenter__()
        self._mesh, self._pid = mesh, pid
        return mesh

    async def _leave(self) -> None:
        mesh, self._mesh = self._mesh, None
        if mesh is not None:
            with suppress(OutbidError, OSError, nats.errors.Error):
                await mesh.__aexit__(None, None, None)
