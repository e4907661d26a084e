"""`make bench-quick`: three minutes of ratios, compared with those that are kept in bench/quick.json.

    python -m outbid_bench.quick [--write] [CHECK…]

Exit code 1 if a ratio got worse by more than the noise. --write keeps this run with the latest others.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nats
import psutil

from outbid import Mesh
from outbid_bench.asking import Ask, noop, submitting, take_turns
from outbid_bench.chat_asking import Ask as AskChat
from outbid_bench.chat_asking import chat_flags, started, through_sdk
from outbid_bench.guard import Better, Ratio, Run, compare, keep, read
from outbid_bench.loops import run
from outbid_bench.machine import processor
from outbid_bench.nodes import NOOP, Fleet, Node, warm_noop
from outbid_bench.processes import Helper, clean_environment
from outbid_bench.report import Section
from outbid_bench.rivals.driving import Submit, drive
from outbid_bench.stats import percentile
from outbid_capabilities.llm.choice import ENGINES, installed
from outbid_capabilities.llm.models import bundled
from outbid_capabilities.llm.sizing import default_threads

FILE = Path(__file__).resolve().parents[1] / "quick.json"
ROUNDS = 5
NODES = 5
IN_FLIGHT = 64
BARE, ECHO = "bare", "bench.echo.near"
CONTEXT, SLOTS, TOKENS = 1024, 8, 48


@dataclass(slots=True)
class Ratios:
    """Collects them round by round."""

    found: dict[str, tuple[Better, list[float]]] = field(default_factory=dict)

    def add(self, name: str, better: Better, value: float) -> None:
        self.found.setdefault(name, (better, []))[1].append(value)

    def all(self) -> list[Ratio]:
        return [Ratio(name=name, better=better, rounds=tuple(found)) for name, (better, found) in self.found.items()]


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # so that what was started is ended
    kept = read(arguments.file)
    ratios = Ratios()
    for name in arguments.check or CHECKS:
        print(f"… {name}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="outbid-quick-", ignore_cleanup_errors=True) as folder:
            run(CHECKS[name](ratios, Path(folder)))
    table, worse = compare(ratios.all(), kept, whole=not arguments.check)
    print(Section("quick", "What moved", "Medians of rounds, with (lowest–highest).", [table]).as_text())
    if arguments.write:
        here = Run(measured=f"{datetime.now(UTC):%Y-%m-%d %H:%M}", machine=_machine(), ratios=tuple(ratios.all()))
        keep(arguments.file, kept, here)
    return 1 if worse else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m outbid_bench.quick", description="Which ratios moved.")
    parser.add_argument("check", nargs="*", choices=[[], *CHECKS], metavar="CHECK", help=f"of {', '.join(CHECKS)}")
    parser.add_argument("--write", action="store_true", help="keep this run")
    parser.add_argument("--file", type=Path, default=FILE, help="where runs are kept (%(default)s)")
    return parser


def _machine() -> str:
    return f"{processor()}, {psutil.cpu_count()} cores, {platform.system()} {platform.machine()}"


# -- jobs that do nothing ----------------------------------------------------------------------------------------------


async def dispatch(ratios: Ratios, folder: Path) -> None:
    """What the mesh costs beside a bare request; what a daemon weighs beside a bare client."""
    async with AsyncExitStack() as stack:
        fleet = await stack.enter_async_context(Fleet(folder))
        await fleet.grow(NODES)
        owner = fleet.nodes[0]
        await warm_noop(*fleet.nodes)
        local = await owner.until_up()
        log = folder / "echo.log"
        echo = await stack.enter_async_context(Helper("echo", local.url, owner.creds, ECHO, log=log))
        client = await nats.connect(local.url, user_credentials=owner.creds)
        stack.push_async_callback(client.close)
        mesh = await stack.enter_async_context(Mesh(state=owner.state))
        asks: dict[str, Ask] = {
            BARE: lambda: client.request(ECHO, b"{}", timeout=30),
            "plain request": noop(client, {}),
            "SDK": lambda: mesh.run(NOOP, {}),
        }
        for ask in asks.values():
            await drive(submitting(ask), IN_FLIGHT, 0.5)  # warm up
        for _ in range(ROUNDS):
            await _jobs(ratios, asks)
            await _durable(ratios, submitting(asks[BARE]), _durable_submit(mesh))
        for node in fleet.nodes:
            ratios.add("memory of a daemon, of a bare client's", "lower", _rss(node.process.pid) / _rss(echo.pid))


def _durable_submit(mesh: Mesh) -> Submit:
    async def submit(number: int) -> Awaitable[object]:
        return (await mesh.submit(NOOP, {})).result()

    return submit


async def _jobs(ratios: Ratios, asks: Mapping[str, Ask]) -> None:
    rates = {name: (await drive(submitting(ask), IN_FLIGHT, 1.0)).per_s for name, ask in asks.items()}
    alone = await take_turns(asks, blocks=5, each=30)
    p50_s = {name: percentile(seconds, 0.5) for name, seconds in alone.items()}
    for name in asks.keys() - {BARE}:
        ratios.add(f"jobs/s at {IN_FLIGHT} in flight, {name}, of bare requests", "higher", rates[name] / rates[BARE])
        ratios.add(f"p50 of one job at a time, {name}, of a bare request", "lower", p50_s[name] / p50_s[BARE])


async def _durable(ratios: Ratios, bare: Submit, ours: Submit) -> None:
    """Both ends of what a durable job costs: of a bare request, in which no disk has a part."""
    reference = (await drive(bare, IN_FLIGHT, 1.0)).per_s
    rate = (await drive(ours, IN_FLIGHT, 1.5)).per_s
    ratios.add(f"durable jobs/s at {IN_FLIGHT} in flight, SDK, of bare requests", "higher", rate / reference)


def _rss(pid: int) -> float:
    return float(psutil.Process(pid).memory_info().rss)


# -- starting ----------------------------------------------------------------------------------------------------------

_COMMANDS = {
    "import nats": ("-c", "import nats"),
    "import outbid": ("-c", "import outbid"),
    "outbid version": ("-c", "from outbid.cli import main; main()", "version"),
}


async def start(ratios: Ratios, folder: Path) -> None:
    """Whole Python processes, and a node until it answers, beside one that imports nats-py."""
    for number in range(ROUNDS + 1):
        took = {name: _seconds(arguments) for name, arguments in _COMMANDS.items()}
        up_s = await _node_up_s(folder, f"n{number}")
        if not number:
            continue  # the first one reads files from disk
        for name in ("import outbid", "outbid version"):
            ratios.add(f"`{name}`, of `import nats`", "lower", took[name] / took["import nats"])
        ratios.add("start of a node until it answers, of `import nats`", "lower", up_s / took["import nats"])


def _seconds(arguments: Iterable[str]) -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, env=clean_environment())
    return time.perf_counter() - begun


async def _node_up_s(folder: Path, name: str) -> float:
    async with Fleet(folder) as fleet:
        node: Node = fleet.spawn(name)
        await node.until_up()
        return time.monotonic() - node.started


# -- chats -------------------------------------------------------------------------------------------------------------


async def chat(ratios: Ratios, folder: Path) -> None:
    """Through the mesh beside the same engine called directly, and eight at once beside one after the other."""
    path, engines = bundled(), [name for name, module in ENGINES.items() if installed(module)]
    if path is None or not engines:
        print("… chat was left out: no engine or no model", file=sys.stderr)
        return
    threads = default_threads()
    async with AsyncExitStack() as stack:
        for engine in engines:
            fleet = await stack.enter_async_context(Fleet(folder / engine, chat_flags(engine, threads, SLOTS, CONTEXT)))
            node = await fleet.add("n")
            mesh = await stack.enter_async_context(Mesh(state=node.state))
            direct = await started(stack, folder, engine, path, threads, CONTEXT, 1)
            await _chats(ratios, engine, through_sdk(mesh), direct)


async def _chats(ratios: Ratios, engine: str, ours: AskChat, direct: AskChat) -> None:
    for ask in (ours, direct):
        await ask(_messages(0), 8)  # loads the model
    for number in range(ROUNDS):
        mine, theirs = await ours(_messages(number), TOKENS), await direct(_messages(number), TOKENS)
        rates = [answer.tokens / answer.total_s for answer in (mine, theirs)]
        ratios.add(f"tokens/s of a chat, {engine}, of the engine called directly", "higher", rates[0] / rates[1])
        ratios.add(
            f"time to first text, {engine}, of the engine called directly", "lower", mine.first_s / theirs.first_s
        )
        together = await _together_per_s(ours, number)
        ratios.add(f"tokens/s of {SLOTS} chats at once, {engine}, of one alone", "higher", together / rates[0])


async def _together_per_s(ask: AskChat, number: int) -> float:
    begun = time.perf_counter()
    answers = await asyncio.gather(*(ask(_messages(100 + number * SLOTS + n), TOKENS // 2) for n in range(SLOTS)))
    return sum(answer.tokens for answer in answers) / (time.perf_counter() - begun)


def _messages(number: int) -> list[dict[str, str]]:
    """Never the same twice, so that no engine has it in its cache."""
    return [{"role": "user", "content": f"Write a long story, number {number}, about two sailors."}]


# -- placement ---------------------------------------------------------------------------------------------------------

SEEDS = (1, 2)
SPAN_S = 600.0


async def placement(ratios: Ratios, folder: Path) -> None:
    """Simulated: each seed gives the same figures each time, until the market decides otherwise."""
    from outbid_bench.simulate.runs import Setup, outbid, simulate  # the daemon's code is loaded for this only

    fewest = "FewestInFlight"
    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        for seed in SEEDS:
            setup = Setup(seed=seed, span_s=SPAN_S)
            names = (fewest, outbid("fastest"), outbid("green"))
            other, fast, green = await asyncio.gather(
                *(loop.run_in_executor(pool, simulate, setup, name) for name in names)
            )
            home = f"simulated home {seed}"
            ratios.add(f"{home}: mean time, fastest, of fewest in flight", "lower", fast.mean_s / other.mean_s)
            ratios.add(f"{home}: energy, green of fastest", "lower", green.energy_j / fast.energy_j)


CHECKS: Mapping[str, Callable[[Ratios, Path], Coroutine[Any, Any, None]]] = {
    "dispatch": dispatch,
    "start": start,
    "chat": chat,
    "placement": placement,
}

if __name__ == "__main__":
    sys.exit(main())
