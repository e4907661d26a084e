"""`Mesh.map`: one kind of job for each of many items, as many at a time as the mesh has room for.

Everything is driven by whoever iterates: a reader that stops for a while starts nothing new meanwhile, and one that
goes leaves nothing running.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sized
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, overload

import msgspec

from outbid.chat import Reply
from outbid_contracts.errors import InvalidRequest, OutbidError
from outbid_contracts.llm import CHAT
from outbid_contracts.policy import Goal, Policy

if TYPE_CHECKING:
    from outbid.mesh import Mesh

Result = TypeVar("Result")

MOST = 256
"""At a time, where the caller does not say how many."""

FEWEST = 2
"""Also on a mesh with one slot: the next job is there when it is free."""

SPARE = 1.25
"""More jobs than slots, so that none stands empty while a result is on its way here and the next job back."""

LOOK_S = 3.0
"""How often the slots are counted again: machines come and go."""

AHEAD = 4
"""So many times what runs may be done and wait for an earlier one, where the order is kept."""

_END: Any = object()


class MapProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a map is, in items: `done` (`failed` among them), `running`, and `total` where they have a length."""

    done: int
    failed: int
    running: int
    total: int | None = None


class Outcome(msgspec.Struct, Generic[Result], frozen=True, kw_only=True):
    """What became of one item, the `index`-th: a `result`, or the `error` that its job ended with."""

    index: int
    item: Any
    result: Result | None = None
    error: OutbidError | None = None


class Mapped(Generic[Result]):
    """Iterate for the results, or over `outcomes()` for items with their results or errors. Once.

    The iteration raises the first error that it comes to, and with it ends. Left early, by an error, by `break` or by
    `aclose()`, it cancels what is under way.
    """

    def __init__(self, outcomes: AsyncGenerator[Outcome[Result], None], work: _Work[Result]) -> None:
        self._outcomes = outcomes
        self._work = work

    @property
    def progress(self) -> MapProgress:
        return self._work.progress()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Result:
        outcome = await anext(self._outcomes)
        if outcome.error is not None:
            await self.aclose()
            raise outcome.error
        result: Any = outcome.result
        return result  # type: ignore[no-any-return]

    async def outcomes(self) -> AsyncGenerator[Outcome[Result], None]:
        """One for each item; raises no error of a job."""
        async for outcome in self._outcomes:
            yield outcome

    async def aclose(self) -> None:
        await self._outcomes.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


@overload
def map_over(
    mesh: Mesh,
    items: Iterable[Any] | AsyncIterable[Any],
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
def map_over(
    mesh: Mesh,
    items: Iterable[Any] | AsyncIterable[Any],
    *,
    capability: None = None,
    concurrency: int | None = None,
    ordered: bool = True,
    progress: Callable[[MapProgress], None] | None = None,
    timeout_s: float | None = None,
    policy: Policy | Goal | None = None,
    **params: Any,
) -> Mapped[Reply]: ...
def map_over(
    mesh: Mesh,
    items: Iterable[Any] | AsyncIterable[Any],
    *,
    capability: str | None = None,
    concurrency: int | None = None,
    ordered: bool = True,
    progress: Callable[[MapProgress], None] | None = None,
    timeout_s: float | None = None,
    policy: Policy | Goal | None = None,
    **params: Any,
) -> Mapped[Any]:
    """A chat for each item, or a job of `capability`, many at a time: iterate over the result for a `Reply` each (any
    capability: for what `run` gives).

    An item is a prompt, a list of messages, or a map of parameters (`policy` and `job` among them, if wanted); `params`
    are those that all have in common. The items may be endless, and may come one by one from an asynchronous iterable.
    At most `concurrency` jobs run at a time (default: as many as the mesh has slots for them). `ordered`: results come
    in the order of the items, else as they are done. `progress` is called whenever an item is done. `timeout_s` is for
    each item. Raises InvalidRequest.
    """
    if concurrency is not None and concurrency < 1:
        raise InvalidRequest("concurrency must be 1 or more")
    common = Common(policy, timeout_s, params)
    work: _Work[Any] = _Work(
        items=items,
        do=(lambda item: _chat(mesh, item, common)) if capability is None else _running(mesh, capability, common),
        room=_Room(mesh, capability or CHAT, concurrency),
        ordered=ordered,
        on_progress=progress,
    )
    return Mapped(work.outcomes(), work)


class Common(msgspec.Struct, frozen=True):
    """What all items of a map have in common."""

    policy: Policy | Goal | None
    timeout_s: float | None
    params: dict[str, Any]


async def _chat(mesh: Mesh, item: Any, common: Common) -> Reply:
    asked = _asked(item, common)
    prompt = asked.pop("messages", None) or asked.pop("prompt", None)
    if prompt is None:
        raise InvalidRequest("an item has neither `prompt` nor `messages`")
    return await mesh.chat(prompt, timeout_s=common.timeout_s, **asked).reply()


def _running(mesh: Mesh, capability: str, common: Common) -> Callable[[Any], Awaitable[dict[str, Any]]]:
    async def run(item: Any) -> dict[str, Any]:
        asked = _asked(item, common)
        policy, job = asked.pop("policy"), asked.pop("job")
        return await mesh.run(capability, asked, policy=policy, job=job, timeout_s=common.timeout_s)

    return run


def _asked(item: Any, common: Common) -> dict[str, Any]:
    """Parameters with `policy` and `job`. Raises InvalidRequest for an item that stands for none."""
    if isinstance(item, str):
        own: dict[str, Any] = {"prompt": item}
    elif isinstance(item, Mapping):
        own = dict(item)
    elif isinstance(item, Iterable) and not isinstance(item, bytes):
        own = {"messages": list(item)}
    else:
        raise InvalidRequest(f"an item is a prompt, a list of messages or a map of parameters, not {item!r:.60}")
    return {"policy": common.policy, "job": None} | common.params | own


class _Room:
    """How many jobs may be under way: a number, or what the mesh has slots for, counted again now and then."""

    def __init__(self, mesh: Mesh, capability: str, fixed: int | None) -> None:
        self._mesh = mesh
        self._capability = capability
        self._fixed = fixed is not None
        self._looked = -LOOK_S
        self.most = fixed or FEWEST

    @property
    def look_again_s(self) -> float | None:
        return None if self._fixed else LOOK_S

    async def look(self) -> None:
        if self._fixed or time.monotonic() - self._looked < LOOK_S:
            return
        with suppress(OutbidError):  # the node is away: the jobs themselves tell
            slots = 0
            for view in await self._mesh.nodes():
                offers = view.presence.offers if view.presence.state == "up" else ()
                slots += max((o.slots for o in offers if o.capability == self._capability and not o.blocked), default=0)
            self.most = min(MOST, max(FEWEST, int(slots * SPARE)))
        self._looked = time.monotonic()


class _Work(Generic[Result]):
    """The jobs of one map. Nothing here knows the iterator, so that one who drops it ends it."""

    def __init__(
        self,
        *,
        items: Iterable[Any] | AsyncIterable[Any],
        do: Callable[[Any], Awaitable[Result]],
        room: _Room,
        ordered: bool,
        on_progress: Callable[[MapProgress], None] | None,
    ) -> None:
        self._items = items
        self._do = do
        self._room = room
        self._ordered = ordered
        self._on_progress = on_progress
        self._coming: asyncio.Task[Any] | None = None
        """The next item, while it is waited for."""
        self._running: set[asyncio.Task[Outcome[Result]]] = set()
        self._ready: dict[int, Outcome[Result]] = {}
        """Done, and not given out yet."""
        self._begun = self._given = self._done = self._failed = 0

    def progress(self) -> MapProgress:
        total = len(self._items) if isinstance(self._items, Sized) else None
        return MapProgress(done=self._done, failed=self._failed, running=len(self._running), total=total)

    async def outcomes(self) -> AsyncGenerator[Outcome[Result], None]:
        arriving = aiter(self._items if isinstance(self._items, AsyncIterable) else _one_by_one(self._items))
        more = True
        try:
            while True:
                await self._room.look()
                if more and self._coming is None and self._has_room():
                    self._coming = asyncio.ensure_future(_next(arriving))
                if not self._under_way():
                    return
                await asyncio.wait(
                    self._under_way(), timeout=self._room.look_again_s, return_when=asyncio.FIRST_COMPLETED
                )
                more = self._begin() and more
                self._settle()
                while (outcome := self._due()) is not None:
                    yield outcome
        finally:
            await _cancelled(self._under_way())

    def _has_room(self) -> bool:
        return len(self._running) < self._room.most and self._begun - self._given < self._room.most * AHEAD

    def _under_way(self) -> set[asyncio.Task[Any]]:
        return {*self._running, *([self._coming] if self._coming is not None else [])}

    def _begin(self) -> bool:
        """Start the job of the item that came. False if there are no more. Raises what the iterable raised."""
        if self._coming is None or not self._coming.done():
            return True
        item, self._coming = self._coming.result(), None
        if item is _END:
            return False
        self._running.add(asyncio.ensure_future(self._one(self._begun, item)))
        self._begun += 1
        return True

    def _settle(self) -> None:
        """Take in what is done. Raises what is no error of a job."""
        for task in [task for task in self._running if task.done()]:
            self._running.discard(task)
            outcome = task.result()
            self._ready[outcome.index] = outcome
            self._done += 1
            self._failed += outcome.error is not None
            if self._on_progress is not None:
                self._on_progress(self.progress())

    def _due(self) -> Outcome[Result] | None:
        index = self._given if self._ordered else next(iter(self._ready), -1)
        outcome = self._ready.pop(index, None)
        self._given += outcome is not None
        return outcome

    async def _one(self, index: int, item: Any) -> Outcome[Result]:
        try:
            return Outcome(index=index, item=item, result=await self._do(item))
        except OutbidError as error:
            return Outcome(index=index, item=item, error=error)


async def _one_by_one(items: Iterable[Any]) -> AsyncIterator[Any]:
    for item in items:
        yield item


async def _next(arriving: AsyncIterator[Any]) -> Any:
    """The next item, or `_END`."""
    return await anext(arriving, _END)


async def _cancelled(tasks: set[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
