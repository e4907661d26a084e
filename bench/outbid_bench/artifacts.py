"""`artifacts`: a large file that a job made, fetched from the node that holds it and from another one; plain HTTP."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from outbid import Mesh, Policy
from outbid.artifacts import Artifact
from outbid_bench.nodes import Fleet
from outbid_bench.options import Options
from outbid_bench.plots import Bars
from outbid_bench.processes import Helper
from outbid_bench.report import Aim, Section, Table
from outbid_bench.stats import ratios, spread
from outbid_contracts.ids import JobId

SIZE = 100_000_000
AIM_MB_PER_S = 300.0

PLAIN = "plain TCP stream to a file, neither checked nor kept"
HTTP, HTTP_CHECKED = "HTTP (aiohttp, sendfile) to a file, not checked", "HTTP (aiohttp, sendfile) to a file, checked"
STREAM, SAVE = "Outbid: read on the holder, checked, in memory", "Outbid: saved on the holder, checked, to a file"
AWAY = "Outbid: saved from another node, checked, to a file"

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
        digest = await asyncio.to_thread(_make, source)
        helper = await stack.enter_async_context(Helper("http_side", str(source), log=options.folder / "http.log"))
        http = await stack.enter_async_context(aiohttp.ClientSession(helper.hello["url"]))
        contenders: dict[str, Get] = {
            PLAIN: lambda: asyncio.to_thread(_stream, source, file),
            HTTP: lambda: _download(http, file),
            HTTP_CHECKED: lambda: _download(http, file, digest),
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


def _make(source: Path) -> str:
    """Returns its SHA-256."""
    content = os.urandom(SIZE)
    source.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


async def _download(http: aiohttp.ClientSession, file: Path, digest: str = "") -> None:
    """As a careful script does it; with `digest`, the content is checked on the way."""
    seen = hashlib.sha256()
    async with http.get("/file") as response:
        with file.open("wb", buffering=0) as out:
            async for block in response.content.iter_chunked(1 << 20):
                out.write(block)
                if digest:
                    seen.update(block)
    if digest and seen.hexdigest() != digest:
        raise RuntimeError("what came is not what was sent")


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
    plain, http = found.mb_per_s[PLAIN], found.mb_per_s[HTTP_CHECKED]
    rows = [
        (name, spread(rates).text(" MB/s", 0), ratios(rates, plain).text("x"), ratios(rates, http).text("x"))
        for name, rates in found.mb_per_s.items()
    ]
    notes = (
        "Checked: by SHA-256. A saved artifact appears under its name once it is right, and a broken off one is "
        "continued; the others leave what came.",
    )
    section.tables = [Table("Fetching it", ("what", "rate", "of plain", "of HTTP, checked"), rows, notes)]
    bars = [(name, spread(rates)) for name, rates in found.mb_per_s.items()]
    section.plots = [Bars("rate", "Fetching a file of 100 MB", "MB/s", bars)]
    read = spread(found.mb_per_s[STREAM])
    met = read.median >= AIM_MB_PER_S
    section.aims = [Aim("get over loopback", f"≥ {AIM_MB_PER_S:.0f} MB/s", read.text(" MB/s", 0), met)]
    return section
