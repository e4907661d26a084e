"""Who caused what the machine draws: joules and rent, shared by the attempts under way. Pure; the caller has the clock.

Each reading of the sources closes an interval, whose joules above idle are shared by what the attempts used in it:

- the cards' joules among the attempts on a card, by their seconds;
- the rest by processor time: a runner's share is its part of all processor time of the machine, and belongs to its
  attempts by their seconds. What other programs took is nobody's.

An attempt that ends between two readings is charged at once, at the rate of its last interval, or at what attempts of
its runner took before. What that was too much or too little is kept (`owed_j`) and made up by the next ones, so that

    joules of all attempts + owed_j = total_j, the integral of our part,

holds at each reading. Rent is shared equally by those under way, and exact at any time.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from outbid_node.power.processor import Runner
from outbid_node.power.sources import Draw

LEARN_S = 20.0
"""Attempt-seconds over which watts are learned: after so many, a new level counts for half."""

PRIOR_S = 1.0

SETTLE_S = 1.0
"""Attempt-seconds in which what is owed is made up."""

ON_PROCESSOR = frozenset({"", "cpu"})


@dataclass(frozen=True, slots=True)
class Spent:
    """`source` says how it is known: rapl, battery or declared, `+nvml` and `+amdgpu` where the cards told; several if
    it changed.
    """

    energy_j: float
    cost_usd: float
    source: str = "declared"


@dataclass(slots=True)
class _Attempt:
    runner: Runner
    since: float
    """Up to when it has been charged."""
    rent_before: float
    watts: float | None = None
    """In its last interval."""
    joules: float = 0.0
    usd: float = 0.0
    sources: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Learned:
    """A mean over attempt-seconds, in which the older ones fade. The prior counts as PRIOR_S."""

    watts: float
    seconds: float = PRIOR_S

    def note(self, joules: float, seconds: float) -> None:
        if seconds > 0:
            self.watts += (joules / seconds - self.watts) * seconds / (self.seconds + seconds)
            self.seconds = min(LEARN_S, self.seconds + seconds)


class Account:
    """Dollars: `usd_per_h` is rent, `usd_per_j` the present price of electricity, which the caller keeps up to date."""

    def __init__(self, *, prior_w: float, usd_per_h: float) -> None:
        """`prior_w`: what an attempt draws above idle before anything was measured."""
        self.prior_w = prior_w
        self.usd_per_s = usd_per_h / 3600
        self.usd_per_j = 0.0
        self.source = "declared"
        self.total_j = 0.0
        self.owed_j = 0.0
        self.devices: dict[Runner, str] = {}
        """The kind each runner runs on, where it said so."""
        self._attempts: dict[str, _Attempt] = {}
        self._ended_s: dict[Runner, float] = {}
        self._ended_j = 0.0
        self._learned: dict[tuple[str, Runner | None], _Learned] = {}
        self._rent = 0.0
        """What an attempt that was always there would owe by now."""
        self._rent_at = 0.0

    @property
    def active(self) -> bool:
        """Whether anything ran since the last reading."""
        return bool(self._attempts or self._ended_s)

    @property
    def on_card(self) -> bool:
        """Whether anything of it ran on a device other than the processor."""
        return any(map(self._on_card, self._seconds(0.0)))

    def begin(self, key: str, device: str, runner: Runner, now: float) -> None:
        if key not in self._attempts:
            self._pass_rent(now)
            self._attempts[key] = _Attempt(runner, now, self._rent)
            if device:
                self.devices[runner] = device

    def end(self, key: str, now: float) -> Spent | None:
        """None if it is not under way. Microseconds: no file is read."""
        attempt = self._attempts.get(key)
        if attempt is None:
            return None
        self._pass_rent(now)
        del self._attempts[key]
        seconds = max(0.0, now - attempt.since)
        watts = self.watts("", attempt.runner) if attempt.watts is None else attempt.watts
        self._charge(attempt, watts * seconds, seconds, self.usd_per_j)
        self._ended_j += watts * seconds
        self._ended_s[attempt.runner] = self._ended_s.get(attempt.runner, 0.0) + seconds
        rent = self._rent - attempt.rent_before
        return Spent(attempt.joules, attempt.usd + rent, ", ".join(attempt.sources))

    def watts(self, device: str, runner: Runner) -> float:
        """What an attempt draws above idle in its usual company: of this runner, else on this kind of device."""
        device = self.devices.get(runner, device)
        learned = self._learned.get((device, runner)) or self._learned.get((device, None))
        return learned.watts if learned else self.prior_w

    def close(self, draw: Draw, usd_per_j: float) -> None:
        """Share what was drawn in the interval that ended with this reading."""
        self.source = draw.source
        seconds = self._seconds(draw.ended)
        joules = self._split(draw, seconds)
        self.total_j += sum(joules.values())
        ended_j = sum(joules[runner] * spent / seconds[runner] for runner, spent in self._ended_s.items() if spent > 0)
        self.owed_j += ended_j - self._ended_j
        self._ended_s, self._ended_j = {}, 0.0
        for attempt in self._attempts.values():
            if (mine_s := draw.ended - attempt.since) > 0:
                mine_j = joules[attempt.runner] * mine_s / seconds[attempt.runner]
                attempt.watts, attempt.since = mine_j / mine_s, draw.ended
                self._charge(attempt, mine_j, mine_s, usd_per_j)
        for runner, spent in seconds.items():
            self._note(self.devices.get(runner, ""), runner, joules[runner], spent)

    def recall(self, device: str, runner: Runner, joules: float, seconds: float) -> None:
        """What attempts took before this start. The device of the last call is the one a cold runner will run on."""
        self.devices[runner] = device
        weight = min(LEARN_S, seconds) / seconds if seconds > 0 else 0.0
        self._note(device, runner, joules * weight, seconds * weight)

    # -- the shares -------------------------------------------------------------------------------------------------

    def _seconds(self, until: float) -> dict[Runner, float]:
        """Attempt-seconds of each runner that are not charged yet, or were before the watts were known."""
        seconds = dict(self._ended_s)
        for attempt in self._attempts.values():
            seconds[attempt.runner] = seconds.get(attempt.runner, 0.0) + max(0.0, until - attempt.since)
        return seconds

    def _split(self, draw: Draw, seconds: dict[Runner, float]) -> dict[Runner, float]:
        """Joules of each runner. One whose processor time could not be read counts as one core."""
        worked = draw.worked
        cores = {
            runner: worked.runners_s.get(runner, min(spent, draw.seconds)) if spent > 0 else 0.0
            for runner, spent in seconds.items()
        }
        all_s = max(worked.all_s, sum(cores.values()))
        on_card = {runner: spent for runner, spent in seconds.items() if self._on_card(runner)}
        on_card_s = sum(on_card.values())
        extra_j, cards_j = draw.extra_w * draw.seconds, draw.cards_extra_w * draw.seconds
        return {
            runner: extra_j * _part(cores[runner], all_s) + cards_j * _part(on_card.get(runner, 0.0), on_card_s)
            for runner in seconds
        }

    def _charge(self, attempt: _Attempt, joules: float, seconds: float, usd_per_j: float) -> None:
        """With its part of what is owed; never less than nothing."""
        charged = max(0.0, joules + self.owed_j * min(1.0, seconds / SETTLE_S))
        self.owed_j -= charged - joules
        attempt.joules += charged
        attempt.usd += charged * usd_per_j
        if self.source not in attempt.sources:
            attempt.sources.append(self.source)

    def _note(self, device: str, runner: Runner, joules: float, seconds: float) -> None:
        for key in ((device, runner), (device, None)):
            learned = self._learned.setdefault(key, _Learned(self.prior_w))
            learned.note(joules, seconds)

    def _on_card(self, runner: Runner) -> bool:
        return self.devices.get(runner, "") not in ON_PROCESSOR

    def _pass_rent(self, now: float) -> None:
        if self._attempts:
            self._rent += self.usd_per_s * max(0.0, now - self._rent_at) / len(self._attempts)
        self._rent_at = now


def _part(mine: float, whole: float) -> float:
    return mine / whole if whole > 0 else 0.0
