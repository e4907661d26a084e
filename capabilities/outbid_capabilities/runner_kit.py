"""The runner's side of the wire in `outbid_contracts.runner`: write a class with `load` and `run`, the rest is here.

Needs only the standard library, pyzmq and msgpack, so that a capability may live in its own virtual environment.
The daemon starts it as `python -m outbid_capabilities.runner_kit MODULE:CLASS`.

Threads: the main thread does the talking and nothing else, so a ping is answered while a model loads or computes.
Loading has its own thread; what computes is up to the runner (`BlockingRunner` has one thread per slot).
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import importlib
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import msgpack
import zmq

PROTOCOL = 1
MAX_MESSAGE_BYTES = 256 * 1024 * 1024
"""The daemon cuts the connection at a larger frame; better the one attempt fails here."""

BATCH = 64
"""So many messages are read, and ends of attempts told in one message, before anything is sent."""
BATCHED_BYTES = 64 * 1024
"""A larger end goes alone."""

Progress = Callable[[float | None, str], None]
Data = Mapping[str, Any]
Payloads = Sequence[bytes]


class RunError(Exception):
    """Raise it in `load` or `run` to choose the error's stable code and whether another node may try."""

    def __init__(self, message: str, code: str = "attempt_failed", retry: bool = True) -> None:
        super().__init__(message)
        self.message, self.code, self.retry = message, code, retry


class Attempt:
    """One job to do. All methods may be called from any thread; the first of done, failed, stopped counts."""

    __slots__ = (
        "_begun",
        "_ended",
        "_kit",
        "_lock",
        "cancelled",
        "capability",
        "files",
        "heard",
        "kept",
        "key",
        "params",
        "save_wanted",
    )

    def __init__(self, kit: Kit, order: Mapping[str, Any], files: dict[str, bytes]) -> None:
        """`order`: the header of the daemon's `run`. `files`: the parameters that hold bytes, and `checkpoint` where it
        is to go on from one.
        """
        self.key, self.capability, self.params = order["attempt"], order["capability"], order["params"]
        self.files = files
        self.heard = order.get("heard", True)
        """False: the caller wants the result only; progress and pieces that cost something may be left out."""
        self.cancelled = threading.Event()
        self.save_wanted = False
        """Set before `cancelled`: give a last checkpoint, the job goes on elsewhere."""
        self.kept: Data | None = None
        """Set it before the end: {"slot", "reused", "whole"}, where the runner keeps what this had it read."""
        self._kit, self._lock, self._ended = kit, threading.Lock(), False
        self._begun = time.perf_counter()

    @property
    def ended(self) -> bool:
        return self._ended

    def chunk(self, data: Data, *payloads: bytes) -> None:
        """One streamed piece, as the capability's chunk Struct."""
        if not self._ended:
            self._kit.send({"type": "chunk", "attempt": self.key, "data": data}, payloads)

    def progress(self, step: int, steps: int, note: str = "", eta_s: float | None = None) -> None:
        """`eta_s`: seconds until it is done."""
        if not self._ended:
            header = {"type": "progress", "attempt": self.key, "step": step, "steps": steps, "note": note}
            self._kit.send(header if eta_s is None else header | {"eta_s": eta_s})

    def checkpoint(self, step: int, steps: int, data: bytes) -> None:
        """What another runner of this capability and model needs to go on after `step`; replaces the one before."""
        if not self._ended:
            self._kit.send({"type": "checkpoint", "attempt": self.key, "step": step, "steps": steps}, (data,))

    def done(
        self,
        result: Data,
        timings: Mapping[str, float] | None = None,
        measured: Mapping[str, tuple[float, float]] | None = None,
        payloads: Payloads = (),
    ) -> None:
        """`timings` in seconds; `measured` is {unit: (how many, seconds)} actually spent, the estimator's food."""
        took_s = time.perf_counter() - self._begun
        header: dict[str, Any] = {"type": "done", "attempt": self.key, "result": result, "took_s": took_s}
        if timings:
            header["timings"] = timings
        if measured:
            header["measured"] = measured
        self._end(header, payloads)

    def failed(self, message: str, code: str = "attempt_failed", retry: bool = True, traceback: str = "") -> None:
        """`retry=False` where no node could do it (a bad request)."""
        header = {"type": "failed", "attempt": self.key, "message": message, "code": code}
        self._end(header | {"retry": retry, "traceback": traceback})

    def stopped(self) -> None:
        """It was cancelled, and nothing more will come."""
        self._end({"type": "cancelled", "attempt": self.key})

    def raised(self, error: BaseException) -> None:
        """It failed with this exception."""
        trace = "".join(traceback.format_exception(error))
        if isinstance(error, RunError):
            self.failed(error.message, error.code, error.retry, trace)
        else:
            self.failed(describe(error), traceback=trace)

    def _end(self, header: dict[str, Any], payloads: Payloads = ()) -> None:
        if self.kept is not None:
            header["kept"] = self.kept
        frames = pack(header, payloads)  # first: what cannot be packed raises here, and `failed` may still be said
        with self._lock:
            if self._ended:
                return
            self._ended = True
        self._kit.forget(self.key)
        self._kit.send_frames(frames, ends=True)


class Runner:
    """What a capability implements. One object per process, one model per object."""

    _kit: Kit
    slots: int = 1

    def load(self, model: dict[str, Any] | None, options: dict[str, Any], progress: Progress) -> dict[str, Any]:
        """Load the model; called once, in a thread of its own. An exception here ends the process.

        `model` is a ModelFile as a map. Returns {"slots": int, "rates": {unit: seconds per unit}, "fixed_s": float,
        "memory_mib": float, "info": {}}; all but `slots` may be left out. The kit measures how long it took.
        """
        raise NotImplementedError

    def start(self, attempt: Attempt) -> None:
        """Begin an attempt. Called on the I/O thread: must return at once."""
        raise NotImplementedError

    def cancel(self, attempt: Attempt) -> None:
        """`attempt.cancelled` has just been set. Called on the I/O thread: must return at once."""

    def close(self) -> None:
        """The process is about to end. Called on the I/O thread."""

    def emit_chunks(self, items: Sequence[tuple[Attempt, Data]]) -> None:
        """One message for the chunks that several attempts made in one step. From any thread."""
        live = [(attempt.key, data) for attempt, data in items if not attempt.ended]
        if live:
            self._kit.send({"type": "chunks", "items": live})


class BlockingRunner(Runner):
    """A runner whose `run` blocks until the attempt is done; `slots` threads call it."""

    _jobs: queue.SimpleQueue[Attempt] | None = None

    def run(self, attempt: Attempt) -> dict[str, Any] | None:
        """Do the work and return the result. Called in a worker thread.

        An exception is a failed attempt. Look at `attempt.cancelled` at each step and return (anything) if it is set.
        May call `attempt.done(...)` itself, to give timings or payloads, and return None.
        """
        raise NotImplementedError

    def start(self, attempt: Attempt) -> None:
        if self._jobs is None:
            self._jobs = queue.SimpleQueue()
            for n in range(self.slots):
                threading.Thread(target=self._work, args=(self._jobs,), name=f"slot-{n}", daemon=True).start()
        self._jobs.put(attempt)

    def _work(self, jobs: queue.SimpleQueue[Attempt]) -> None:
        while True:
            attempt = jobs.get()
            try:
                result = None if attempt.cancelled.is_set() else self.run(attempt)
                if attempt.cancelled.is_set():
                    attempt.stopped()
                elif result is not None:
                    attempt.done(result)
                elif not attempt.ended:
                    attempt.failed("the runner returned no result")
            except BaseException as error:
                attempt.raised(error)


class Kit:
    """One runner's connection to its daemon. The socket belongs to the main thread; others hand frames over."""

    def __init__(self, target: str, endpoint: str, token: str) -> None:
        self.target = target
        self.runner: Runner | None = None
        self.attempts: dict[str, Attempt] = {}
        self._thread = threading.get_ident()
        self._outbox: deque[tuple[list[bytes], bool]] = deque()
        self._batches = self._receiving = False
        self._awake = False
        self._exit: int | None = None
        self._wake_r, self._wake_w = socket.socketpair()
        self._wake_r.setblocking(False)
        self._wake_w.setblocking(False)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, token.encode())
        self._socket.setsockopt(zmq.SNDHWM, 0)  # never block the thread that answers pings
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RECONNECT_IVL, -1)  # a cut connection is for good: the daemon sees it and kills us
        self._socket.connect(endpoint)

    # -- sending, from any thread ----------------------------------------------------------------------------------

    def send(self, header: Data, payloads: Payloads = ()) -> None:
        self.send_frames(pack(header, payloads))

    def send_frames(self, frames: list[bytes], *, ends: bool = False) -> None:
        """`ends`: they say how an attempt ended, and may go together with others that do."""
        self._outbox.append((frames, ends))
        if threading.get_ident() != self._thread:
            self.wake()
        elif not self._receiving:
            self._flush()

    def wake(self) -> None:
        if not self._awake:  # set before the byte, cleared before the outbox is read: no message is left behind
            self._awake = True
            with contextlib.suppress(BlockingIOError):
                self._wake_w.send(b"\0")

    def forget(self, key: str) -> None:
        self.attempts.pop(key, None)

    def crash(self, error: BaseException, code: str = "runner_crashed") -> None:
        """Say the last words and end the process with status 1."""
        trace = "".join(traceback.format_exception(error))
        sys.stderr.write(trace)
        message, code = (error.message, error.code) if isinstance(error, RunError) else (describe(error), code)
        self.send({"type": "crashed", "message": message, "traceback": trace, "code": code})
        self.exit(1)

    def exit(self, status: int) -> None:
        self._exit = status
        self.wake()

    # -- the main thread -------------------------------------------------------------------------------------------

    def serve(self) -> int:
        """Talk with the daemon until told to stop; returns the exit status."""
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._wake_r, zmq.POLLIN)
        self.send({"type": "hello", "pid": os.getpid(), "protocol": PROTOCOL, "batches": True})
        while self._exit is None:
            ready = [which for which, _ in poller.poll()]
            if any(which != self._socket for which in ready):
                with contextlib.suppress(BlockingIOError):
                    self._wake_r.recv(4096)
                self._awake = False
                self._flush()
            if self._socket in ready:
                self._receive()
        return self._exit

    def close(self, status: int) -> NoReturn:
        """End the process without running native libraries' exit handlers: they crash or hang too often."""
        if status == 0 and self.runner is not None:
            with contextlib.suppress(Exception):
                self.runner.close()
        self._flush()
        self._socket.close(linger=0 if status == 0 else 1000)
        self._context.term()
        sys.stderr.flush()
        os._exit(status)

    def _flush(self) -> None:
        while self._outbox:
            together = self._small_ends() if self._batches else []
            frames = self._outbox.popleft()[0] if not together else [batch(together)]
            self._socket.send_multipart(frames, zmq.DONTWAIT)

    def _small_ends(self) -> list[bytes]:
        """Taken from the front of the outbox."""
        found: list[bytes] = []
        while self._outbox and len(found) < BATCH and _is_small_end(*self._outbox[0]):
            found.append(self._outbox.popleft()[0][0])
        return found

    def _receive(self) -> None:
        """Read all there is. What is said meanwhile goes out together: each message sent wakes a thread."""
        self._receiving = True
        while self._exit is None:
            try:
                frames = self._socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                break
            header = msgpack.unpackb(frames[0])
            self._HANDLERS[header["type"]](self, header, frames[1:])
            if len(self._outbox) >= BATCH:
                self._flush()
        self._receiving = False
        self._flush()

    def _on_run(self, header: dict[str, Any], payloads: list[bytes]) -> None:
        key = header["attempt"]
        files = dict(zip(header.get("files", ()), payloads, strict=True))
        attempt = Attempt(self, header, files)
        if self.runner is None:
            attempt.failed("the runner has not loaded yet")
            return
        self.attempts[key] = attempt
        try:
            self.runner.start(attempt)
        except Exception as error:
            attempt.raised(error)

    def _on_runs(self, header: dict[str, Any], payloads: list[bytes]) -> None:
        for order in header["items"]:
            self._on_run(order, [])

    def _on_cancel(self, header: dict[str, Any], payloads: list[bytes]) -> None:
        attempt = self.attempts.get(header["attempt"])
        if attempt is None or self.runner is None:
            return
        attempt.save_wanted = bool(header.get("save"))
        attempt.cancelled.set()
        try:
            self.runner.cancel(attempt)
        except Exception as error:
            attempt.raised(error)

    def _on_ping(self, header: dict[str, Any], payloads: list[bytes]) -> None:
        self.send({"type": "pong", "n": header["n"]})

    def _on_stop(self, header: dict[str, Any], payloads: list[bytes]) -> None:
        self.exit(0)

    def _on_load(self, header: dict[str, Any], payloads: list[bytes]) -> None:
        self._batches = header.get("batches", False)
        args = (header["model"], header["options"])
        threading.Thread(target=self._load, args=args, name="load", daemon=True).start()

    def _load(self, model: dict[str, Any] | None, options: dict[str, Any]) -> None:
        begun = time.perf_counter()
        try:
            module, _, name = self.target.partition(":")
            runner: Runner = getattr(importlib.import_module(module), name)()
            runner._kit = self
            ready = runner.load(model, options, self._progress)
            runner.slots = int(ready["slots"])
            if ready.get("memory_mib") is None:
                ready = ready | {"memory_mib": memory_mib()}
            frames = pack({"type": "ready", "load_s": time.perf_counter() - begun} | ready)
        except BaseException as error:
            self.crash(error, "runner_unavailable")
            return
        self.runner = runner
        self.send_frames(frames)

    def _progress(self, fraction: float | None, note: str = "") -> None:
        self.send({"type": "loading", "fraction": fraction, "note": note})

    _HANDLERS: Mapping[str, Callable[[Kit, dict[str, Any], list[bytes]], None]] = {
        "run": _on_run,
        "runs": _on_runs,
        "cancel": _on_cancel,
        "ping": _on_ping,
        "load": _on_load,
        "stop": _on_stop,
    }


class _LogHandler(logging.Handler):
    """Warnings of Python libraries go to the daemon's log."""

    def __init__(self, kit: Kit) -> None:
        super().__init__(logging.WARNING)
        self._kit = kit

    def emit(self, record: logging.LogRecord) -> None:
        self._kit.send({"type": "log", "level": record.levelname.lower(), "message": self.format(record)})


def pack(header: Data, payloads: Payloads = ()) -> list[bytes]:
    """The frames of a message. Raises RunError if it is larger than the daemon takes."""
    frames: list[bytes] = [msgpack.packb(header), *payloads]
    size = max(map(len, frames))
    if size > MAX_MESSAGE_BYTES:
        raise RunError(f"the result has {size / 2**20:.0f} MiB; the limit is {MAX_MESSAGE_BYTES // 2**20} MiB")
    return frames


_ENDS = b"\x82" + b"".join(map(msgpack.packb, ("type", "ends", "items")))
"""How a map of these two keys begins, up to the value of `items`."""


def batch(ends: Sequence[bytes]) -> bytes:
    """One message from some that are packed already."""
    if len(ends) == 1:
        return ends[0]
    count: bytes = msgpack.Packer().pack_array_header(len(ends))
    return _ENDS + count + b"".join(ends)


def _is_small_end(frames: list[bytes], ends: bool) -> bool:
    return ends and len(frames) == 1 and len(frames[0]) <= BATCHED_BYTES


def describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def memory_mib() -> float | None:
    """Resident memory of this process, None where the standard library cannot tell (Windows)."""
    try:
        with open("/proc/self/statm") as file:  # noqa: PTH123 - pathlib costs an import here for nothing
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except (OSError, AttributeError):
        pass
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes on macOS


def die_with_the_daemon() -> None:
    """End this process when the daemon does: its end of our standard input closes, however it died."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # also ends a process that is stopped, or stuck holding the GIL
            ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    threading.Thread(target=_watch_stdin, name="daemon-watch", daemon=True).start()


def _watch_stdin() -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)  # and our own children
    os._exit(1)


def main(target: str) -> NoReturn:
    os.dup2(2, 1)  # what native code prints harms nobody on standard error
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the daemon
    die_with_the_daemon()
    kit = Kit(target, os.environ["OUTBID_RUNNER_ENDPOINT"], os.environ["OUTBID_RUNNER_TOKEN"])
    signal.signal(signal.SIGTERM, lambda number, frame: kit.exit(0))
    logging.getLogger().addHandler(_LogHandler(kit))
    try:
        status = kit.serve()
    except BaseException as error:
        kit.crash(error)
        status = 1
    kit.close(status)


if __name__ == "__main__":
    if len(sys.argv) != 2 or ":" not in sys.argv[1]:
        sys.exit("usage: python -m outbid_capabilities.runner_kit MODULE:CLASS (a daemon does this)")
    from outbid_capabilities import runner_kit  # the runner imports this one: two copies would not know each other

    runner_kit.main(sys.argv[1])
