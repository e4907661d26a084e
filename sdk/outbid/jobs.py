"""A durable job from outside: holding on to it while machines come and go."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, NamedTuple

from outbid.images import Pictures
from outbid.patience import ANSWER_S, AWAY, Patience, insist
from outbid_contracts import subjects
from outbid_contracts.codec import encode
from outbid_contracts.durable import Priority, PriorityRequest, ResultRequest, RetryRequest, Submitted, WatchRequest
from outbid_contracts.errors import NodeUnreachable, NotDone, OutbidError, UnknownJob
from outbid_contracts.events import Ended, Finished, JobEvent
from outbid_contracts.ids import JobId, NodeId
from outbid_contracts.messages import JobRecord

if TYPE_CHECKING:
    from outbid.mesh import Mesh

ROUND_S = 30.0
"""One question for a result waits this long."""

QUIET_S = 3.0
"""Without an event for this long, a watcher looks whether the owner is still the one it watches."""

END_OVERDUE = 3
"""So many looks at a job that has ended without its end having come: an owner with a troubled disk needs some seconds.
"""


class _Look(NamedTuple):
    """Which daemon answers for a job, as far as that is known, and whether the job has ended."""

    owner: str = ""
    boot: str = ""
    ended: bool = False


class _Watchman:
    """Looks after a quiet stream: its owner sends straight to us, so it cannot say that it is gone."""

    def __init__(self, first: _Look, look: Callable[[], Awaitable[_Look]], patience: Patience) -> None:
        self._first = first
        self._look = look
        self._patience = patience
        self._overdue = 0

    async def check(self) -> None:
        """Raises NodeUnreachable if nothing more will come."""
        now = await self._look()
        if now[:2] != self._first[:2]:
            raise NodeUnreachable("the job's owner is no longer the daemon it was")
        self._overdue += now.ended
        if self._overdue > END_OVERDUE:
            raise NodeUnreachable("the job has ended, but its end did not come")
        if not now.ended:
            self._patience.renew()


class Job:
    """A durable job: it goes on whether or not this program does. `Mesh.attach(id)` finds it again from anywhere.

    `note` says why it cannot start yet, `known` that it had been submitted before.
    """

    def __init__(self, mesh: Mesh, id: JobId, submitted: Submitted | None = None) -> None:
        self.id = id
        self.owner: NodeId | None = submitted.owner if submitted else None
        self.note = submitted.note if submitted else ""
        self.known = submitted is None or submitted.known
        self._exists = submitted is not None
        self._mesh = mesh

    def __repr__(self) -> str:
        return f"Job({self.id!r})"

    async def result(self, timeout_s: float | None = None) -> dict[str, Any]:
        """The result's fields beside job, node, name, attempt, timings. `timeout_s` None waits as long as it takes.

        Raises the error that ended the job; NotDone after `timeout_s`; NodeUnreachable or UnknownJob when its owner
        has been away for the mesh's `owner_away_s`.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        patience = Patience(self._mesh.owner_away_s)
        while True:
            left = ROUND_S if deadline is None else max(0.0, min(ROUND_S, deadline - time.monotonic()))
            try:
                return await self._result_within(left)
            except NotDone:
                self._exists = True
                patience.renew()
                if deadline is not None and time.monotonic() >= deadline:
                    raise
            except (*AWAY, UnknownJob) as error:
                await self._bear(error, patience, deadline)

    async def pictures(self, timeout_s: float | None = None) -> Pictures:
        """The result of an image job. Raises what `result` raises; InvalidRequest if it is another kind of job."""
        return Pictures(self._mesh, await self.result(timeout_s))

    async def watch(self) -> AsyncGenerator[JobEvent, None]:
        """Every event from the beginning (as far as they are kept), then as they happen; the last is Finished, with the
        result, or Ended. Where the stream breaks it is taken up again, without what has been seen.

        Raises UnknownJob; NodeUnreachable when the owner has been away for the mesh's `owner_away_s`.
        """
        patience = Patience(self._mesh.owner_away_s)
        seen: Counter[int] = Counter()
        while True:
            try:
                async with aclosing(self._unseen(seen, patience)) as events:
                    async for event in events:
                        patience.renew()
                        yield event
                        if isinstance(event, Finished | Ended):
                            return
                raise NodeUnreachable(f"the events of job {self.id} broke off")
            except (*AWAY, UnknownJob) as error:
                await self._bear(error, patience, None)

    async def status(self) -> JobRecord:
        """Its state, attempts and bid sheets. Raises UnknownJob, also while its owner is away."""
        return self._met(await self._mesh.job(self.id))

    async def cancel(self) -> JobRecord:
        """Stop it; one that ended stays as it is. Raises UnknownJob."""
        return self._met(await self._mesh.cancel(self.id))

    async def retry(self) -> Job:
        """Run it again, if it failed or was cancelled: a new job, the same one however often this is asked."""
        again: Submitted = await insist(self._mesh, subjects.jobs("retry"), RetryRequest(job=self.id), Submitted)
        return Job(self._mesh, again.job, again)

    async def prioritise(self, priority: Priority) -> JobRecord:
        """Another place in the queue, while it waits. Raises InvalidRequest once it runs or has ended, UnknownJob."""
        asked = PriorityRequest(job=self.id, priority=priority)
        return self._met(await insist(self._mesh, subjects.jobs("priority"), asked, JobRecord))

    async def _result_within(self, wait_s: float) -> dict[str, Any]:
        connection = await self._mesh.connected()
        result: dict[str, Any] = await connection.request(
            subjects.jobs("result"),
            ResultRequest(job=self.id, wait_s=round(wait_s, 3)),
            dict[str, Any],
            timeout_s=wait_s + ANSWER_S,
        )
        return result

    async def _unseen(self, seen: Counter[int], patience: Patience) -> AsyncGenerator[JobEvent, None]:
        """One stream without the events it has in common with those before, each counted in `seen` by its content:
        they need not come in the same order again, and after a power cut some are missing.
        """
        connection, again = await self._mesh.connected(), seen.copy()
        stream = connection.stream(
            subjects.jobs("watch"),
            WatchRequest(job=self.id),
            JobEvent,
            idle_timeout_s=QUIET_S,
            check=_Watchman(await self._look(), self._look, patience).check,
        )
        async with aclosing(stream) as events:
            async for event in events:
                key = hash(encode(event))
                if again[key] > 0:
                    again[key] -= 1
                else:
                    seen[key] += 1
                    yield event

    async def _look(self) -> _Look:
        try:
            record = await self.status()
        except UnknownJob:
            return _Look()
        views = await self._mesh.nodes()
        boot = next((view.presence.boot for view in views if view.presence.node == record.owner), "")
        return _Look(record.owner, boot, ended=record.ended_ms is not None)

    def _met(self, record: JobRecord) -> JobRecord:
        self.owner, self._exists = record.owner, True
        return record

    async def _bear(self, error: OutbidError, patience: Patience, deadline: float | None) -> None:
        """An id that nobody has ever known is a mistake; one whose owner is away is worth waiting for."""
        if isinstance(error, UnknownJob) and not self._exists:
            raise error
        if deadline is not None and time.monotonic() >= deadline:
            raise error
        await patience.after(error)
