"""Which checkpoints are kept, which are believed, and what they leave to be done."""

from __future__ import annotations

import msgspec
import pytest

from outbid_contracts.errors import AttemptFailed, Cancelled, Draining, NodeLost, OutbidError, OutOfMemory
from outbid_contracts.ids import JobId, NodeId, new_bid_id
from outbid_contracts.messages import (
    MAX_CHECKPOINT_BYTES,
    AttemptRecord,
    Award,
    Bid,
    Checkpoint,
    Considered,
    Job,
)
from outbid_contracts.policy import Policy
from outbid_node.auctioned import Auction
from outbid_node.checkpoints import Checkpoints, Saved, going_on, is_sound, is_trusted, rest_of
from outbid_node.placing import same_device_first

LARGE = 15 * 2**20


def job(id: str = "j", **more: object) -> Job:
    return msgspec.structs.replace(
        Job(id=JobId(id), owner=NodeId("me"), capability="test.steps", params={}, work={"seconds": 8.0}, created_ms=5),
        **more,
    )


def saved(
    id: str = "j", *, step: int = 6, steps: int = 8, data: bytes = b"x", origin: int = 1, model: str = ""
) -> Saved:
    checkpoint = Checkpoint(step=step, steps=steps, data=data, model=model or None)
    return Saved(job=JobId(id), created_ms=5, attempt=origin, origin=origin, checkpoint=checkpoint)


def attempts(*errors: OutbidError | None) -> list[AttemptRecord]:
    bodies = [error.body() if error else None for error in errors]
    return [AttemptRecord(attempt=n, node=NodeId("n"), started_ms=0, error=body) for n, body in enumerate(bodies, 1)]


class Disk:
    """Remembers what it was told."""

    def __init__(self, *there: Saved) -> None:
        self.there = {saved.job: saved for saved in there}

    def has(self, id: JobId) -> bool:
        return id in self.there

    def write(self, saved: Saved) -> None:
        self.there[saved.job] = saved

    async def read(self, id: JobId) -> Saved | None:
        return self.there.get(id)

    def remove(self, id: JobId) -> None:
        del self.there[id]


def test_only_a_checkpoint_of_a_step_that_there_is_and_of_no_more_bytes_than_allowed_is_sound() -> None:
    def sound(step: int, size: int = 1) -> bool:
        return is_sound(Checkpoint(step=step, steps=8, data=bytes(size)))

    assert [sound(step) for step in (-1, 0, 1, 8, 9)] == [False, False, True, True, False]
    assert [sound(1, size) for size in (MAX_CHECKPOINT_BYTES, MAX_CHECKPOINT_BYTES + 1)] == [True, False]


@pytest.mark.parametrize("error", [AttemptFailed("died"), OutOfMemory("no room")])
def test_a_checkpoint_is_not_believed_after_an_attempt_that_went_on_from_it_and_failed(error: OutbidError) -> None:
    assert not is_trusted(saved(origin=1), attempts(NodeLost("gone"), error))
    assert not is_trusted(saved(origin=1), attempts(NodeLost("gone"), error, Draining("drains")))


@pytest.mark.parametrize("error", [NodeLost("gone"), Draining("drains"), Cancelled(), None])
def test_a_node_that_goes_away_does_not_discredit_a_checkpoint(error: OutbidError | None) -> None:
    assert is_trusted(saved(origin=1), attempts(AttemptFailed("the one that made it"), error, error))


def test_what_is_left_is_the_work_of_the_remaining_steps_by_the_same_model() -> None:
    rest = rest_of(job(), saved(step=6, steps=8, model="emoji"))
    assert (rest.work, rest.model) == ({"seconds": 2.0}, "emoji")
    assert rest_of(job(), saved(step=8)).work == {"seconds": 0.0}
    assert rest_of(job(model="asked"), saved(model="emoji")).model == "asked"
    assert rest_of(job(), None) == job()


def test_another_model_begins_from_the_beginning() -> None:
    award = Award(job=job(), attempt=2)
    resumed = going_on(award, saved(model="emoji"), "emoji")
    assert resumed is not None
    assert resumed.checkpoint is not None
    assert resumed.checkpoint.step == 6
    assert going_on(award, saved(model="emoji"), "another") is None


def test_a_checkpoint_that_does_not_fit_a_message_beside_the_parameters_stays_behind() -> None:
    large = job(params={"image": bytes(LARGE - MAX_CHECKPOINT_BYTES)})
    assert going_on(Award(job=large, attempt=2), saved(data=bytes(MAX_CHECKPOINT_BYTES)), None) is None
    assert going_on(Award(job=large, attempt=2), saved(data=bytes(100)), None) is not None


async def test_the_newest_checkpoint_of_a_job_counts_until_it_is_forgotten() -> None:
    kept = Checkpoints()
    for step in (2, 4):
        assert kept.keep(saved(step=step), durable=False)
    found = await kept.of(job(), ())
    assert found is not None
    assert found.checkpoint.step == 4
    assert not kept.keep(saved(step=9, steps=8), durable=False)
    assert await kept.of(job(), ()) == found, "one that is no good replaces nothing"
    kept.forget(JobId("j"))
    assert await kept.of(job(), ()) is None


async def test_memory_is_bounded_and_what_was_saved_longest_ago_goes_first() -> None:
    kept = Checkpoints(limit_bytes=250)
    for id in ("a", "b", "a", "c"):
        kept.keep(saved(id, data=bytes(100)), durable=False)
    there = [id for id in "abc" if await kept.of(job(id), ())]
    assert there == ["a", "c"]


async def test_a_durable_job_finds_its_checkpoint_on_disk_and_leaves_none_behind() -> None:
    kept, again = Checkpoints(), Checkpoints()
    kept.disk = again.disk = disk = Disk()
    kept.keep(saved(), durable=True)
    kept.keep(saved("interactive"), durable=False)
    assert list(disk.there) == ["j"]
    assert await again.of(job(), ()) == saved()
    again.forget(JobId("j"))
    assert not disk.there


async def test_a_checkpoint_of_an_earlier_job_with_the_same_id_is_not_taken() -> None:
    """As a ledger that was killed may bring it back."""
    kept = Checkpoints()
    kept.disk = disk = Disk(saved())
    assert await kept.of(job(created_ms=6), ()) is None
    assert not disk.there


async def test_a_checkpoint_that_is_not_believed_is_thrown_away() -> None:
    kept = Checkpoints()
    kept.disk = disk = Disk(saved())
    assert await kept.of(job(), attempts(NodeLost("gone"), AttemptFailed("died"))) is None
    assert not disk.there


# -- the same kind of device ------------------------------------------------------------------------------------------


def auction(**scores: float) -> Auction:
    """Bids of nodes, best first."""
    held = Auction(JobId("j"), 2)
    for node, score in scores.items():
        bid = Bid(
            bid_id=new_bid_id(),
            node=NodeId(node),
            job=JobId("j"),
            expires_ms=0,
            start_s=0,
            finish_s=score,
            finish_p90_s=score,
            energy_j=0,
            cost_usd=0,
            warm=True,
            zone="lan",
        )
        held.ranked.append(Considered(bid=bid, name=node, score=score))
    return held


@pytest.mark.parametrize(
    ("same", "first"), [({"c"}, "c"), ({"a", "c"}, "a"), ({"far"}, "a"), (set(), "a"), ({"excluded"}, "a")]
)
def test_the_same_kind_of_device_wins_among_bids_that_are_about_as_good(same: set[str], first: str) -> None:
    held = auction(a=1.0, b=1.1, c=1.15, far=1.5, excluded=1.0)
    held.ranked[-1] = msgspec.structs.replace(held.ranked[-1], excluded="too dear")
    same_device_first(held, Policy(), {NodeId(node) for node in same})
    assert held.able[0].name == first
    assert len(held.ranked) == 5
    assert ("kind of device" in held.why) == (first == "c")


def test_why_is_about_the_bids_that_were_ranked_whatever_is_added_later() -> None:
    held = auction(a=1.0)
    held.judged(Policy())
    held.ranked += auction(b=0.5).ranked
    assert held.why == held.sheet().why == "a made the only bid that fits"
    held.judged(Policy())
    assert "for b" in held.why
    held.why = "b took it after a refused"
    assert held.sheet().why == "b took it after a refused"


def test_what_the_caller_prefers_counts_more_than_the_kind_of_device() -> None:
    held = auction(a=1.0, b=1.0)
    same_device_first(held, Policy(prefer=("a",)), {NodeId("b")})
    assert held.able[0].name == "a"
