"""`models`: a model copied from one node to another, beside a plain TCP stream between the same two hosts.

Two hosts in network namespaces (tests/lan.py), so no network card limits either of them. Linux, root.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from outbid import Mesh
from outbid_bench.options import Options
from outbid_bench.report import Aim, Section, Table
from outbid_bench.stats import percentile

if TYPE_CHECKING:
    from tests.lan import Host, Lan, LanNode

ROOT = Path(__file__).resolve().parents[2]
SIZE_BYTES = 500 * 1000 * 1000
PORT = 9000
AIM = 0.6

SEND = """
import os, socket, sys
with open(sys.argv[1], "rb") as file, socket.create_server(("", int(sys.argv[2]))) as server:
    print("ready", flush=True)
    taken, _ = server.accept()
    with taken:
        taken.sendfile(file)
"""
RECEIVE = """
import os, socket, sys, time
path, host, port = sys.argv[1:]
room = memoryview(bytearray(4 << 20))
out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
began = time.perf_counter()
with socket.create_connection((host, int(port))) as sock:
    while got := sock.recv_into(room):
        os.write(out, room[:got])
copied = time.perf_counter() - began
os.fsync(out)
print(copied, time.perf_counter() - began)
"""
"""What is compared with: no encryption, no check, a single file."""


async def run(options: Options) -> Section:
    section = Section(
        "models",
        "A model from one node to another",
        "500 MB over a direct connection between two hosts that are network namespaces of one machine: both ends share "
        "its processors. Plain: `sendfile` to `recv_into` and `write`, neither encrypted nor checked. A node encrypts "
        "with AES-256-GCM and checks the SHA-256 of every piece and of the whole while it copies.",
    )
    sys.path.insert(0, str(ROOT))  # the harness is a part of the tests
    from tests.lan import lan, unavailable

    if why := unavailable():
        section.tables = [Table("Not measured", ("why",), [(why,)])]
        return section
    file = options.folder / "large.gguf"
    sha256 = _make(file)
    with lan(options.folder / "lan") as net:
        plain, copied, ratios = await _measure(net, options, file, sha256)
    rows = [
        ("plain TCP stream, written", *_cells([it[0] for it in plain])),
        ("model copy, written and checked", *_cells([it[0] for it in copied])),
        ("plain TCP stream, and on the disk", *_cells([it[1] for it in plain])),
        ("model copy, and on the disk", *_cells([it[1] for it in copied])),
    ]
    section.tables = [Table("500 MB", ("", "median MB/s", "lowest", "highest"), rows)]
    ratio = percentile(ratios, 0.5)
    section.aims = [Aim("model copy, of a plain TCP stream", f"at least {AIM}x", f"{ratio:.2f}x", ratio >= AIM)]
    return section


def _make(file: Path) -> str:
    block, digest = os.urandom(1 << 20), hashlib.sha256()
    with file.open("wb") as out:
        for number in range(SIZE_BYTES // len(block) + 1):
            data = (b"GGUF" + number.to_bytes(8) + block)[: min(len(block), SIZE_BYTES - number * len(block))]
            digest.update(data)
            out.write(data)
    return digest.hexdigest()


async def _measure(
    net: Lan, options: Options, file: Path, sha256: str
) -> tuple[list[tuple[float, float]], list[tuple[float, float]], list[float]]:
    """Seconds until written and until on the disk: of the stream, of the copy; and how they compare, in turns."""
    giver, taker = (net.host(name).node("models") for name in ("giver", "taker"))
    for node in (giver, taker):
        node.spawn()
    await asyncio.gather(giver.until_up(), taker.until_up())
    await giver.host.call(lambda: _pull(giver, f"file:{file}", ""))
    plain, copied = [], []
    for number in range(options.rounds + 1):
        options.say(f"models: round {number} of {options.rounds}")
        stream = await asyncio.to_thread(_stream, giver.host, taker.host, file, options.folder / "copy")
        copy = await _copy(taker, sha256, number)
        if number:  # the first ones warm up
            plain.append(stream)
            copied.append(copy)
    return plain, copied, [a[0] / b[0] for a, b in zip(plain, copied, strict=True)]


def _stream(giver: Host, taker: Host, file: Path, to: Path) -> tuple[float, float]:
    command = ["ip", "netns", "exec", giver.namespace, sys.executable, "-c", SEND, str(file), str(PORT)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as sender:
        assert sender.stdout is not None
        sender.stdout.readline()
        copied, on_disk = taker.run(sys.executable, "-c", RECEIVE, str(to), "10.77.0.1", str(PORT)).split()
    to.unlink()
    return float(copied), float(on_disk)


async def _copy(taker: LanNode, sha256: str, number: int) -> tuple[float, float]:
    await taker.host.call(lambda: _pull(taker, f"https://nowhere.invalid/copy{number}.gguf", sha256))
    began, written, on_disk = (_when(taker, action) for action in ("pull_started", "pull_checked", "pull_done"))
    await taker.host.call(lambda: _remove(taker, f"copy{number}"))
    return written - began, on_disk - began


def _when(node: LanNode, action: str) -> float:
    return datetime.fromisoformat(node.lines(action)[-1]["time"]).timestamp()


async def _pull(node: LanNode, source: str, sha256: str) -> None:
    """The source on the internet does not exist: whoever has a file with that hash gives it."""
    async with Mesh(state=node.state) as mesh:
        for _ in range(300):
            if len(await mesh.nodes()) > 1:
                break
            await asyncio.sleep(0.1)
        async for _ in mesh.pull(source, sha256=sha256):
            pass


async def _remove(node: LanNode, model: str) -> None:
    async with Mesh(state=node.state) as mesh:
        await mesh.remove_model(model)


def _cells(seconds: list[float]) -> tuple[str, str, str]:
    rates = [SIZE_BYTES / 1e6 / it for it in seconds]
    return f"{percentile(rates, 0.5):.0f}", f"{min(rates):.0f}", f"{max(rates):.0f}"
