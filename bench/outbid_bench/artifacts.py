"""`artifacts`: a large file that a job made, fetched from the node that holds it and from another one."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from outbid import Mesh, Policy
from outbid.artifacts import Artifact
from outbid_bench.nodes import Fleet
from outbid_bench.options import Options
from outbid_bench.report import Aim, Section, Table
from outbid_bench.stats import ratios, spread
from outbid_contracts.ids import JobId

SIZE = 100_000_000
AIM_MB_PER_S = 300.0

PLAIN = "plain TCP stream to a file, neither checked nor kept"
STREAM, SAVE = "read on the holder, checked, in memory", "saved on the holder, checked, to a file"
AWAY = "saved from another node, checked, to a file"

Get = Callable[[], Awaitable[None]]


@dataclass(slots=True)
class Found:
    """MB/s of each round, by contender."""

    mb_per_s: dict[str, list[float]] = field(default_factory=dict)


async def run(options: Options) -> Section:
    async with AsyncExitStack() as stack:
        fleet = await stack.enter_async_context(Fleet(options.folder / "nodes"))
        await fleet.grow(2)
        holder, other = fleet.nodes
        here = await stack.enter_async_context(Mesh(state=holder.state))
        away = await stack.enter_async_context(Mesh(state=other.state))
        options.say("artifacts: making a file of 100 MB")
        policy = Policy(prefer=(holder.name,))
        made = await here.run("test.files", {"sizes": [SIZE]}, policy=policy, timeout_s=120)
        near, far = await _of(here, made["job"]), await _of(away, made["job"])
        source, file = options.folder / "source", options.folder / "copy"
        await asyncio.to_thread(source.write_bytes, os.urandom(SIZE))
        contenders: dict[str, Get] = {
            PLAIN: lambda: asyncio.to_thread(_stream, source, file),
            STREAM: lambda: _read(near),
            SAVE: lambda: _save(near, file),
            AWAY: lambda: _save(far, file),
        }
        found = await _measure(contenders, file, options)
    return _section(found)


async def _of(mesh: Mesh, job: JobId) -> Artifact:
    return (await mesh.artifacts(job))[0]


async def _read(artifact: Artifact) -> None:
    async for _ in artifact.stream():
        pass


async def _save(artifact: Artifact, file: Path) -> None:
    await artifact.save(file)


def _stream(source: Path, file: Path) -> None:
    """As fast as Python does it: `sendfile` to `recv_into` and `write`, from one thread to another."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        sender = threading.Thread(target=_send, args=(server, source))
        sender.start()
        room = memoryview(bytearray(1 << 20))
        with socket.create_connection(server.getsockname()) as connection, file.open("wb", buffering=0) as out:
            while got := connection.recv_into(room):
                out.write(room[:got])
        sender.join()


def _send(server: socket.socket, source: Path) -> None:
    taken, _ = server.accept()
    with taken, source.open("rb") as file:
        taken.sendfile(file)


async def _measure(contenders: dict[str, Get], file: Path, options: Options) -> Found:
    found = Found()
    for round in range(options.rounds + 1):
        options.say(f"artifacts: round {round} of {options.rounds}")
        for name, get in contenders.items():
            await asyncio.to_thread(file.unlink, missing_ok=True)
            begun = time.perf_counter()
            await get()
            if round:  # the first one warms up
                found.mb_per_s.setdefault(name, []).append(SIZE / 1e6 / (time.perf_counter() - begun))
    return found


def _section(found: Found) -> Section:
    section = Section(
        "artifacts",
        "Artifacts: a file of 100 MB",
        "Made by a job and kept in the holder's JetStream object store. On the holder the SDK reads the store itself; "
        "from another node the pieces cross ledger, router, router and ledger, paced so that heartbeats pass.",
    )
    plain = found.mb_per_s[PLAIN]
    rows = [
        (name, spread(mb_per_s).text(" MB/s", 0), ratios(mb_per_s, plain).text("x"))
        for name, mb_per_s in found.mb_per_s.items()
    ]
    section.tables = [Table("Fetching it", ("what", "rate", "of plain"), rows)]
    read = spread(found.mb_per_s[STREAM])
    met = read.median >= AIM_MB_PER_S
    section.aims = [Aim("get over loopback", f"≥ {AIM_MB_PER_S:.0f} MB/s", read.text(" MB/s", 0), met)]
    return section
