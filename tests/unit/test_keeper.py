"""Owner and keeper decide together whose a job is: their logic, on a simulated network, disk and clock."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from outbid_contracts.ids import JobId, NodeId
from outbid_contracts.keeping import (
    COMPARE_AT_ONCE,
    MIRROR_AT_ONCE,
    MIRROR_BYTES,
    Compare,
    Compared,
    Mirror,
    Mirrored,
    Named,
)
from outbid_node.durable.holding import MOVED, Holding, Write
from outbid_node.durable.mirrored import MirroredJobs

OWNER, KEEPER = NodeId("owner"), NodeId("keeper")


class KeeperSide:
    """A keeper with a disk. `adopted` are jobs in its own book, `ended` those that ended there."""

    def __init__(self) -> None:
        self.disk: dict[JobId | None, bytes] = {}
        self.adopted: set[JobId] = set()
        self.ended: dict[JobId, bytes] = {}
        self.holding = Holding(OWNER)

    def restart(self) -> None:
        self.holding = Holding(OWNER)
        self.holding.apply([Write(id, data) for id, data in self.disk.items()])

    def write(self, writes: list[Write], survives: int | None = None) -> None:
        """With `survives` it is killed after so many of them."""
        for id, data in writes[:survives]:
            if data is None:
                self.disk.pop(id, None)
            else:
                self.disk[id] = data
        if survives is None:
            self.holding.apply(writes)
        else:
            self.restart()

    def answer(self, asked: Compare | Mirror, dies: int | None = None) -> Compared | Mirrored | None:
        if isinstance(asked, Mirror):
            writes = self.holding.changes(asked)
            if writes is None:
                return Mirrored(status="again")
            self.write(writes, dies)
            return Mirrored() if dies is None else None
        reply = self.holding.compare(asked)
        if not asked.last or reply.status != "ok":
            return reply
        if self.holding.is_moving:
            return Compared(status="busy")
        self.write(list(self.holding.surplus()), dies)
        if dies is None:
            self.holding.begin()
        return reply if dies is None else None

    def adopt(self) -> None:
        if self.holding.is_adoptable:
            self.holding.end_session()
            self.write([Write(None, b"adopted")])

    def move(self, count: int) -> None:
        if not self.holding.is_moving:
            return
        for id in [id for id, data in self.disk.items() if id is not None and data != MOVED][:count]:
            assert id is not None
            if self.disk[id].startswith(b"end"):
                self.ended.setdefault(id, self.disk[id])
            else:
                self.adopted.add(id)
            self.write([Write(id, MOVED)])


class OwnerSide:
    """An owner with a disk of live jobs, and of ended ones."""

    def __init__(self) -> None:
        self.accepted: set[JobId] = set()
        self.live: dict[JobId, bytes] = {}
        self.ended: dict[JobId, bytes] = {}
        self.allowed: dict[JobId, bytes] = {}
        self.mirrored = MirroredJobs(OWNER)
        self.asking: Iterator[Compare] | None = None
        self.sent: Compare | Mirror | None = None
        self.boots = itertools.count()
        self.ends = itertools.count()

    def restart(self) -> None:
        self.mirrored = MirroredJobs(OWNER)
        self.mirrored.fenced |= self.live.keys()
        self.allowed, self.asking, self.sent = {}, None, None

    def accept(self, id: JobId) -> None:
        if id not in self.live and id not in self.ended:
            self.live[id] = b"live 0"
            self.accepted.add(id)
            self.mirrored.changed(id)

    def change(self, id: JobId) -> None:
        if id in self.live and id not in self.mirrored.ends and id not in self.allowed:
            self.live[id] = b"live %d" % next(self.ends)
            self.mirrored.changed(id)

    def end(self, id: JobId) -> None:
        """An attempt of the job is done."""
        if id not in self.live or id in self.mirrored.ends or id in self.allowed:
            return
        data = b"end %d" % next(self.ends)
        if self.mirrored.may_end(id, lambda: data):
            self.allowed[id] = data

    def record(self, id: JobId) -> None:
        """The end is on disk."""
        if id in self.allowed:
            self.ended[id] = self.allowed.pop(id)
            self.live.pop(id)
            self.mirrored.gone(id)

    def next(self, *, beat: bool = False) -> Compare | Mirror | None:
        """What goes out. One message at a time: an answer that does not come loses the session."""
        if not self.mirrored.session:
            boot = f"s{next(self.boots)}"
            self.asking = self.mirrored.open(boot, list(self.live), self._data)
        self.sent = None
        if self.asking is not None:
            self.sent = next(self.asking, None)
            if self.sent is None and self.mirrored.may_close:
                self.asking = None
                self.sent = self.mirrored.last()
        else:
            self.mirrored.ripen()
            self.sent = self.mirrored.batch(self._data, more=True, beat=beat)
        return self.sent

    def _data(self, id: JobId) -> bytes | None:
        return self.live.get(id)

    def hear(self, reply: Compared | Mirrored | None) -> None:
        sent = self.sent
        if reply is None or reply.status != "ok" or sent is None or not self.mirrored.session:
            self.mirrored.lose()
            self.asking = None
            return
        if isinstance(sent, Mirror):
            self._allow(self.mirrored.took(sent))
            return
        assert isinstance(reply, Compared)
        if sent.last:
            self.mirrored.is_on = True
            return
        allowed, moved = self.mirrored.compared(sent, reply)
        self._allow(allowed)
        for id in moved:
            self.give_up(id)

    def _allow(self, ids: list[JobId]) -> None:
        for id in ids:
            self.allowed[id] = self.mirrored.ends[id]

    def give_up(self, id: JobId) -> None:
        assert id not in self.allowed
        self.live.pop(id, None)
        self.mirrored.gone(id, moved=True)


class Pair:
    """`flying` are the owner's messages on their way, `reply` the keeper's answer to the last of them."""

    def __init__(self) -> None:
        self.owner, self.keeper = OwnerSide(), KeeperSide()
        self.flying: list[Compare | Mirror] = []
        self.reply: Compared | Mirrored | None = None

    def exchange(self, count: int = 1) -> None:
        for _ in range(count):
            self.send(beat=True)
            self.deliver()
            self.hear()

    def send(self, *, beat: bool = False) -> None:
        if self.owner.sent is None and (asked := self.owner.next(beat=beat)) is not None:
            self.flying.append(msgspec.msgpack.decode(msgspec.msgpack.encode(asked), type=type(asked)))

    def deliver(self, dies: int | None = None, *, twice: bool = False) -> None:
        if not self.flying:
            return
        asked = self.flying.pop(0)
        reply = self.keeper.answer(asked, dies)
        if twice:
            reply = self.keeper.answer(asked)
        sent = self.owner.sent
        if sent is not None and (asked.session, asked.seq, type(asked)) == (sent.session, sent.seq, type(sent)):
            self.reply = reply

    def hear(self) -> None:
        """The answer, or that there is none."""
        if self.owner.sent is not None:
            self.owner.hear(self.reply)
            self.owner.sent = self.reply = None

    def check(self) -> None:
        ended = self.owner.ended.keys() & self.keeper.ended.keys()
        assert all(self.owner.ended[id] == self.keeper.ended[id] for id in ended), "two different ends"
        assert not self.owner.ended.keys() & self.keeper.adopted, "the keeper does again what has ended"

    def heal(self) -> None:
        """The network is back; everybody finishes what it has."""
        self.flying.clear()
        self.hear()
        for _ in range(200):
            self.keeper.move(100)
            self.send()
            idle = self.owner.sent is None
            self.deliver()
            self.hear()
            for id in list(self.owner.live):
                self.owner.end(id)
                self.owner.record(id)
            self.check()
            if not self.owner.live and self.owner.mirrored.is_on and idle:
                return
        raise AssertionError(f"it does not heal: {self.owner.live}")


JOBS = [JobId(name) for name in ("a", "b", "c")]
job = st.sampled_from(JOBS)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("accept"), job),
        st.tuples(st.just("change"), job),
        st.tuples(st.just("end"), job),
        st.tuples(st.just("record"), job),
        st.tuples(st.just("exchange"), st.integers(1, 8)),
        st.tuples(st.just("send"), st.booleans()),
        st.tuples(st.just("deliver"), st.booleans()),
        st.tuples(st.just("hear")),
        st.tuples(st.just("lose")),
        st.tuples(st.just("keeper dies"), st.integers(0, 3)),
        st.tuples(st.just("keeper restarts")),
        st.tuples(st.just("owner restarts")),
        st.tuples(st.just("adopt"), st.integers(0, 3)),
        st.tuples(st.just("move"), st.integers(1, 3)),
        st.tuples(st.just("release"), st.booleans()),
    ),
    max_size=40,
)


def play(pair: Pair, step: tuple[Any, ...]) -> None:
    owner, keeper = pair.owner, pair.keeper
    acts: dict[str, Callable[[], None]] = {
        "accept": lambda: owner.accept(step[1]) if step[1] not in owner.accepted else None,
        "change": lambda: owner.change(step[1]),
        "end": lambda: owner.end(step[1]),
        "record": lambda: owner.record(step[1]),
        "exchange": lambda: pair.exchange(step[1]),
        "send": lambda: pair.send(beat=step[1]),
        "deliver": lambda: pair.deliver(twice=step[1]),
        "hear": pair.hear,
        "lose": pair.flying.clear,
        "keeper dies": lambda: pair.deliver(step[1]),
        "keeper restarts": keeper.restart,
        "owner restarts": lambda: restart(pair),
        "adopt": lambda: adopt(keeper, step[1]),
        "move": lambda: keeper.move(step[1]),
        "release": lambda: release(pair, heard=step[1]),
    }
    acts[step[0]]()


def adopt(keeper: KeeperSide, moved: int) -> None:
    keeper.adopt()
    keeper.move(moved)


def restart(pair: Pair) -> None:
    pair.owner.restart()
    pair.reply = None


def release(pair: Pair, *, heard: bool) -> None:
    if pair.keeper.holding.state != "keeping":
        return
    pair.keeper.write([Write(None, b"released")])
    pair.keeper.restart()
    if heard:
        ends = dict(pair.owner.mirrored.ends)
        pair.owner.asking = pair.reply = None
        for id in pair.owner.mirrored.release():
            pair.owner.allowed[id] = ends[id]


@settings(max_examples=500)
@given(steps)
def test_no_job_ends_twice_whatever_is_lost_killed_or_adopted_when(script: list[tuple[Any, ...]]) -> None:
    pair = on("a", "b")
    for step in script:
        play(pair, step)
        pair.check()
    pair.heal()
    over = pair.owner.ended.keys() | pair.keeper.ended.keys()
    assert pair.owner.accepted == over | pair.keeper.adopted, "a job is lost"
    assert not over & pair.keeper.adopted


def on(*ids: str) -> Pair:
    """A pair whose keeper has copies of these jobs."""
    pair = Pair()
    for id in ids:
        pair.owner.accept(JobId(id))
    pair.exchange(8)
    assert pair.keeper.holding.copies.keys() == set(ids)
    return pair


def test_job_over_before_its_copy_is_due_is_never_sent() -> None:
    pair = on()
    pair.owner.accept(JobId("short"))
    pair.owner.mirrored.ripen()
    pair.owner.end(JobId("short"))
    pair.owner.record(JobId("short"))
    for _ in range(4):
        assert pair.owner.next() is None


def test_mirrored_job_ends_only_once_its_keeper_has_the_end() -> None:
    pair = on("a")
    pair.owner.end(JobId("a"))
    assert not pair.owner.allowed
    pair.send()
    pair.flying.clear()
    pair.hear()
    assert not pair.owner.allowed
    pair.exchange(4)
    assert pair.owner.allowed.keys() == {"a"}


def test_owner_that_vanishes_with_a_confirmed_end_leaves_that_end_behind() -> None:
    pair = on("a")
    pair.owner.end(JobId("a"))
    pair.exchange()
    pair.keeper.adopt()
    pair.keeper.move(9)
    assert pair.keeper.ended == pair.owner.allowed


def test_end_on_its_way_to_disk_at_adoption_stays_the_end_after_a_restart() -> None:
    pair = on("a")
    pair.owner.end(JobId("a"))
    pair.exchange()
    assert pair.owner.allowed
    pair.keeper.adopt()
    pair.keeper.move(9)
    pair.exchange(8)
    pair.owner.restart()
    pair.heal()


def test_end_decided_while_a_copy_is_on_its_way_is_not_confirmed_by_the_copy() -> None:
    pair = on("a")
    pair.owner.change(JobId("a"))
    while not isinstance(pair.owner.sent, Mirror):
        pair.hear()
        pair.send()
    pair.owner.end(JobId("a"))
    pair.deliver()
    pair.hear()
    assert not pair.owner.allowed


def test_end_decided_while_its_job_is_compared_is_not_confirmed_by_the_comparison() -> None:
    pair = on("a")
    pair.owner.mirrored.lose()
    pair.send()
    pair.owner.end(JobId("a"))
    pair.deliver()
    pair.hear()
    assert not pair.owner.allowed
    pair.heal()


def test_end_set_free_by_a_release_is_not_mirrored_again() -> None:
    pair = on("a")
    pair.owner.end(JobId("a"))
    release(pair, heard=True)
    pair.exchange(8)
    pair.owner.record(JobId("a"))
    pair.keeper.adopt()
    pair.keeper.move(9)
    pair.check()


def test_keeper_that_lost_its_disk_sets_every_job_free() -> None:
    pair = on("a", "b")
    pair.owner.end(JobId("a"))
    pair.keeper.disk.clear()
    pair.keeper.restart()
    pair.heal()
    assert pair.owner.ended.keys() == {"a", "b"}


def test_returning_owner_gives_up_what_was_adopted_and_goes_on_with_the_rest() -> None:
    pair = on("a", "b")
    pair.keeper.adopt()
    pair.owner.accept(JobId("new"))
    pair.owner.restart()
    pair.heal()
    assert pair.keeper.adopted == {"a", "b"}
    assert pair.owner.ended.keys() == {"new"}


def test_releasing_keeper_lets_waiting_ends_go_and_adopts_nothing_afterwards() -> None:
    pair = on("a")
    pair.owner.end(JobId("a"))
    release(pair, heard=True)
    assert pair.owner.allowed.keys() == {"a"}
    pair.keeper.adopt()
    assert not pair.keeper.holding.is_moving


def test_question_without_a_session_changes_nothing() -> None:
    pair = on("a")
    before = dict(pair.keeper.disk)
    reply = pair.keeper.answer(Compare(owner=OWNER, jobs=(Named(JobId("a"), b""), Named(JobId("b"), b""))))
    assert isinstance(reply, Compared)
    assert reply.moved == ()
    assert pair.keeper.disk == before
    pair.owner.change(JobId("a"))
    pair.exchange(3)
    assert pair.owner.mirrored.is_on


def test_hundred_thousand_jobs_go_in_parts_that_fit() -> None:
    owner = MirroredJobs(OWNER)
    data = b"x" * 900
    ids = [JobId(f"job{n}") for n in range(100_000)]
    pages = list(owner.open("s", ids, lambda id: data))
    assert all(len(page.jobs) <= COMPARE_AT_ONCE for page in pages)
    lacking = tuple(ids)
    for page in pages:
        owner.compared(page, Compared(lacking=tuple(named.id for named in page.jobs)))
    sent: set[JobId] = set()
    while (batch := owner.batch(lambda id: data, more=True)) is not None:
        assert len(batch.copies) <= MIRROR_AT_ONCE
        assert sum(len(copy.data) for copy in batch.copies) <= MIRROR_BYTES
        sent |= {copy.id for copy in batch.copies}
        owner.took(batch)
    assert sent == set(lacking)


def test_copy_larger_than_a_part_goes_alone() -> None:
    owner = MirroredJobs(OWNER)
    sizes = {JobId("big"): MIRROR_BYTES * 3, JobId("small"): 10}
    for page in owner.open("s", list(sizes), lambda id: b"x" * sizes[id]):
        owner.compared(page, Compared(lacking=tuple(sizes)))
    batches = [owner.batch(lambda id: b"x" * sizes[id], more=True) for _ in range(2)]
    assert sorted(len(batch.copies) for batch in batches if batch) == [1, 1]
