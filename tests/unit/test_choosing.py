"""Laws of choosing between a slot that is free and one that will be: pure, so everything is tried on made-up nodes."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbid_contracts.ids import JobId, NodeId
from outbid_contracts.messages import Offer
from outbid_contracts.policy import Policy, Zone
from outbid_node.bidding import later_bid, make_bid
from outbid_node.choosing import CAUTION, HOLDS_S, OF_MANY, Plan, Want, choose, left_s, plan
from outbid_node.options import Option, pick
from outbid_node.outlook import Outlook
from outbid_node.places import FEW, Place, Places
from outbid_node.ranking import rank

NOW = 1000.0
FASTEST = Policy(goal="fastest")


def place(
    name: str,
    unit_s: float,
    *frees_s: float,
    slots: int = 1,
    free: int | None = None,
    spread: float = 1.2,
    zone: Zone = "lan",
    warm: bool = True,
    blocked: str = "",
    most_s: float | None = None,
    watts: float = 0.0,
) -> Place:
    """A node that takes `unit_s` per unit of work. Its slots are free but for those that are free in `frees_s`."""
    free = slots - len(frees_s) if free is None else free
    offer = Offer(
        capability="c",
        model=None,
        warm=warm,
        slots=slots,
        free=free,
        load_s=5.0,
        fixed_s=0.0,
        rates={"u": unit_s},
        spread=spread,
        blocked=blocked,
        most_s=most_s,
        watts=watts,
        default=True,
    )
    return Place(NodeId(name), offer, free, tuple(NOW + f for f in sorted(frees_s)), zone, name)


def want(units: float = 1.0, policy: Policy = FASTEST, *, excluded: Sequence[str] = (), tag: object = None) -> Want:
    return Want({"u": units}, policy, [NodeId(node) for node in excluded], tag=tag)


def went(made: Plan) -> list[str | None]:
    return [None if place is None else place.node for _, place in made.go]


def awaited(made: Plan) -> list[str | None]:
    return [None if wait.best is None else wait.best.node for wait in made.waits]


# -- whether to wait -------------------------------------------------------------------------------------------------


def test_the_slow_idle_node_is_left_when_the_fast_one_is_soon_free() -> None:
    made = plan([want()], Places([place("gpu", 1.0, 2.0), place("pi", 100.0)]), NOW)
    assert (went(made), awaited(made)) == ([], ["gpu"])
    assert made.waits[0].reason == "gpu is expected free in 2 s and finishes 97 s sooner than pi"


def test_the_slow_idle_node_is_taken_when_the_fast_one_is_busy_for_long() -> None:
    assert went(plan([want()], Places([place("gpu", 1.0, 99.0), place("pi", 100.0)]), NOW)) == ["pi"]


@given(st.lists(st.floats(0.0, 50.0), min_size=1, max_size=5), st.floats(0.01, 100.0), st.floats(1.0, 10.0))
def test_between_equal_nodes_no_job_waits_while_a_slot_idles(frees: list[float], unit_s: float, spread: float) -> None:
    places = [place(f"busy{n}", unit_s, free, spread=spread) for n, free in enumerate(frees)]
    assert went(plan([want()], Places([*places, place("idle", unit_s, spread=spread)]), NOW)) == ["idle"]


def test_the_less_is_known_the_sooner_an_idle_slot_is_taken() -> None:
    def tried(spread: float) -> list[str | None]:
        places = [place("gpu", 1.0, 6.0, spread=spread), place("pi", 10.0, spread=spread)]
        return went(plan([want()], Places(places), NOW))

    assert tried(1.2) == []
    assert tried(3.0) == ["pi"]


@pytest.mark.parametrize(("stretch", "expected"), [(1.25, ["own"]), (5.0, [])])
def test_an_idle_node_that_overran_a_little_is_not_left_for_an_equal_one_but_a_liar_is(
    stretch: float, expected: list[str]
) -> None:
    idle = place("own", 10.0, spread=1.1)
    idle.stretch = stretch
    assert went(plan([want()], Places([idle, place("other", 10.0, 0.5, spread=1.1)]), NOW)) == expected


def test_nobody_waits_for_a_busy_node_of_which_it_is_not_known_when_it_will_be_free() -> None:
    unknown = place("gpu", 1.0, free=0)
    overdue = place("late", 1.0, -30.0)
    assert went(plan([want()], Places([unknown, overdue, place("pi", 100.0)]), NOW)) == ["pi"]


def test_nobody_waits_for_a_node_that_went_or_is_blocked() -> None:
    places = Places([place("gpu", 1.0, 2.0), place("pi", 100.0)])
    job = want()
    assert went(plan([job], places, NOW)) == []
    places.put(place("gpu", 1.0, 2.0, blocked="drains"))
    assert went(plan([job], places, NOW)) == ["pi"]
    places.drop(NodeId("gpu"))
    assert went(plan([job], places, NOW)) == ["pi"]


def test_a_job_of_milliseconds_takes_any_free_slot_at_once() -> None:
    places = Places([place("gpu", 0.0001, 0.0001), place("pi", 0.04)])
    assert went(plan([want()], places, NOW)) == ["pi"]


@given(st.floats(0.5, 20.0), st.floats(5.0, 200.0), st.floats(1.0, 3.0))
def test_patience_ends_when_waiting_has_cost_what_it_was_to_gain(says_s: float, slow_s: float, spread: float) -> None:
    """The busy node always says that it is free in a moment, and never is."""
    job, now = want(), NOW
    while now < NOW + 4 * slow_s:
        gpu = place("gpu", 1.0, spread=spread, free=0)
        gpu.frees = (now + says_s,)
        if plan([job], Places([gpu, place("pi", slow_s, spread=spread)]), now).go:
            break
        now += 0.5
    assert now - NOW <= slow_s * (0.8 + 0.2 * spread) + 1.0


def test_a_deadline_that_only_the_busy_node_keeps_is_waited_for() -> None:
    places = Places([place("gpu", 4.0, 4.0, spread=1.0), place("pi", 9.0, spread=1.0)])
    assert awaited(plan([Want({"u": 1.0}, FASTEST, deadline=NOW + 8.5)], places, NOW)) == ["gpu"]
    assert went(plan([Want({"u": 1.0}, Policy(goal="fastest"), deadline=NOW + 20)], places, NOW)) == []
    close = Places([place("gpu", 4.0, 4.9, spread=1.0), place("pi", 8.9, spread=1.0)])
    assert went(plan([want()], close, NOW)) == ["pi"], "a gain within the least worth waiting for"


def test_wishes_make_no_job_wait() -> None:
    places = Places([place("dear", 1.0, 8.0), place("idle", 10.0, spread=1.0)])
    assert went(plan([want(policy=Policy(goal="fastest", prefer=("dear",)))], places, NOW)) == ["idle"]
    places = Places([place("gpu", 1.0, 2.0), place("dear", 100.0)])
    assert went(plan([want(policy=Policy(goal="fastest", prefer=("dear",)))], places, NOW)) == ["dear"]
    assert went(plan([want(policy=Policy(goal="fastest", avoid=("gpu",)))], places, NOW)) == ["dear"]


def test_green_waits_for_the_frugal_node() -> None:
    places = [place("frugal", 10.0, 10.0, watts=5.0, spread=1.0), place("hungry", 10.0, watts=300.0, spread=1.0)]
    assert awaited(plan([want(policy=Policy(goal="green"))], Places(places), NOW)) == ["frugal"]
    assert went(plan([want(policy=FASTEST)], Places(places), NOW)) == ["hungry"]


# -- the queue -------------------------------------------------------------------------------------------------------


def test_those_ahead_push_the_fast_node_away_until_the_slow_one_is_better() -> None:
    jobs = [want(10.0) for _ in range(12)]
    made = plan(jobs, Places([place("gpu", 1.0, 5.0), place("pi", 10.0)]), NOW)
    assert went(made) == ["pi"]
    chosen = jobs.index(made.go[0][0])
    assert 4 <= chosen <= 9, "the head waits for the fast one, and one behind takes the slow one"
    assert made.looked == chosen + 1, "nothing is looked at once no slot is left"


def test_among_equals_the_first_in_the_queue_goes_first() -> None:
    jobs = [want(tag=n) for n in range(5)]
    made = plan(jobs, Places([place("a", 1.0), place("b", 1.0, slots=2)]), NOW)
    assert [job.tag for job, _ in made.go] == [0, 1, 2]
    assert sorted(map(str, went(made))) == ["a", "b", "b"]


def test_slots_that_others_are_on_the_way_to_are_taken() -> None:
    places = Places([place("gpu", 1.0), place("pi", 2.0)])
    assert went(plan([want(), want()], places, NOW, on_way={NodeId("gpu"): 1})) == ["pi"]
    assert went(plan([want()], places, NOW, on_way={NodeId("gpu"): 1, NodeId("pi"): 1, NodeId("gone"): 3})) == []


def test_a_node_where_it_failed_is_taken_only_if_there_is_no_other() -> None:
    places = Places([place("gpu", 1.0), place("pi", 100.0)])
    assert went(plan([want(excluded=["gpu"])], places, NOW)) == ["pi"]
    places.drop(NodeId("pi"))
    assert went(plan([want(excluded=["gpu"])], places, NOW)) == ["gpu"]


def test_what_no_node_may_take_goes_to_hear_that_and_what_may_pass_waits() -> None:
    private = want(policy=Policy(goal="private"))
    assert went(plan([private], Places([place("cloud", 1.0, zone="cloud")]), NOW)) == [None]
    assert awaited(plan([want(50.0)], Places([place("laptop", 1.0, most_s=10.0)]), NOW)) == [None]


nodes = st.lists(
    st.tuples(
        st.floats(0.01, 100.0),
        st.integers(1, 4),
        st.lists(st.floats(0.0, 100.0), max_size=4),
        st.sampled_from(["", "", "", "busy with a game"]),
        st.sampled_from([None, None, 5.0]),
        st.sampled_from(["here", "lan", "wan", "cloud"]),
    ),
    min_size=1,
    max_size=3 * FEW,
)
wants = st.lists(
    st.tuples(
        st.floats(0.1, 50.0),
        st.sampled_from(["fastest", "balanced", "green", "private"]),
        st.none() | st.floats(1.0, 100.0),
        st.sets(st.integers(0, 5), max_size=2),
    ),
    max_size=12,
)


def made_places(drawn: list[tuple[float, int, list[float], str, float | None, Zone]]) -> Places:
    return Places(
        place(f"n{n:02}", unit, *frees[:slots], slots=slots, blocked=blocked, most_s=most_s, zone=zone)
        for n, (unit, slots, frees, blocked, most_s, zone) in enumerate(drawn)
    )


def made_wants(drawn: list[tuple[float, str, float | None, set[int]]]) -> list[Want]:
    return [
        Want(
            {"u": units},
            Policy(goal=goal),  # type: ignore[arg-type]
            [NodeId(f"n{n:02}") for n in sorted(excluded)],
            deadline=None if deadline is None else NOW + deadline,
        )
        for units, goal, deadline, excluded in drawn
    ]


@given(nodes, wants)
def test_nobody_is_sent_where_it_may_not_run_and_no_slot_is_given_twice(drawn_nodes: list, drawn_wants: list) -> None:  # type: ignore[type-arg]
    places, jobs = made_places(drawn_nodes), made_wants(drawn_wants)
    made = plan(jobs, places, NOW)
    given_out: dict[str, int] = {}
    for job, chosen in made.go:
        if chosen is None:
            assert all(p.zone not in ("here", "lan") for p in places)
            continue
        given_out[chosen.node] = given_out.get(chosen.node, 0) + 1
        assert not chosen.offer.blocked
        if job.policy.goal == "private":
            assert chosen.zone in ("here", "lan")
        beside = chosen.offer.slots - chosen.free
        if chosen.offer.most_s is not None:
            assert job.numbers(chosen, beside, True).finish_p90_s <= chosen.offer.most_s
        if chosen.node in job.excluded:
            assert all(p.node in job.excluded or not able(job, p) for p in places)
    assert all(count <= places.get(NodeId(node)).free for node, count in given_out.items())  # type: ignore[union-attr]
    asked = [id(job) for job, _ in made.go] + [id(wait.want) for wait in made.waits]
    assert len(set(asked)) == len(asked) == made.looked


def able(job: Want, place: Place) -> bool:
    """Whether it could ever run there, as things are."""
    return Outlook(Places([place]), NOW)._evaluate(job, place) is not None


@given(nodes, wants)
def test_who_waits_has_a_better_node_to_wait_for_or_no_idle_slot(drawn_nodes: list, drawn_wants: list) -> None:  # type: ignore[type-arg]
    for wait in plan(made_wants(drawn_wants), made_places(drawn_nodes), NOW).waits:
        if wait.best is None or wait.instead is None:
            assert wait.instead is None
        else:
            assert wait.best.later
            assert wait.best.cautious < wait.instead.score


@given(nodes, wants)
def test_equal_inputs_give_equal_plans(drawn_nodes: list, drawn_wants: list) -> None:  # type: ignore[type-arg]
    one = plan(made_wants(drawn_wants), made_places(drawn_nodes), NOW)
    shuffled = made_places(drawn_nodes)
    for known in random.Random(1).sample(list(shuffled), len(shuffled)):
        shuffled.changed(known.node)
    other = plan(made_wants(drawn_wants), shuffled, NOW)
    assert (went(one), awaited(one)) == (went(other), awaited(other))


# -- large meshes ----------------------------------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.sampled_from(["fastest", "green", "balanced"]), st.floats(10.0, 60.0))
def test_of_many_nodes_one_is_found_that_is_about_as_good_as_the_best(seed: int, goal: str, units: float) -> None:
    draw = random.Random(seed)
    many = [
        place(
            f"n{n:03}",
            10 ** draw.uniform(-2, 0),
            *([draw.uniform(0, 30)] if draw.random() < 0.8 else []),
            watts=draw.uniform(5, 300),
        )
        for n in range(200)
    ]
    job = want(units, Policy(goal=goal))  # type: ignore[arg-type]
    quick = Outlook(Places(many), NOW).options(job)
    whole = Outlook(Places(many), NOW)._best(job, many)
    best, exact = pick(*quick), pick(*whole)
    assert best is not None
    assert exact is not None
    assert best.score <= 2 * exact.score + 0.1


# -- looking again ---------------------------------------------------------------------------------------------------


def counted(monkeypatch: pytest.MonkeyPatch) -> list[Want]:
    """The jobs that are looked at in full from now on."""
    looked: list[Want] = []
    options = Outlook.options

    def look(outlook: Outlook, job: Want) -> tuple[Option | None, Option | None]:
        looked.append(job)
        return options(outlook, job)

    monkeypatch.setattr(Outlook, "options", look)
    return looked


def test_a_job_that_waits_is_not_looked_at_anew_while_nothing_has_more_room(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs, places = [want(), want()], Places([place("gpu", 1.0, 2.0), place("pi", 100.0)])
    assert went(plan(jobs, places, NOW, gains=places.gains())) == []
    looked = counted(monkeypatch)
    assert awaited(plan(jobs, places, NOW + HOLDS_S / 2, gains=places.gains())) == ["gpu", "gpu"]
    assert not looked
    plan(jobs, places, NOW + 4 * HOLDS_S, gains=places.gains())
    assert looked == jobs, "what was found holds for a while only"


@given(st.integers(0, 10_000))
def test_a_job_that_waits_goes_as_if_looked_at_anew_when_some_node_has_more_room(seed: int) -> None:
    """Invariant 3: what a job remembers keeps it from no slot that is better than what it waits for."""
    rng = random.Random(seed)
    nodes = [place(f"n{n}", rng.uniform(0.5, 30.0), rng.uniform(0.1, 30.0)) for n in range(rng.choice((3, FEW + 8)))]
    places, job = Places([*nodes, place("pi", rng.uniform(20.0, 200.0))]), want(rng.uniform(0.2, 5.0))
    plan([job], places, NOW, gains=places.gains())
    freed = rng.choice(nodes)
    freed.free, freed.frees = 1, ()
    places.changed(freed.node)
    fresh = want(job.work["u"])
    fresh.since = job.since
    now = NOW + rng.uniform(0.0, HOLDS_S)
    assert went(plan([job], places, now, gains=places.gains())) == went(plan([fresh], places, now))


def test_who_waits_for_a_node_that_went_is_looked_at_anew() -> None:
    job, places = want(), Places([place("gpu", 1.0, 2.0), place("pi", 100.0)])
    assert went(plan([job], places, NOW, gains=places.gains())) == []
    places.drop(NodeId("gpu"))
    assert went(plan([job], places, NOW, gains=places.gains())) == ["pi"]


def test_looking_again_costs_the_same_on_a_mesh_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []
    for count in (50, 1000):
        jobs = [want() for _ in range(40)]
        slow = [place(f"slow{n:03}", 200.0) for n in range(count // 2)]
        places = Places([*slow, *(place(f"fast{n:03}", 1.0, 1.0 + n / 100) for n in range(count // 2))])
        plan(jobs, places, NOW, gains=places.gains())
        looked: list[int] = []
        evaluate = Outlook._evaluate
        monkeypatch.setattr(Outlook, "_evaluate", lambda *args, of=evaluate, to=looked: (to.append(1), of(*args))[1])
        slow[0].free = 2
        places.changed(slow[0].node)
        assert went(plan(jobs, places, NOW + 0.01, gains=places.gains())) == []
        monkeypatch.undo()
        compared.append(len(looked))
    assert compared == [OF_MANY, OF_MANY], "one comparison for each job that is looked at"


def test_what_has_more_room_is_told_once() -> None:
    gpu, pi = place("gpu", 1.0, 2.0), place("pi", 100.0)
    places = Places([gpu, pi])
    assert set(places.gains()) == {"pi"}
    assert not places.grew
    assert not places.gains()
    gpu.free = 1
    places.changed(gpu.node)
    assert places.grew
    assert set(places.gains()) == {"gpu"}
    gpu.free = 0
    places.changed(gpu.node)
    assert not places.grew, "less room is no news"
    places.released(gpu.node)
    assert not places.grew, "its slot was taken by the job that was on its way there"
    places.released(pi.node)
    assert set(places.gains()) == {"pi"}


def test_the_orders_follow_what_changes() -> None:
    places = Places(place(f"n{n:02}", 1.0 + n) for n in range(2 * FEW))
    assert went(plan([want()], places, NOW)) == ["n00"]
    first = places.get(NodeId("n00"))
    assert first is not None
    first.free, first.frees = 0, (NOW + 500,)
    places.changed(first.node)
    assert went(plan([want()], places, NOW)) == ["n01"]
    places.drop(NodeId("n01"))
    places.put(place("n99", 0.5))
    made = plan([want(), want()], places, NOW)
    assert (went(made), awaited(made)) == (["n99"], ["n99"])
    assert places.room() == 2 * FEW - 1


# -- bids ------------------------------------------------------------------------------------------------------------


@given(st.floats(0.1, 50.0), st.floats(0.1, 50.0), st.floats(0.0, 60.0), st.floats(1.0, 3.0))
def test_bids_are_chosen_as_places_are(idle_s: float, busy_s: float, frees_s: float, spread: float) -> None:
    idle, busy = place("idle", idle_s, spread=spread), place("busy", busy_s, frees_s, spread=spread)
    bids = [
        make_bid(idle.node, JobId("j"), idle.offer, {"u": 1.0}, zone="lan", why=""),
        later_bid(busy.node, JobId("j"), busy.offer, {"u": 1.0}, start_s=frees_s, zone="lan"),
    ]
    for policy in (FASTEST, Policy(goal="balanced")):
        chosen = choose(rank(bids, policy), policy)
        assert chosen is not None
        made = plan([want(policy=policy)], Places([idle, busy]), NOW)
        assert [chosen.bid.node] == (awaited(made) if chosen.bid.later else went(made))


@given(st.floats(0.01, 1e4), st.floats(1.0, 10.0), st.floats(0.0, 1e5))
def test_what_is_left_is_never_negative_and_total_time_only_grows(
    p50_s: float, spread: float, elapsed_s: float
) -> None:
    now = left_s(p50_s, p50_s * spread, elapsed_s)
    soon = left_s(p50_s, p50_s * spread, elapsed_s + 0.1)
    assert now >= 0
    assert elapsed_s + now <= 1.001 * (elapsed_s + 0.1 + soon)
    assert elapsed_s + now >= 0.999 * p50_s


def test_a_job_at_its_promise_is_expected_to_take_a_little_longer_and_one_far_beyond_much_longer() -> None:
    assert left_s(10.0, 15.0, 0.0) == pytest.approx(10.0)
    assert 0.5 < left_s(10.0, 15.0, 10.0) < 4.0
    assert left_s(10.0, 15.0, 100.0) == pytest.approx(50.0)


def test_caution_is_between_the_median_and_the_p90() -> None:
    assert 0.0 <= CAUTION <= 1.0
