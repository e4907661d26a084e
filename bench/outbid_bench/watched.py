"""Jobs of `failure`, as their clients see them: which pieces came and when, what the result was."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from outbid import Mesh, Policy
from outbid.chaos.record import Seen
from outbid.jobs import Job
from outbid_bench.deaths import ECHO
from outbid_contracts.digest import digest
from outbid_contracts.errors import OutbidError
from outbid_contracts.events import Chunk, Finished
from outbid_contracts.ids import JobId, new_job_id

PIECES, PACE_S = 100, 0.02
"""50 pieces a second, as a language model that answers briskly."""

PATIENCE_S = 60.0
TEXT = "".join(f"{number:04}" for number in range(PIECES))
ASKED = {"text": TEXT, "chunks": PIECES, "delay_s": PACE_S}


@dataclass(slots=True)
class Stream:
    """Of an interactive job: numbers of the pieces in the order they came, and when (monotonic clock)."""

    job: JobId
    numbers: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    text: str | None = None
    """Of the result; None if none came."""
    error: str = ""
    begun: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def lost(self) -> bool:
        return self.text is None

    @property
    def astray(self) -> int:
        """Pieces that are missing, or came twice, or out of their order; a wrong result counts as one."""
        wrong = abs(PIECES - len(self.numbers)) + sum(n != at for at, n in enumerate(self.numbers))
        return wrong + (self.text not in (None, TEXT))

    def pause_s(self, since: float) -> float:
        """The longest one between two pieces, of which the later came after that moment."""
        pairs = zip(self.times, self.times[1:], strict=False)
        return max((later - earlier for earlier, later in pairs if later > since), default=0.0)


def watch(mesh: Mesh, policy: Policy, count: int) -> tuple[list[Stream], list[asyncio.Task[None]]]:
    """So many streams, and the tasks that follow each to its end, whatever that is."""
    streams = [Stream(new_job_id()) for _ in range(count)]
    return streams, [asyncio.create_task(_follow(mesh, stream, policy)) for stream in streams]


async def _follow(mesh: Mesh, stream: Stream, policy: Policy) -> None:
    try:
        async with asyncio.timeout(PATIENCE_S):
            async for event in mesh.stream(ECHO, ASKED, policy=policy, job=stream.job):
                if isinstance(event, Chunk):
                    stream.times.append(time.monotonic())
                    stream.numbers.append(event.data["n"])
                    stream.begun.set()
                elif isinstance(event, Finished):
                    stream.text = event.result["text"]
    except (OutbidError, TimeoutError) as error:
        stream.error = f"{type(error).__name__}: {error}"
    finally:
        stream.begun.set()


async def hand_in(mesh: Mesh, policy: Policy, count: int) -> list[Job]:
    """Durable jobs; returns when all of them run."""
    job = {"capability": ECHO, "params": ASKED, "policy": policy, "max_attempts": 20, "keep_s": 3600.0}
    jobs = await mesh.submit_many([job] * count)
    async with asyncio.timeout(PATIENCE_S):
        for one in jobs:
            while (await one.status()).state != "running":  # noqa: ASYNC110 - another process decides that
                await asyncio.sleep(0.01)
    return jobs


async def read(mesh: Mesh, jobs: Sequence[Job]) -> dict[str, Seen]:
    """What a client that asks another node is told in the end."""
    return dict(zip([job.id for job in jobs], await asyncio.gather(*(_read(mesh, job) for job in jobs)), strict=True))


async def _read(mesh: Mesh, job: Job) -> Seen:
    owner = str(job.owner or "")
    try:
        reply = await mesh.attach(job.id).result(PATIENCE_S)
    except OutbidError as error:
        return Seen(owner=owner, wrong=f"{error.code}: {error.message}")
    result = {"text": reply["text"], "pid": reply["pid"]}
    wrong = "" if reply["text"] == TEXT else f"{reply['text']!r}, not {TEXT!r}"
    return Seen(owner=owner, state="done", digest=digest(result), wrong=wrong)
