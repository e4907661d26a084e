"""What an attempt does while no runner has it: before, its inputs are fetched; after, what it made is put away."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from outbid_contracts.errors import InvalidRequest, OutbidError, PayloadTooLarge, UnknownArtifact
from outbid_contracts.ids import JobId
from outbid_contracts.messages import Done, Failed, Job, Outcome, Stopped
from outbid_contracts.runner import RunFailed

if TYPE_CHECKING:
    from outbid_node.attempt import Attempt

log = logging.getLogger(__name__)

Files = dict[str, bytes]
Settle = Callable[["Attempt", Outcome], None]


class Fetching:
    """Attempts whose inputs are on their way. Each holds a slot of which its runner does not know yet."""

    def __init__(self) -> None:
        self.fetch: Callable[[Mapping[str, str]], Awaitable[Files]] = _from_nowhere
        self._tasks: dict[str, asyncio.Future[Files]] = {}
        self._slots: dict[tuple[str, str | None], int] = {}

    def begin(self, attempt: Attempt, wanted: Mapping[str, str], run: Callable[[Files], None]) -> None:
        """`run` raises OutbidError if the attempt cannot be started after all."""
        key = (attempt.entry.capability.runner, attempt.model)
        self._slots[key] = self._slots.get(key, 0) + 1
        task = self._tasks[attempt.key] = asyncio.ensure_future(self.fetch(wanted))
        task.add_done_callback(partial(self._came, attempt, run))  # also of one that is cancelled before it began

    def slots(self, runner: str, model: str | None) -> int:
        """How many slots of that runner they hold."""
        return self._slots.get((runner, model), 0)

    def cancel(self, key: str) -> bool:
        """False if that attempt is not one of them; else it is told that it has stopped."""
        task = self._tasks.get(key)
        return task is not None and task.cancel()

    def _came(self, attempt: Attempt, run: Callable[[Files], None], task: asyncio.Future[Files]) -> None:
        self._over(attempt)
        if task.cancelled():
            attempt.stopped()
        elif (error := task.exception()) is not None:
            attempt.failed(_unfetched(attempt, error))
        else:
            try:
                run(task.result())
            except OutbidError as refusal:
                attempt.failed(RunFailed(attempt=attempt.key, message=refusal.message, code=refusal.code))

    def _over(self, attempt: Attempt) -> None:
        del self._tasks[attempt.key]
        key = (attempt.entry.capability.runner, attempt.model)
        self._slots[key] -= 1
        if not self._slots[key]:
            del self._slots[key]


class Delivering:
    """Attempts whose runner is done, and whose files are not on disk yet."""

    def __init__(self) -> None:
        self.deliver: Callable[[Job, int, dict[str, Any], str, Sequence[bytes]], Awaitable[dict[str, Any]]] = _nowhere
        self._tasks: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._under_way: dict[str, Attempt] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def begin(self, attempt: Attempt, done: Done, payloads: Sequence[bytes], settle: Settle) -> None:
        """`settle` is called with how it went."""
        field = attempt.entry.capability.artifacts
        assert field is not None
        self._under_way[attempt.key] = attempt
        work = self.deliver(attempt.job, attempt.number, done.result, field, payloads)
        task = self._tasks[attempt.key] = asyncio.ensure_future(work)
        task.add_done_callback(partial(self._ended, attempt, done, settle))

    def cancel(self, key: str) -> None:
        if key in self._tasks:
            self._tasks[key].cancel()

    def supersede(self, job: JobId, number: int) -> None:
        """Attempts at that job before this one are void."""
        for key, attempt in list(self._under_way.items()):
            if attempt.job.id == job and attempt.number < number:
                self.cancel(key)

    async def stop(self, timeout_s: float) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=timeout_s)

    def _ended(self, attempt: Attempt, done: Done, settle: Settle, task: asyncio.Future[dict[str, Any]]) -> None:
        del self._tasks[attempt.key], self._under_way[attempt.key]
        if task.cancelled():
            settle(attempt, Stopped(chunks=done.chunks, reason=attempt.given_back))
        elif (error := task.exception()) is not None:
            told = _told(attempt, error)
            settle(attempt, Failed(error=told.body(), retry=not isinstance(told, PayloadTooLarge), chunks=done.chunks))
        else:
            settle(attempt, msgspec.structs.replace(done, result=task.result()))


def _told(attempt: Attempt, error: BaseException) -> OutbidError:
    """What went wrong, for people; a mistake of ours goes to the log too."""
    if isinstance(error, OutbidError):
        return error
    log.error("the files of %s: %r", attempt.key, error, exc_info=error, extra={"action": "attempt_files_failed"})
    return OutbidError(f"internal error: {type(error).__name__}: {error}")


def _unfetched(attempt: Attempt, error: BaseException) -> RunFailed:
    """Another node may fare better, unless the artifact is too large or no node has it."""
    told = _told(attempt, error)
    gone = isinstance(told, UnknownArtifact) and not told.detail.get("away")
    final = gone or isinstance(told, InvalidRequest)
    return RunFailed(attempt=attempt.key, message=told.message, code=told.code, retry=not final)


async def _from_nowhere(wanted: Mapping[str, str]) -> Files:
    raise UnknownArtifact


async def _nowhere(
    job: Job, attempt: int, result: dict[str, Any], field: str, payloads: Sequence[bytes]
) -> dict[str, Any]:
    return result
