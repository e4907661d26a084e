"""Drives `peer.mjs`: a client of NATS' own JavaScript libraries in a process of its own."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import subprocess
import threading
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import pytest

FOLDER = Path(__file__).parent
STAMP = FOLDER / "node_modules" / ".outbid-stamp"
OLDEST_NODE = 20
LIMIT_S = 40.0


def install() -> None:
    """`npm ci`, once per lock file. Skips the test where there is no Node.js to run the peers."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("Node.js and npm are not installed; the peers of these tests are written in JavaScript")
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(version.removeprefix("v").partition(".")[0]) < OLDEST_NODE:
        pytest.skip(f"Node.js {version} is too old for the peers of these tests; they need {OLDEST_NODE}")
    wanted = hashlib.sha256((FOLDER / "package-lock.json").read_bytes()).hexdigest() + version
    if STAMP.exists() and STAMP.read_text() == wanted:
        return
    command = [shutil.which("npm") or "npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
    done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=100)
    assert done.returncode == 0, f"npm ci failed in {FOLDER}:\n{done.stdout}\n{done.stderr}"
    STAMP.write_text(wanted)


class Peer:
    """One JavaScript client, connected to `url` as whom the credentials file says. Calls may overlap: `begin` returns
    at once.
    """

    def __init__(self, url: str, creds: str) -> None:
        self._process = subprocess.Popen(
            ["node", FOLDER / "peer.mjs", url, creds],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=dict(os.environ),
        )
        self._calls = itertools.count(1)
        self._waiting: dict[int, Future[Any]] = {}
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._reader.join(5)

    def begin(self, op: str, **given: Any) -> Future[Any]:
        call = next(self._calls)
        future: Future[Any] = Future()
        self._waiting[call] = future
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"call": call, "op": op} | given).encode() + b"\n")
        self._process.stdin.flush()
        return future

    def call(self, op: str, **given: Any) -> Any:
        return self.begin(op, **given).result(LIMIT_S)

    def request(self, subject: str, **given: Any) -> dict[str, Any]:
        """One reply: {size, headers, body, error}."""
        return cast("dict[str, Any]", self.call("request", subject=subject, **given))

    def stream(self, subject: str, **given: Any) -> list[dict[str, Any]]:
        return cast("list[dict[str, Any]]", self.call("stream", subject=subject, **given))

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            answer = json.loads(line)
            future = self._waiting.pop(answer["call"])
            if "error" in answer:
                future.set_exception(PeerError(answer["error"]))
            else:
                future.set_result(answer.get("result"))
        for future in self._waiting.values():
            future.set_exception(PeerError("the peer has ended"))


class PeerError(Exception):
    """What the JavaScript library raised: its name and message."""
