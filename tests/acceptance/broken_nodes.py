"""Daemons that break a promise on purpose, to see whether the history checker notices, or what else keeps it.

`python -m tests.acceptance.broken_nodes up …` with BROKEN in the environment: the name of a function below.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable

import msgspec

from outbid_contracts import subjects
from outbid_contracts.durable import DurableJob
from outbid_contracts.messages import Settle
from outbid_node.__main__ import main
from outbid_node.durable.journal import Journal
from outbid_node.owner import Owner
from outbid_node.watch import Watch

LATE_S = 10.0


def unfenced() -> None:
    """The owner takes a result of any attempt."""
    fenced = Owner.settle

    def settle(self: Owner, settle: Settle) -> bool:
        owned = self.running.get(settle.job)
        return fenced(self, msgspec.structs.replace(settle, attempt=owned.number) if owned else settle)

    Owner.settle = settle  # type: ignore[method-assign]


def hasty() -> None:
    """The journal says that a record is on disk some time before it is."""
    careful = Journal.put

    def put(self: Journal, record: DurableJob) -> asyncio.Future[None]:
        loop = asyncio.get_running_loop()
        loop.call_later(LATE_S, careful, self, record)
        stored = loop.create_future()
        stored.set_result(None)
        return stored

    Journal.put = put  # type: ignore[method-assign]


def no_ring() -> None:
    """The neighbour is not asked whether it is there."""

    async def ask_neighbour(self: Watch) -> None:
        pass

    Watch._ask_neighbour = ask_neighbour  # type: ignore[method-assign]


def deaf() -> None:
    """What dying servers say is not heard."""
    subjects.ENDED_ALL = "mesh.ended.nobody"


BREAKS: dict[str, Callable[[], None]] = {"unfenced": unfenced, "hasty": hasty, "no_ring": no_ring, "deaf": deaf}


if __name__ == "__main__":
    BREAKS[os.environ["BROKEN"]]()
    sys.exit(main())
