"""No bytes whatever upset the channel: each message is delivered, or counted as garbage."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from outbid_contracts import runner as wire
from outbid_node.runners.channel import Channel, _Watcher

SEED = 20261121


class Listener:
    def __init__(self) -> None:
        self.messages: list[Any] = []
        self.reasons: list[str] = []
        self.end = asyncio.Event()

    def on_message(self, message: wire.FromRunner, payloads: list[bytes]) -> None:
        self.messages.append((message, payloads))
        if isinstance(message, wire.Pong) and message.n == -1:
            self.end.set()
        if isinstance(message, wire.Log):
            raise RuntimeError(message.message)

    def on_garbage(self, reason: str) -> None:
        self.reasons.append(reason)


def mutated(rng: random.Random, data: bytes) -> bytes:
    """A valid message with some bytes changed, cut or added."""
    piece = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(piece) + 1)
        piece[at : at + rng.randint(0, 2)] = rng.randbytes(rng.randint(0, 3))
    return bytes(piece)


@pytest.mark.parametrize("watch_in_thread", [False, True])
async def test_five_hundred_mutated_messages(watch_in_thread: bool) -> None:
    rng = random.Random(SEED)
    valid = [
        wire.Hello(pid=1, protocol=1),
        wire.ChunkBatch(items=[("a/1", {"text": "x"})]),
        wire.RunDone(attempt="a/1", result={}, measured={"tokens": (3, 0.5)}),
        wire.EndBatch(items=[wire.RunDone(attempt="a/1", result={}), wire.RunCancelled(attempt="b/1")]),
        wire.Log(level="info", message="the handler of this one raises"),
    ]
    channel, listener = Channel(watch_in_thread=watch_in_thread), Listener()
    channel.open()
    channel.register(b"peer", listener)
    with zmq.Context() as context, context.socket(zmq.DEALER) as peer:
        peer.setsockopt(zmq.IDENTITY, b"peer")
        peer.connect(channel.endpoint)
        for n in range(500):
            data = mutated(rng, msgspec.msgpack.encode(valid[n % len(valid)]))
            peer.send_multipart([data, *(rng.randbytes(3) for _ in range(n % 3))])
        peer.send(msgspec.msgpack.encode(wire.Pong(n=-1)))
        await asyncio.wait_for(listener.end.wait(), 20)
        assert len(listener.messages) + len(listener.reasons) == 501
        assert channel.garbage == len(listener.reasons) > 200
        assert channel.send(b"peer", wire.Ping(n=1))
        assert peer.recv() == msgspec.msgpack.encode(wire.Ping(n=1))
    assert not channel.send(b"nobody", wire.Stop())
    channel.close()
    channel.close()


def run(attempt: str) -> wire.Run:
    return wire.Run(attempt=attempt, capability="test.noop", params={})


async def test_runs_of_one_turn_go_together_and_before_what_is_said_after_them() -> None:
    channel, heard = Channel(), asyncio.Event()
    channel.open()
    with zmq.Context() as context, context.socket(zmq.DEALER) as one, context.socket(zmq.DEALER) as other:
        for peer, name in ((one, b"one"), (other, b"other")):
            listener = Listener()
            channel.register(name, listener)
            peer.setsockopt(zmq.IDENTITY, name)
            peer.connect(channel.endpoint)
            peer.send(msgspec.msgpack.encode(wire.Pong(n=-1)))
            await asyncio.wait_for(listener.end.wait(), 20)
        for n in range(3):
            channel.send_soon(b"one", run(f"a/{n}"))
        channel.send_soon(b"other", run("b/1"))
        channel.send(b"one", wire.Cancel(attempt="a/1"))
        channel.send_soon(b"one", run("a/3"))
        channel.send_soon(b"gone", run("c/1"))
        asyncio.get_running_loop().call_soon(heard.set)
        await heard.wait()
        batch = wire.RunBatch(items=[run(f"a/{n}") for n in range(3)])
        told = [msgspec.msgpack.decode(one.recv(), type=wire.ToRunner) for _ in range(3)]
        assert told == [batch, wire.Cancel(attempt="a/1"), run("a/3")]
        assert msgspec.msgpack.decode(other.recv(), type=wire.ToRunner) == run("b/1")
    channel.send_soon(b"one", run("a/4"))
    channel.close()
    await asyncio.sleep(0)


@pytest.mark.skipif(sys.platform == "win32", reason="loopback TCP leaves no files")
async def test_what_a_killed_daemon_left_behind_is_removed_and_a_living_one_is_not() -> None:
    code = "import asyncio, os; from outbid_node.runners.channel import Channel\n"
    code += "async def main(): c = Channel(); c.open(); print(c.folder, flush=True); os.kill(os.getpid(), 9)\n"
    killed = subprocess.run([sys.executable, "-c", code + "asyncio.run(main())"], stdout=subprocess.PIPE, text=True)
    left, living, new = Path(killed.stdout.strip()), Channel(), Channel()
    living.open()
    assert living.folder is not None
    assert left.exists()
    for folder in (left, living.folder):
        os.utime(folder, (0, 0))
    new.open()
    assert not left.exists()
    assert living.folder.exists()
    living.close()
    new.close()


async def test_the_socket_is_only_for_this_user_and_is_removed() -> None:
    channel = Channel()
    channel.open()
    if channel.folder is not None:  # Windows has loopback TCP instead
        assert channel.folder.stat().st_mode & 0o077 == 0
    channel.close()
    assert channel.folder is None or not channel.folder.exists()


class _ClearedLate(threading.Event):
    """Its `clear` comes after somebody's `set`, the unlucky order of two threads."""

    def __init__(self) -> None:
        super().__init__()
        self.clearing = threading.Event()

    def clear(self) -> None:
        self.clearing.set()
        assert self.wait(10)
        super().clear()


async def test_a_channel_that_closes_just_as_a_message_comes_does_not_wait_for_ever() -> None:
    """The drain that the watching thread would wait for never runs: the loop is in `close`."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        watcher = _Watcher(asyncio.get_running_loop(), ours.fileno(), Channel())
        drained = watcher._drained = _ClearedLate()
        theirs.send(b"x")
        assert await asyncio.to_thread(drained.clearing.wait, 10)
        closing = threading.Thread(target=watcher.close, daemon=True)
        closing.start()
        await asyncio.to_thread(closing.join, 10)
        assert not closing.is_alive()
