"""How the runners of a node share its memory: who fits beside whom, who is stopped for whom, whose turn it is."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from outbid_node.runners.limits import Limits
from outbid_node.runners.machine import GONE, Phase
from outbid_node.runners.memory import SETTLE_S, Memory, Others, enough, gib, total
from outbid_node.runners.supervisor import Key, Supervisor, name_of
from outbid_node.runners.turns import OFFERED_S, RETURN_S, Holder, Rules, Turn, Want, changes_at, giving_way, plan


@dataclass(frozen=True, slots=True)
class Wanted:
    """A model for which jobs wait somewhere on the mesh. `load_s` is what loading it is expected to take."""

    key: Key
    memory: Memory
    load_s: float


@dataclass(slots=True)
class Demand:
    """`since` begins anew with each attempt taken. `gone_at`: since then no job waits for it. `open_at`: since then it
    could have been loaded.
    """

    wanted: Wanted
    since: float
    gone_at: float | None = None
    open_at: float | None = None


class Sharing:
    """Decides by `turns.plan`. `changed` is called when what it decides differs from before."""

    def __init__(
        self, budget: Memory, limits: Limits, runners: Mapping[Key, Supervisor], changed: Callable[[], None]
    ) -> None:
        self.budget = budget
        self.evicted = 0
        self._rules = Rules(limits.turn_loads, limits.turn_max_s)
        self._runners = runners
        self._changed = changed
        self._others = Others()
        self._whole = Memory()
        self._demands: dict[Key, Demand] = {}
        self._waited_for: tuple[Wanted, ...] = ()
        self.pinned: dict[Key, Wanted] = {}
        """What is to be in memory whether jobs wait for it or not; of these, `_called` are wanted there now."""
        self._called: frozenset[Key] = frozenset()
        self._decided: tuple[dict[Key, Key], set[Key]] = ({}, set())
        self._timer: asyncio.TimerHandle | None = None
        self._moved_at = 0.0
        self._was_short = False

    def close(self) -> None:
        self._demands.clear()
        if self._timer is not None:
            self._timer.cancel()

    # -- what is in use --------------------------------------------------------------------------------------------

    def need(self, supervisor: Supervisor) -> Memory:
        return supervisor.memory.placed(self.budget)

    def promised(self) -> Memory:
        """To all that stay."""
        return total(self.need(supervisor) for supervisor in self._staying())

    def in_use(self) -> Memory:
        """By all that have a process, those that leave included."""
        return total(self.need(supervisor) for supervisor in self._runners.values() if supervisor.process is not None)

    def available(self) -> Memory:
        """The budget, or what other programs leave of it."""
        return self._others.leave(self.budget, self._whole)

    # -- what may be loaded ----------------------------------------------------------------------------------------

    @property
    def demanded(self) -> bool:
        """Whether jobs wait for anything; else no runner gives way to another."""
        return bool(self._demands)

    def gives_way_to(self, key: Key) -> str:
        """The name of the runner that this one makes room for; empty if it may take more."""
        if not self._contended():
            return ""
        now = _now()
        want = giving_way(self._plan(now), now, self._rules).get(key)
        return name_of(want) if want else ""

    def refusal(self, key: Key, memory: Memory) -> tuple[str, bool]:
        """Why a runner that is not in memory cannot be started now (empty: it can), and whether that may pass."""
        need = memory.placed(self.budget)
        if never := self.never_fits(key, memory):
            return never, False
        now = _now()
        turn = self._plan(now, Want(key=key, need=need, load_s=0.0, since=now)).get(key)
        if turn is not None and turn.open:
            return "", True
        self._was_short = True
        return self._shortage(key, need, turn, now), True

    def never_fits(self, key: Key, memory: Memory) -> str:
        """Why a model cannot be loaded whatever else leaves; empty if it can."""
        need = memory.placed(self.budget)
        if not need.fits(self.budget):
            return f"needs {gib(need.ram_mib)}, the budget is {gib(self.budget.ram_mib)}"
        pinned = {other: self._known(one) for other, one in self.pinned.items() if other != key}
        short = need + total(pinned.values()) - self.budget
        return f"needs {short} memory than the budget leaves beside {_pinned(pinned)}" if short else ""

    def _known(self, wanted: Wanted) -> Memory:
        """What it takes: as measured, if it was ever loaded."""
        known = self._runners.get(wanted.key)
        return (known.memory if known else wanted.memory).placed(self.budget)

    def _shortage(self, key: Key, need: Memory, turn: Turn[Key] | None, now: float) -> str:
        available = self.available()
        if over := need - available:
            return f"needs {over} memory than other programs leave of the budget"
        stay = [held for held in self._holders(now) if held.idle_since is None or held.wanted or held.pinned]
        short = total(holder.need for holder in stay) + need - available
        if not short:
            return "waits for memory behind a model that was wanted before it"
        text = f"needs {short} memory than the budget leaves beside {', '.join(name_of(holder.key) for holder in stay)}"
        if turn is None or key not in self._demands:
            return text
        return f"{text}; its turn comes {f'in {turn.at - now:.1f} s' if turn.at > now else 'next'}"

    def evict_for(self, supervisor: Supervisor | None) -> None:
        """Stop idle runners until all that stay fit: those without waiting jobs first, then the least recently used,
        and only such as help. `None`: for other programs.
        """
        short = self.promised() - self.available()
        if not short:
            return
        ready = [other for other in self._staying() if other.state.phase is Phase.READY and not other.pinned]
        idle = [other for other in ready if other is not supervisor]
        idle.sort(key=lambda other: (self._is_wanted(other.key), other.last_used))
        chosen = enough(idle, self.need, short)
        for victim in [other for other in idle if self.need(other).helps(short)] if chosen is None else chosen:
            self.evicted += 1
            victim.log(logging.INFO, "runner_evicted", "evicted for %s", supervisor.name if supervisor else "others")
            victim.leave()

    # -- what is wanted --------------------------------------------------------------------------------------------

    def want(self, wanted: Iterable[Wanted]) -> None:
        """All that jobs wait for now; what is not among them is not wanted any more."""
        self._waited_for = tuple(wanted)
        now, found = _now(), {one.key: one for one in self._waited_for}
        found |= {key: one for key, one in self.pinned.items() if key in self._called}
        for key, demand in list(self._demands.items()):
            if demand.gone_at is not None and now - demand.gone_at > RETURN_S:
                del self._demands[key]
            elif key not in found:
                demand.gone_at = now if demand.gone_at is None else demand.gone_at
        for key, one in found.items():
            if key not in self._demands and (known := self._runners.get(key)) is not None and known.last_used:
                known.pause_s = now - known.last_used
            demand = self._demands.setdefault(key, Demand(one, now))
            demand.wanted, demand.gone_at = one, None
        self.review()

    def pin(self, key: Key, wanted: Wanted | None) -> None:
        """None: not any more."""
        self.pinned.pop(key, None)
        if wanted is not None:
            self.pinned[key] = wanted

    def call(self, keys: Iterable[Key]) -> None:
        """These pinned ones are to be loaded: they have a turn as if jobs waited for them."""
        called = frozenset(keys)
        if called != self._called:
            self._called = called
            self.want(self._waited_for)

    def taken(self, key: Key) -> None:
        """It got an attempt: what still waits for it waits anew."""
        if (demand := self._demands.get(key)) is not None:
            demand.since, demand.open_at = _now(), None

    def heed(self, budget: Memory, whole: Memory, free: Memory) -> None:
        """The probe's reading, once a second. What other programs need, our idle runners give back."""
        before = self.available()
        self.budget, self._whole = budget, whole
        if _now() - self._moved_at > SETTLE_S:
            self._others.observe(whole, free, self.in_use())
        if self.available() != before:
            self.evict_for(None)
            self._changed()
            self.review()

    def moved(self, supervisor: Supervisor, before: Phase) -> None:
        """Its phase was `before`."""
        if {before, supervisor.state.phase} - {Phase.READY, Phase.BUSY}:
            self._moved_at = _now()
        elif before is Phase.READY:
            supervisor.pause_s = _now() - supervisor.last_used
        self.review()

    def was_short(self) -> bool:
        """Whether something was refused for want of memory since this was asked last."""
        was, self._was_short = self._was_short, False
        return was

    def review(self) -> None:
        """See whose turn it is, tell of changes, and look again when the next one comes."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = _now()
        turns = self._plan(now) if self._contended() else {}
        if self._lapse(turns, now):
            turns = self._plan(now)
        decided = (giving_way(turns, now, self._rules), {key for key, turn in turns.items() if turn.open})
        if decided != self._decided:
            self._decided = decided
            self._changed()
        times = changes_at(turns, now, self._rules)
        times += [demand.open_at + OFFERED_S for demand in self._demands.values() if demand.open_at is not None]
        if times:
            self._timer = asyncio.get_running_loop().call_at(min(times) + 0.001, self.review)

    def _lapse(self, turns: Mapping[Key, Turn[Key]], now: float) -> bool:
        """Note since when each turn is offered. True if one was not taken for long: it begins to wait anew."""
        lapsed = False
        for key, demand in self._demands.items():
            if key not in turns or not turns[key].open:
                demand.open_at = None
            elif demand.open_at is None:
                demand.open_at = now
            elif now - demand.open_at >= OFFERED_S:
                demand.since, demand.open_at = now, None
                lapsed = True
        return lapsed

    # -- helpers ---------------------------------------------------------------------------------------------------

    def _staying(self) -> list[Supervisor]:
        """All in memory, or on their way there, that are not being stopped."""
        return [other for other in self._runners.values() if other.state.phase not in (*GONE, Phase.DRAINING)]

    def _is_wanted(self, key: Key) -> bool:
        demand = self._demands.get(key)
        return demand is not None and demand.gone_at is None

    def _contended(self) -> bool:
        """Whether something is wanted that is not in memory."""
        if not self._demands:
            return False
        staying = {other.key for other in self._staying()}
        return any(demand.gone_at is None and key not in staying for key, demand in self._demands.items())

    def _plan(self, now: float, asker: Want[Key] | None = None) -> dict[Key, Turn[Key]]:
        holders = self._holders(now)
        staying = {other.key for other in self._staying()}
        cold = [key for key in self._demands if key not in staying and self._is_wanted(key)]
        wants = [self._as_want(key) for key in cold]
        if asker is not None and asker.key not in cold:
            wants.append(asker)
        return plan(self.available(), holders, wants, now, self._rules)

    def _as_want(self, key: Key) -> Want[Key]:
        demand, known = self._demands[key], self._runners.get(key)
        memory = known.memory if known else demand.wanted.memory
        load_s = known.load_s if known and known.load_s else demand.wanted.load_s
        return Want(key=key, need=memory.placed(self.budget), load_s=load_s, since=demand.since)

    def _holders(self, now: float) -> list[Holder[Key]]:
        return [
            Holder(
                key=other.key,
                need=self.need(other),
                load_s=other.load_s,
                loaded_at=now if other.state.phase is Phase.STARTING else other.loaded_at,
                idle_since=other.last_used if other.state.phase is Phase.READY else None,
                wanted=self._is_wanted(other.key),
                pause_s=other.pause_s,
                pinned=other.pinned,
            )
            for other in self._staying()
            if self.need(other)
        ]


def _pinned(keys: Iterable[Key]) -> str:
    return ", ".join(f"{name_of(key)} (pinned)" for key in keys)


def _now() -> float:
    return asyncio.get_running_loop().time()
