"""The daemon's end of the wire to its runners: a ROUTER socket read directly by the event loop.

ZeroMQ's file descriptor is edge-triggered: it becomes readable once for any number of messages, and a send may swallow
the edge. So everything is read until nothing is left, and the socket is looked at again after a send. Loops that cannot
watch a descriptor (Windows' proactor) get a thread that does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import select
import shutil
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Protocol, cast

import msgspec
import zmq

from outbid_contracts import runner as wire

MAX_MESSAGE_BYTES = 256 * 1024 * 1024
_BATCH = 200
"""Messages read before other callbacks of the loop get their turn (about 5 ms)."""
_SOCKET_PATH_BYTES = 90
"""macOS allows 104 bytes in the path of a socket."""

_PREFIX = "outbid-runners-"

_log = logging.getLogger(__name__)


_NOW, _MORE = int(zmq.DONTWAIT), int(zmq.DONTWAIT | zmq.SNDMORE)
_COPY_BYTES = 1024 * 1024
"""A larger frame stays where ZeroMQ has it: copying 100 MB holds up the loop for 30 ms, and ten times that on a machine
that is busy.
"""


class Peer(Protocol):
    """Who gets the messages of one runner."""

    def on_message(self, message: wire.FromRunner, payloads: list[bytes]) -> None: ...

    def on_garbage(self, reason: str) -> None: ...


class Channel:
    """Frames in, typed messages out, by identity. Everything happens on the loop that called `open`."""

    def __init__(self, max_message_bytes: int = MAX_MESSAGE_BYTES, watch_in_thread: bool = False) -> None:
        self.endpoint = ""
        self.received = 0
        self.unknown = 0
        self.garbage = 0
        self._max_bytes = max_message_bytes
        self._thread_wanted = watch_in_thread
        self._peers: dict[bytes, Peer] = {}
        self._decoder = msgspec.msgpack.Decoder(wire.FromRunner)
        self._encoder = msgspec.msgpack.Encoder()
        self.folder: Path | None = None
        self._watcher: _Watcher | None = None
        self._due = False
        self._open = False
        self._soon: dict[bytes, list[wire.Run]] = {}

    def open(self) -> None:
        """Bind, and listen on the running loop."""
        self._loop = asyncio.get_running_loop()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # sending to a runner that is gone is an error, not a loss
        self._socket.setsockopt(zmq.MAXMSGSIZE, self._max_bytes)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.LINGER, 0)
        self.endpoint = self._bind()
        self._open = True
        self._watch()

    def close(self) -> None:
        if not self._open:
            return
        self._open = False
        if self._watcher is None:
            self._loop.remove_reader(self._descriptor)
        else:
            self._watcher.close()
        self._socket.close(linger=0)
        self._context.term()
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def register(self, identity: bytes, peer: Peer) -> None:
        self._peers[identity] = peer

    def forget(self, identity: bytes) -> None:
        self._peers.pop(identity, None)

    def send_soon(self, identity: bytes, run: wire.Run) -> None:
        """Within this turn of the loop, together with the others of it: each message wakes the socket's own thread,
        which costs more than the rest of a short job.
        """
        if not self._soon:
            self._loop.call_soon(self._send_waiting)
        self._soon.setdefault(identity, []).append(run)

    def _send_waiting(self) -> None:
        waiting, self._soon = self._soon, {}
        for identity, runs in waiting.items():
            self._send_runs(identity, runs)

    def _send_runs(self, identity: bytes, runs: list[wire.Run]) -> None:
        if self._open:
            self.send(identity, runs[0] if len(runs) == 1 else wire.RunBatch(items=runs))

    def send(self, identity: bytes, message: wire.ToRunner, payloads: tuple[bytes, ...] = ()) -> bool:
        """False if that runner is not (or no longer) connected."""
        if self._soon and (before := self._soon.pop(identity, None)):
            self._send_runs(identity, before)
        try:
            self._socket.send(identity, _MORE)
            if payloads:
                self._socket.send(self._encoder.encode(message), _MORE)
                self._socket.send_multipart(payloads, _NOW)
            else:
                self._socket.send(self._encoder.encode(message), _NOW)
        except zmq.ZMQError as error:
            _log.debug("not sent: %s", error, extra={"action": "runner_unreachable"})
            return False
        finally:
            if not self._due and self._option(zmq.EVENTS) & zmq.POLLIN:
                self._due = True
                self._loop.call_soon(self.drain)
        return True

    def drain(self) -> None:
        """Read what is there."""
        self._due = False
        for _ in range(_BATCH):
            if not self._open:
                return
            try:
                frames = [self._socket.recv(_NOW), self._socket.recv()]  # whom it is from, header
            except zmq.Again:
                if self._watcher is not None:
                    self._watcher.resume()
                return
            while self._option(zmq.RCVMORE):
                frames.append(_content(self._socket.recv(copy=False)))
            self._deliver(frames)
        self._due = True
        self._loop.call_soon(self.drain)

    def _deliver(self, frames: list[bytes]) -> None:
        self.received += 1
        peer = self._peers.get(frames[0])
        if peer is None:
            self.unknown += 1
            _log.warning("a message from a stranger", extra={"action": "runner_unknown", "count": self.unknown})
            return
        try:
            message = self._decoder.decode(frames[1])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, IndexError) as error:
            self.garbage += 1
            message, problem = None, str(error)
        try:
            if message is None:
                peer.on_garbage(f"it sent a message that cannot be read ({problem})")
            else:
                peer.on_message(message, frames[2:])
        except Exception:
            _log.exception("a runner's message was not handled", extra={"action": "runner_message_failed"})

    def _option(self, name: int) -> int:
        value = self._socket.getsockopt(name)
        assert isinstance(value, int)
        return value

    def _bind(self) -> str:
        if not zmq.has("ipc") or sys.platform == "win32":
            self._socket.bind("tcp://127.0.0.1:*")
        else:
            self.folder = _private_folder()
            self._socket.bind(f"ipc://{self.folder / 'r'}")
        return str(self._socket.getsockopt_string(zmq.LAST_ENDPOINT))

    def _watch(self) -> None:
        self._descriptor = self._option(zmq.FD)
        if not self._thread_wanted:
            with contextlib.suppress(NotImplementedError):
                self._loop.add_reader(self._descriptor, self.drain)
                self._loop.call_soon(self.drain)
                return
        self._watcher = _Watcher(self._loop, self._descriptor, self)


class _Watcher:
    """A thread that waits for the descriptor, has the loop drain the socket, and waits again after that."""

    def __init__(self, loop: asyncio.AbstractEventLoop, descriptor: int, channel: Channel) -> None:
        self._loop, self._descriptor, self._channel = loop, descriptor, channel
        self._drained = threading.Event()
        self._closing = False
        self._end_r, self._end_w = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="runner-channel", daemon=True)
        self._thread.start()

    def resume(self) -> None:
        self._drained.set()

    def close(self) -> None:
        self._closing = True
        self._end_w.send(b"\0")
        self._drained.set()
        self._thread.join()
        self._end_r.close()
        self._end_w.close()

    def _run(self) -> None:
        while True:
            readable, _, _ = select.select([self._descriptor, self._end_r.fileno()], [], [])
            if self._end_r.fileno() in readable:
                return
            self._drained.clear()
            if self._closing:  # set before `_drained` was: `close` may have set that just ahead of the line above
                return
            try:
                self._loop.call_soon_threadsafe(self._channel.drain)
            except RuntimeError:  # the loop is closed
                return
            self._drained.wait()


def _private_folder() -> Path:
    """Only this user may enter it, so only this user's processes may connect."""
    top = Path(tempfile.gettempdir())
    if len(str(top)) > _SOCKET_PATH_BYTES - len(_PREFIX) - 10:
        top = Path("/tmp")
    _remove_left_overs(top)
    return Path(tempfile.mkdtemp(prefix=_PREFIX, dir=top))


def _remove_left_overs(top: Path) -> None:
    """The folders of daemons that were killed: nobody listens there any more."""
    for folder in top.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            if time.time() - folder.stat().st_mtime < 60:  # perhaps just being made
                continue
            try:
                probe.connect(str(folder / "r"))
            except ConnectionRefusedError:
                shutil.rmtree(folder, ignore_errors=True)


def _content(frame: zmq.Frame) -> bytes:
    """As bytes, or as a memoryview that does for bytes (slices, hashes, comparison) if it is large."""
    return frame.bytes if len(frame) <= _COPY_BYTES else cast("bytes", frame.buffer)
