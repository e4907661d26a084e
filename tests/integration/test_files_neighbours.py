"""Pulling from other nodes of the mesh: several at once, through their doors, and what happens when one is bad."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from outbid_contracts.errors import ChecksumMismatch, PullFailed
from outbid_contracts.files import PIECE_BYTES
from outbid_node.files import neighbour, remote
from outbid_node.files.door import NO, REQUEST, YES
from outbid_node.files.wire import Wire, WireError, answer, knock
from tests.hub_stand_in import Hub, hub
from tests.pulling import KEY, Node, gguf, part

MIB = 1 << 20
SOURCE = "hf:org/tiny"


@pytest.fixture
def net(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub() as it:
        monkeypatch.setenv("HF_ENDPOINT", it.url)
        monkeypatch.setattr(remote, "BACK_OFF_S", 0.01)
        yield it


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def holders(stack: AsyncExitStack, net: Hub, folder: Path, data: bytes, *names: str) -> list[Node]:
    """Nodes that have it already."""
    net.add("org/tiny", {"m.gguf": data}, licence="mit")
    nodes = [await stack.enter_async_context(part(folder, name)) for name in names]
    for node in nodes:
        await node.pull(SOURCE)
    net.seen.clear()
    return nodes


def content(node: Node) -> bytes:
    kept = node.store.find("tiny")
    assert kept is not None
    return (kept.folder / "m.gguf").read_bytes()


async def test_it_comes_from_several_neighbours_at_once_and_not_from_the_internet(
    stack: AsyncExitStack, net: Hub, tmp_path: Path
) -> None:
    data = gguf(60 * MIB)
    a, b = await holders(stack, net, tmp_path, data, "a", "b")
    me = await stack.enter_async_context(part(tmp_path, "me"))
    me.neighbours = [a, b]
    events = await me.pull(SOURCE)
    assert content(me) == data
    assert (events[-1].licence, events[-1].kind) == ("mit", "gguf")
    assert a.door.sent + b.door.sent == len(data)
    assert min(a.door.sent, b.door.sent) > 0
    assert not net.seen
    kept = me.store.find("tiny")
    assert kept is not None
    assert kept.manifest.revision == net.repos["org/tiny"].revision


async def test_without_the_mesh_nobody_is_asked(stack: AsyncExitStack, net: Hub, tmp_path: Path) -> None:
    (a,) = await holders(stack, net, tmp_path, gguf(MIB), "a")
    me = await stack.enter_async_context(part(tmp_path, "me"))
    me.neighbours = [a]
    await me.pull(SOURCE, mesh=False)
    assert a.door.sent == 0
    assert net.asked("files")


async def test_a_neighbour_with_wrong_bytes_is_dropped(stack: AsyncExitStack, net: Hub, tmp_path: Path) -> None:
    data = gguf(32 * MIB)
    a, b = await holders(stack, net, tmp_path, data, "a", "b")
    kept = b.store.find("tiny")
    assert kept is not None
    with (kept.folder / "m.gguf").open("r+b") as file:
        for offset in range(PIECE_BYTES, len(data), PIECE_BYTES):
            file.seek(offset)
            file.write(b"bad disk")
    me = await stack.enter_async_context(part(tmp_path, "me"))
    me.neighbours = [a, b]
    await me.pull(SOURCE)
    assert content(me) == data
    assert not net.seen


async def test_a_neighbour_that_lies_about_the_hashes_only_costs_time(
    stack: AsyncExitStack, net: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = gguf(20 * MIB)
    (a,) = await holders(stack, net, tmp_path, data, "a")
    monkeypatch.setattr(a.store, "digests", lambda kept: {hashlib.sha256(data).hexdigest(): bytes(5 * 32)})
    me = await stack.enter_async_context(part(tmp_path, "me"))
    me.neighbours = [a]
    await me.pull(SOURCE)
    assert content(me) == data


async def test_when_all_neighbours_are_bad_the_internet_is_asked(
    stack: AsyncExitStack, net: Hub, tmp_path: Path
) -> None:
    data = gguf(30 * MIB)
    (a,) = await holders(stack, net, tmp_path, data, "a")
    kept = a.store.find("tiny")
    assert kept is not None
    (kept.folder / "m.gguf").write_bytes(b"GGUF" + bytes(len(data) - 4))
    me = await stack.enter_async_context(part(tmp_path, "me"))
    me.neighbours = [a]
    await me.pull(SOURCE)
    assert content(me) == data
    assert net.asked("files")


async def test_a_model_that_only_a_liar_has_is_thrown_away(stack: AsyncExitStack, net: Hub, tmp_path: Path) -> None:
    data = gguf(10 * MIB)
    (a,) = await holders(stack, net, tmp_path, data, "a")
    kept = a.store.find("tiny")
    assert kept is not None
    (kept.folder / "m.gguf").write_bytes(b"GGUF" + bytes(len(data) - 4))
    net.repos.clear()
    me = await stack.enter_async_context(part(tmp_path, "me"))
    me.neighbours = [a]
    with pytest.raises(PullFailed, match="a sent wrong bytes"):
        await me.pull(SOURCE)
    assert me.store.kept() == []


async def test_a_neighbour_that_is_not_reached_sends_by_the_bus(
    stack: AsyncExitStack, net: Hub, tmp_path: Path
) -> None:
    data = gguf(18 * MIB + 5)
    (a,) = await holders(stack, net, tmp_path, data, "a")
    a.unreachable = True
    me = await stack.enter_async_context(part(tmp_path, "me"))
    me.neighbours = [a]
    await me.pull(SOURCE)
    assert content(me) == data
    assert (a.asked_by_bus, a.door.sent) == (19, 0)
    assert not net.seen


async def test_two_nodes_that_pull_the_same_give_each_other_what_they_have(
    stack: AsyncExitStack, net: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outbid_node.files.pull.FIND_AGAIN_S", 0.1)
    data = gguf(72 * MIB)
    net.add("org/tiny", {"m.gguf": data})
    net.faults.hold, net.faults.hold_after = threading.Event(), 20 * MIB
    a = await stack.enter_async_context(part(tmp_path, "a"))
    b = await stack.enter_async_context(part(tmp_path, "b"))
    a.neighbours, b.neighbours = [b], [a]
    first = asyncio.create_task(a.pull(SOURCE))
    assert await asyncio.to_thread(net.holding.wait, 20)
    second = asyncio.create_task(b.pull(SOURCE))
    while a.door.sent < 12 * MIB:
        assert not second.done()
        await asyncio.sleep(0.01)
    net.faults.hold.set()
    await asyncio.gather(first, second)
    assert content(a) == content(b) == data
    assert a.door.sent >= 12 * MIB
    assert net.sent < 2 * len(data) - 8 * MIB


# -- the door ----------------------------------------------------------------------------------------------------------


async def test_who_is_of_another_mesh_gets_no_byte(stack: AsyncExitStack, net: Hub, tmp_path: Path) -> None:
    (a,) = await holders(stack, net, tmp_path, gguf(MIB), "a")
    with socket.create_connection(("127.0.0.1", a.port)) as sock:
        sock.settimeout(5)
        with pytest.raises(WireError):
            await asyncio.to_thread(knock, sock, b"x" * 32)
    with socket.create_connection(("127.0.0.1", a.port)) as sock:
        sock.settimeout(5)
        sock.sendall(b"A" + bytes(48))
        assert sock.recv(1) == b""
    assert (a.door.sent, a.door.turned_away) == (0, 2)


async def test_the_door_gives_what_it_has_and_says_no_to_the_rest(
    stack: AsyncExitStack, net: Hub, tmp_path: Path
) -> None:
    data = gguf(5 * MIB)
    (a,) = await holders(stack, net, tmp_path, data, "a")

    def ask() -> None:
        with socket.create_connection(("127.0.0.1", a.port)) as sock:
            sock.settimeout(5)
            wire = knock(sock, KEY)
            known = hashlib.sha256(data).digest()
            for sha256, offset, length in (
                (bytes(32), 0, 10),
                (known, 5 * MIB, 1),
                (known, 2**60, 9),
                (known, 0, 2**31),
            ):
                wire.send(REQUEST.pack(sha256, offset, length))
                assert wire.receive(1) == NO
            wire.send(REQUEST.pack(known, 4 * MIB, 7))
            assert (wire.receive(1), wire.receive(7)) == (YES, data[4 * MIB : 4 * MIB + 7])
            sock.sendall(bytes(REQUEST.size + 16))
            with pytest.raises((WireError, OSError)):
                wire.receive(1)

    await asyncio.to_thread(ask)


async def test_a_frame_that_was_changed_on_the_way_ends_the_connection() -> None:
    here, there = socket.socketpair()
    with here, there:
        answering = asyncio.create_task(asyncio.to_thread(answer, there, KEY))
        mine = await asyncio.to_thread(knock, here, KEY)
        theirs: Wire = await answering
        mine.send(b"as it was")
        assert await asyncio.to_thread(theirs.receive, 9) == b"as it was"
        here.sendall(bytes(9 + 16))
        with pytest.raises(WireError):
            await asyncio.to_thread(theirs.receive, 9)


async def test_a_silent_neighbour_loses_its_pieces_to_the_others(
    stack: AsyncExitStack, net: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbour, "STALL_S", 0.5)
    data = gguf(40 * MIB)
    a, b = await holders(stack, net, tmp_path, data, "a", "b")
    mute = socket.create_server(("127.0.0.1", 0))
    b.door.close()
    b.port = mute.getsockname()[1]

    def answer_and_be_silent() -> None:
        sock, _ = mute.accept()
        answer(sock, KEY)
        held.append(sock)

    held: list[socket.socket] = []
    threading.Thread(target=answer_and_be_silent, daemon=True).start()
    me = await stack.enter_async_context(part(tmp_path, "me"))
    me.neighbours = [b, a]
    await me.pull(SOURCE)
    assert content(me) == data
    assert a.door.sent == len(data)
    assert not net.seen
    assert held
    mute.close()


async def test_a_neighbours_old_hash_does_not_hide_a_promised_one(
    stack: AsyncExitStack, net: Hub, tmp_path: Path
) -> None:
    (a,) = await holders(stack, net, tmp_path, gguf(MIB), "a")
    me = await stack.enter_async_context(part(tmp_path, "me"))
    me.neighbours = [a]
    with pytest.raises(ChecksumMismatch):
        await me.pull(SOURCE, sha256="1" * 64)
