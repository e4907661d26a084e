"""Getting into a mesh and staying there: through a node of this machine, one at an address, or one of our own."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol, Self

from outbid.connection import AccessRefused, Connection, local_node
from outbid.discovering import WAIT_S, Search
from outbid.patience import insist
from outbid.starting import START_TIMEOUT_S, NodeFailed, OwnNode
from outbid.timing import Abandoned
from outbid_contracts import subjects
from outbid_contracts.errors import NodeUnreachable
from outbid_contracts.ids import JobId, NodeId
from outbid_contracts.messages import JobRecord
from outbid_contracts.requests import JobRequest, NodeList

QUESTION_TIMEOUT_S = 10.0
"""For listings. Work has no time-out of its own: it waits for room, for a model to load, for a slow machine."""

OWNER_AWAY_S = 60.0
"""A machine that restarts is back by then; by default, another adopts the jobs of one that stays away longer."""

MEET_S = 30.0
"""Two nodes of one program hear of each other within two seconds."""


class HasLink(Protocol):
    """A Mesh, or one without `await`."""

    @property
    def link(self) -> Link: ...


class Link:
    """A connection that is opened on entering, and opened anew where it was given up."""

    def __init__(
        self,
        url: str | None = None,
        *,
        creds: str | os.PathLike[str] | None = None,
        state: str | os.PathLike[str] | None = None,
        owner_away_s: float = OWNER_AWAY_S,
    ) -> None:
        self._url = url
        self._creds = creds
        self._state = state
        self._connection: Connection | None = None
        self.local: NodeId | None = None
        """The node of this machine, if that is the one connected to."""
        self._reconnecting = asyncio.Lock()
        self._way: OwnNode | Search | None = None
        self._beside: Link | None = None
        self.owner_away_s = owner_away_s
        self.abandoned = Abandoned(self._cancel)

    @classmethod
    def start_node(
        cls,
        *,
        name: str = "app",
        state: str | os.PathLike[str] | None = None,
        mesh: str | None = None,
        beside: HasLink | None = None,
        settings: Mapping[str, Any] | None = None,
        timeout_s: float = START_TIMEOUT_S,
    ) -> Self:
        """A mesh with a node of this program's own, started on entering and stopped on leaving; also when the program
        ends in any other way. `async with Mesh.start_node() as mesh:`

        `state` is the folder for what it keeps; without one it keeps nothing. It is a mesh by itself, unless `beside`
        is another Mesh made so, or `mesh` names one of the user's. `settings` as in the configuration:
        `{"llm.threads": 2}`. Entering raises NodeFailed with the node's last words.
        """
        made = cls()
        neighbour = beside.link if beside else None
        other = neighbour._way if neighbour else None
        if neighbour is not None and not isinstance(other, OwnNode):
            raise ValueError("`beside` must be a Mesh made by `Mesh.start_node`")
        made._way = OwnNode(
            name=name,
            state=state,
            mesh=mesh,
            beside=other if isinstance(other, OwnNode) else None,
            settings=settings,
            timeout_s=timeout_s,
        )
        made._beside = neighbour
        return made

    @classmethod
    def discover(
        cls,
        *,
        creds: str | os.PathLike[str] | None = None,
        state: str | os.PathLike[str] | None = None,
        wait_s: float = WAIT_S,
    ) -> Self:
        """The mesh of this machine's node. Where there is none, entering looks for nodes on the network for `wait_s`
        and raises NoNode, which names them and says how to join them: a node lets in programs of its own machine only.
        """
        made = cls(creds=creds, state=state)
        made._way = Search(state, wait_s)
        return made

    async def __aenter__(self) -> Self:
        try:
            if self._way is not None:
                self._state = await self._way.arrive()
            self._connection = self._connect()
            await self._connection.open()
            if self._beside is not None:
                await self._meet(self._beside)
        except BaseException:
            await self._leave()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.abandoned.settled()
        await self._leave()

    async def _leave(self) -> None:
        connection, self._connection = self._connection, None
        try:
            if connection is not None:
                await connection.close()
        finally:
            if self._way is not None:
                await self._way.leave()

    async def _meet(self, other: Link) -> None:
        """Wait until our node knows the other. Raises NodeFailed."""
        deadline = time.monotonic() + MEET_S
        while True:
            known: NodeList = await self.ask(subjects.NODES, None, NodeList)
            if any(view.presence.node == other.local for view in known.nodes):
                return
            if time.monotonic() > deadline:
                raise NodeFailed(f"the two nodes did not find each other within {MEET_S:g} s by multicast DNS")
            await asyncio.sleep(0.1)

    def _connect(self) -> Connection:
        if self._url is not None:
            return Connection(self._url, self._creds)
        local = local_node(self._state)
        self.local = NodeId(local.node)
        return Connection(local.url, self._creds or local.creds)

    @property
    def link(self) -> Link:
        return self

    @property
    def connection(self) -> Connection:
        if self._connection is None:
            raise RuntimeError("the mesh is not open; write `async with Mesh() as mesh:`")
        return self._connection

    async def connected(self) -> Connection:
        """The connection; a new one where the old was given up because the node had been away too long.

        Raises NoNode or NodeUnreachable.
        """
        if not self.connection.closed:
            return self.connection
        async with self._reconnecting:
            if self.connection.closed:
                fresh = self._connect()
                try:
                    await fresh.open()
                except AccessRefused as error:  # another program's server may have the port while the node is away
                    raise NodeUnreachable(error.message) from error
                self._connection = fresh
        return self.connection

    async def request(self, subject: str, message: Any, type: Any, *, timeout_s: float | None) -> Any:
        """One request, one reply; asked once. Raises what `Connection.request` raises."""
        connection = await self.connected()
        return await connection.request(subject, message, type, timeout_s=timeout_s)

    async def ask(self, subject: str, message: Any, type: Any) -> Any:
        """A question that may be asked again, as it is where the node is away for a moment."""
        return await insist(
            self, subject, message or {}, type, patience_s=QUESTION_TIMEOUT_S, answer_s=QUESTION_TIMEOUT_S
        )

    async def _cancel(self, job: JobId) -> None:
        if self._connection is not None:
            await self.ask(subjects.jobs("cancel"), JobRequest(job=job), JobRecord)
