"""Model files as a face sees them: fetching a model to a node, and deleting it there."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING

from outbid_contracts import subjects
from outbid_contracts.errors import InvalidRequest, NodeUnreachable
from outbid_contracts.files import PullEvent, PullRequest, Removed, RemoveRequest
from outbid_contracts.ids import NodeId

if TYPE_CHECKING:
    from outbid.mesh import Mesh
    from outbid_contracts.requests import NodeView

SILENT_S = 30.0
"""A node tells several times a second how far it is; while it looks for the model it may be quiet for longer."""

REMOVE_TIMEOUT_S = 60.0


async def pull(mesh: Mesh, request: PullRequest, on: str | None) -> AsyncGenerator[PullEvent, None]:
    """Until it is done; leaving earlier does not stop it. Raises PullFailed, ChecksumMismatch, NoSpace,
    InvalidRequest.
    """
    node = await node_of(mesh, on)
    events = (await mesh.connected()).stream(subjects.admin(node, "pull"), request, PullEvent, idle_timeout_s=SILENT_S)
    async with aclosing(events):
        async for event in events:
            yield event


async def remove(mesh: Mesh, model: str, on: str | None) -> Removed:
    """Raises UnknownModel, InvalidRequest while it is in use."""
    node = await node_of(mesh, on)
    reply: Removed = await mesh.request(
        subjects.admin(node, "rm"), RemoveRequest(model=model), Removed, timeout_s=REMOVE_TIMEOUT_S
    )
    return reply


async def node_of(mesh: Mesh, on: str | None) -> NodeId:
    """The node with that name or id; without one, that of this machine. Raises NodeUnreachable."""
    if on is None and mesh.local is not None:
        return mesh.local
    views = await mesh.nodes()
    found = [view for view in views if (on is None and view.here) or on in (view.presence.node, view.presence.name)]
    if not found:
        raise NodeUnreachable(
            f"no node {on or 'here'}; there are: {', '.join(v.presence.name for v in views) or 'none'}"
        )
    if len(found) > 1:
        raise InvalidRequest(f"several nodes are called {on}; write the id of one: " + ", ".join(_ids(found)))
    return found[0].presence.node


def whole_path(source: str) -> str:
    """`file:` with a path relative to where this program runs means the same to the node."""
    if not source.startswith("file:"):
        return source
    return f"file:{Path(source.removeprefix('file:')).expanduser().absolute()}"


def _ids(views: list[NodeView]) -> list[str]:
    return [str(view.presence.node) for view in views]
