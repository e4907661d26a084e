"""All that a node has for artifacts, put together."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

from nats.aio.msg import Msg

from outbid_contracts.ids import NodeId
from outbid_node.artifacts.delivering import Deliverer
from outbid_node.artifacts.desk import ArtifactDesk
from outbid_node.artifacts.inputs import fetched
from outbid_node.artifacts.limits import Limits
from outbid_node.artifacts.reach import Reach
from outbid_node.artifacts.receiving import Receiver
from outbid_node.artifacts.store import ArtifactStore
from outbid_node.client import Bus
from outbid_node.config_sections import ArtifactsSection
from outbid_node.durable.always_on import looks_like_nas
from outbid_node.registry import Registry
from outbid_node.worker import Worker


class Artifacts:
    """`parts` are to be run as tasks. `for_others`: this node holds those of the others' jobs too."""

    def __init__(
        self,
        *,
        me: NodeId,
        bus: Bus,
        registry: Registry,
        worker: Worker,
        section: ArtifactsSection,
        guest: bool,
        state: Path,
        trouble: Callable[[], str | None],
    ) -> None:
        """`trouble` says why nothing can be written to this node's disk. The jobs of the hosts must not leave their
        files with a `guest`.
        """
        chosen = section.for_others
        self.for_others = not guest and (looks_like_nas() if chosen == "auto" else chosen)
        limits = Limits.of(section, state, for_others=self.for_others)
        self.store = ArtifactStore(bus=bus, node=me, limits=limits, trouble=trouble)
        self.receiver = Receiver(self.store)
        self.reach = Reach(me=me, bus=bus, registry=registry, store=self.store)
        self.desk = ArtifactDesk(me=me, bus=bus, registry=registry, reach=self.reach, receiver=self.receiver)
        worker.fetching.fetch = partial(fetched, self.reach)
        worker.delivering.deliver = Deliverer(me=me, bus=bus, registry=registry, store=self.store).deliver

    @property
    def parts(self) -> tuple[Callable[[], Coroutine[Any, Any, None]], ...]:
        return self.store.run, self.receiver.run

    def answers(self, verb: str) -> Callable[[Msg], Awaitable[Any]] | None:
        """What other nodes are answered at `mesh.node.<me>.<verb>`."""
        return self.desk.answers(verb)
