"""`tui`: what the dashboard costs at rest, and how soon a key is answered, with 100 nodes and 1,000 jobs on view."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from outbid_bench.crowd import Crowd
from outbid_bench.nodes import Fleet, Node
from outbid_bench.options import Options
from outbid_bench.processes import clean_environment, end
from outbid_bench.report import Aim, Section, Table
from outbid_bench.stats import percentile, ratios, spread

NODES, JOBS = 100, 1000
BARE = "bare"
SCREENS = ("mesh", "jobs", "auction", "models", "logs")
LINES, COLUMNS = 40, 140
START_S, SETTLE_S = 60.0, 6.0
WATCH_S = 4.0
PRESSES = 20
"""Of each app in each round, and how long they are watched at rest in it."""
PAUSE_S = 0.05
"""Between two presses: as fast as a keyboard repeats a key that is held down."""

MOST_CPU_PERCENT = 10.0
MOST_KEY_MS = 50.0
HOME_S, ANSWER_S = 0.5, 5.0
"""How long the cursor gets to the top, and the last of the keys are waited for."""

DOWN, UP, HOME = b"\x1b[B", b"\x1b[A", b"\x1b[H"


@dataclass(slots=True)
class Seen:
    """Of one app, a number for each round (milliseconds of each key for `keys_ms`)."""

    cpu_percent: list[float] = field(default_factory=list)
    paints_per_s: list[float] = field(default_factory=list)
    rss_mib: list[float] = field(default_factory=list)
    keys_ms: list[float] = field(default_factory=list)
    key_ms: list[float] = field(default_factory=list)
    """Median of each round."""


@dataclass(frozen=True, slots=True)
class App:
    process: psutil.Process
    terminal: int
    times: Path
    """What it says of itself: keys and paints."""


async def run(options: Options) -> Section:
    seen = {name: Seen() for name in (BARE, *options.few(SCREENS, 2))}
    async with AsyncExitStack() as stack:
        fleet = await stack.enter_async_context(Fleet(options.folder / "fleet", ()))
        node = await fleet.add("pi")
        local = await node.until_up()
        await stack.enter_async_context(Crowd(local.url, node.creds, nodes=NODES, jobs=JOBS))
        await asyncio.sleep(2)
        apps = {name: await stack.enter_async_context(_shown(name, options.folder / name, node)) for name in seen}
        await asyncio.gather(*(_on_view(app) for app in apps.values()))
        await asyncio.sleep(SETTLE_S)
        for round in range(options.rounds):
            options.say(f"tui: round {round + 1} of {options.rounds}")
            await _rest(apps, seen, options.few_or_many(WATCH_S / 2, WATCH_S))
            for name, app in apps.items():
                await _press(app, seen[name], options.few_or_many(PRESSES // 2, PRESSES))
    return _section(seen)


async def _on_view(app: App) -> None:
    async with asyncio.timeout(START_S):
        while not _paints(app.times):  # noqa: ASYNC110 - another process paints
            await asyncio.sleep(0.1)


async def _rest(apps: dict[str, App], seen: dict[str, Seen], seconds: float) -> None:
    """All of them at once."""
    before = {name: (_cpu_s(app.process), _paints(app.times)) for name, app in apps.items()}
    began = time.monotonic()
    await asyncio.sleep(seconds)
    lasted = time.monotonic() - began
    for name, app in apps.items():
        cpu_s, painted = before[name]
        seen[name].cpu_percent.append((_cpu_s(app.process) - cpu_s) / lasted * 100)
        seen[name].paints_per_s.append((_paints(app.times) - painted) / lasted)
        seen[name].rss_mib.append(app.process.memory_info().rss / 2**20)


async def _press(app: App, found: Seen, presses: int) -> None:
    """One after the other; the others are at rest meanwhile."""
    keys = await _answered(app, await _pressed(app.terminal, presses))
    found.keys_ms += keys
    found.key_ms.append(percentile(keys, 0.5))


@asynccontextmanager
async def _shown(name: str, times: Path, node: Node) -> AsyncIterator[App]:
    """An app in a terminal of its own, which takes keys. Raises RuntimeError if it ends by itself."""
    app, terminal = _in_a_terminal([name, str(times), str(node.state)])
    said = bytearray()
    loop = asyncio.get_running_loop()
    loop.add_reader(terminal, _drain, terminal, said)
    try:
        yield App(psutil.Process(app.pid), terminal, times)
    finally:
        ended = app.poll()
        loop.remove_reader(terminal)
        await asyncio.to_thread(end, app)
        os.close(terminal)
        if ended is not None:
            raise RuntimeError(f"{name} ended with {ended}:\n{said.decode(errors='replace')}")


def _in_a_terminal(arguments: list[str]) -> tuple[subprocess.Popen[bytes], int]:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    environment = clean_environment({"TERM": "xterm-256color", "COLORTERM": "truecolor"})
    command = [sys.executable, "-m", "outbid_bench.tui_timed", *arguments]
    app = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    return app, ours


def _drain(terminal: int, said: bytearray) -> None:
    with suppress(OSError):
        said += os.read(terminal, 1 << 20)
        del said[:-4000]


async def _pressed(terminal: int, presses: int) -> list[float]:
    """When each key was pressed. From the top the cursor goes down and up again, so that every key changes something
    (in a list that grows a cursor that stays on its row is at the end some day).
    """
    os.write(terminal, HOME)
    await asyncio.sleep(HOME_S)
    pressed: list[float] = []
    for number in range(presses):
        pressed.append(time.monotonic())
        os.write(terminal, DOWN if number % 20 < 10 else UP)
        await asyncio.sleep(PAUSE_S)
    return pressed


async def _answered(app: App, pressed: list[float]) -> list[float]:
    """Milliseconds from each press to the paint. Raises RuntimeError if many have none."""
    until, found = time.monotonic() + ANSWER_S, list[float]()
    while len(found) < len(pressed) and time.monotonic() < until:
        await asyncio.sleep(0.05)
        found = _matched(pressed, _lines(app.times))
    if len(found) < len(pressed) * 0.9:
        raise RuntimeError(f"only {len(found)} of {len(pressed)} keys were answered by a paint")
    return found


def _matched(pressed: list[float], lines: list[str]) -> list[float]:
    """Milliseconds from each press to the end of the paint that follows it: keys are taken in the order of the
    presses, and a key's paint is the first one that ends after it was taken in.
    """
    events = [(what, float(when)) for what, _, when in (line.partition(" ") for line in lines) if when]
    taken = [place for place, (what, when) in enumerate(events) if what == "key" and when >= pressed[0]]
    found = []
    for press, place in zip(pressed, taken, strict=False):
        painted = next((when for what, when in events[place:] if what == "paint"), None)
        if painted is not None:
            found.append((painted - press) * 1e3)
    return found


def _lines(times: Path) -> list[str]:
    return times.read_text().splitlines() if times.exists() else []


def _paints(times: Path) -> int:
    return sum(line.startswith("paint") for line in _lines(times))


def _cpu_s(app: psutil.Process) -> float:
    used = app.cpu_times()
    return float(used.user + used.system)


def _section(seen: dict[str, Seen]) -> Section:
    bare = seen[BARE]
    rows = [
        [
            "a bare Textual table" if name == BARE else f"screen {name}",
            spread(one.cpu_percent).text(" %", 1),
            spread(one.paints_per_s).text("", 1),
            f"{percentile(one.keys_ms, 0.5):.1f} ms",
            f"{percentile(one.keys_ms, 0.99):.1f} ms",
            ratios(one.key_ms, bare.key_ms).text("x"),
            f"{spread(one.rss_mib).median:.0f} MiB",
        ]
        for name, one in seen.items()
    ]
    columns = ("on view", "CPU at rest", "paints/s", "key to paint p50", "p99", "p50 beside bare", "memory")
    screens = {name: one for name, one in seen.items() if name != BARE}
    cpu = max(spread(one.cpu_percent).median for one in screens.values())
    key = max(percentile(one.keys_ms, 0.99) for one in screens.values())
    return Section(
        name="tui",
        title="The dashboard",
        about=f"`outbid tui` in a terminal of {COLUMNS}x{LINES}, at a node that sees {NODES} others (played on its bus,"
        f" each with a heartbeat a second) and {JOBS:,} jobs, with 50 events of jobs a second.",
        tables=[
            Table(
                "At rest, and while a key is held down",
                columns,
                rows,
                [
                    "CPU: part of one core, nobody presses a key. All are on view at once, each in a terminal of its"
                    " own; one at a time gets keys.",
                    "Key to paint: from the write into the terminal to the end of the app's write after it took the"
                    " key in. At rest the app paints some 4 to 6 times a second, so a few of the keys may be"
                    " matched with a paint that was under way.",
                ],
            )
        ],
        aims=[
            Aim(
                "CPU at rest, 100 nodes",
                f"below {MOST_CPU_PERCENT:.0f} % of a core",
                f"{cpu:.1f} %",
                cpu < MOST_CPU_PERCENT,
            ),
            Aim("key to paint, p99", f"below {MOST_KEY_MS:.0f} ms", f"{key:.1f} ms", key < MOST_KEY_MS),
        ],
    )
