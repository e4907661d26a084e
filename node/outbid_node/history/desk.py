"""Where the history is asked for: `mesh.history.query|report|tables`; among nodes `mesh.node.<me>.query|usage`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from nats.aio.msg import Msg

from outbid_contracts import subjects
from outbid_contracts.codec import Format, decode, encode
from outbid_contracts.errors import Busy, InvalidRequest, NoHistoryKept, OutbidError, QueryTooLong, from_body
from outbid_contracts.history import (
    MAX_LIMIT,
    MAX_TIMEOUT_S,
    PeerAnswer,
    PeerQuery,
    ReportRequest,
    Silent,
    SqlAnswer,
    SqlRequest,
    Told,
    UsageQuery,
    UsageReply,
    parse_sql,
)
from outbid_contracts.ids import NodeId
from outbid_contracts.messages import Presence
from outbid_node.client import Bus, NoResponders
from outbid_node.history.assembly import NodeHistory
from outbid_node.history.damage import Unusable
from outbid_node.history.exporting import ExportDesk
from outbid_node.history.joining import Joiner
from outbid_node.history.meaning import table_list
from outbid_node.history.people import People
from outbid_node.history.reports import UNITS, USAGE, WORKERS, period, report_of, usage_of
from outbid_node.history.sandbox import Query
from outbid_node.micro import Request, Service
from outbid_node.registry import Registry

log = logging.getLogger(__name__)

AT_ONCE = 2
"""Queries that run at the same time; each may take a core."""

QUEUE = 20
"""Queries that may wait for that."""

AFTER_S = 3.0
"""How long after its time is over a query is waited for: what DuckDB cannot interrupt is then killed with the process
that keeps the history.
"""

PEERS_AT_ONCE = 8
"""Answers of up to 14 MiB that may be on their way here together."""

FRESH_S = 1.0
WAY_S = 2.0
USAGE_S = 10.0
GONE_S = 60.0
"""A node that was lost so short a time ago is named in answers of the whole mesh."""


class HistoryDesk:
    def __init__(
        self, me: NodeId, bus: Bus, registry: Registry, history: NodeHistory, people: People, state: Path
    ) -> None:
        self.me = me
        self.bus = bus
        self.registry = registry
        self.people = people
        self._history = history
        self._folder = state / "history-join"
        shutil.rmtree(self._folder, ignore_errors=True)  # of a daemon that was killed
        self._running = asyncio.Semaphore(AT_ONCE)
        self._waiting = 0

    def register(self, service: Service) -> None:
        for verb, handler in (("query", self.query), ("report", self.report), ("tables", self.tables)):
            service.add(f"history-{verb}", subjects.history(verb), handler, queue=subjects.OWNERS)
        ExportDesk(self.me, self._history).register(service)

    def answers(self, verb: str) -> Callable[[Msg], Awaitable[Any]] | None:
        """What `mesh.node.<me>.<verb>` is answered with."""
        match verb:
            case "query":
                return lambda msg: self._peer_query(decode(msg.data, PeerQuery))
            case "usage":
                return lambda msg: self._used(decode(msg.data, UsageQuery))
        return None

    @property
    def name(self) -> str:
        return self.registry.name_of(self.me)

    # -- one SELECT -----------------------------------------------------------------------------------------------

    async def query(self, request: Request) -> None:
        started = time.monotonic()
        asked = parse_sql(request.data, request.read_format())
        if asked.over is not None and not asked.mesh:
            raise InvalidRequest("`over` is for the joined answers of the whole mesh; set `mesh` too")
        told, cut, silent = await (self._of_mesh(asked) if asked.mesh else self._of_this_node(asked))
        request.respond(
            SqlAnswer(
                columns=told.columns,
                rows=told.rows,
                parquet=told.parquet,
                truncated=told.truncated or bool(cut),
                cut=tuple(cut),
                silent=tuple(silent),
                took_s=round(time.monotonic() - started, 3),
            )
        )

    async def _of_this_node(self, asked: SqlRequest) -> tuple[Told, list[str], list[Silent]]:
        query = Query(sql=asked.sql, limit=asked.limit, timeout_s=asked.timeout_s, format=asked.format)
        told = await self._run(query)
        return told, [self.name] if told.truncated else [], []

    async def _run(self, query: Query) -> Told:
        """When it is its turn. Raises Busy, QueryTooLong, NoHistoryKept, and what is wrong with the query."""
        if self._waiting >= QUEUE:
            raise Busy(f"{QUEUE} queries wait at this node already; try again shortly")
        started = time.monotonic()
        self._waiting += 1
        try:
            async with asyncio.timeout(query.timeout_s):
                await self._running.acquire()
        except TimeoutError as error:
            raise Busy(f"other queries kept this node busy for {query.timeout_s:g} s; try again shortly") from error
        finally:
            self._waiting -= 1
        try:
            await self._write_down()
            left_s = max(0.1, query.timeout_s - (time.monotonic() - started))
            return await self._told(Query(sql=query.sql, limit=query.limit, timeout_s=left_s, format=query.format))
        finally:
            self._running.release()

    async def _write_down(self) -> None:
        """So that a question finds what happened before it; not for long, where the disk is slow."""
        if self._history.recording is not None:
            self._history.recording.flush_usage()
        if self._history.kept is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FRESH_S):
                    await self._history.kept.flush()

    async def _told(self, query: Query) -> Told:
        try:
            told: Told = decode(await self._asked(query), Told)
        except Unusable as error:
            raise NoHistoryKept(str(error)) from error
        except TimeoutError as error:
            raise QueryTooLong from error
        except RuntimeError as error:
            raise OutbidError(f"the history failed: {error}") from error
        if told.error is not None:
            raise from_body(told.error)
        return told

    async def _asked(self, query: Query) -> bytes:
        """Once more if the process ended meanwhile, which another query may have caused."""
        message, kept = encode(query), self._history.kept
        try:
            return await self._history.log.ask("select", message, query.timeout_s + AFTER_S)
        except Unusable:
            if kept is None or kept.trouble:
                raise
        return await self._history.log.ask("select", message, query.timeout_s + AFTER_S)

    # -- on every node --------------------------------------------------------------------------------------------

    async def _peer_query(self, asked: PeerQuery) -> PeerAnswer:
        limit, timeout_s = max(1, min(asked.limit, MAX_LIMIT)), max(0.1, min(asked.timeout_s, MAX_TIMEOUT_S))
        told = await self._run(Query(sql=asked.sql, limit=limit, timeout_s=timeout_s, format="peer"))
        return PeerAnswer(columns=told.columns, parquet=told.parquet, truncated=told.truncated)

    async def _of_mesh(self, asked: SqlRequest) -> tuple[Told, list[str], list[Silent]]:
        """Raises what this node says to the query if no node can answer it."""
        rows = MAX_LIMIT if asked.over is not None else asked.limit
        peer_query = PeerQuery(sql=asked.sql, limit=rows, timeout_s=asked.timeout_s)
        cut: list[str] = []
        failed: dict[str, OutbidError] = {}
        nodes = {key: presence for key, presence in enumerate(self._nodes())}
        room = asyncio.Semaphore(PEERS_AT_ONCE)

        async with Joiner(self._folder) as joiner:

            async def ask(key: int, node: NodeId, name: str) -> None:
                try:
                    async with room:
                        found = await self._peer(node, peer_query)
                        await joiner.keep(f"{key:06}", name, found.columns, found.parquet)
                except OutbidError as error:
                    failed[f"{key:06}"] = error
                    return
                cut.extend([name] if found.truncated else [])

            await asyncio.gather(*(ask(key, node, name) for key, (node, name) in nodes.items()))
            if len(failed) == len(nodes):
                raise failed[min(failed)]
            over = Query(
                sql=asked.over if asked.over is not None else "FROM answers",
                limit=asked.limit,
                timeout_s=asked.timeout_s,
                format=asked.format,
            )
            told, refused = await joiner.join(over, rows)
        if told.error is not None:
            raise from_body(told.error)
        silent = {int(key): error.message for key, error in failed.items()}
        silent |= {int(key): why for key, why in refused.items()}
        views = [Silent(node=nodes[key][0], name=nodes[key][1], why=why) for key, why in sorted(silent.items())]
        return told, cut, _once([*views, *self._gone()])

    def _nodes(self) -> list[tuple[NodeId, str]]:
        """All nodes with their names, this one first."""
        others = [p for p in self._others() if p.state != "leaving"]
        return [(self.me, self.name), *((p.node, p.name) for p in sorted(others, key=lambda p: (p.name, p.node)))]

    def _others(self) -> list[Presence]:
        return [peer.presence for peer in self.registry if peer.presence.node != self.me]

    def _gone(self) -> list[Silent]:
        return [Silent(node=p.node, name=p.name, why="it went away a moment ago") for p in self.registry.lost(GONE_S)]

    async def _peer(self, node: NodeId, asked: PeerQuery) -> PeerAnswer:
        if node == self.me:
            return await self._peer_query(asked)
        timeout_s = asked.timeout_s + AFTER_S + WAY_S
        answer: PeerAnswer = await self._call(node, "query", asked, PeerAnswer, timeout_s)
        return answer

    async def _call(self, node: NodeId, verb: str, message: Any, type: Any, timeout_s: float) -> Any:
        """Raises OutbidError that says why the node's part is missing."""
        try:
            return await self.bus.call(subjects.node(node, verb), message, type, timeout_s=timeout_s)
        except (NoResponders, TimeoutError) as error:
            raise OutbidError("it did not answer") from error
        except OutbidError as error:
            if error.message.startswith("unknown verb"):
                raise OutbidError("its version of Outbid keeps no history") from error
            raise

    # -- the report -----------------------------------------------------------------------------------------------

    async def report(self, request: Request) -> None:
        asked: ReportRequest = _read(request, ReportRequest)
        if not asked.by or len(set(asked.by)) != len(asked.by):
            raise InvalidRequest("`by` must name one or more of person, capability, node, model, each once")
        from_ms, to_ms = period(asked)
        query = UsageQuery(from_ms=from_ms, to_ms=to_ms)
        nodes = self._nodes()
        found = await asyncio.gather(*(self._usage(node, query) for node, _ in nodes), return_exceptions=True)
        replies: list[tuple[NodeId, str, UsageReply]] = []
        silent: list[Silent] = []
        for (node, name), reply in zip(nodes, found, strict=True):
            if isinstance(reply, UsageReply):
                replies.append((node, name, reply))
            elif isinstance(reply, OutbidError):
                silent.append(Silent(node=node, name=name, why=reply.message))
            else:
                raise reply
        silent += await self._away(query, nodes)
        request.respond(report_of(replies, asked.by, from_ms, to_ms, _once([*silent, *self._gone()])))

    async def _usage(self, node: NodeId, query: UsageQuery) -> UsageReply:
        if node == self.me:
            return await self._used(query)
        reply: UsageReply = await self._call(node, "usage", query, UsageReply, USAGE_S + WAY_S)
        return reply

    async def _used(self, query: UsageQuery) -> UsageReply:
        await self._write_down()
        used = usage_of(await self._trusted(USAGE, query), await self._trusted(UNITS, query))
        users = {one.submitter for one in used}
        nodes = dict(self._nodes())
        names = await asyncio.to_thread(self.people.names, users, nodes)
        return UsageReply(used=tuple(used), names=names)

    async def _away(self, query: UsageQuery, asked: Sequence[tuple[NodeId, str]]) -> list[Silent]:
        """Nodes that did work for this one in that time and are not here now."""
        try:
            rows = await self._trusted(WORKERS, query)
        except OutbidError:
            return []
        here = {node for node, _ in asked}
        away = [(NodeId(str(node)), str(name)) for node, name in rows if node not in here]
        return [Silent(node=node, name=name, why="it is away, and did work in that time") for node, name in away]

    async def _trusted(self, sql: str, query: UsageQuery) -> Sequence[tuple[Any, ...]]:
        """A SELECT of ours: it need not wait for those of people."""
        sql = sql.format(from_ms=int(query.from_ms), to_ms=int(query.to_ms))
        return (await self._told(Query(sql=sql, limit=MAX_LIMIT, timeout_s=USAGE_S))).rows

    async def tables(self, request: Request) -> None:
        _read(request, dict)
        request.respond(table_list())


def _once(silent: Sequence[Silent]) -> list[Silent]:
    """Each node by what was said of it first."""
    return list({one.node: one for one in reversed(silent)}.values())[::-1]


def _read(request: Request, type: Any) -> Any:
    if request.read_format() is Format.TEXT and request.data:
        raise InvalidRequest('this endpoint takes a JSON object, e.g. {"month": "2026-11", "by": ["person"]}')
    return decode(request.data or b"{}", type, request.format if request.data else Format.JSON)
