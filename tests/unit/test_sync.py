"""The SDK without `await`: nothing of it is missing, and what it is called with is the same."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from outbid import artifacts, chat, images, jobs, link, mapping, mesh, operating, sync
from outbid_contracts.errors import NoNode

PAIRS: list[tuple[type[Any], type[Any]]] = [
    (mesh.Mesh, sync.Mesh),
    (jobs.Job, sync.Job),
    (chat.ChatStream, sync.ChatStream),
    (images.Drawing, sync.Drawing),
    (images.Pictures, sync.Pictures),
    (images.Picture, sync.Picture),
    (artifacts.Artifact, sync.Artifact),
    (mapping.Mapped, sync.Mapped),
    (operating.NodeHandle, sync.NodeHandle),
]

NOT_FOR_CALLERS = {"aclose", "ask", "request", "connected", "connection", "abandoned", "owner_away_s"}
SHORTCUTS = {"model", "notes", "seconds", "joules", "seeds", "facts"}
"""Of `Pictures`: all are in `facts`, and of an artifact's `facts` everything is an attribute."""


def public(kind: type[Any]) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")} - NOT_FOR_CALLERS


@pytest.mark.parametrize(("awaited", "waiting"), PAIRS, ids=lambda kind: kind.__name__)
def test_nothing_is_missing(awaited: type[Any], waiting: type[Any]) -> None:
    assert public(awaited) - public(waiting) <= SHORTCUTS


@pytest.mark.parametrize(("awaited", "waiting"), PAIRS, ids=lambda kind: kind.__name__)
def test_methods_take_the_same(awaited: type[Any], waiting: type[Any]) -> None:
    for name in public(awaited) & public(waiting):
        if inspect.isfunction(method := inspect.getattr_static(awaited, name)) and name != "map":
            theirs = inspect.signature(getattr(waiting, name)).parameters.values()
            ours = inspect.signature(method).parameters.values()
            assert [(p.name, p.kind, p.default) for p in theirs] == [(p.name, p.kind, p.default) for p in ours], name


def test_a_mesh_is_made_of_the_same() -> None:
    ours, theirs = inspect.signature(link.Link), inspect.signature(sync.Mesh)
    assert list(ours.parameters.values()) == list(theirs.parameters.values())


def test_a_mesh_that_cannot_be_entered_says_why_and_may_be_tried_again(tmp_path: Any) -> None:
    found = sync.Mesh(state=tmp_path)
    for _ in range(2):
        with pytest.raises(NoNode, match="no Outbid node runs"):
            found.nodes()
    found.close()
    with pytest.raises(RuntimeError, match="is closed"):
        found.nodes()
