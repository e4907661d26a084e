"""All that a node has for durable jobs, put together."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

from nats.aio.msg import Msg

from outbid_contracts.ids import NodeId
from outbid_contracts.messages import Job
from outbid_node.catalogue import Catalogue
from outbid_node.client import Bus
from outbid_node.delivered import Delivered
from outbid_node.durable.book import Book
from outbid_node.durable.checkpoints import CheckpointStream
from outbid_node.durable.desk import Desk
from outbid_node.durable.events import Events
from outbid_node.durable.journal import Journal
from outbid_node.durable.keeper import Keeper
from outbid_node.durable.mirror import Mirroring
from outbid_node.lookup import Lookup
from outbid_node.owner import Owner
from outbid_node.registry import Registry
from outbid_node.trace import Trace
from outbid_node.waiting import WaitingRoom


class Durable:
    """`parts` are to be run as tasks; `pause` when the node begins to stop, `close` when its jobs are let go of."""

    def __init__(
        self,
        *,
        me: NodeId,
        boot: str,
        bus: Bus,
        registry: Registry,
        catalogue: Catalogue,
        owner: Owner,
        waiting: WaitingRoom,
        trace: Trace,
        state: Path,
        always_on: bool,
        adopt_after_s: float,
        trouble: Callable[[], str | None],
    ) -> None:
        """`trouble` says why nothing can be written to this node's disk."""
        self._bus = bus
        self._catalogue = catalogue
        events, journal = Events(bus, me), Journal(bus, me, trouble=trouble)
        owner.checkpoints.disk = checkpoints = CheckpointStream(bus, me)
        self.book = Book(
            me=me,
            owner=owner,
            registry=registry,
            waiting=waiting,
            journal=journal,
            events=events,
            checkpoints=checkpoints,
            trace=trace,
        )
        self.book.pieces_of = self._pieces_of
        self.keeper = Keeper(
            me=me, bus=bus, registry=registry, book=self.book, always_on=always_on, adopt_after_s=adopt_after_s
        )
        self.mirroring = Mirroring(me=me, boot=boot, bus=bus, registry=registry, book=self.book, state=state)
        self.lookup = Lookup(me=me, bus=bus, registry=registry, owner=owner, book=self.book)
        self.lookup.copy_of = self.keeper.find
        self.book.after.states_elsewhere = self.lookup.states_elsewhere
        self.desk = Desk(
            me=me,
            bus=bus,
            registry=registry,
            catalogue=catalogue,
            book=self.book,
            find=self.lookup.find,
            find_elsewhere=self.lookup.elsewhere_surely,
            always_on=always_on,
            trouble=trouble,
        )

    @property
    def parts(self) -> tuple[Callable[[], Coroutine[Any, Any, None]], ...]:
        return self.book.run, self.keeper.run, self.mirroring.run

    def answers(self, verb: str) -> Callable[[Msg], Awaitable[Any]] | None:
        """What other nodes are answered at `mesh.node.<me>.<verb>`."""
        return self.desk.answers(verb) or self.keeper.answers(verb)

    async def close(self) -> None:
        await self.keeper.release()
        await self.book.close()

    def _pieces_of(self, job: Job) -> Delivered | None:
        entry = self._catalogue.entries.get(job.capability)
        return Delivered.of(entry.capability, self._bus, job) if entry else None
