"""What the daemons of a fleet wrote down about durable jobs (`log.trace`), for tests to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from outbid.chaos.history import check
from outbid.chaos.record import Event, Notes, Seen, load
from tests.fleet import TEST_CAPABILITY, NodeProcess, eventually


class Traces:
    """One trace of all nodes of a fleet, and beside it what a test did to them."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "trace.jsonl"
        self.notes = Notes(folder / "notes.jsonl")

    def flags(self, *settings: str) -> tuple[str, ...]:
        """For nodes with the test capabilities; `settings` are `key=value`."""
        chosen = (f"log.trace={self.path}", *settings)
        return (*TEST_CAPABILITY, *(word for setting in chosen for word in ("--set", setting)))

    def events(self, what: str = "", job: str = "") -> list[Event]:
        found = load([self.path, self.notes.path])
        return [e for e in found if (not what or e["what"] == what) and (not job or e.get("job") == job)]

    def count(self, what: str, job: str) -> int:
        return len(self.events(what, job))

    async def until(self, what: str, job: str, count: int = 1, within_s: float = 20) -> Event:
        """The `count`-th such event."""

        def seen() -> Event | None:
            found = self.events(what, job)
            return found[count - 1] if len(found) >= count else None

        event: Event = await eventually(seen, within_s, f"{job} was not {what} {count} times:\n{self.told(job)}")
        return event

    def told(self, job: str) -> str:
        return "\n".join(str(event) for event in self.events(job=job))

    def killed(self, node: NodeProcess, process: str = "daemon") -> None:
        """Note it before anything may follow from it."""
        self.notes.note("killed", node=node.local.node, process=process)

    def assert_lawful(self, seen: Mapping[str, Seen] | None = None, *, tolerance_s: float = 2.0) -> None:
        """Every job that was accepted ended exactly once, and the other invariants of the history checker."""
        broken = check(self.events(), seen or {}, tolerance_s=tolerance_s)
        assert not broken, "\n".join(map(str, broken[:5]))


def overruns(events: Sequence[Event]) -> list[Event]:
    """Starts beyond the slots of a node."""
    return [event for event in events if event["what"] == "started" and event["running"] > event["slots"]]


def utilisation(events: Sequence[Event], slots: Mapping[str, int]) -> float:
    """Busy slot time over all slot time from the first start until the last: while there was work for everyone."""
    starts = [event for event in events if event["what"] == "started"]
    begin, end = int(starts[0]["mono"]), int(starts[-1]["mono"])
    open_at: dict[tuple[str, int], int] = {}
    busy = 0
    for event in events:
        key = (event.get("job", ""), event.get("attempt", 0))
        if event["what"] == "started":
            open_at[key] = event["mono"]
        elif event["what"] == "stopped" and key in open_at:
            busy += max(0, min(event["mono"], end) - open_at.pop(key))
    busy += sum(end - since for since in open_at.values() if since < end)
    return busy / ((end - begin) * sum(slots.values()))
