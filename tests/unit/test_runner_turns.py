"""Whose turn it is in memory: laws of the decision, and two saturated queues in a simulation."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from outbid_node.runners.memory import Memory
from outbid_node.runners.turns import PASSING_S, Holder, Rules, Turn, Want, giving_way, keeps_until, plan

RULES = Rules()
ONE = Memory(400)
"""What each model needs, of a budget of 500."""
BUDGET = Memory(500)


def holder(key: str = "a", *, idle: float | None = None, wanted: bool = True, loaded: float = 0.0) -> Holder[str]:
    return Holder(key=key, need=ONE, load_s=2.0, loaded_at=loaded, idle_since=idle, wanted=wanted)


def want(key: str = "b", since: float = 10.0, need: Memory = ONE) -> Want[str]:
    return Want(key=key, need=need, load_s=3.0, since=since)


def turn(holders: list[Holder[str]], wants: list[Want[str]], now: float, key: str = "b") -> Turn[str]:
    return plan(BUDGET, holders, wants, now, RULES)[key]


def test_where_there_is_room_nobody_waits() -> None:
    roomy = plan(Memory(800), [holder()], [want()], 10.0, RULES)["b"]
    assert roomy.open
    assert roomy.victims == ()


def test_a_busy_model_keeps_its_memory_for_three_times_what_both_take_to_load() -> None:
    found = turn([holder()], [want(since=10.0)], 10.0)
    assert not found.open
    assert found.at == 10.0 + 3 * (2.0 + 3.0)
    assert giving_way({"b": found}, 24.9, RULES) == {}
    assert giving_way({"b": found}, 25.0, RULES) == {"a": "b"}


def test_a_turn_begins_when_the_model_is_loaded_though_the_other_was_wanted_before() -> None:
    assert turn([holder(loaded=12.0)], [want(since=1.0)], 13.0).at == 12.0 + 15.0


def test_a_turn_is_no_longer_than_the_most() -> None:
    slow = Want(key="b", need=ONE, load_s=600.0, since=10.0)
    assert keeps_until(holder(), slow, RULES) == 10.0 + RULES.turn_max_s


def test_an_idle_model_that_nobody_wants_gives_way_at_once_to_whoever_comes_first() -> None:
    found = turn([holder(idle=9.0, wanted=False)], [want(since=10.0)], 10.0)
    assert found.open
    assert giving_way({"b": found}, 10.0, RULES) == {}  # it may as well take a job of its own


def test_a_pinned_model_gives_way_to_none_however_idle_it_is() -> None:
    pinned = Holder(key="a", need=ONE, load_s=2.0, loaded_at=0.0, idle_since=1.0, pinned=True)
    assert plan(BUDGET, [pinned], [want(since=10.0)], 1000.0, RULES) == {}
    other = holder("c", idle=900.0, wanted=False)
    found = plan(Memory(900), [pinned, other], [want(since=10.0)], 1000.0, RULES)["b"]
    assert (found.victims, found.open) == ((other,), True)


def test_between_two_of_its_waiting_jobs_a_model_is_not_taken_for_idle() -> None:
    between = [holder(idle=11.0)]
    assert not turn(between, [want()], 11.0).open
    assert turn(between, [want()], 11.0 + PASSING_S).open


@pytest.mark.parametrize(("pause_s", "kept_s"), [(0.2, 0.4), (0.25, 0.5), (0.26, 0.0), (60.0, 0.0)])
def test_a_model_that_is_asked_again_and_again_is_kept_over_short_pauses(pause_s: float, kept_s: float) -> None:
    looping = Holder(key="a", need=ONE, load_s=2, loaded_at=0, idle_since=11.0, pause_s=pause_s)
    assert keeps_until(looping, want(), RULES) == 11.0 + kept_s
    assert keeps_until(looping, want(), Rules(turn_max_s=1.0)) == 11.0  # not beyond its turn


def test_a_model_whose_turn_is_over_takes_nothing_more_until_the_other_is_loaded() -> None:
    for working in (holder(), holder(idle=26.0)):
        turns = plan(BUDGET, [working], [want()], 26.0, RULES)
        assert giving_way(turns, 26.0, RULES) == {"a": "b"}
        assert turns["b"].open == (working.idle_since is not None)


def test_who_waits_longest_comes_first_and_a_later_one_gets_what_that_leaves() -> None:
    small = Memory(50)
    wants = [want("late", since=20.0), want("small", since=21.0, need=small), want("early", since=10.0)]
    turns = plan(BUDGET, [holder()], wants, 30.0, RULES)
    assert turns["early"].victims == (holder(),)
    assert "late" not in turns
    assert turns["small"].open  # beside either of them


def test_a_stream_of_small_models_does_not_keep_a_large_one_out() -> None:
    wants = [want("large", since=10.0), want("small", since=11.0, need=Memory(101))]
    assert "small" not in plan(BUDGET, [holder()], wants, 12.0, RULES)  # it would fit now, but not beside the large one


def test_only_what_helps_gives_way() -> None:
    ram = Holder(key="ram", need=Memory(300, 0), load_s=1, loaded_at=0, idle_since=1.0)
    card = Holder(key="card", need=Memory(10, 600), load_s=1, loaded_at=0, idle_since=5.0)
    turns = plan(Memory(500, 1000), [ram, card], [want(need=Memory(10, 500))], 10.0, RULES)
    assert [victim.key for victim in turns["b"].victims] == ["card"]


# -- two saturated queues ----------------------------------------------------------------------------------------------


@dataclass
class Simulation:
    """One slot, memory for one of two models, `jobs` for each from the start. Seconds are simulated."""

    rules: Rules
    load_s: float = 2.0
    job_s: float = 0.5
    jobs: int = 100
    loads: int = 0
    waits: list[float] = field(default_factory=list)
    now: float = 0.0

    def run(self) -> None:
        left = {"a": self.jobs, "b": self.jobs}
        since = dict.fromkeys(left, 0.0)
        loaded, loaded_at = "b", 0.0
        while any(left.values()):
            other = "b" if loaded == "a" else "a"
            if not left[loaded] or (left[other] and self._gives_way(loaded, loaded_at, since[other])):
                self.loads += 1
                self.now += self.load_s
                loaded, loaded_at = other, self.now
            left[loaded] -= 1  # a model is loaded for a job, which it does first
            self.waits.append(self.now - since[loaded])
            since[loaded] = self.now
            self.now += self.job_s

    def _gives_way(self, loaded: str, loaded_at: float, since: float) -> bool:
        mine = Holder(key=loaded, need=ONE, load_s=self.load_s, loaded_at=loaded_at, idle_since=self.now, wanted=True)
        other = Want(key="other", need=ONE, load_s=self.load_s, since=since)
        return bool(giving_way(plan(BUDGET, [mine], [other], self.now, self.rules), self.now, self.rules))

    @property
    def worked(self) -> float:
        return 2 * self.jobs * self.job_s / self.now


def within_bounds(simulation: Simulation) -> bool:
    turn_s = simulation.rules.turn_loads * 2 * simulation.load_s or 3 * 2 * simulation.load_s
    few = simulation.loads <= 2 + 2 * simulation.jobs * simulation.job_s / turn_s
    last_jobs_s = 2 * simulation.job_s  # of both: one began just before, one just before the other's turn was over
    short = max(simulation.waits) <= turn_s + last_jobs_s + 2 * simulation.load_s + 0.001
    return few and short and simulation.worked >= 0.8


@pytest.mark.parametrize("load_s", [0.5, 2.0, 4.0])
@pytest.mark.parametrize("job_s", [0.05, 0.5, 3.0])
def test_two_saturated_queues_swap_seldom_and_nobody_waits_long(load_s: float, job_s: float) -> None:
    simulation = Simulation(RULES, load_s, job_s, jobs=int(100 / job_s))
    simulation.run()
    assert within_bounds(simulation), simulation


def test_giving_way_at_each_job_would_not_do() -> None:
    simulation = Simulation(Rules(turn_loads=0.0))
    simulation.run()
    assert simulation.loads == 200
    assert simulation.worked < 0.25
    assert not within_bounds(simulation)
