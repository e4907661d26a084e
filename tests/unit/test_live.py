"""What was heard and is not read yet: bounded, the newest of each node first, and in order."""

from __future__ import annotations

import asyncio
from itertools import count

import pytest

from outbid.connection import AccessRefused
from outbid.live import KEPT, LinkBack, LinkLost, Mailbox
from outbid_contracts import subjects
from outbid_contracts.codec import Format, encode
from outbid_contracts.events import Progressed
from outbid_contracts.ids import JobId, NodeId
from outbid_contracts.messages import Presence

_numbers = count()


def beat(mailbox: Mailbox, node: str) -> int:
    number = next(_numbers)
    presence = Presence(node=NodeId(node), name=node, version="1", boot="b", seq=number, state="up")
    mailbox.put(subjects.presence(NodeId(node)), encode(presence))
    return number


def step(mailbox: Mailbox, number: int) -> None:
    event = Progressed(job=JobId("j"), step=number, steps=9)
    mailbox.put(subjects.job_event(JobId("j")), encode(event, Format.JSON))


async def test_of_each_node_only_the_newest_word_waits_for_a_slow_reader() -> None:
    mailbox = Mailbox()
    for _ in range(1000):
        a, b = beat(mailbox, "a"), beat(mailbox, "b")
    read = [await mailbox.next(), await mailbox.next()]
    assert [event.seq for event in read if isinstance(event, Presence)] == [a, b]
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(mailbox.next(), 0.05)


async def test_what_comes_faster_than_it_is_read_loses_its_oldest_and_keeps_its_order() -> None:
    mailbox = Mailbox()
    for number in range(3 * KEPT):
        step(mailbox, number)
    beat(mailbox, "a")
    first = await mailbox.next()
    assert isinstance(first, Presence), "a node's word is not held up by events of jobs"
    read = [await mailbox.next() for _ in range(KEPT)]
    assert [event.step for event in read if isinstance(event, Progressed)] == list(range(2 * KEPT, 3 * KEPT))


async def test_a_link_that_is_lost_is_told_once_and_so_is_its_return() -> None:
    mailbox = Mailbox()
    mailbox.link("")
    mailbox.link("the cable is out")
    mailbox.link("it is still out")
    assert await mailbox.next() == LinkLost(reason="the cable is out")
    mailbox.link("")
    mailbox.link("")
    step(mailbox, 1)
    assert await mailbox.next() == LinkBack()
    assert isinstance(await mailbox.next(), Progressed)


async def test_what_this_version_does_not_understand_is_left_out() -> None:
    mailbox = Mailbox()
    mailbox.put("mesh.presence.a", b"\xff\xff")
    mailbox.put("mesh.job.j.event", b'{"event": "teleported", "job": "j"}')
    mailbox.put("mesh.auction.a", b"")
    step(mailbox, 7)
    assert (await mailbox.next()) == Progressed(job=JobId("j"), step=7, steps=9)


async def test_the_end_comes_after_what_was_heard_before_it() -> None:
    mailbox = Mailbox()

    async def end() -> None:
        step(mailbox, 1)
        raise AccessRefused("not allowed")

    task = asyncio.create_task(end())
    task.add_done_callback(mailbox.close)
    assert isinstance(await mailbox.next(), Progressed)
    for _ in range(2):
        with pytest.raises(AccessRefused, match="not allowed"):
            await mailbox.next()
