"""Durable jobs whose results can be checked, submitted through several nodes and read back through others."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import msgspec

from outbid.chaos.door import Door
from outbid.chaos.record import Seen
from outbid_contracts import subjects
from outbid_contracts.digest import digest
from outbid_contracts.durable import ResultRequest, Submission, SubmitReply, SubmitRequest, Submitted
from outbid_contracts.errors import Cancelled, NotDone, OutbidError
from outbid_contracts.ids import JobId
from outbid_contracts.requests import JobRequest

CAPABILITY = "test.echo"
BATCH = 20
"""Jobs in one submit, at most."""

SUBMIT_S = 15.0
"""How long an answer to a submit is waited for: no node that lives takes longer."""

WAIT_S = 10.0
PAUSE_S = 0.2
CANCEL_S = 10.0
KEEP_S = 3600.0
STRAY = 0.05
"""Part of the repeated submits that go to another node than the first."""


AWAY = frozenset(
    {
        "node_unreachable",
        "no_node",
        "unknown_job",
        "not_done",
        "draining",
        "storage_failed",
        "internal",
        "access_refused",
    }
)
"""Codes of errors that are no end of a job: the same question may be answered in a moment."""

_BESIDE = frozenset({"job", "node", "name", "attempt", "timings"})
"""What a node puts beside the result's own fields."""


class Workload:
    """Submits at `rate` jobs a second, each batch through one node until that acknowledges it, and reads each result
    through another. `seen` has every acknowledged job and what clients were told about it.
    """

    def __init__(self, doors: Sequence[Door], random: Random, *, rate: float, longest_s: float = 0.3) -> None:
        """Half of the jobs take no time, the others up to `longest_s`."""
        self.doors = list(doors)
        self.seen: dict[str, Seen] = {}
        self.submitted = 0
        self.refused: list[str] = []
        """What submits were answered that should have been accepted."""
        self._random = random
        self._rate = rate
        self._longest_s = longest_s
        self._prefix = secrets.token_hex(4)
        self._deadline: float | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        """A mistake in this program."""

    @property
    def done(self) -> int:
        return sum(seen.state == "done" for seen in self.seen.values())

    async def submit(self, more: Callable[[int], bool]) -> None:
        """Submit while `more(submitted)` says so. Reading the results goes on beside it and afterwards."""
        due = time.monotonic()
        while more(self.submitted):
            batch = [self._job() for _ in range(self._random.randint(1, BATCH))]
            self._spawn(self._see_through(batch, self._random.choice(self.doors)))
            due += len(batch) / self._rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def finish(self, patience_s: float) -> None:
        """Returns when every job has ended, or its end could not be learned for `patience_s`."""
        self._deadline = time.monotonic() + patience_s
        while self._tasks:
            await asyncio.wait(self._tasks)
        if self._failure is not None:
            raise self._failure

    async def abandon(self, home: Door) -> None:
        """Stop asking, and cancel what has not ended, so that nothing is left at a node that lives on."""
        for task in self._tasks:
            task.cancel()
        unread = [id for id, seen in self.seen.items() if not seen.state]
        cancelling = (
            home.ask(subjects.jobs("cancel"), JobRequest(job=JobId(id)), Any, timeout_s=CANCEL_S) for id in unread
        )
        await asyncio.gather(*cancelling, return_exceptions=True)
        await asyncio.gather(*(door.close() for door in self.doors), return_exceptions=True)

    def _job(self) -> Submission:
        self.submitted += 1
        chunks = self._random.randint(1, 4)
        params = {
            "text": self._random.randbytes(self._random.randint(1, 40)).hex(),
            "chunks": chunks,
            "delay_s": round(self._random.choice((0.0, self._random.uniform(0.0, self._longest_s))) / chunks, 4),
        }
        id = JobId(f"chaos-{self._prefix}-{self.submitted}")
        return Submission(capability=CAPABILITY, params=params, job=id, max_attempts=50, keep_s=KEEP_S)

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = self._failure or error

    @property
    def _late(self) -> bool:
        return self._deadline is not None and time.monotonic() > self._deadline

    # -- one batch ------------------------------------------------------------------------------------------------

    async def _see_through(self, jobs: Sequence[Submission], door: Door) -> None:
        for submitted in await self._submit(jobs, door):
            self.seen[submitted.job] = Seen(owner=submitted.owner)
            self._spawn(self._read(next(job for job in jobs if job.job == submitted.job)))

    async def _submit(self, jobs: Sequence[Submission], door: Door) -> Sequence[Submitted]:
        """Ask until they are acknowledged; only the first time may nobody know their ids. Empty if that is too late.

        A repeat goes to the same owner, as the SDK's do; some go astray to any node, as those of a person may who
        loses patience.
        """
        request = SubmitRequest(jobs=tuple(jobs), new=True, here=True, owner=door.node)
        while not self._late:
            try:
                reply: Any = await door.ask(subjects.jobs("submit"), request, SubmitReply, timeout_s=SUBMIT_S)
                return tuple(reply.jobs)
            except OutbidError as error:
                if error.code not in AWAY:
                    self.refused.append(f"{error.code}: {error.message}")
                await asyncio.sleep(PAUSE_S)
            request = msgspec.structs.replace(request, new=False)
            if self._random.random() < STRAY:
                door = self._random.choice(self.doors)
                request = msgspec.structs.replace(request, owner=None)
        return ()

    async def _read(self, job: Submission) -> None:
        id = str(job.job)
        while not self._late:
            door = self._random.choice(self.doors)
            try:
                request = ResultRequest(job=JobId(id), wait_s=WAIT_S)
                reply = await door.ask(subjects.jobs("result"), request, dict[str, Any], timeout_s=WAIT_S + SUBMIT_S)
            except OutbidError as error:
                if error.code in AWAY:
                    await asyncio.sleep(0 if isinstance(error, NotDone) else PAUSE_S)
                    continue
                state = "cancelled" if isinstance(error, Cancelled) else "failed"
                wrong = f"{error.code}: {error.message}"
                self.seen[id] = msgspec.structs.replace(self.seen[id], state=state, wrong=wrong)
                return
            self.seen[id] = self._check(self.seen[id], job, reply)
            return

    @staticmethod
    def _check(seen: Seen, job: Submission, reply: dict[str, Any]) -> Seen:
        text, wanted = reply.get("text"), job.params["text"]
        result = {key: value for key, value in reply.items() if key not in _BESIDE}
        wrong = "" if text == wanted and reply.get("job") == job.job else f"{text!r}, not {wanted!r}"
        return msgspec.structs.replace(seen, state="done", digest=digest(result), wrong=wrong)
