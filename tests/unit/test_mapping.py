"""Many items, a bounded number of jobs: order, bounds, errors, and what becomes of jobs whose reader goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

import pytest

from outbid import Mesh
from outbid.mapping import AHEAD, Mapped, MapProgress, Outcome, _Room, _Work
from outbid_contracts.errors import AttemptFailed, InvalidRequest
from outbid_contracts.llm import CHAT
from tests.waiting import until


def mapped(
    items: Any,
    do: Callable[[Any], Awaitable[Any]],
    *,
    concurrency: int = 3,
    ordered: bool = True,
    on_progress: Callable[[MapProgress], None] | None = None,
) -> Mapped[Any]:
    room = _Room(Mesh(), CHAT, concurrency)
    work = _Work(items=items, do=do, room=room, ordered=ordered, on_progress=on_progress)
    return Mapped(work.outcomes(), work)


class Jobs:
    """Jobs that end when told to."""

    def __init__(self) -> None:
        self.running: dict[Any, asyncio.Future[Any]] = {}
        self.begun: list[Any] = []
        self.most = 0
        self.cancelled: list[Any] = []

    async def do(self, item: Any) -> Any:
        self.begun.append(item)
        future = self.running[item] = asyncio.get_running_loop().create_future()
        self.most = max(self.most, len(self.running))
        try:
            return await future
        except asyncio.CancelledError:
            self.cancelled.append(item)
            raise
        finally:
            del self.running[item]

    async def end(self, item: Any) -> None:
        await until(lambda: item in self.running)
        self.running[item].set_result(item)
        await until(lambda: item not in self.running)


async def counted() -> AsyncIterator[int]:
    n = 0
    while True:
        yield n
        n += 1


async def drain(many: Mapped[Any], into: list[Any]) -> None:
    async for one in many:
        into.append(one)


@pytest.mark.parametrize(("ordered", "expected"), [(True, [0, 1, 2]), (False, [2, 1, 0])])
async def test_results_come_in_the_order_of_the_items_or_as_they_are_done(ordered: bool, expected: list[int]) -> None:
    jobs, got = Jobs(), list[int]()
    reading = asyncio.ensure_future(drain(mapped(range(3), jobs.do, ordered=ordered), got))
    for item in (2, 1, 0):
        await jobs.end(item)
    await reading
    assert got == expected


@pytest.mark.parametrize("ordered", [True, False])
async def test_never_more_run_than_allowed_and_an_endless_source_is_read_no_further(ordered: bool) -> None:
    jobs, got = Jobs(), list[int]()
    many = mapped(counted(), jobs.do, concurrency=4, ordered=ordered)
    reading = asyncio.ensure_future(drain(many, got))
    for item in range(40):
        await jobs.end(item)
    await until(lambda: len(got) == 40)
    assert jobs.most == 4
    assert len(jobs.begun) <= 44
    reading.cancel()
    await asyncio.wait([reading])


async def test_a_first_item_that_takes_long_lets_a_bounded_number_of_others_be_done() -> None:
    jobs, got = Jobs(), list[int]()
    reading = asyncio.ensure_future(drain(mapped(counted(), jobs.do, concurrency=2), got))
    await until(lambda: 0 in jobs.running)
    for item in range(1, 2 * AHEAD):
        await jobs.end(item)
    await until(lambda: set(jobs.running) == {0})
    assert (got, len(jobs.begun)) == ([], 2 * AHEAD)
    await jobs.end(0)
    await until(lambda: got == list(range(2 * AHEAD)))
    reading.cancel()
    await asyncio.wait([reading])


async def failing(item: int) -> int:
    if item == 1:
        raise AttemptFailed("one")
    return item


async def test_the_iteration_raises_the_first_error_that_it_comes_to() -> None:
    got: list[int] = []
    with pytest.raises(AttemptFailed, match="one"):
        await drain(mapped(range(5), failing), got)
    assert got == [0]


async def test_outcomes_tell_items_with_results_and_errors() -> None:
    outcomes: list[Outcome[int]] = [one async for one in mapped("ab", failing_on_b).outcomes()]
    assert [(one.index, one.item, one.result) for one in outcomes] == [(0, "a", "a"), (1, "b", None)]
    assert isinstance(outcomes[1].error, AttemptFailed)


async def failing_on_b(item: str) -> str:
    if item == "b":
        raise AttemptFailed("b")
    return item


async def test_an_error_that_is_no_jobs_ends_it_and_cancels_the_rest() -> None:
    jobs = Jobs()

    def items() -> Iterable[int]:
        yield 0
        yield 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await drain(mapped(items(), jobs.do), [])
    assert sorted(jobs.cancelled) == [0, 1]


@pytest.mark.parametrize("outcomes", [False, True])
async def test_what_is_under_way_is_cancelled_when_the_loop_is_left_by_break(outcomes: bool) -> None:
    jobs = Jobs()
    ending = asyncio.ensure_future(jobs.end(0))
    many = mapped(counted(), jobs.do)
    async for _ in many.outcomes() if outcomes else many:
        break
    del many
    await until(lambda: not jobs.running)
    assert set(jobs.cancelled) >= {1, 2}
    await ending


async def test_progress_counts_what_is_done_failed_and_running() -> None:
    told: list[MapProgress] = []
    async for _ in mapped([0, 1, 2], failing, concurrency=1, on_progress=told.append).outcomes():
        pass
    assert [(it.done, it.failed, it.running, it.total) for it in told] == [(1, 0, 0, 3), (2, 1, 0, 3), (3, 1, 0, 3)]


async def test_items_and_bounds_that_make_no_sense_are_told() -> None:
    with pytest.raises(InvalidRequest, match="concurrency must be 1 or more"):
        Mesh().map([], concurrency=0)
    (one,) = [outcome async for outcome in Mesh().map([3], concurrency=1).outcomes()]
    assert "an item is a prompt, a list of messages or a map of parameters, not 3" in str(one.error)
    (one,) = [outcome async for outcome in Mesh().map([{"temperature": 1}], concurrency=1).outcomes()]
    assert "neither `prompt` nor `messages`" in str(one.error)
