"""Journals of durable jobs on a real ledger, for tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import msgspec
import pytest

from outbid_contracts.durable import DurableJob, Terms
from outbid_contracts.ids import JobId, NodeId, new_job_id
from outbid_contracts.messages import Job
from outbid_node.durable.journal import Journal
from outbid_node.durable.stream import Stream
from tests.ledgers import OwnLedger, own_ledger

Open = Callable[..., Awaitable[Journal]]


@pytest.fixture
async def own(tmp_path: Path) -> AsyncIterator[OwnLedger]:
    async with own_ledger(tmp_path) as ledger:
        yield ledger


@pytest.fixture
async def opened(own: OwnLedger) -> AsyncIterator[Open]:
    journals: list[Journal] = []

    async def one() -> Journal:
        journal = Journal(await own.connect(), own.node, trouble=lambda: own.ledger.jetstream_error)
        journals.append(journal)
        await journal.open()
        return journal

    yield one
    for journal in journals:
        await journal.close()


def record(id: str | None = None, *, version: int = 0, size: int = 20, keep_s: float = 60, at: int = 0) -> DurableJob:
    """`version` tells one record of a job from the next."""
    job = Job(
        id=JobId(id or new_job_id()),
        owner=NodeId("owner"),
        capability="test.noop",
        params={"text": "x" * size},
        work={"calls": 1},
        created_ms=at,
        durable=True,
    )
    return DurableJob(job=job, terms=Terms(keep_s=keep_s), number=version)


def changed(before: DurableJob, version: int) -> DurableJob:
    return msgspec.structs.replace(before, number=version)


def done(before: DurableJob) -> DurableJob:
    return msgspec.structs.replace(before, state="done", ended_ms=1)


def ids(records: Sequence[DurableJob]) -> list[str]:
    return [record.job.id for record in records]


async def bucket(own: OwnLedger) -> Stream:
    return Stream(await own.connect(), f"KV_JOBS_{own.node}")


def key(own: OwnLedger, name: str) -> str:
    return f"$KV.JOBS_{own.node}.{name}"
