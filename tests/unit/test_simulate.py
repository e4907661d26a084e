"""The simulated machines and the rules that run on them: what must hold whoever decides."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Sequence

import pytest

from outbid_bench.simulate.baselines import (
    FewestInFlight,
    QueueThenBand,
    RandomFree,
    RoundRobin,
    Router,
    ScoreByLatency,
)
from outbid_bench.simulate.bounds import least_energy_j, least_mean_s, srpt_s
from outbid_bench.simulate.capacity import capacity, maximise
from outbid_bench.simulate.clock import Meter, Stuck, simulated
from outbid_bench.simulate.fleets import Absence, Plan, home, lab
from outbid_bench.simulate.hosts import EMPTY, Host
from outbid_bench.simulate.machines import CHAT, EMBED, GAMING, LAPTOP, MINI, PI, Engine, Machine
from outbid_bench.simulate.runs import BASELINE_NAMES, CLAIRVOYANT_NAMES, Figures, Setup, outbid, simulate
from outbid_bench.simulate.traces import Rate, Task, trace
from outbid_bench.simulate.world import Noise, World

WORK = "test.work"
SHORT = Setup(load=0.7, seed=3, span_s=240.0)


def a_machine(name: str, second_s: float, *, slots: int = 1, crowding: float = 0.0, load_s: float = 0.0) -> Machine:
    """Does a unit of work in `second_s` seconds."""
    engine = Engine({"units": second_s}, slots=slots, crowding=crowding, load_s=load_s)
    return Machine(name, {WORK: engine}, idle_w=10, busy_w=110)


def a_task(number: int, at_s: float = 0.0, units: float = 1.0) -> Task:
    return Task(number, at_s, WORK, {"units": units}, {"units": units}, "ada")


def exact(task: Task, kind: str) -> float:
    return 1.0


def played(plans: Sequence[Plan], tasks: Sequence[Task], scheduler: Router) -> World:
    with simulated() as loop:
        world = World(loop, plans, tasks, scheduler, seed=1)
        for host in world.hosts:
            host.noise = exact
        loop.run_until_complete(world.run(limit_s=1e6))
    return world


def where(world: World) -> dict[int, str]:
    return {result.task.number: result.host for result in world.results.values()}


def took(world: World) -> dict[int, float]:
    return {result.task.number: round(result.took_s, 6) for result in world.results.values()}


# -- clock -------------------------------------------------------------------------------------------------------------


def test_simulated_time_passes_without_waiting_and_all_clocks_agree() -> None:
    import time

    async def sleep() -> tuple[float, float, float]:
        began = time.monotonic(), time.time_ns(), asyncio.get_running_loop().time()
        await asyncio.sleep(86_400)
        return time.monotonic() - began[0], (time.time_ns() - began[1]) / 1e9, asyncio.get_running_loop().time()

    before = time.monotonic()
    with simulated() as loop:
        assert loop.run_until_complete(sleep()) == pytest.approx((86_400, 86_400, 86_400))
    assert time.monotonic() - before < 60


def test_waiting_for_what_never_comes_is_an_error() -> None:
    with simulated() as loop, pytest.raises(Stuck):
        loop.run_until_complete(loop.create_future())


def test_what_is_metered_within_what_is_metered_counts_once_and_what_is_aside_not_at_all() -> None:
    meter = Meter()

    def busy() -> int:
        return sum(range(300_000))

    meter.call(lambda: meter.call(busy))
    once = meter.spent_s
    meter.call(lambda: meter.aside(lambda: [busy() for _ in range(5)]))
    assert once > 0
    assert meter.spent_s < 2 * once


# -- machines ----------------------------------------------------------------------------------------------------------


def test_jobs_of_one_engine_crowd_each_other_as_declared() -> None:
    plans = [Plan("one", a_machine("m", 10.0, slots=2, crowding=0.5))]
    world = played(plans, [a_task(0), a_task(1)], RandomFree(1))
    assert took(world) == {0: 15.0, 1: 15.0}
    assert world.hosts[0].active_s == pytest.approx(15.0)
    assert world.hosts[0].energy_j == pytest.approx(1500.0)


def test_a_model_is_loaded_once_and_again_after_an_absence() -> None:
    machine = a_machine("m", 1.0, load_s=5.0)
    plans = [Plan("one", machine, absences=(Absence(100.0, 200.0),))]
    world = played(plans, [a_task(0), a_task(1, 10.0), a_task(2, 300.0)], RandomFree(1))
    assert took(world) == {0: 6.0, 1: 1.0, 2: 6.0}


def test_engines_at_work_at_once_share_the_machine() -> None:
    both = Machine("m", {WORK: Engine({"units": 10.0}), EMBED: Engine({"texts": 1.0})}, idle_w=0, busy_w=1)
    other = Task(1, 0.0, EMBED, {"texts": 5.0}, {"texts": 5.0}, "ben")
    assert took(played([Plan("one", both)], [a_task(0), other], RandomFree(1))) == {0: 15.0, 1: 10.0}


def test_a_host_refuses_what_it_has_no_slot_for() -> None:
    with simulated() as loop:
        host = Host(Plan("one", a_machine("m", 1.0)), loop, exact)
        host.start(a_task(0), lambda run: None)
        with pytest.raises(AssertionError, match="no slot"):
            host.start(a_task(1), lambda run: None)


def test_no_job_starts_before_it_came() -> None:
    with simulated() as loop:
        host = Host(Plan("one", a_machine("m", 1.0)), loop, exact)
        with pytest.raises(AssertionError, match="before it came"):
            host.start(a_task(0, at_s=1.0), lambda run: None)


def test_a_job_lost_with_its_machine_is_done_elsewhere_once_the_loss_is_noticed() -> None:
    plans = [
        Plan("fast", a_machine("f", 10.0), absences=(Absence(5.0, math.inf, abrupt=True),)),
        Plan("slow", a_machine("s", 100.0), absences=(Absence(0.0, 4.0),)),
    ]
    world = played(plans, [a_task(0)], RandomFree(1))
    assert where(world) == {0: "slow"}
    assert took(world)[0] == pytest.approx(5.0 + 3.2 + 100.0)
    assert world.results["job000000"].attempts == 2


def test_a_battery_without_a_guardian_runs_down_and_takes_the_machine_with_it() -> None:
    machine = Machine("b", {WORK: Engine({"units": 1.0})}, idle_w=10, busy_w=100, battery_wh=10)
    plans = [
        Plan("one", machine, unplugged=((0.0, 1000.0),), charge=0.5),
        Plan("two", a_machine("s", 9.0), absences=(Absence(0.0, 20.0),)),
    ]
    world = played(plans, [a_task(0, 1.0, units=600.0)], RandomFree(1))
    assert world.hosts[0].lowest_charge == pytest.approx(EMPTY)
    assert where(world) == {0: "two"}


# -- rules of others ---------------------------------------------------------------------------------------------------

THREE = [Plan(name, a_machine(name, 10.0)) for name in ("a", "b", "c")]


def test_round_robin_goes_round_whatever_is_busy() -> None:
    world = played(THREE, [a_task(n, 0.1 * n, units=9.0 if n == 0 else 1.0) for n in range(6)], RoundRobin(1))
    assert where(world) == {0: "a", 1: "b", 2: "c", 3: "a", 4: "b", 5: "c"}
    assert took(world)[3] > 90


def test_fewest_in_flight_counts_what_waits_too() -> None:
    plans = [Plan("a", a_machine("a", 10.0)), Plan("b", a_machine("b", 10.0, slots=4))]
    world = played(plans, [a_task(n, 0.1 * n) for n in range(6)], FewestInFlight(1))
    assert sorted(where(world).values()) == ["a", "a", "a", "b", "b", "b"]


def test_random_with_room_binds_late() -> None:
    world = played(THREE, [a_task(n, 0.1 * n, units=9.0 if n == 0 else 1.0) for n in range(5)], RandomFree(1))
    assert len({where(world)[n] for n in range(3)}) == 3
    assert max(took(world)[n] for n in (3, 4)) < 25


def test_pair_takes_the_shortest_queue_then_the_least_utilised_then_the_first_id() -> None:
    plans = [Plan("a", a_machine("a", 10.0, slots=4)), Plan("b", a_machine("b", 10.0, slots=4))]
    tasks = [a_task(n, 0.1 * n) for n in range(3)]
    assert where(played(plans, tasks, QueueThenBand(1))) == {0: "a", 1: "b", 2: "a"}


def test_the_score_prefers_a_loaded_model_and_a_deep_queue_has_it_loaded_elsewhere() -> None:
    plans = [Plan("a", a_machine("a", 10.0)), Plan("b", a_machine("b", 10.0))]
    found = where(played(plans, [a_task(n, 0.6 * n) for n in range(20)], ScoreByLatency(1)))
    assert found[0] == found[1] == "a"
    assert list(found.values()).count("b") > 4


# -- capacity and bounds -----------------------------------------------------------------------------------------------


def test_the_linear_program_is_solved() -> None:
    most, duals = maximise([3.0, 5.0], [[1.0, 0.0], [0.0, 2.0], [3.0, 2.0]], [4.0, 12.0, 18.0])
    assert most == pytest.approx(36.0)
    assert duals == pytest.approx([0.0, 1.5, 1.0])


def test_twice_the_machines_can_do_twice_as_much() -> None:
    one = [Plan("g", GAMING), Plan("m", MINI), Plan("p", PI)]
    assert capacity([*one, *one], 100.0).per_s == pytest.approx(2 * capacity(one, 100.0).per_s)


def test_a_machine_that_is_away_half_the_time_counts_half() -> None:
    away = Plan("g", GAMING, absences=(Absence(0.0, 50.0),))
    assert capacity([away], 100.0).per_s == pytest.approx(capacity([Plan("g", GAMING)], 100.0).per_s / 2)


def test_the_shortest_left_first_interrupts() -> None:
    assert srpt_s([(0.0, 10.0), (1.0, 2.0)], [(0.0, 1.0)]) == pytest.approx(12.0 + 2.0)
    assert srpt_s([(0.0, 10.0)], [(0.0, 1.0), (5.0, 0.0), (7.0, 5.0)]) == pytest.approx(8.0)


@pytest.mark.parametrize("seed", range(5))
def test_no_scheduler_beats_the_bounds(seed: int) -> None:
    rng = random.Random(seed)
    plans = home(rng, 300.0)
    most = capacity(plans, 300.0)
    tasks = trace(rng, [Rate(0.0, 300.0, 0.9 * most.per_s)])
    with simulated() as loop:
        world = World(loop, plans, tasks, RandomFree(seed), seed)
        loop.run_until_complete(world.run())
    mean_s = sum(result.took_s for result in world.results.values()) / len(tasks)
    assert least_mean_s(plans, tasks, Noise(seed), most.worth) <= mean_s
    assert least_energy_j(plans, tasks, Noise(seed)) <= sum(host.energy_j for host in world.hosts)


def test_arrivals_come_at_the_rates_asked_for_in_bursts_too() -> None:
    rates = [Rate(0.0, 5000.0, 2.0), Rate(5000.0, 10_000.0, 0.5)]
    for bursty in (False, True):
        tasks = trace(random.Random(1), rates, bursty=bursty)
        assert sum(task.arrives_s < 5000 for task in tasks) == pytest.approx(10_000, rel=0.15)
        assert sum(task.arrives_s >= 5000 for task in tasks) == pytest.approx(2_500, rel=0.25)


def test_a_lab_has_the_size_asked_for_and_somebody_who_accepts_jobs() -> None:
    for nodes in (10, 20, 200):
        plans = lab(nodes)(random.Random(1), 100.0)
        assert len(plans) == len({plan.name for plan in plans}) == nodes
        assert all(plan.absences == () for plan in plans if plan.owner)
        assert any(plan.owner for plan in plans)


# -- whole runs --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs() -> Callable[[str], Figures]:
    found: dict[str, Figures] = {}

    def of(name: str) -> Figures:
        if name not in found:
            found[name] = simulate(SHORT, name)
        return found[name]

    return of


@pytest.mark.parametrize("name", [*BASELINE_NAMES, *CLAIRVOYANT_NAMES, outbid("fastest"), outbid("green")])
def test_every_job_ends_once_and_none_is_lost(name: str, runs: Callable[[str], Figures]) -> None:
    figures = runs(name)
    assert figures.jobs == runs(BASELINE_NAMES[0]).jobs > 50
    assert sum(machine.jobs for machine in figures.machines) == figures.jobs
    assert figures.least_s <= figures.mean_s


def test_the_same_seed_gives_the_same_run(runs: Callable[[str], Figures]) -> None:
    once, again = runs(outbid("fastest")), simulate(SHORT, outbid("fastest"))
    assert (once.mean_s, once.energy_j, once.refusals) == (again.mean_s, again.energy_j, again.refusals)
    assert once.machines == again.machines


def test_who_knows_the_future_is_not_beaten_by_more_than_noise(runs: Callable[[str], Figures]) -> None:
    best = min(runs(name).mean_s for name in CLAIRVOYANT_NAMES)
    for name in (*BASELINE_NAMES, outbid("fastest")):
        assert runs(name).mean_s > 0.85 * best


def test_outbid_is_faster_than_every_other_rule(runs: Callable[[str], Figures]) -> None:
    mine = runs(outbid("fastest")).mean_s
    assert mine < 0.8 * min(runs(name).mean_s for name in BASELINE_NAMES)


def test_outbid_never_drains_a_battery_below_its_floor() -> None:
    from outbid_bench.simulate.hosts import FLOOR
    from outbid_bench.simulate.mesh import SimulatedMesh

    plans = [
        Plan("pi", PI, owner=True),
        Plan("laptop", LAPTOP, unplugged=((0.0, 10_000.0),), charge=FLOOR + 0.02),
    ]
    work = {"prompt_tokens": 50.0, "new_tokens": 100.0}
    tasks = [Task(n, 20.0 * n, CHAT, work, work, "ada") for n in range(40)]
    with simulated() as loop:
        world = World(loop, plans, tasks, SimulatedMesh(1, "fastest"), seed=1)
        loop.run_until_complete(world.run(limit_s=1e5))
    done = list(where(world).values())
    assert done.count("laptop") > 0
    assert done.count("pi") > 0
    assert world.hosts[1].lowest_charge >= FLOOR
