"""Requests that are answered without a task of their own: every one of them, as if they had one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from outbid_contracts.codec import Format
from outbid_contracts.errors import Busy, OutbidError
from outbid_node.client import Bus
from outbid_node.micro import Request, Service, Underway
from tests.ledgers import OwnLedger
from tests.waiting import until

SUBJECT = "test.underway"


@asynccontextmanager
async def served(own: OwnLedger) -> AsyncIterator[tuple[Bus, Service, list[asyncio.Future[dict[str, int]]]]]:
    """A service whose one endpoint waits for the futures in the list, one for each request."""
    begun: list[asyncio.Future[dict[str, int]]] = []

    def handle(request: Request) -> Underway:
        request.format = Format.MSGPACK
        if request.data == b"refused":
            raise Busy("not now")
        begun.append(asyncio.get_running_loop().create_future())
        return Underway(begun[-1], lambda found: request.respond(found))

    bus = await own.connect()
    service = Service(bus=bus, name="test", id="test", version="0.1.0", description="")
    service.add("underway", SUBJECT, handle, queue="test")
    await service.start()
    yield bus, service, begun


async def asked(bus: Bus, begun: list[asyncio.Future[dict[str, int]]]) -> asyncio.Task[dict[str, int]]:
    before = len(begun)
    asking = asyncio.create_task(bus.call(SUBJECT, {}, dict, timeout_s=30))
    await until(lambda: len(begun) > before, 30)
    return asking


async def test_each_gets_its_own_answer_or_error(own: OwnLedger) -> None:
    async with served(own) as (bus, service, begun):
        first, second = await asked(bus, begun), await asked(bus, begun)
        begun[1].set_result({"n": 2})
        assert await second == {"n": 2}
        assert not first.done()
        begun[0].set_exception(Busy("all slots are taken"))
        told = await asyncio.gather(first, return_exceptions=True)
        assert isinstance(told[0], Busy)
        assert (service.endpoints[0].num_requests, service.endpoints[0].num_errors) == (2, 1)


async def test_what_is_raised_at_once_is_told_too(own: OwnLedger) -> None:
    async with served(own) as (bus, service, _):
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        reply = bus.open_inbox(lambda msg: answer.set_result(msg.data))
        bus.post(SUBJECT, b"refused", reply=reply)
        assert b"not now" in await asyncio.wait_for(answer, 30)
        assert service.endpoints[0].num_errors == 1


async def test_a_drain_waits_for_them_and_takes_no_more(own: OwnLedger) -> None:
    async with served(own) as (bus, service, begun):
        asking = await asked(bus, begun)
        draining = asyncio.create_task(service.drain(30))
        await until(lambda: service.draining, 30)
        late = asyncio.create_task(bus.call(SUBJECT, {}, dict, timeout_s=30))
        assert isinstance((await asyncio.gather(late, return_exceptions=True))[0], OutbidError)
        assert not draining.done()
        begun[0].set_result({"n": 1})
        assert await asking == {"n": 1}
        assert await draining == 0


async def test_what_a_drain_gives_up_is_not_cancelled(own: OwnLedger) -> None:
    async with served(own) as (bus, service, begun):
        asking = await asked(bus, begun)
        assert await service.drain(0.01) == 1
        assert not begun[0].cancelled()
        asking.cancel()
