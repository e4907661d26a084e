"""`Mesh` without `await`."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import AsyncIterator, Callable, Iterable, Sized
from types import TracebackType
from typing import Any, ParamSpec, Self, overload

from outbid import mesh as _mesh
from outbid.chat import Reply
from outbid.link import OWNER_AWAY_S, Link
from outbid.mapping import MapProgress
from outbid.sync.results import Artifact, ChatStream, Drawing, Job, Mapped, NodeHandle
from outbid.sync.worker import Worker
from outbid.sync.wrapping import Facade, call, call_for, call_for_all, made_by, steps
from outbid_contracts.ids import NodeId
from outbid_contracts.policy import Goal, Policy

P = ParamSpec("P")

_END: Any = object()


def _unopened(make: Callable[P, _mesh.Mesh]) -> Callable[P, Mesh]:
    """A way to make a Mesh as a way to make one of these."""

    @functools.wraps(make)
    def called(*args: P.args, **kwargs: P.kwargs) -> Mesh:
        made = Mesh.__new__(Mesh)
        made._take(make(*args, **kwargs))
        return made

    return called


class Mesh(Facade[_mesh.Mesh]):
    """The mesh, in a thread of its own: any number of threads may use it at once, also where an event loop runs
    (notebooks). Arguments as of `outbid.Mesh`.

    It is opened by `with`, or by the first call; closed by leaving that, by `close`, or when the program ends. What is
    interrupted by Ctrl-C while it waits is cancelled. `on_event` and `progress` are called on the mesh's own thread.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        creds: str | os.PathLike[str] | None = None,
        state: str | os.PathLike[str] | None = None,
        owner_away_s: float = OWNER_AWAY_S,
    ) -> None:
        self._take(_mesh.Mesh(url, creds=creds, state=state, owner_away_s=owner_away_s))

    def _take(self, inner: _mesh.Mesh) -> None:
        super().__init__(inner, Worker(inner))

    discover = staticmethod(_unopened(_mesh.Mesh.discover))
    start_node = staticmethod(_unopened(_mesh.Mesh.start_node))

    def __enter__(self) -> Self:
        self._worker.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Whatever still waits for an answer is cancelled. A closed mesh stays closed."""
        self._worker.close()

    @property
    def local(self) -> NodeId | None:
        return self._inner.local

    @property
    def link(self) -> Link:
        """What `start_node(beside=…)` wants."""
        return self._inner

    chat = made_by(ChatStream, _mesh.Mesh.chat)
    image = made_by(Drawing, _mesh.Mesh.image)
    edit = made_by(Drawing, _mesh.Mesh.edit)
    animate = made_by(Drawing, _mesh.Mesh.animate)
    artifact = call_for(Artifact, _mesh.Mesh.artifact)
    artifacts = call_for_all(Artifact, _mesh.Mesh.artifacts)
    run = call(_mesh.Mesh.run)
    stream = steps(_mesh.Mesh.stream)
    submit = call_for(Job, _mesh.Mesh.submit)
    submit_many = call_for_all(Job, _mesh.Mesh.submit_many)
    attach = made_by(Job, _mesh.Mesh.attach)
    nodes = call(_mesh.Mesh.nodes)
    node_list = call(_mesh.Mesh.node_list)
    node = made_by(NodeHandle, _mesh.Mesh.node)
    live = steps(_mesh.Mesh.live)
    models = call(_mesh.Mesh.models)
    model_list = call(_mesh.Mesh.model_list)
    pull = steps(_mesh.Mesh.pull)
    remove_model = call(_mesh.Mesh.remove_model)
    jobs = call(_mesh.Mesh.jobs)
    job = call(_mesh.Mesh.job)
    what_if = call(_mesh.Mesh.what_if)
    cancel = call(_mesh.Mesh.cancel)
    sql = call(_mesh.Mesh.sql)
    sql_parquet = call(_mesh.Mesh.sql_parquet)
    report = call(_mesh.Mesh.report)

    @overload
    def map(
        self,
        items: Iterable[Any],
        *,
        capability: str,
        concurrency: int | None = None,
        ordered: bool = True,
        progress: Callable[[MapProgress], None] | None = None,
        timeout_s: float | None = None,
        policy: Policy | Goal | None = None,
        **params: Any,
    ) -> Mapped[dict[str, Any]]: ...
    @overload
    def map(
        self,
        items: Iterable[Any],
        *,
        capability: None = None,
        concurrency: int | None = None,
        ordered: bool = True,
        progress: Callable[[MapProgress], None] | None = None,
        timeout_s: float | None = None,
        policy: Policy | Goal | None = None,
        **params: Any,
    ) -> Mapped[Reply]: ...
    def map(self, items: Iterable[Any], *, capability: str | None = None, **options: Any) -> Mapped[Any]:
        """As `outbid.Mesh.map`. An iterable that has no length is read in a thread: it may take its time."""
        arriving = items if isinstance(items, Sized) else _Arriving(items)
        if capability is None:
            return Mapped(self._inner.map(arriving, **options), self._worker)
        return Mapped(self._inner.map(arriving, capability=capability, **options), self._worker)


class _Arriving:
    """An iterable that may block, for an event loop that must not."""

    def __init__(self, items: Iterable[Any]) -> None:
        self._items = items

    async def __aiter__(self) -> AsyncIterator[Any]:
        iterator = iter(self._items)
        while (item := await asyncio.to_thread(next, iterator, _END)) is not _END:
            yield item
