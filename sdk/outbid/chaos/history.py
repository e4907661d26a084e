"""The history checker: whether what was recorded about durable jobs (`record.py`) keeps the invariants. Pure.

The invariants, by their numbers in the design: 1 an acknowledged durable job ends in exactly one recorded terminal
state; 2 a settled result is never replaced and a stale attempt cannot settle; 3 no job waits while an able slot idles;
4 no node runs more than its slots.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from outbid.chaos.record import Event, Seen, Violation
from outbid.chaos.slots import Slots

_TAKEN_ON = frozenset({"accepted", "recovered", "adopted", "inherited"})
"""One of these is there for each job on an owner's disk: a kill may cut off the note of the acceptance."""


def check(
    history: Iterable[Event],
    acknowledged: Mapping[str, Seen],
    *,
    tolerance_s: float = 2.0,
    calm_s: float = 5.0,
) -> list[Violation]:
    """Every broken invariant, best first to read: by invariant, then job.

    `tolerance_s`: how long a ready job may wait beside a free slot. That is only looked for between nodes to which
    nothing was done in the last `calm_s`.
    """
    events = list(history)
    by_job: defaultdict[str, list[Event]] = defaultdict(list)
    slots = Slots(tolerance_s, calm_s)
    for event in events:
        if "job" in event:
            by_job[event["job"]].append(event)
        slots.take(event)
    traced = {event["node"] for event in events if "boot" in event}
    found = list(slots.violations)
    deaths = _deaths(events)
    for job in {**by_job, **acknowledged}:
        found += _Case(job, by_job[job], deaths).verdict(acknowledged.get(job), traced)
    return sorted(found, key=lambda violation: (violation.invariant, violation.job))


def _deaths(events: Iterable[Event]) -> dict[tuple[str, str], int]:
    """When each boot of a daemon was seen to be over: it was killed, stopped, or another one came up."""
    running: dict[str, str] = {}
    over: dict[tuple[str, str], int] = {}
    for event in events:
        node, boot = event.get("node", ""), event.get("boot")
        killed = event["what"] == "down" or (event["what"] == "killed" and event.get("process") == "daemon")
        if node in running and (killed or boot not in (None, running[node])):
            over.setdefault((node, running[node]), event["mono"])
        if boot is not None:
            running[node] = boot
    return over


class _Case:
    """The events of one job, and what is wrong with them (invariants 1 and 2)."""

    def __init__(self, job: str, events: list[Event], deaths: Mapping[tuple[str, str], int]) -> None:
        self.job = job
        self.events = events
        self.deaths = deaths
        self.found: list[Violation] = []
        self.owners: set[str] = set()
        self.newest: dict[str, int] = {}
        self.joined: set[int] = set()
        """Attempts that went on after pieces of earlier ones: the owner joins those with what is settled, so the result
        is another.
        """
        self.settled: list[Event] = []
        self.ended: list[Event] = []

    def verdict(self, seen: Seen | None, traced: set[str]) -> list[Violation]:
        """A job that no owner ever took on was none of theirs: interactive, or refused."""
        if seen is None and not any(event["what"] in _TAKEN_ON for event in self.events):
            return []
        for event in self.events:
            handle = getattr(self, f"_{event['what']}", None)
            if handle is not None:
                handle(event)
        if len(self.owners) > 1:
            self._blame(1, f"{len(self.owners)} nodes own it: {', '.join(sorted(self.owners))}", *self.events)
        if seen is None or seen.owner in ("", *traced):
            self._check_end(seen)
        if seen is not None:
            self._check_seen(seen)
        return self.found

    def _blame(self, invariant: int, what: str, *events: Event) -> None:
        self.found.append(Violation(invariant=invariant, job=self.job, what=what, events=events))

    # -- event by event -------------------------------------------------------------------------------------------

    def _accepted(self, event: Event) -> None:
        self.owners.add(event["node"])

    def _recovered(self, event: Event) -> None:
        self.owners.add(event["node"])
        self._not_after_the_end(event, "taken on again")

    def _adopted(self, event: Event) -> None:
        """A settlement of what the owner before had awarded is as good as before."""
        self.owners.discard(event["from_owner"])
        self.owners.add(event["node"])
        if event["from_owner"] in self.newest:
            self.newest[event["node"]] = self.newest[event["from_owner"]]

    def _moved(self, event: Event) -> None:
        self.owners.discard(event["node"])

    def _awarded(self, event: Event) -> None:
        before = self.newest.get(event["node"], 0)
        if event["attempt"] <= before:
            self._blame(2, f"attempt {event['attempt']} was awarded after attempt {before}", *self._awards())
        self.newest[event["node"]] = event["attempt"]
        if event.get("chunks"):
            self.joined.add(event["attempt"])
        self._not_after_the_end(event, "awarded")

    def _settled(self, event: Event) -> None:
        if not event["accepted"] or self._again(event):
            return
        newest = self.newest.get(event["node"])
        if event["attempt"] != newest:
            self._blame(2, f"attempt {event['attempt']} settled, the newest is {newest}", *self._awards(), event)
        for done in self.settled:
            if event["outcome"] == done["outcome"] == "done" and event["boot"] == done["boot"]:
                self._blame(2, "two results were accepted", *self._awards(), done, event)
        self._not_after_the_end(event, "settled")
        self.settled.append(event)

    def _ended(self, event: Event) -> None:
        self.ended.append(event)
        if len(self.ended) > 1:
            self._blame(1, f"it ended {len(self.ended)} times", *self.ended)
        self._check_settled(event)

    def _inherited(self, event: Event) -> None:
        """The end of an owner that is away, which may have recorded it itself: no second one if it is the same."""
        self.owners = {event["node"]}
        if any((end["state"], end["digest"]) != (event["state"], event["digest"]) for end in self.ended):
            self._blame(2, "another end was inherited than is recorded", *self.ended, event)
        self._check_settled(event)
        self.ended = self.ended or [event]

    def _check_settled(self, end: Event) -> None:
        if end["state"] == "done" and not any(self._is_of(done, end) for done in self.settled):
            self._blame(2, "its result is not one that was settled", *self.settled, end)

    def _again(self, event: Event) -> bool:
        """The same settlement once more, because the worker did not hear the answer."""
        return any(self._is_of(done, event) for done in (*self.settled, *self.ended))

    def _is_of(self, one: Event, other: Event) -> bool:
        same = one["digest"] == other["digest"] or one["attempt"] in self.joined
        return same and one["attempt"] == other["attempt"]

    def _not_after_the_end(self, event: Event, what: str) -> None:
        if any(end["node"] == event["node"] for end in self.ended):
            self._blame(2, f"{what} after its end", *self.ended, event)

    def _awards(self) -> list[Event]:
        return [event for event in self.events if event["what"] == "awarded"]

    # -- in the end -----------------------------------------------------------------------------------------------

    def _check_end(self, seen: Seen | None) -> None:
        known = any(event["what"] in _TAKEN_ON for event in self.events)
        if seen is not None and not known:
            self._blame(1, "it was acknowledged, and no owner has a record of it", *self.events)
        elif known and not self.ended and not self._note_cut_off(seen):
            self._blame(1, "it never ended", *self.events)

    def _note_cut_off(self, seen: Seen | None) -> bool:
        """Its owner was killed between the record and the note of it: clients read what was settled last before."""
        if seen is None or not self.settled:
            return False
        last = self.settled[-1]
        if seen.digest != last["digest"] and last["attempt"] not in self.joined:
            return False
        return self.deaths.get((last["node"], last["boot"]), 0) > int(last["mono"])

    def _check_seen(self, seen: Seen) -> None:
        if not seen.state:
            self._blame(1, "no node can tell how it ended", *self.events)
        if seen.wrong:
            self._blame(2, f"clients read {seen.wrong}", *self.events)
        for end in self.ended:
            if seen.state and (seen.state, seen.digest) != (end["state"], end["digest"]):
                self._blame(2, f"clients read {seen.state} {seen.digest}, recorded is another", *self.settled, end)
