"""Real runners do real attempts: slots, streams, cancellation, warmth, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import time

import psutil
import pytest
import zmq

from outbid_capabilities import testing
from outbid_contracts.errors import Refused
from outbid_contracts.runner import RunFailed
from outbid_node.runners.machine import Phase
from outbid_node.runners.supervisor import Supervisor
from tests.integration.test_runner_support import Fleet, Sink, fleet, wait_gone


async def test_a_text_comes_back_in_pieces_and_as_a_whole() -> None:
    async with fleet() as node:
        sink = node.submit(text="hello world", chunks=4)
        message = await sink.success()
        assert "".join(chunk["text"] for chunk in sink.chunks) == message.result["text"] == "hello world"
        assert [chunk["n"] for chunk in sink.chunks] == [0, 1, 2, 3]
        assert message.measured["chunks"][0] == 4


async def thousand(node: Fleet) -> None:
    """1,000 no-ops, 64 at a time."""
    running: set[asyncio.Task[object]] = set()
    for n in range(1000):
        sink = node.submit(testing.noop, size=n % 3)
        running.add(asyncio.create_task(sink.success()))
        if len(running) == testing.SLOTS:
            _, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.gather(*running)
    assert node.pool.stats()["attempts"] == 0


async def test_a_thousand_noops() -> None:
    async with fleet() as node:
        await thousand(node)


async def test_what_is_asked_at_once_is_answered_at_once() -> None:
    async with fleet() as node:
        await node.submit(testing.noop).success()
        before = node.pool.stats()["messages"]
        sinks = [node.submit(testing.noop) for _ in range(testing.SLOTS)]
        await asyncio.gather(*(sink.success() for sink in sinks))
        assert node.pool.stats()["messages"] - before <= 4


async def test_a_runner_that_takes_one_run_at_a_time_gets_them_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Supervisor, "_batches", property(lambda own: False, lambda own, said: None), raising=False)
    async with fleet() as node:
        await thousand(node)


async def test_a_thousand_noops_where_the_loop_cannot_watch_descriptors() -> None:
    async with fleet(pool={"watch_in_thread": True}) as node:
        await thousand(node)


def test_a_thousand_noops_under_uvloop() -> None:
    uvloop = pytest.importorskip("uvloop")

    async def main() -> None:
        async with fleet() as node:
            await thousand(node)

    uvloop.run(main())


async def test_payload_bytes_come_back_untouched() -> None:
    async with fleet() as node:
        sink = node.submit(testing.noop, size=3_000_000)
        await sink.success()
        assert sink.payloads == [bytes(3_000_000)]
        sink = Sink()
        node.pool.run(testing.noop, None, {}, "a/1", {}, sink, files={"image": b"picture", "mask": b"sound"})
        await sink.success()
        assert sink.payloads == [b"picture", b"sound"]


async def test_capabilities_with_the_same_runner_share_a_process() -> None:
    async with fleet() as node:
        await node.submit(testing.echo).success()
        await node.submit(testing.noop).success()
        assert len(node.pool.views()) == 1


async def test_slots_are_never_exceeded_under_200_submits() -> None:
    async with fleet(slots=3) as node:
        await node.submit().success()
        live: set[int] = set()
        most = refused = 0

        class Watched(Sink):
            def chunk(self, data: dict[str, object], payloads: list[bytes]) -> None:
                nonlocal most
                live.add(id(self))
                most = max(most, len(live))
                super().chunk(data, payloads)

            def _end(self, outcome: object) -> None:
                live.discard(id(self))
                super()._end(outcome)  # type: ignore[arg-type]

        async def submit(n: int) -> Sink:
            """Again and again until it is taken, whenever room has changed."""
            nonlocal refused
            sink = Watched()
            while True:
                node.changes.clear()
                params = {"chunks": 3, "delay_s": 0.001}
                with contextlib.suppress(Refused):
                    node.pool.run(testing.echo, None, node.settings, f"many-{n}/1", params, sink)
                    return sink
                refused += 1
                await asyncio.wait_for(node.changes.wait(), 10)

        for sink in [await submit(n) for n in range(200)]:
            await sink.success()
        assert most == 3
        assert refused > 100
        assert node.pool.room(testing.echo, None).free == 3


async def test_a_runner_with_fewer_slots_than_declared_is_not_overloaded() -> None:
    async with fleet(slots=2, slow_load_s=0.2) as node:
        sinks = [node.submit(chunks=3, delay_s=0.005) for _ in range(20)]
        while any(sink.outcome is None for sink in sinks):
            assert all(view.running <= 2 for view in node.pool.views())
            await asyncio.sleep(0.002)
        for sink in sinks:
            await sink.success()


async def test_attempts_wait_for_a_loading_runner_in_its_slots() -> None:
    async with fleet(slow_load_s=0.3) as node:
        first, second = node.submit(), node.submit()
        room = node.pool.room(testing.echo, None)
        assert (room.warm, room.slots, room.free) == (False, 64, 62)
        await first.success()
        await second.success()
        assert "loading slowly" in first.notes
        room = node.pool.room(testing.echo, None)
        assert (room.warm, room.free) == (True, 64)
        assert room.ready is not None
        assert room.ready.load_s >= 0.3


async def test_a_cancel_reaches_a_running_attempt_within_one_token() -> None:
    async with fleet() as node:
        sink = node.submit(chunks=100_000, delay_s=0.01, text="x", key="a/1")
        await sink.until(lambda: len(sink.chunks) >= 3)
        node.pool.cancel("a/1")
        told = len(sink.chunks)
        assert await sink.end() == "stopped"
        assert len(sink.chunks) <= told + 1
        assert node.pool.room(testing.echo, None).free == 64


async def test_a_cancel_while_loading_frees_the_slot_at_once() -> None:
    async with fleet(slow_load_s=0.3) as node:
        sink, other = node.submit(key="a/1"), node.submit()
        node.pool.cancel("a/1")
        assert sink.outcome == "stopped"
        assert node.pool.room(testing.echo, None).free == 63
        await other.success()


async def test_a_cancel_of_a_stranger_is_nothing() -> None:
    async with fleet() as node:
        node.pool.cancel("nobody/1")
        await node.submit().success()


async def test_the_same_attempt_is_refused_twice() -> None:
    async with fleet() as node:
        sink = node.submit(key="a/1")
        with pytest.raises(Refused, match="runs already"):
            node.submit(key="a/1")
        await sink.success()


@pytest.mark.parametrize("kind", ["result", "chunk"])
async def test_what_does_not_fit_its_struct_fails_the_attempt_and_spares_the_runner(kind: str) -> None:
    async with fleet(slots=1) as node:
        failed = await node.submit(garbage=kind).failure()
        assert f"gave a {kind} that does not fit" in failed.message
        assert failed.retry
        pid = node.pool.views()[0].pid
        again = await node.submit_when_free()
        assert (await again.success()).result["pid"] == pid


async def test_an_idle_runner_is_stopped_and_started_again() -> None:
    async with fleet(keep_warm_s=0.2) as node:
        first = await node.submit().success()
        await node.until(lambda: node.phase() == Phase.STOPPED)
        assert not psutil.pid_exists(first.result["pid"])
        assert node.pool.room(testing.echo, None).warm is False
        second = await node.submit().success()
        assert second.result["pid"] != first.result["pid"]


async def test_a_busy_runner_is_not_idle_however_long_it_takes() -> None:
    async with fleet(keep_warm_s=0.05) as node:
        sink = node.submit(chunks=10, delay_s=0.03)
        await sink.success()


async def test_a_stop_lets_attempts_end_within_the_grace() -> None:
    async with fleet() as node:
        sink = node.submit(chunks=10, delay_s=0.03, text="abc")
        await sink.until(lambda: sink.chunks)
        stopping = asyncio.create_task(node.pool.stop(10))
        await asyncio.sleep(0)
        with pytest.raises(Refused, match="stopping"):
            node.submit()
        assert node.pool.room(testing.echo, None).free == 0
        await stopping
        await sink.success()


async def test_a_stop_gives_up_what_outlasts_the_grace() -> None:
    async with fleet() as node:
        sink = node.submit(chunks=100_000, delay_s=0.03)
        await sink.until(lambda: sink.chunks)
        await node.pool.stop(0.1)
        failed = await sink.failure()
        assert (failed.code, failed.retry) == ("draining", True)


async def test_a_stop_ends_a_runner_that_is_still_loading() -> None:
    async with fleet(slow_load_s=60) as node:
        sink = node.submit()
        await sink.until(lambda: sink.notes)
        begun = time.monotonic()
        await node.pool.stop(0.0)
        assert time.monotonic() - begun < 5
        assert isinstance(sink.outcome, RunFailed)


async def test_a_runner_that_ignores_orders_is_killed_with_its_children() -> None:
    async with fleet(ignore_term=True, children=2) as node:
        await node.submit().success()
        ready = node.pool.room(testing.echo, None).ready
        assert ready is not None
        assert len(ready.info["children"]) == 2
        await node.pool.stop(0.1)
        for pid in (ready.info["pid"], *ready.info["children"]):
            wait_gone(pid)


async def test_a_stranger_on_the_socket_is_counted_and_ignored() -> None:
    async with fleet() as node:
        await node.submit().success()
        with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
            stranger.connect(node.pool.channel.endpoint)
            stranger.send_multipart([b"\xc1", b"junk"])
            stranger.send_multipart([b""])
            while node.pool.channel.unknown < 2:
                await node.submit().success()
        await node.submit().success()


async def test_a_sink_that_raises_harms_nobody() -> None:
    class Bad(Sink):
        def chunk(self, data: dict[str, object], payloads: list[bytes]) -> None:
            raise RuntimeError("bad sink")

    async with fleet() as node:
        sink = Bad()
        node.pool.run(testing.echo, None, node.settings, "bad/1", {"chunks": 2}, sink)
        await sink.success()


async def test_a_sink_may_start_the_next_attempt_from_its_end() -> None:
    async with fleet(slots=1) as node:
        last = Sink()

        class Chained(Sink):
            def _end(self, outcome: object) -> None:
                node.pool.run(testing.echo, None, node.settings, "next/1", {}, last)

        await node.submit().success()
        node.pool.run(testing.echo, None, node.settings, "first/1", {}, Chained())
        await last.success()
