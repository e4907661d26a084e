"""What a node writes down of its work: the jobs it owned, the bids it saw and made, what ran here, what happened.

Jobs of a few microseconds of work come at 5,000 a second, and a row for each would cost more than they do. So a job is
written down with all its attempts and bids if it took MIN_S, was asked for bids, failed or is durable, up to PLENTY_S
of them a second; of all others SAMPLED_S a second. Sums are exact all the same: every run counts in `usage`.

The calls come on the event loop and only decide; rows are built elsewhere, from what no longer changes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from outbid_contracts.ids import NodeId
from outbid_contracts.messages import CallForProposals, Done, Failed, Outcome, Proposal
from outbid_contracts.runner import Ready
from outbid_node.history import building
from outbid_node.history.interface import History
from outbid_node.history.rows import Events, Loads, Row
from outbid_node.history.usage import UsageSums
from outbid_node.history.words import LONGEST

if TYPE_CHECKING:
    from outbid_node.attempt import Attempt
    from outbid_node.owned import OwnedJob

MIN_S = 0.05
"""The same as `auction.ASK_WORTH_S`: what is too short to ask for is too short to write down."""

PLENTY_S, SAMPLED_S = 200.0, 20.0

WHAT_CHANGED = {"appeared": "node_appeared", "restarted": "node_restarted", "gone": "node_gone"}


class Allowance:
    """So many a second, and as many at once."""

    def __init__(self, per_s: float) -> None:
        self._per_s = self._left = per_s
        self._at = time.monotonic()

    def take(self) -> bool:
        now = time.monotonic()
        self._left = min(self._per_s, self._left + (now - self._at) * self._per_s)
        self._at = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


class Kind:
    """One sort of thing to be written down: what matters often, of the rest a sample."""

    def __init__(self) -> None:
        self._plenty, self._sampled = Allowance(PLENTY_S), Allowance(SAMPLED_S)

    def take(self, matters: bool) -> bool:
        return (matters and self._plenty.take()) or self._sampled.take()


class Recording:
    """`name_of` is called from another thread."""

    def __init__(self, me: NodeId, log: History, name_of: Callable[[NodeId], str], cpu_share: float) -> None:
        self.me = me
        self.log = log
        self.usage = UsageSums()
        self._name_of = name_of
        self._cpu_share = cpu_share
        self._jobs, self._runs, self._bids = Kind(), Kind(), Kind()

    def job_ended(self, owned: OwnedJob) -> None:
        """Nothing of it changes any more, but that its result is forgotten."""
        if self._jobs.take(_matters(owned)):
            self.log.note(partial(building.job_rows, owned, self._name_of))

    def run_ended(self, attempt: Attempt, outcome: Outcome) -> None:
        took_s = time.monotonic() - attempt.started
        failed = isinstance(outcome, Failed)
        self.usage.add(attempt, took_s, failed=failed)
        if self._runs.take(took_s >= MIN_S or not isinstance(outcome, Done) or attempt.job.durable):
            device = attempt.worker.device_of(attempt.entry, attempt.model)
            self.log.note(partial(building.run_rows, attempt, outcome, device, took_s, building.now_ms()))

    def bid_made(self, cfp: CallForProposals, proposal: Proposal) -> None:
        """For the job of another owner."""
        if not cfp.dry and self._bids.take(True):
            self.log.note(partial(building.made_rows, cfp, proposal, self._name_of(self.me), building.now_ms()))

    def runner_ready(self, capability: str, model: str | None, device: str, ready: Ready) -> None:
        self.log.note(
            Loads(
                at_ms=building.now_ms(),
                capability=capability,
                model=model,
                device=device,
                load_s=ready.load_s,
                memory_mib=ready.memory_mib,
                gpu_memory_mib=ready.gpu_memory_mib,
                rates=ready.rates,
                fixed_s=ready.fixed_s,
                cpu_share=self._cpu_share,
            )
        )

    def runner_failed(self, capability: str, model: str | None, load_s: float, error: str) -> None:
        """It ended before it was ready, so it has seen no prompt."""
        self.log.note(
            Loads(
                at_ms=building.now_ms(),
                capability=capability,
                model=model,
                device="",
                load_s=load_s,
                memory_mib=None,
                gpu_memory_mib=None,
                rates={},
                fixed_s=None,
                error=error[:LONGEST],
                cpu_share=self._cpu_share,
            )
        )

    def event(self, kind: str, node: NodeId | None = None, text: str = "") -> None:
        self.log.note(Events(at_ms=building.now_ms(), kind=kind, node=node or self.me, text=text[:LONGEST]))

    def attempt_lost(self, owned: OwnedJob, node: NodeId, code: str) -> None:
        if self._jobs.take(True):
            self.event("attempt_lost", node, f"{owned.job.id}/{owned.number}: {code}")

    def node_changed(self, node: NodeId, what: str) -> None:
        """As the registry tells it."""
        kind = WHAT_CHANGED.get(what)
        if kind is not None and node != self.me:
            self.event(kind, node, self._name_of(node))

    def flush_usage(self) -> None:
        """Write down what was summed up since the last time."""
        for row in self._summed():
            self.log.note(row)

    def _summed(self) -> Iterator[Row]:
        yield from self.usage.take()


def _matters(owned: OwnedJob) -> bool:
    return (
        owned.state != "done"
        or owned.terms is not None
        or (owned.took_s or 0.0) >= MIN_S
        or len(owned.attempts) != 1
        or owned.auctions[-1].how == "asked"
    )
