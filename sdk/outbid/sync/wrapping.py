"""How methods of the SDK become ones that wait: by their own signatures, so that there is nothing to keep equal."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

from outbid.sync.worker import Worker

P = ParamSpec("P")
T = TypeVar("T")
Inner = TypeVar("Inner")
Outer = TypeVar("Outer")

_END: Any = object()


class Facade(Generic[Inner]):
    """An object of the SDK, and the worker that its methods are done by."""

    def __init__(self, inner: Inner, worker: Worker) -> None:
        self._inner = inner
        self._worker = worker

    def __repr__(self) -> str:
        return repr(self._inner)


class Steps(Facade[AsyncIterator[T]], Generic[T]):
    """An asynchronous iterator as an iterator. Dropped, or closed, before its end, it ends there."""

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        step = self._worker.run(_next(self._inner))
        if step is _END:
            raise StopIteration
        return step

    def close(self) -> None:
        self._worker.run(_close(self._inner))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def call(method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]) -> Callable[Concatenate[Facade[Any], P], T]:
    """A coroutine method as one that waits."""

    @functools.wraps(method)
    def called(self: Facade[Any], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._worker.run(method(self._inner, *args, **kwargs))

    return called


def call_for(
    made: Callable[[T, Worker], Outer], method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]
) -> Callable[Concatenate[Facade[Any], P], Outer]:
    """The same where the answer has methods to be waited for, too."""

    @functools.wraps(method)
    def called(self: Facade[Any], /, *args: P.args, **kwargs: P.kwargs) -> Outer:
        return made(self._worker.run(method(self._inner, *args, **kwargs)), self._worker)

    return called


def call_for_all(
    made: Callable[[T, Worker], Outer], method: Callable[Concatenate[Any, P], Coroutine[Any, Any, list[T]]]
) -> Callable[Concatenate[Facade[Any], P], list[Outer]]:
    """The same where the answer is a list of such."""

    @functools.wraps(method)
    def called(self: Facade[Any], /, *args: P.args, **kwargs: P.kwargs) -> list[Outer]:
        return [made(one, self._worker) for one in self._worker.run(method(self._inner, *args, **kwargs))]

    return called


def made_by(
    made: Callable[[T, Worker], Outer], method: Callable[Concatenate[Any, P], T]
) -> Callable[Concatenate[Facade[Any], P], Outer]:
    """A plain method whose answer has methods to be waited for."""

    @functools.wraps(method)
    def called(self: Facade[Any], /, *args: P.args, **kwargs: P.kwargs) -> Outer:
        return made(method(self._inner, *args, **kwargs), self._worker)

    return called


def steps(method: Callable[Concatenate[Any, P], AsyncIterator[T]]) -> Callable[Concatenate[Facade[Any], P], Steps[T]]:
    """An asynchronous generator as an iterator."""

    @functools.wraps(method)
    def called(self: Facade[Any], /, *args: P.args, **kwargs: P.kwargs) -> Steps[T]:
        return Steps(method(self._inner, *args, **kwargs), self._worker)

    return called


async def _next(inner: AsyncIterator[T]) -> T:
    return await anext(inner, _END)


async def _close(inner: Any) -> None:
    await inner.aclose()
