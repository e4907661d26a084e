"""Finding jobs: those of this node, and those of the others by asking them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection

from outbid_contracts import subjects
from outbid_contracts.errors import UnknownJob
from outbid_contracts.ids import JobId, NodeId
from outbid_contracts.messages import JobRecord, JobState, Presence
from outbid_contracts.requests import JobList, JobQuery
from outbid_node.client import Bus
from outbid_node.durable.book import Book
from outbid_node.durable.dependencies import States
from outbid_node.history.interface import NoHistory
from outbid_node.history.recalled import Recall
from outbid_node.owner import Owner
from outbid_node.registry import Registry

SCATTER_TIMEOUT_S = 1.0
"""How long a listing waits for the slowest node."""

CANCEL_TIMEOUT_S = 7.0

RECALL_TIMEOUT_S = 3.0
"""How long a search of the histories waits for the slowest disk."""

LOST_S = 20.0
"""How long a node that went without a word is waited for before an id that it may have taken is taken here. Below the
patience of the SDK, which asks again for thirty seconds.
"""

MAX_LISTED = 1000


class Lookup:
    def __init__(self, *, me: NodeId, bus: Bus, registry: Registry, owner: Owner, book: Book) -> None:
        self.me = me
        self.bus = bus
        self.registry = registry
        self.owner = owner
        self.book = book
        self.copy_of: Callable[[JobId], Awaitable[JobRecord | None]] = _no_copy
        """What this node knows of a job whose owner is away."""
        self.recall: Recall = Recall(me, NoHistory())
        """Jobs that only its history has."""

    # -- this node's jobs -----------------------------------------------------------------------------------------

    async def here(self, id: JobId) -> JobRecord | None:
        owned = self.owner.find(id)
        return owned.record() if owned is not None else await self.book.find(id) or await self.copy_of(id)

    async def cancel_here(self, id: JobId) -> JobRecord | None:
        if id in self.book.parked:
            return await self.book.cancel(id)
        if self.owner.find(id) is not None:
            return await self.owner.cancel(id)
        return await self.book.find(id)

    def list_here(self, limit: int, state: JobState | None) -> list[JobRecord]:
        limit = max(1, min(limit, MAX_LISTED))
        both = [*self.owner.records(limit, state), *self.book.records(limit, state)]
        return sorted(both, key=lambda record: record.created_ms, reverse=True)[:limit]

    async def listed_here(self, limit: int, state: JobState | None) -> list[JobRecord]:
        """Those in mind, and where they are few the older ones."""
        limit = max(1, min(limit, MAX_LISTED))
        found = {record.id: record for record in self.list_here(limit, state)}
        if len(found) < limit:
            older = await self.recall.newest(limit, state)
            found = {record.id: record for record in older if self.owner.find(record.id) is None} | found
        return sorted(found.values(), key=lambda record: record.created_ms, reverse=True)[:limit]

    async def answer(self, query: JobQuery) -> JobList:
        """What another node is told."""
        if query.verb == "list":
            return JobList(jobs=tuple(await self.listed_here(query.limit, query.state)))
        await self.book.until_ready()
        match query.verb:
            case "known":
                claimed = self.book.claims.among(query.jobs)  # first: a claim is let go once the job can be found
                known = [await self.book.find(id) or await self.copy_of(id) for id in query.jobs]
                return JobList(jobs=tuple(record for record in known if record is not None), claimed=claimed)
            case "cancel":
                found = [await self.cancel_here(query.job)] if query.job else []
            case _:
                look = self.recall.job if query.recall else self.here
                found = [await look(query.job)] if query.job else []
        return JobList(jobs=tuple(record for record in found if record is not None))

    # -- everybody's ----------------------------------------------------------------------------------------------

    async def find(self, id: JobId, *, recall: bool = False) -> JobRecord:
        """Raises UnknownJob. `recall`: where nobody has it in mind any more, look into the histories."""
        try:
            return await self._one(id, "get")
        except UnknownJob:
            if not recall:
                raise
            if (record := await self.recall.job(id)) is not None:
                return record
            found, _ = await self._scatter(JobQuery(verb="get", job=id, recall=True), RECALL_TIMEOUT_S)
            if not found:
                raise
            return found[0]

    async def cancel(self, id: JobId) -> JobRecord:
        return await self._one(id, "cancel")

    async def newest(self, limit: int, state: JobState | None) -> tuple[list[JobRecord], list[str]]:
        """The newest first, and the names of nodes that did not answer."""
        limit = max(1, min(limit, MAX_LISTED))
        found, silent = await self._scatter(JobQuery(verb="list", limit=limit, state=state), SCATTER_TIMEOUT_S)
        found += await self.listed_here(limit, state)
        return sorted(found, key=lambda record: record.created_ms, reverse=True)[:limit], silent

    async def elsewhere(self, ids: Collection[JobId]) -> JobList:
        """Those of the durable jobs `ids` that other nodes own, and those that they are about to."""
        return (await self.elsewhere_surely(ids))[0]

    async def elsewhere_surely(self, ids: Collection[JobId]) -> tuple[JobList, list[Presence]]:
        """The same, and the nodes that may have more to say: those that were silent, and those lost a moment ago."""
        if not ids:
            return JobList(), []
        asked, lost = {peer.presence.node for peer in self.registry}, self.registry.lost(LOST_S)
        lists, silent = await self._ask_all(JobQuery(verb="known", jobs=tuple(ids)), SCATTER_TIMEOUT_S)
        appeared = [peer.presence for peer in self.registry if peer.presence.node not in asked]
        claimed = {id for answer in lists for id in answer.claimed}
        found = JobList(jobs=tuple(record for answer in lists for record in answer.jobs), claimed=tuple(claimed))
        return found, [*silent, *lost, *appeared]

    async def states_elsewhere(self, ids: Collection[JobId]) -> States:
        return {record.id: record.state for record in (await self.elsewhere(ids)).jobs}

    async def _one(self, id: JobId, verb: str) -> JobRecord:
        """Raises UnknownJob; StorageFailed if it may be one of this node's, which has not read them."""
        local = self.cancel_here if verb == "cancel" else self.here
        if (record := await local(id)) is not None:
            return record
        timeout_s = CANCEL_TIMEOUT_S if verb == "cancel" else SCATTER_TIMEOUT_S
        found, silent = await self._scatter(JobQuery(verb=verb, job=id), timeout_s)  # type: ignore[arg-type]
        if not found and not self.book.ready.is_set():
            await self.book.until_ready()
            found = [record] if (record := await local(id)) is not None else []
        if not found:
            away = [*silent, *(peer.name for peer in self.registry.lost(LOST_S))]
            missing = f"; {', '.join(silent)} did not answer" if silent else ""
            raise UnknownJob(f"no node knows job {id!r}{missing}; `outbid jobs` lists the recent ones", away=away)
        return found[0]

    async def _scatter(self, query: JobQuery, timeout_s: float) -> tuple[list[JobRecord], list[str]]:
        lists, silent = await self._ask_all(query, timeout_s)
        return [record for answer in lists for record in answer.jobs], [presence.name for presence in silent]

    async def _ask_all(self, query: JobQuery, timeout_s: float) -> tuple[list[JobList], list[Presence]]:
        """Ask every other node; returns their answers and the nodes that did not answer."""
        others = [peer.presence for peer in self.registry if peer.presence.node != self.me]
        calls = (
            self.bus.call(subjects.node(presence.node, "jobs"), query, JobList, timeout_s=timeout_s)
            for presence in others
        )
        answers = await asyncio.gather(*calls, return_exceptions=True)
        found = [answer for answer in answers if isinstance(answer, JobList)]
        silent = [p for p, answer in zip(others, answers, strict=True) if not isinstance(answer, JobList)]
        return found, silent


async def _no_copy(id: JobId) -> JobRecord | None:
    return None
