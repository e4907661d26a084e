"""What was recorded about durable jobs while things were killed, and how a broken invariant is told.

A history is the lines of the daemons' traces (`log.trace`; `outbid_node.trace` has the table of them) and those that
whoever did the killing put beside them, in the order of the machine's monotonic clock:

| what | fields | |
|---|---|---|
| `killed` | `node`, `process` (daemon, runner, router, ledger), `sent` | SIGKILL, begun at `sent` |
| `frozen`, `resumed` | `node` | SIGSTOP and SIGCONT to its daemon or its router |
| `cut`, `healed` | `nodes` | the network between some of these is gone, is back |
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

Event = dict[str, Any]


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What clients were told about a job. `owner` said so when it acknowledged; the rest is what `result` gave in the
    end: an empty `state` if it gave nothing, `wrong` how the content differs from what it must be.
    """

    owner: str = ""
    state: str = ""
    digest: str = ""
    wrong: str = ""


class Violation(msgspec.Struct, frozen=True, kw_only=True):
    """A broken invariant and the lines of the history that show it."""

    invariant: int
    job: str
    what: str
    events: tuple[Event, ...] = ()

    def __str__(self) -> str:
        lines = "".join(f"\n    {show(event)}" for event in self.events)
        return f"invariant {self.invariant}, job {self.job}: {self.what}{lines}"


def load(paths: Iterable[Path]) -> list[Event]:
    """The histories in these files as one, in order of time. A line cut short by a full disk is left out."""
    events = [event for path in paths if path.exists() for line in path.open("rb") if (event := _event(line))]
    return sorted(events, key=lambda event: int(event["mono"]))


def _event(line: bytes) -> Event | None:
    try:
        event = msgspec.json.decode(line, type=Event)
    except msgspec.DecodeError:
        return None
    return event if isinstance(event.get("mono"), int) and "what" in event else None


def show(event: Event) -> str:
    """One line of a history for people: seconds of the monotonic clock first."""
    rest = " ".join(f"{key}={value}" for key, value in event.items() if key not in ("t", "mono", "what"))
    return f"{event['mono'] / 1e9:.4f} {event['what']} {rest}"


class Notes:
    """What the driver did, in a file beside the traces."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def note(self, what: str, **fields: Any) -> None:
        line = msgspec.json.encode({"t": time.time_ns(), "mono": time.monotonic_ns(), "what": what, **fields})
        with self.path.open("ab", buffering=0) as file:
            file.write(line + b"\n")

    @contextmanager
    def kill(self, process: str, node: str) -> Iterator[None]:
        """Notes a kill once it is over, so that nothing its victim did comes after it; `sent` is when it began."""
        sent = time.monotonic_ns()
        yield
        self.note("killed", node=node, process=process, sent=sent)
