"""Uploading an artifact to the node that is to hold it."""

from __future__ import annotations

import asyncio
import time

from outbid_contracts import subjects
from outbid_contracts.artifacts import PIECE_BYTES, Artifact, PutArtifact, PutReply, job_of
from outbid_contracts.errors import NodeUnreachable
from outbid_contracts.ids import NodeId
from outbid_node.artifacts.shelf import Description
from outbid_node.client import Bus

WINDOW = 8
"""Pieces on their way, at most."""

PROMPT_S, SLOW_S = 0.1, 0.4
"""An answer within the one lets the window grow, one later than the other halves it: on a slow link the heartbeats of
this node stand behind the pieces, and three seconds without one is taken for its death.
"""

PIECE_S = 15.0


async def send(bus: Bus, holder: NodeId, said: Description, data: bytes) -> Artifact:
    """Returns when it is on the holder's disk. Raises what the holder refuses it with, NoResponders or TimeoutError."""
    window, sent, under_way = 2, 0, set[asyncio.Task[tuple[PutReply, float]]]()
    try:
        while True:
            while (sent < said.size or not sent + len(under_way)) and len(under_way) < window:
                under_way.add(asyncio.create_task(_send_piece(bus, holder, said, data, sent)))
                sent += PIECE_BYTES
                await asyncio.sleep(0)  # one piece per turn of the loop: each takes milliseconds
            if not under_way:
                raise NodeUnreachable("the node that was to keep the artifact was started again meanwhile")
            done, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
            if failed := [error for task in done if (error := task.exception()) is not None]:
                raise failed[0]
            for reply, took_s in [task.result() for task in done]:
                if reply.artifact is not None:
                    return reply.artifact
                window = max(1, window // 2) if took_s > SLOW_S else min(WINDOW, window + (took_s < PROMPT_S))
    finally:
        for task in under_way:
            task.cancel()


async def _send_piece(bus: Bus, holder: NodeId, said: Description, data: bytes, offset: int) -> tuple[PutReply, float]:
    """Its answer, and the seconds that it took."""
    put = PutArtifact(
        job=job_of(said.id),
        owner=said.owner,
        id=said.id,
        name=said.name,
        type=said.type,
        size=said.size,
        sha256=said.sha256,
        offset=offset,
        data=bytes(data[offset : offset + PIECE_BYTES]),  # it may be a memoryview
        keep_s=said.keep_s,
    )
    begun = time.perf_counter()
    reply: PutReply = await bus.call(subjects.node(holder, "artifact"), put, PutReply, timeout_s=PIECE_S)
    return reply, time.perf_counter() - begun
