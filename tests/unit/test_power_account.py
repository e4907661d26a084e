"""Joules and rent shared among attempts: nothing is lost, nothing charged twice, nobody pays for others' programs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbid_node.power.account import LEARN_S, Account, Spent
from outbid_node.power.processor import Runner, Worked
from outbid_node.power.sources import Draw

CHAT: Runner = ("llm:Runner", "small")
IMAGE: Runner = ("image:Runner", "pictures")
RUNNERS = (CHAT, IMAGE, ("test:Runner", None))
USD_PER_J = 0.3 / 3.6e6


@dataclass
class Bench:
    """An account with a clock of its own, and what came out of it."""

    account: Account
    now: float = 0.0
    read_at: float = 0.0
    spent: dict[str, Spent] = field(default_factory=dict)

    def begin(self, key: str, runner: Runner = CHAT, device: str = "cpu") -> None:
        self.account.begin(key, device, runner, self.now)

    def end(self, key: str) -> Spent | None:
        if (spent := self.account.end(key, self.now)) is not None:
            self.spent[key] = spent
        return spent

    def final(self, key: str) -> Spent:
        spent = self.end(key)
        assert spent is not None
        return spent

    def read(
        self,
        *,
        extra_w: float = 0.0,
        cards_w: float = 0.0,
        runners_s: dict[Runner, float] | None = None,
        all_s: float = 0.0,
        source: str = "rapl",
    ) -> None:
        draw = Draw(
            began=self.read_at,
            ended=self.now,
            machine_w=extra_w + cards_w,
            extra_w=extra_w,
            cards_extra_w=cards_w,
            source=source,
            worked=Worked(all_s, runners_s or {}, 0.5),
        )
        self.read_at = self.now
        self.account.close(draw, USD_PER_J)


def bench(prior_w: float = 50.0, usd_per_h: float = 0.0) -> Bench:
    made = Bench(Account(prior_w=prior_w, usd_per_h=usd_per_h))
    made.account.usd_per_j = USD_PER_J
    return made


# -- laws ------------------------------------------------------------------------------------------------------------

steps = st.lists(
    st.tuples(
        st.sampled_from(("begin", "end", "read", "read")),
        st.integers(0, 5),
        st.integers(0, 2),
        st.sampled_from(("", "cpu", "cuda")),
        st.floats(0, 3),
        st.tuples(st.floats(0, 300), st.floats(0, 400)),
        st.dictionaries(st.sampled_from(RUNNERS), st.floats(0, 4)),
    ),
    max_size=60,
)


def run(schedule: list[Any], usd_per_h: float = 0.0) -> Bench:
    it = bench(usd_per_h=usd_per_h)
    for what, job, runner, device, seconds, (extra_w, cards_w), worked in schedule:
        it.now += seconds
        if what == "begin":
            it.begin(f"job{job}", RUNNERS[runner], device)
        elif what == "end":
            if (spent := it.end(f"job{job}")) is not None:
                it.spent[f"job{job} at {len(it.spent)}"] = it.spent.pop(f"job{job}")
                assert spent.energy_j >= 0
                assert spent.cost_usd >= 0
        elif it.now > it.read_at:
            it.read(extra_w=extra_w, cards_w=cards_w, runners_s=worked, all_s=sum(worked.values()) + seconds)
    for job in range(6):
        if it.end(f"job{job}"):
            it.spent[f"last {job}"] = it.spent.pop(f"job{job}")
    it.now += 0.1
    it.read()
    return it


@given(steps)
def test_the_joules_of_all_attempts_and_what_is_owed_are_the_integral(schedule: list[Any]) -> None:
    it = run(schedule)
    charged_j = sum(spent.energy_j for spent in it.spent.values())
    assert charged_j + it.account.owed_j == pytest.approx(it.account.total_j, rel=1e-6, abs=1e-6)


@given(steps)
def test_rent_is_paid_once_for_each_second_in_which_anything_ran(schedule: list[Any]) -> None:
    it, free = run(schedule, usd_per_h=3600.0), run(schedule)
    under_way: set[int] = set()
    busy_s = 0.0
    for what, job, _, _, seconds, *_ in schedule:
        busy_s += seconds if under_way else 0.0
        if what == "begin":
            under_way.add(job)
        elif what == "end":
            under_way.discard(job)
    rent = sum(spent.cost_usd for spent in it.spent.values()) - sum(spent.cost_usd for spent in free.spent.values())
    assert rent == pytest.approx(busy_s, rel=1e-6, abs=1e-6)


@given(st.lists(st.floats(0.001, 0.2), min_size=20, max_size=200), st.floats(1, 300))
def test_short_attempts_are_charged_what_was_drawn_though_none_lives_to_a_reading(
    lengths: list[float], watts: float
) -> None:
    it = bench(prior_w=10.0)
    for number, seconds in enumerate(lengths):
        it.begin(f"{number}")
        it.now += seconds
        it.end(f"{number}")
        it.read(extra_w=watts, runners_s={CHAT: seconds}, all_s=seconds)
    drawn_j = watts * sum(lengths)
    assert it.account.total_j == pytest.approx(drawn_j)
    last_j = sum(spent.energy_j for spent in list(it.spent.values())[-5:]) if sum(lengths) > 2 * LEARN_S else None
    if last_j is not None:
        assert last_j == pytest.approx(watts * sum(lengths[-5:]), rel=0.3)
    assert abs(it.account.owed_j) <= (watts + 10.0) * 1.5


# -- who pays ----------------------------------------------------------------------------------------------------------


def test_two_attempts_of_one_runner_share_by_their_seconds() -> None:
    it = bench()
    it.begin("long")
    it.now = 1.0
    it.begin("short")
    it.now = 3.0
    it.read(extra_w=100.0, runners_s={CHAT: 6.0}, all_s=6.0)
    long, short = it.final("long"), it.final("short")
    assert (long.energy_j, short.energy_j) == pytest.approx((180.0, 120.0))
    assert (long.cost_usd, short.cost_usd) == pytest.approx((180.0 * USD_PER_J, 120.0 * USD_PER_J))
    assert long.source == "rapl"


def test_a_compiler_beside_the_job_is_not_charged_to_it() -> None:
    it = bench()
    it.begin("job")
    it.now = 10.0
    it.read(extra_w=80.0, runners_s={CHAT: 10.0}, all_s=40.0)
    assert it.final("job").energy_j == pytest.approx(80.0 * 10 * 0.25)


def test_two_runners_share_the_processor_by_their_work_and_the_card_goes_to_who_is_on_it() -> None:
    it = bench()
    it.begin("chat", CHAT, "cuda")
    it.begin("image", IMAGE, "cpu")
    it.now = 1.0
    it.read(extra_w=40.0, cards_w=200.0, runners_s={CHAT: 1.0, IMAGE: 3.0}, all_s=4.0)
    assert (it.final("chat").energy_j, it.final("image").energy_j) == pytest.approx((210.0, 30.0))


def test_a_card_that_works_for_somebody_else_is_not_charged_to_jobs_on_the_processor() -> None:
    it = bench()
    it.begin("chat", CHAT, "cpu")
    it.now = 1.0
    it.read(cards_w=300.0)
    assert it.final("chat").energy_j == 0.0


def test_a_runner_that_only_says_at_its_start_what_it_runs_on_is_charged_for_its_card() -> None:
    it = bench()
    it.begin("chat", CHAT, "")
    it.account.devices[CHAT] = "cuda"
    assert it.account.on_card
    it.now = 1.0
    it.read(cards_w=300.0)
    assert it.final("chat").energy_j == pytest.approx(300.0)


def test_a_source_that_vanishes_in_the_middle_is_named_with_the_one_that_took_over() -> None:
    it = bench()
    it.begin("job")
    for now, source in ((1.0, "rapl"), (2.0, "rapl"), (3.0, "declared")):
        it.now = now
        it.read(extra_w=10.0, runners_s={CHAT: 1.0}, all_s=1.0, source=source)
    spent = it.final("job")
    assert spent.energy_j == pytest.approx(30.0)
    assert spent.source == "rapl, declared"


def test_without_any_reading_the_declared_watts_count() -> None:
    it = bench(prior_w=50.0)
    it.begin("job")
    it.now = 2.0
    spent = it.final("job")
    assert (spent.energy_j, spent.cost_usd) == pytest.approx((100.0, 100.0 * USD_PER_J))
    assert spent.source == "declared"
    assert it.end("job") is None
    assert it.end("never began") is None


def test_the_watts_of_bids_are_learned_by_runner_else_by_kind_of_device() -> None:
    it = bench(prior_w=50.0)
    assert it.account.watts("cpu", CHAT) == 50.0
    it.begin("job", CHAT, "cpu")
    for second in range(1, 200):
        it.now = float(second)
        it.read(extra_w=20.0, runners_s={CHAT: 1.0}, all_s=1.0)
    assert it.account.watts("cpu", CHAT) == pytest.approx(20.0, rel=0.02)
    assert it.account.watts("cpu", IMAGE) == pytest.approx(20.0, rel=0.02)
    assert it.account.watts("cuda", IMAGE) == 50.0


def test_beginning_twice_counts_once() -> None:
    it = bench(prior_w=10.0, usd_per_h=3600.0)
    it.begin("job")
    it.now = 1.0
    it.begin("job")
    it.now = 2.0
    spent = it.final("job")
    assert (spent.energy_j, spent.cost_usd) == pytest.approx((20.0, 2.0), rel=1e-4)


def test_what_was_drawn_before_a_restart_weighs_no_more_than_what_is_remembered_of_the_present() -> None:
    it = bench(prior_w=50.0)
    it.account.recall("cpu", CHAT, joules=20_000.0, seconds=1000.0)
    assert it.account.watts("cpu", CHAT) == pytest.approx(20.0, rel=0.1)
    it.begin("job", CHAT, "cpu")
    for second in range(1, 100):
        it.now = float(second)
        it.read(extra_w=80.0, runners_s={CHAT: 1.0}, all_s=1.0)
    assert it.account.watts("cpu", CHAT) == pytest.approx(80.0, rel=0.05)


def test_what_was_charged_too_much_makes_later_attempts_cheaper_and_never_negative() -> None:
    it = bench(prior_w=1000.0)
    it.begin("guessed")
    it.now = 1.0
    assert it.final("guessed").energy_j == 1000.0
    it.read(extra_w=10.0, runners_s={CHAT: 1.0}, all_s=1.0)
    assert it.account.owed_j == pytest.approx(-990.0)
    it.begin("next")
    it.now = 2.0
    it.read(extra_w=10.0, runners_s={CHAT: 1.0}, all_s=1.0)
    assert it.final("next").energy_j == 0.0
    assert it.account.owed_j == pytest.approx(-980.0)
