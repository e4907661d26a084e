"""One job, one reply: asked again under the same id where the connection or the node is lost meanwhile."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from outbid.following import REATTACH_S
from outbid.patience import Patience
from outbid.timing import timed_out
from outbid_contracts import subjects
from outbid_contracts.errors import (
    Draining,
    NoBid,
    NodeUnreachable,
    NoNode,
    OutbidError,
    UnknownCapability,
    UnknownModel,
)
from outbid_contracts.ids import JobId

if TYPE_CHECKING:
    from outbid.mesh import Mesh

RAN_S = 1.0
"""An exchange that lasted longer was under way, and was not refused."""

_NOT_YET = (Draining, NoBid, UnknownCapability, UnknownModel)
"""What a node says that has just started and does not know the others yet."""


async def ask(
    mesh: Mesh, capability: str, message: dict[str, Any], job: JobId, timeout_s: float | None
) -> dict[str, Any]:
    """The result's fields beside job, node, name, timings. A caller that is cancelled, or out of time, calls it off.

    Raises the error that ended the job, TimedOut; NodeUnreachable where no node was back within half a minute.
    """
    try:
        async with asyncio.timeout(timeout_s):
            return await _insist(mesh, capability, message)
    except asyncio.CancelledError:
        mesh.abandoned.call_off(job)
        raise
    except TimeoutError as error:
        mesh.abandoned.call_off(job)
        raise timed_out(job, timeout_s) from error


async def _insist(mesh: Mesh, capability: str, message: dict[str, Any]) -> dict[str, Any]:
    """A node that knows the job answers with its result; one that does not, because it started again, runs it."""
    patience, again = Patience(REATTACH_S), False
    while True:
        began = time.monotonic()
        try:
            connection = await mesh.connected()
            done: dict[str, Any] = await connection.request(
                subjects.capability(capability), message, dict[str, Any], timeout_s=None
            )
            return done
        except (NodeUnreachable, NoNode, *_NOT_YET) as error:
            ran = time.monotonic() - began > RAN_S
            if not _may_pass(error, ran, again):
                raise
            lost = error
        if ran:
            patience.renew()
        await patience.after(lost)
        again = True


def _may_pass(error: OutbidError, ran: bool, again: bool) -> bool:
    return isinstance(error, NodeUnreachable | NoNode) or again or (ran and isinstance(error, Draining))
