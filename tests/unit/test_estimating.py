"""The regression of a node's own speed: what it finds, how fast it turns, and that nothing makes it absurd."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outbid_contracts.capability import Capability, Prior
from outbid_contracts.messages import Offer
from outbid_node.estimate import estimate
from outbid_node.estimating.fit import Belief, fit
from outbid_node.estimating.learner import REFIT_S, Learner, Speed, WarmUp
from outbid_node.estimating.lengths import Length, needed, steps
from outbid_node.estimating.linear import non_negative
from outbid_node.estimating.run import MOST, Run
from outbid_node.estimating.speeds import Recalled, Speeds

PRIOR = Prior(load_s=4, fixed_s=0.02, rates={"prompt": 0.003, "new": 0.02}, crowding=0.5)
BELIEF = Belief(PRIOR.fixed_s, PRIOR.rates, PRIOR.crowding, 1.0)

TRUE_FIXED_S, TRUE_PROMPT_S, TRUE_NEW_S = 0.05, 0.001, 0.01
"""Of the machine that is learnt: other than the prior says, and not by one factor."""


class Machine:
    """Runs chats of all lengths at its true speed, give or take a tenth."""

    def __init__(self, seed: int = 0, slower: float = 1.0) -> None:
        self.random = random.Random(seed)
        self.slower = slower
        self.now = 0.0

    def clock(self) -> float:
        return self.now

    def run(self, *, measured: bool = True, beside: int = 0, crowding: float = 0.0, disturbed: float = 1.0) -> Run:
        prompt, new = float(self.random.choice([20, 60, 200, 800])), float(self.random.choice([8, 30, 120]))
        factor = self.slower * disturbed * self.random.lognormvariate(0, 0.1) * (1 + crowding * beside)
        prompt_s, new_s = TRUE_PROMPT_S * prompt * factor, TRUE_NEW_S * new * factor
        self.now += 1.0
        return Run(
            work={"prompt": prompt, "new": new},
            measured={"prompt": (prompt, prompt_s), "new": (new, new_s)} if measured else {},
            took_s=TRUE_FIXED_S * factor + prompt_s + new_s,
            beside=beside,
            at_s=self.now,
        )

    def off(self, speed: Speed) -> float:
        """The most by which a prediction differs from the truth, over jobs of all shapes."""
        worst = 1.0
        for prompt, new in ((20, 8), (20, 120), (800, 8), (800, 120), (200, 30)):
            truth = self.slower * (TRUE_FIXED_S + TRUE_PROMPT_S * prompt + TRUE_NEW_S * new)
            said = speed.fixed_s + speed.rates["prompt"] * prompt + speed.rates["new"] * new
            worst = max(worst, said / truth, truth / said)
        return worst


def learner(machine: Machine, prior: Prior = PRIOR) -> Learner:
    return Learner(prior, clock=machine.clock)


@pytest.mark.parametrize("measured", [True, False], ids=["each unit measured", "the whole time only"])
@pytest.mark.parametrize("seed", range(5))
def test_twenty_runs_teach_the_speed_of_jobs_of_every_shape(seed: int, measured: bool) -> None:
    machine = Machine(seed)
    learnt = learner(machine)
    assert machine.off(learnt.speed()) > 1.8
    for _ in range(20):
        learnt.note(machine.run(measured=measured))
    machine.now += REFIT_S
    assert machine.off(learnt.speed()) < 1.25


@pytest.mark.parametrize("seed", range(5))
def test_a_disturbance_now_and_then_does_not_move_the_estimate(seed: int) -> None:
    machine = Machine(seed)
    learnt = learner(machine)
    for number in range(40):
        learnt.note(machine.run(disturbed=8.0 if number % 5 == 4 else 1.0))
    machine.now += REFIT_S
    assert machine.off(learnt.speed()) < 1.3
    assert learnt.speed().spread > 2, "but it shows in how sure a promise is"


@pytest.mark.parametrize("slower", [0.5, 3.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_new_speed_is_believed_after_a_dozen_runs(seed: int, slower: float) -> None:
    machine = Machine(seed)
    learnt = learner(machine)
    for _ in range(40):
        learnt.note(machine.run())
    machine.slower = slower
    assert machine.off(learnt.speed()) > 1.8
    for _ in range(12):
        learnt.note(machine.run())
    machine.now += REFIT_S
    assert machine.off(learnt.speed()) < 1.4


def test_what_ran_a_season_ago_counts_less_than_what_ran_today() -> None:
    machine = Machine()
    learnt = learner(machine)
    for _ in range(40):
        learnt.note(machine.run())
    machine.now += 100 * 86400
    machine.slower = 3.0
    for _ in range(2):
        learnt.note(machine.run())
    machine.now += REFIT_S
    assert machine.off(learnt.speed()) < 1.35


def test_a_warm_up_replaces_the_guess_and_runs_the_warm_up() -> None:
    machine = Machine()
    learnt = learner(machine)
    assert learnt.speed().source == "prior"
    learnt.warmed_up(WarmUp(2.5, {"new": 0.5}))
    assert learnt.speed().rates["new"] == pytest.approx(0.5)
    assert learnt.speed().rates["prompt"] == pytest.approx(PRIOR.rates["prompt"])
    assert learnt.speed().source == "warm-up"
    for _ in range(10):
        learnt.note(machine.run())
    learnt.warmed_up(WarmUp(2.5, {"new": 0.5}))
    assert learnt.speed().rates["new"] == pytest.approx(TRUE_NEW_S, rel=0.3)
    assert learnt.speed().source == "10 jobs"


def test_the_loading_time_is_the_usual_one() -> None:
    learnt = learner(Machine())
    assert learnt.speed().load_s == PRIOR.load_s
    for load_s in (1.0, 1.2, 60.0, 1.1, math.nan, -1.0):
        learnt.warmed_up(WarmUp(load_s, {}))
    assert 1.0 <= learnt.speed().load_s <= 1.2


def test_a_cold_run_teaches_its_units_but_not_the_whole_time() -> None:
    machine = Machine()
    learnt = learner(machine)
    warm = machine.run()
    assert warm.took_s is not None
    learnt.note(Run(warm.work, warm.measured, warm.took_s + 100.0, warm=False))
    assert learnt.speed().rates["new"] == pytest.approx(TRUE_NEW_S, rel=0.3)
    assert learnt.speed().fixed_s < 0.1


def test_one_unit_that_costs_far_more_than_guessed_leaves_the_others_alone() -> None:
    learnt = learner(Machine())
    learnt.note(Run({"prompt": 10.0, "new": 10.0}, {"prompt": (10.0, 300.0)}, 300.2, warm=False))
    assert learnt.speed().rates["prompt"] == pytest.approx(30.0, rel=0.2)
    assert learnt.speed().rates["new"] == PRIOR.rates["new"]


def test_runs_with_hardly_any_work_say_nothing_of_what_work_costs() -> None:
    learnt = learner(Machine())
    for _ in range(20):
        learnt.note(Run({"new": 0.01}, {}, PRIOR.fixed_s / 4))
    assert learnt.speed().fixed_s == pytest.approx(PRIOR.fixed_s / 4, rel=0.2)
    assert learnt.speed().rates["new"] == pytest.approx(PRIOR.rates["new"], rel=0.3)


def test_crowding_is_learnt_from_runs_that_shared_a_runner() -> None:
    machine = Machine()
    learnt = learner(machine)
    for number in range(40):
        learnt.note(machine.run(beside=number % 4, crowding=0.9))
    machine.now += REFIT_S
    assert learnt.speed().crowding == pytest.approx(0.9, rel=0.25)
    assert machine.off(learnt.speed()) < 1.25, "and taken out of the rates"


def test_spread_narrows_on_a_steady_machine_and_stays_wide_while_little_is_known() -> None:
    machine = Machine()
    learnt = learner(machine)
    learnt.note(machine.run())
    assert learnt.speed().spread >= 2.0
    for _ in range(40):
        learnt.note(machine.run())
    machine.now += REFIT_S
    assert 1.05 < learnt.speed().spread < 1.5


def test_nine_in_ten_runs_end_within_the_p90() -> None:
    machine = Machine(7)
    learnt = learner(machine)
    kept = 0
    for number in range(230):
        machine.now += REFIT_S
        speed, run = learnt.speed(), machine.run()
        said = estimate(offer_of(speed), dict(run.work))
        assert run.took_s is not None
        kept += number >= 30 and run.took_s <= said.finish_p90_s
        learnt.note(run)
    assert 0.82 <= kept / 200 <= 0.99


def test_fitting_is_put_off_where_runs_come_by_the_thousand() -> None:
    machine = Machine()
    learnt = learner(machine)
    before = learnt.speed()
    learnt.note(machine.run())
    machine.now = REFIT_S / 2
    assert learnt.speed() is before
    machine.now = 2 * REFIT_S
    assert learnt.speed() is not before


# -- answers of unknown length ----------------------------------------------------------------------------------------


def test_answers_that_reach_their_bound_count_as_longer() -> None:
    ended = [Length(amount, open=False) for amount in (10, 20, 30, 40)]
    cut = [Length(16, open=True)] * 12
    assert needed(ended, 0.3) == 20
    assert needed([*ended, *cut], 0.3) == 30, "twelve more needed at least 16"


def test_nothing_is_said_of_the_longest_of_ten_after_three() -> None:
    assert needed([Length(10, open=False)] * 3, 0.9) == MOST
    assert needed([Length(10, open=False)] * 20, 0.9) == 10
    assert needed([], 0.5) == MOST


@given(st.lists(st.builds(Length, st.floats(0.1, 1e6), open=st.booleans())), st.floats(0.01, 0.99))
def test_longer_answers_are_needed_for_more_jobs(seen: list[Length], share: float) -> None:
    assert 0 < needed(seen, share) <= needed(seen, min(0.99, share + 0.1)) <= MOST


def test_who_asks_for_more_is_thought_to_need_more() -> None:
    short = [Length(90.0, open=False, asked=512.0)] * 9
    long = [Length(350.0, open=False, asked=1024.0)] * 9
    cut = [Length(16.0, open=True, asked=16.0)] * 9
    known = steps([*short, *long, *cut])
    assert [(round(least), usual) for least, usual, _ in known] == [(11, 90.0), (362, 90.0), (724, 350.0)]
    plain = offer_of(Speed(1.0, 0.0, {"new": 0.01}, typical_from={"new": known}))
    said = [estimate(plain, {"new": asked}).finish_s for asked in (8.0, 16.0, 60.0, 500.0, 1000.0, 5000.0)]
    assert said == pytest.approx([0.08, 0.16, 0.6, 0.9, 3.5, 3.5])
    assert steps(short) == (), "one class tells nothing that all together do not"


@given(
    st.lists(st.builds(Length, st.floats(0.1, 1e6), st.booleans(), asked=st.sampled_from([4.0, 32.0, 500.0, 9e3]))),
    st.lists(st.floats(0, 1e6), min_size=2, max_size=2),
)
def test_a_higher_bound_never_counts_as_less(seen: list[Length], bounds: list[float]) -> None:
    plain = offer_of(Speed(1.0, 0.1, {"new": 0.01}, typical_from={"new": steps(seen * 4)}))
    less, more = (estimate(plain, {"new": bound}) for bound in sorted(bounds))
    assert less.finish_s <= more.finish_s
    assert less.finish_p90_s <= more.finish_p90_s * (1 + 1e-9)


def test_bids_count_on_the_usual_length_of_an_answer() -> None:
    machine, now = random.Random(1), [0.0]
    learnt = Learner(PRIOR, ("new",), clock=lambda: now[0])
    for _ in range(40):
        length, cap = machine.lognormvariate(3.5, 0.5), machine.choice([20.0, 100.0, 1000.0])
        done = min(length, cap)
        learnt.note(Run({"prompt": 10.0, "new": cap}, {"new": (done, 0.01 * done)}, 0.05 + 0.01 * done))
    now[0] = 1.0
    usual, long = learnt.speed().typical["new"]
    assert 25 <= usual <= 50  # the median is 33
    assert long > usual
    said = estimate(offer_of(learnt.speed()), {"prompt": 10.0, "new": 1000.0})
    assert 0.3 < said.finish_s < 0.8, "a thousand tokens would take ten seconds"


# -- absurd histories -------------------------------------------------------------------------------------------------

NUMBER = st.one_of(st.floats(), st.sampled_from([0.0, 1e-320, 1e-9, 1e9, 1e300, -1.0, math.inf, math.nan]))
UNIT = st.sampled_from(["prompt", "new", "steps", "mpix"])
RUN = st.builds(
    Run,
    work=st.dictionaries(UNIT, NUMBER),
    measured=st.dictionaries(UNIT, st.tuples(NUMBER, NUMBER)),
    took_s=st.none() | NUMBER,
    warm=st.booleans(),
    beside=st.integers(0, 100).map(float),
    part=st.booleans(),
    at_s=st.floats(0, 4e9),
)
SOUND = st.floats(0, 1e6)


@settings(max_examples=200, deadline=None)
@given(
    runs=st.lists(RUN, max_size=12),
    prior=st.builds(Belief, SOUND, st.dictionaries(UNIT, SOUND), st.floats(0, 2), st.sampled_from([0.4, 1.0])),
)
def test_no_history_makes_an_estimate_absurd(runs: list[Run], prior: Belief) -> None:
    found = fit(runs, prior, ("new",))
    for number in (found.fixed_s, found.crowding, *found.rates.values()):
        assert 0 <= number <= MOST
    assert 1.0 <= found.spread <= 10.0


@settings(max_examples=100, deadline=None)
@given(
    factor=st.floats(1e-3, 1e3),
    jobs=st.lists(st.tuples(st.floats(1, 1e4), st.floats(1, 1e4)), min_size=1, max_size=20),
)
def test_a_machine_that_is_as_guessed_but_for_one_factor_is_found(
    factor: float, jobs: list[tuple[float, float]]
) -> None:
    runs = []
    for prompt, new in jobs:
        took_s = factor * (BELIEF.fixed_s + BELIEF.rates["prompt"] * prompt + BELIEF.rates["new"] * new)
        runs.append(Run({"prompt": prompt, "new": new}, {}, took_s))
    found = fit(runs * 5, BELIEF)
    prompt, new = jobs[-1]
    said = found.fixed_s + found.rates["prompt"] * prompt + found.rates["new"] * new
    truth = factor * (BELIEF.fixed_s + BELIEF.rates["prompt"] * prompt + BELIEF.rates["new"] * new)
    assert said == pytest.approx(truth, rel=0.15)


@given(st.lists(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=3), min_size=1, max_size=8), st.data())
def test_least_squares_never_answers_with_a_negative(rows: list[list[float]], data: st.DataObject) -> None:
    wanted = [data.draw(st.floats(-1e3, 1e3)) for _ in rows]
    matrix = [[sum(r[n] * r[m] for r in rows) + (1e-3 if n == m else 0) for m in range(3)] for n in range(3)]
    right = [sum(r[n] * w for r, w in zip(rows, wanted, strict=True)) for n in range(3)]
    assert all(value >= 0 and math.isfinite(value) for value in non_negative(matrix, right))


def test_least_squares_solves_what_has_a_solution() -> None:
    assert non_negative([[4.0, 1.0], [1.0, 3.0]], [6.0, 7.0]) == pytest.approx([1.0, 2.0])
    assert non_negative([[1.0, 0.5], [0.5, 1.0]], [1.0, -1.0]) == pytest.approx([1.0, 0.0])


# -- all of a node ----------------------------------------------------------------------------------------------------


class Node:
    """A node's speeds; models a, b and c of one capability, all guessed alike."""

    def __init__(self) -> None:
        self.machine = Machine(slower=3.0)
        self.speeds = Speeds(self.machine.clock)
        self.capability = Capability(name="llm.chat", summary="", params=Speed, result=Speed, runner="")  # type: ignore[arg-type]

    def learner(self, model: str, *, on_card: bool = False, guess: Callable[[], Prior] = lambda: PRIOR) -> Learner:
        return self.speeds.learner(self.capability, model, guess, on_card=on_card)

    def teach(self, model: str, runs: int = 20) -> None:
        for _ in range(runs):
            self.learner(model).note(self.machine.run())


def test_a_model_that_never_ran_is_thought_as_slow_as_the_others_were() -> None:
    node = Node()
    slow = Machine(slower=3.0)
    fresh = node.learner("b").speed()
    assert fresh.rates["new"] == PRIOR.rates["new"]
    node.teach("a")
    node.machine.now += 10.0
    carried = node.learner("b").speed()
    assert slow.off(carried) < 1.3
    assert carried.source == "prior", "nothing of it was measured"
    assert node.learner("c", on_card=True).speed().rates["new"] == PRIOR.rates["new"], "a card is another machine"


def test_what_one_device_showed_is_not_believed_of_another() -> None:
    node = Node()
    node.teach("a")
    node.speeds.runs_on("llm.chat", "a", "cpu")
    assert node.learner("a").runs == 20, "it was this device all along"
    node.speeds.runs_on("llm.chat", "a", "cuda")
    assert node.learner("a").runs == 0
    node.speeds.runs_on("llm.chat", "a", "cpu")
    assert node.learner("a").runs == 20


def test_the_history_goes_before_what_ran_since_the_start() -> None:
    node = Node()
    older = [node.machine.run() for _ in range(20)]
    node.machine.slower = 1.0
    node.teach("a", 12)
    node.speeds.recall({("llm.chat", "a"): recalled(older), ("llm.chat", "b"): recalled(older)})
    node.machine.now += REFIT_S
    assert node.learner("a").runs == 32
    assert node.machine.off(node.learner("a").speed()) < 1.35
    assert node.learner("b").runs == 20, "what is first asked for later finds its history too"


def recalled(runs: Sequence[Run]) -> Recalled:
    return Recalled(runs={"": list(runs)}, warm_ups={"": [WarmUp(2.0, {}, source="calibration")]})


def test_a_node_that_has_seen_no_answers_believes_the_lengths_the_others_saw() -> None:
    speeds, none = Speeds(), Speed(1.0, 0.0, {})
    theirs, ours = (Speed(1.0, 0.0, {}, typical={"new": (median, 90.0)}) for median in (40.0, 1.0))
    assert speeds.typical("llm.chat", "a", none) == ({}, {})
    speeds.heard(offer_of(theirs))
    speeds.heard(offer_of(none))
    assert speeds.typical("llm.chat", "a", none) == (theirs.typical, {})
    assert speeds.typical("llm.chat", "a", ours) == (ours.typical, {})


def offer_of(speed: Speed) -> Offer:
    return Offer(
        capability="llm.chat",
        model="a",
        warm=True,
        slots=1,
        free=1,
        load_s=speed.load_s,
        fixed_s=speed.fixed_s,
        rates=dict(speed.rates),
        spread=speed.spread,
        typical=speed.typical,
        typical_from=speed.typical_from,
    )
