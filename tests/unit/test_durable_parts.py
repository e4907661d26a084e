"""What a durable job waits for: claims on its id, other jobs, its time, whatever happens to the clock."""

from __future__ import annotations

import asyncio
import doctest
import random
import time
from collections.abc import Collection, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbid_contracts.durable import DurableJob, Terms
from outbid_contracts.errors import DependencyFailed
from outbid_contracts.ids import BidId, JobId, NodeId
from outbid_contracts.messages import Bid, Considered, Job, JobState
from outbid_contracts.policy import Policy
from outbid_node.auction import ALIKE, ASK_AT_MOST, _promising
from outbid_node.durable import again
from outbid_node.durable.claims import AGAIN_S, Claims
from outbid_node.durable.dependencies import Dependencies
from outbid_node.durable.parked import Alarms, Parked

ME = NodeId("meme")


def parked(
    id: str = "job", *, deadline_s: float | None = None, created_s: float | None = None, **terms: object
) -> Parked:
    job = Job(
        id=JobId(id),
        owner=ME,
        capability="test.echo",
        params={},
        work={},
        policy=Policy(deadline_s=deadline_s),
        created_ms=int((time.time() if created_s is None else created_s) * 1000),
        durable=True,
    )
    return Parked(DurableJob(job=job, terms=Terms(**terms)))  # type: ignore[arg-type]


# -- claims ----------------------------------------------------------------------------------------------------------


class Peer:
    """A node as far as claims go: it knows jobs, and asks the others after some time on the way."""

    def __init__(self, seed: int) -> None:
        self.claims = Claims()
        self.jobs: set[JobId] = set()
        self.others: list[Peer] = []
        self.random = random.Random(seed)

    async def submit(self, ids: Collection[JobId]) -> None:
        while True:
            await self.claims.until_free(ids)
            with self.claims.held(ids):
                answers = [await self._ask(other, ids) for other in self.others]
                if any(known for known, _ in answers) or self.jobs & set(ids):
                    return
                if not any(claimed for _, claimed in answers):
                    await self._delay()  # the disk
                    self.jobs |= set(ids)
                    return
            await asyncio.sleep(self.random.uniform(0.5, 1.5) * AGAIN_S)

    async def _ask(self, other: Peer, ids: Collection[JobId]) -> tuple[set[JobId], tuple[JobId, ...]]:
        await self._delay()
        claimed = other.claims.among(ids)
        known = other.jobs & set(ids)
        await self._delay()
        return known, claimed

    async def _delay(self) -> None:
        for _ in range(self.random.randrange(4)):
            await asyncio.sleep(0)


@pytest.mark.parametrize("seed", range(30))
async def test_an_id_claimed_by_many_nodes_becomes_one_job(seed: int) -> None:
    peers = [Peer(seed * 10 + n) for n in range(4)]
    for peer in peers:
        peer.others = [other for other in peers if other is not peer]
    ids = [JobId("one")]
    await asyncio.gather(*(peer.submit(ids) for peer in peers for _ in range(2)))
    assert sum(len(peer.jobs) for peer in peers) == 1


async def test_claims_that_overlap_take_turns_whatever_their_order() -> None:
    claims, running, most = Claims(), 0, 0

    async def use(*ids: str) -> None:
        nonlocal running, most
        wanted = [JobId(id) for id in ids]
        await claims.until_free(wanted)
        with claims.held(wanted):
            running += 1
            most = max(most, running)
            await asyncio.sleep(0)
            running -= 1

    await asyncio.gather(*(use(*pair) for pair in [("a", "b"), ("b", "a"), ("b", "c"), ("c", "b")] * 5))
    assert most == 1
    assert not claims.among([JobId("a"), JobId("b"), JobId("c")])


# -- jobs before it --------------------------------------------------------------------------------------------------


class Chain:
    """Dependencies whose results are only noted."""

    def __init__(self, elsewhere: Mapping[JobId, JobState] | None = None) -> None:
        self.free: list[str] = []
        self.failed: dict[str, str] = {}
        self.after = Dependencies(unblock=self._unblock, fail=self._fail, states_here=self._none)
        self.after.states_elsewhere = self._states
        self.elsewhere = dict(elsewhere or {})

    def _unblock(self, parked: Parked) -> None:
        parked.unblock()
        self.free.append(parked.id)

    def _fail(self, parked: Parked, error: DependencyFailed) -> None:
        self.failed[parked.id] = error.message

    async def _none(self, ids: Collection[JobId]) -> Mapping[JobId, JobState]:
        return {}

    async def _states(self, ids: Collection[JobId]) -> Mapping[JobId, JobState]:
        return {id: state for id, state in self.elsewhere.items() if id in ids}


@given(st.lists(st.sampled_from("abc"), max_size=12))
def test_a_job_goes_once_all_before_it_are_done_whatever_is_told_twice(done: list[str]) -> None:
    chain = Chain()
    chain.after.watch(parked("job", after=("a", "b", "c")))
    for id in done:
        chain.after.ended(JobId(id), "done")
    assert chain.free == (["job"] if {*done} == {"a", "b", "c"} else [])


def test_the_first_failure_before_a_job_fails_it_once() -> None:
    chain = Chain()
    chain.after.watch(parked("job", after=("a", "b")))
    chain.after.ended(JobId("a"), "failed")
    chain.after.ended(JobId("b"), "cancelled")
    assert list(chain.failed) == ["job"]
    assert "a" in chain.failed["job"]
    assert not chain.free


async def test_jobs_of_other_nodes_are_asked_about_and_unknown_ones_waited_for() -> None:
    chain = Chain({JobId("a"): "done", JobId("b"): "running"})
    chain.after.watch(parked("one", after=("a",)))
    chain.after.watch(parked("two", after=("a", "b")))
    chain.after.watch(parked("three", after=("nobody",)))
    await chain.after.look()
    assert chain.free == ["one"]
    chain.elsewhere[JobId("b")] = "done"
    await chain.after.look()
    assert chain.free == ["one", "two"]


def test_what_nobody_waits_for_any_more_is_not_asked_about() -> None:
    chain = Chain()
    waits = parked("job", after=("a", "b"))
    chain.after.watch(waits)
    chain.after.forget(waits)
    assert not chain.after._waiting


def test_a_job_whose_predecessors_are_done_does_not_wait_for_them_again_after_a_restart() -> None:
    waits = parked("job", after=("a",))
    again = Parked(waits.unblock())
    assert again.after is None
    assert again.record().terms.after == ("a",)


# -- times -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump_s", [-86_400.0, 0.0])
def test_a_clock_set_back_makes_no_wait_longer_than_was_asked_for(jump_s: float) -> None:
    waits = parked(deadline_s=5, delay_s=3, created_s=time.time() - jump_s)
    now = time.monotonic()
    assert waits.starts is not None
    assert waits.deadline is not None
    assert 2.5 < waits.starts - now <= 3
    assert 4.5 < waits.deadline - now <= 5


def test_a_job_whose_time_passed_while_its_node_was_away_is_due_at_once() -> None:
    waits = parked(deadline_s=5, delay_s=3, created_s=time.time() - 60)
    assert waits.starts is not None
    assert waits.deadline is not None
    assert max(waits.starts, waits.deadline) <= time.monotonic()


def test_alarms_ring_once_in_order_and_times_of_day_follow_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    rung: list[str] = []
    alarms = Alarms(rung.append)
    now, begun = time.time(), time.monotonic()
    alarms.at(int((now + 3600) * 1000), JobId("day"))
    alarms.after(begun + 50, JobId("later"))
    alarms.after(begun - 1, JobId("sooner"))
    alarms.ring()
    assert rung == ["sooner"]
    monkeypatch.setattr(time, "time", lambda: now + 3601)
    alarms.ring()
    monkeypatch.setattr(time, "monotonic", lambda: begun + 51)
    alarms.ring()
    alarms.ring()
    assert rung == ["sooner", "day", "later"]


# -- whom to ask -----------------------------------------------------------------------------------------------------


def considered(node: int, score: float) -> Considered:
    bid = Bid(
        bid_id=BidId("b"),
        node=NodeId(f"n{node}"),
        job=JobId("job"),
        expires_ms=0,
        start_s=0,
        finish_s=score,
        finish_p90_s=score,
        energy_j=0,
        cost_usd=0,
        warm=True,
        zone="lan",
        model=None,
        why="",
    )
    return Considered(bid=bid, name=f"n{node}", score=score)


def test_of_many_equals_not_always_the_same_are_asked() -> None:
    able = [considered(n, 1.0 + n / 1000) for n in range(20)]
    asked = {c.name for _ in range(60) for c in _promising(able, parked().record().job)}
    assert len(asked) == 20


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=30))
def test_nobody_is_asked_that_is_much_worse_than_one_left_out(scores: list[float]) -> None:
    able = [considered(n, score) for n, score in enumerate(sorted(scores))]
    chosen = _promising(able, parked().record().job)
    assert len(chosen) == min(len(able), ASK_AT_MOST)
    left = [c.score for c in able if c not in chosen]
    assert max(c.score for c in chosen) <= max(ALIKE * able[0].score, min(left, default=float("inf")))


def test_a_new_priority_is_a_new_place_in_the_queue() -> None:
    job = parked()
    places = []
    for priority in ("interactive", "normal", "batch"):
        assert job.prioritise(priority).terms.priority == job.record().terms.priority == priority
        places.append(job.order - job.record().job.created_ms)
    assert places == [0, 30_000, 600_000]


def test_doctests() -> None:
    assert doctest.testmod(again).failed == 0
