"""What the tests of `llm.chat` share: a real runner process, spoken to as the daemon does."""

from __future__ import annotations

import os
import queue
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import zmq

from outbid_capabilities.llm import chat as capability
from outbid_contracts.capability import ModelFile
from outbid_contracts.llm import ChatChunk, ChatResult
from outbid_contracts.runner import (
    Cancel,
    ChunkBatch,
    ChunkData,
    Crashed,
    FromRunner,
    Load,
    Ready,
    Run,
    RunCancelled,
    RunDone,
    RunFailed,
    Stop,
)

PATIENCE_S = 60.0
DECODER = msgspec.msgpack.Decoder(FromRunner)

Outcome = RunDone | RunFailed | RunCancelled


@dataclass
class Talk:
    """One attempt: its chunks as they come, and how it ended."""

    runner: RunnerProcess
    key: str
    chunks: list[ChatChunk] = field(default_factory=list)
    outcome: Outcome | None = None
    news: queue.SimpleQueue[ChatChunk | Outcome] = field(default_factory=queue.SimpleQueue)

    def next(self) -> ChatChunk | Outcome:
        item = self.news.get(timeout=PATIENCE_S)
        if isinstance(item, ChatChunk):
            self.chunks.append(item)
        else:
            self.outcome = item
        return item

    def wait(self) -> Outcome:
        while self.outcome is None:
            self.next()
        return self.outcome

    def result(self) -> ChatResult:
        outcome = self.wait()
        assert isinstance(outcome, RunDone), outcome
        return msgspec.convert(outcome.result, ChatResult)

    def failure(self) -> RunFailed:
        outcome = self.wait()
        assert isinstance(outcome, RunFailed), outcome
        return outcome

    def cancel(self) -> None:
        self.runner.send(Cancel(attempt=self.key))

    @property
    def text(self) -> str:
        return "".join(chunk.text for chunk in self.chunks)


class RunnerProcess:
    """The runner kit's own process, with a ROUTER socket where the daemon's would be. One thread owns the socket."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "stderr"
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        port = self._socket.bind_to_random_port("tcp://127.0.0.1")
        self._wake, self._wake_end = (self._context.socket(zmq.PAIR) for _ in range(2))
        self._wake_end.bind("inproc://wake")
        self._wake.connect("inproc://wake")
        self._lock, self._outbox = threading.Lock(), queue.SimpleQueue[bytes | None]()
        self._token = secrets.token_hex(8)
        self._talks: dict[str, Talk] = {}
        self.life: queue.SimpleQueue[Any] = queue.SimpleQueue()
        environment = os.environ | {
            "OUTBID_RUNNER_ENDPOINT": f"tcp://127.0.0.1:{port}",
            "OUTBID_RUNNER_TOKEN": self._token,
        }
        command = [sys.executable, "-m", "outbid_capabilities.runner_kit", capability.runner]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log)
        self._thread = threading.Thread(target=self._talk, daemon=True)
        self._thread.start()

    def load(self, model: ModelFile, **options: Any) -> Ready | Crashed:
        self.life.get(timeout=PATIENCE_S)  # hello
        self.send(Load(model=msgspec.to_builtins(model), options=options))
        while True:
            message = self.life.get(timeout=PATIENCE_S)
            if isinstance(message, Ready | Crashed):
                return message

    def ask(self, text: str | None = None, **params: Any) -> Talk:
        key = f"{secrets.token_hex(4)}/1"
        talk = self._talks[key] = Talk(self, key)
        given = params if text is None else {"prompt": text} | params
        self.send(Run(attempt=key, capability="llm.chat", params=given))
        return talk

    def send(self, message: msgspec.Struct) -> None:
        self._outbox.put(msgspec.msgpack.encode(message))
        with self._lock:
            self._wake.send(b"")

    def stop(self) -> int:
        if self.process.poll() is None:
            self.send(Stop())
        try:
            return self.process.wait(timeout=20)
        finally:
            self.process.kill()
            self._outbox.put(None)
            with self._lock:
                self._wake.send(b"")
            self._thread.join(timeout=10)
            self._context.destroy(linger=0)

    def _talk(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._wake_end, zmq.POLLIN)
        while True:
            ready = dict(poller.poll())
            if self._wake_end in ready:
                self._wake_end.recv()
                message = self._outbox.get()
                if message is None:
                    return
                self._socket.send_multipart([self._token.encode(), message])
            if self._socket in ready:
                self._hear(DECODER.decode(self._socket.recv_multipart()[1]))

    def _hear(self, message: Any) -> None:
        if isinstance(message, ChunkBatch):
            for key, data in message.items:
                self._talks[key].news.put(msgspec.convert(data, ChatChunk))
        elif isinstance(message, ChunkData):
            self._talks[message.attempt].news.put(msgspec.convert(message.data, ChatChunk))
        elif isinstance(message, Outcome):
            self._talks[message.attempt].news.put(message)
        else:
            self.life.put(message)


@contextmanager
def running(folder: Path) -> Iterator[RunnerProcess]:
    runner = RunnerProcess(folder)
    try:
        yield runner
    finally:
        runner.stop()
