"""One change of one durable job on its way to the disk: what it writes, and what its keys say about an earlier try."""

from __future__ import annotations

import asyncio
import logging
import math
from typing import Literal, NamedTuple

from outbid_contracts.codec import encode
from outbid_contracts.durable import DurableJob
from outbid_contracts.errors import OutbidError, PayloadTooLarge, StorageFailed
from outbid_contracts.ids import JobId, NodeId
from outbid_node.bus.config_text import MAX_PAYLOAD_MIB
from outbid_node.durable.stream import Outgoing, Stored

log = logging.getLogger(__name__)

MAX_RECORD = MAX_PAYLOAD_MIB * 2**20 - 64 * 1024
"""The rest is for headers: ours, and those that come with it when it is read."""

MARKER_S = 5
"""How long a purged key shows that it was purged: longer than any try of a batch could come late."""

UNKNOWN = -1
"""A key's revision when a job was refused and nobody knows whether its record is there: written unconditionally."""

KEPT_S = 86_400.0
"""An end that is kept shorter goes in one batch with the marker on its live key: after a power cut between the two, and
once the end has expired, the job would be live again.
"""

Verb = Literal["put", "end", "drop"]


class Change(NamedTuple):
    """What a commit did to one job: its new record, with `ended` its last one; None: it is no job of ours any more."""

    id: JobId
    record: DurableJob | None
    ended: bool


class Keys:
    """Subjects of the keys in the bucket. A job's id is one word, so keys of two are never taken for a job."""

    def __init__(self, node: NodeId) -> None:
        self.prefix = f"$KV.JOBS_{node}."

    # $KV.JOBS_7k2f9qzt.01k3m2v7x0
    def live(self, id: JobId | str) -> str:
        return f"{self.prefix}{id}"

    # $KV.JOBS_7k2f9qzt.ended.01k3m2v7x0
    def ended(self, id: JobId) -> str:
        return f"{self.prefix}ended.{id}"

    # $KV.JOBS_7k2f9qzt.broken.01k3m2v7x0
    def broken(self, id: JobId) -> str:
        return f"{self.prefix}broken.{id}"

    # $KV.JOBS_7k2f9qzt.meta.term
    @property
    def term(self) -> str:
        return f"{self.prefix}meta.term"


class Entry:
    """One job's next change and who waits for it."""

    __slots__ = ("data", "ended_at", "futures", "id", "live_at", "record", "verb")

    def __init__(self, id: JobId, verb: Verb, record: DurableJob | None) -> None:
        self.id = id
        self.verb: Verb = verb
        self.record = record
        self.data: bytes | None = None
        self.live_at: int | None = None
        self.ended_at = 0
        """Sequences of the markers that were found under the two keys, 0 for nothing; `live_at` None: the journal's own
        revision counts.
        """
        self.futures: list[asyncio.Future[None]] = []

    def replace(self, verb: Verb, record: DurableJob | None) -> None:
        """By something newer; an end is final."""
        if self.verb != "end":
            self.verb, self.record, self.data = verb, record, None

    def wait(self) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.futures.append(future)
        return future

    def succeed(self) -> None:
        for future in self.futures:
            if not future.done():
                future.set_result(None)

    def fail(self, error: OutbidError) -> None:
        log.warning("job %s: %s", self.id, error.message, extra={"action": "journal_refused", "job": self.id})
        for future in self.futures:
            if not future.done():
                future.set_exception(error)
                future.exception()  # logged above; whoever waits for it gets it all the same

    def encoded(self) -> bytes:
        """Raises PayloadTooLarge."""
        if self.data is None:
            self.data = b"" if self.record is None else encode(self.record)
        if len(self.data) > MAX_RECORD:
            raise PayloadTooLarge(
                f"job {self.id} takes {len(self.data) / 2**20:.1f} MiB where {MAX_RECORD / 2**20:.1f} MiB fit into"
                " one record; put the data in a file the node can read"
            )
        return self.data

    def expected(self, revision: int) -> int | None:
        """Of the live key; None: whatever it is."""
        revision = revision if self.live_at is None else self.live_at
        return None if revision == UNKNOWN else revision

    @property
    def size(self) -> int:
        """How many messages it takes."""
        return 2 if self.verb == "end" else 1

    @property
    def is_brief(self) -> bool:
        return self.verb == "end" and self.record is not None and self.record.terms.keep_s < KEPT_S

    def messages(self, keys: Keys, revision: int) -> list[Outgoing]:
        """For one batch."""
        if self.verb != "end" or self.record is None:
            return [self.message(keys, revision)]
        end = Outgoing(keys.ended(self.id), self.encoded(), self.ended_at, self._ttl(self.record))
        return [end, over(keys.live(self.id), self.expected(revision))]

    def message(self, keys: Keys, revision: int) -> Outgoing:
        """The one that makes the change; the marker that an end puts on the live key is `over`."""
        key, data, expected = keys.live(self.id), self.encoded(), self.expected(revision)
        if self.verb == "put":
            return Outgoing(key, data, expected)
        if self.verb == "drop" or self.record is None:
            return purge(key, expected)
        of_live = {"Nats-Expected-Last-Subject-Sequence-Subject": key}
        return Outgoing(keys.ended(self.id), data, expected, self._ttl(self.record) | of_live)

    def _ttl(self, record: DurableJob) -> dict[str, str]:
        return {"Nats-TTL": f"{max(1, math.ceil(record.terms.keep_s))}s"}

    def subjects(self, keys: Keys) -> list[str]:
        live = keys.live(self.id)
        return [live, keys.ended(self.id)] if self.verb == "end" else [live]

    def note_markers(self, live: Stored | None, ended: Stored | None) -> None:
        if live is None or live.removed:
            self.live_at = live.seq if live else 0
        self.ended_at = ended.seq if ended else 0


def judge(
    entry: Entry, expected: int | None, live: Stored | None, ended: Stored | None
) -> int | Literal["again", "conflict"]:
    """What the keys say about an entry whose batch met a conflict: stored by an earlier try (the sequence), to be tried
    again, or changed by another writer. `expected`: of the live key; None: anything.
    """
    live = None if live is None or live.removed else live
    ended = None if ended is None or ended.removed else ended
    as_expected = live is not None and expected in (None, live.seq)
    if entry.verb == "put" and live is None:
        return "conflict" if entry.live_at is None and expected else "again"
    if entry.verb == "put" and live is not None and live.data == entry.data:
        return live.seq
    if entry.verb == "drop" and live is None:
        return 0
    if entry.verb == "end" and ended is not None and ended.data != entry.data:
        return "conflict"
    if entry.verb == "end" and live is None:
        return "again" if ended is None else ended.seq
    return "again" if as_expected else "conflict"


def purge(subject: str, expected: int | None) -> Outgoing:
    headers = {"KV-Operation": "PURGE", "Nats-Rollup": "sub", "Nats-TTL": f"{MARKER_S}s"}
    return Outgoing(subject, b"", expected, headers)


def over(subject: str, expected: int | None) -> Outgoing:
    """On the live key of a job that has ended, until both are swept (`sweeper`)."""
    return Outgoing(subject, b"", expected, {"KV-Operation": "PURGE"}, beside=True)


def refusal(why: str) -> StorageFailed:
    return StorageFailed(f"durable jobs cannot be stored on this node: {why}")
