"""Jobs that wait for other jobs (`after`), which may belong to other nodes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping

from outbid_contracts.errors import DependencyFailed
from outbid_contracts.ids import JobId
from outbid_contracts.messages import JobState
from outbid_node.durable.parked import Parked

ASK_AT_MOST = 500
"""Jobs asked about at a time."""

States = Mapping[JobId, JobState]


class Dependencies:
    """`unblock` is called for a job when all it waited for is done, `fail` when one of them ended otherwise."""

    def __init__(
        self,
        *,
        unblock: Callable[[Parked], None],
        fail: Callable[[Parked, DependencyFailed], None],
        states_here: Callable[[Collection[JobId]], Awaitable[States]],
    ) -> None:
        """`states_here`: of those jobs that this node owns or owned."""
        self._unblock = unblock
        self._fail = fail
        self._states_here = states_here
        self.states_elsewhere: Callable[[Collection[JobId]], Awaitable[States]] = _nobody
        self._waiting: dict[JobId, dict[JobId, Parked]] = {}

    def watch(self, parked: Parked) -> None:
        for before in parked.after or ():
            self._waiting.setdefault(before, {})[parked.id] = parked

    def forget(self, parked: Parked) -> None:
        for before in parked.after or ():
            others = self._waiting.get(before, {})
            others.pop(parked.id, None)
            if not others:
                self._waiting.pop(before, None)

    def ended(self, before: JobId, state: JobState) -> None:
        for parked in self._waiting.pop(before, {}).values():
            if parked.after is None or before not in parked.after:
                continue
            if state != "done":
                self.forget(parked)
                self._fail(parked, DependencyFailed(f"job {before}, which had to be done before, is {state}"))
                continue
            parked.after.discard(before)
            if not parked.after:
                self._unblock(parked)

    async def look(self) -> None:
        """Ask what has become of them; those that nobody knows are waited for on."""
        for some in _parts(list(self._waiting), ASK_AT_MOST):
            here = await self._states_here(some)
            elsewhere = await self.states_elsewhere([id for id in some if id not in here])
            for id, state in [*here.items(), *elsewhere.items()]:
                if state in ("done", "failed", "cancelled"):
                    self.ended(id, state)


def _parts(ids: list[JobId], size: int) -> Iterable[list[JobId]]:
    return (ids[start : start + size] for start in range(0, len(ids), size))


async def _nobody(ids: Collection[JobId]) -> States:
    return {}
