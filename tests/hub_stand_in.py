"""A stand-in for the Hugging Face hub: its API, redirects to a second host for the files, ranges, what can go wrong.

with hub() as it:
    it.add("org/name", {"model.gguf": data}, licence="mit")
    environment["HF_ENDPOINT"] = it.url
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

CHUNK = 64 * 1024


@dataclass
class Repo:
    files: dict[str, bytes | Path]
    licence: str = ""
    gated: bool = False
    revision: str = "0123456789abcdef0123456789abcdef01234567"
    lie: dict[str, Any] = field(default_factory=dict)
    """Path to what its entry in the list says instead."""


@dataclass
class Faults:
    """What happens to the files, not to the list of them."""

    cut_after: int | None = None
    """Bytes after which each answer is cut."""
    cuts: int = 0
    """How many answers are; afterwards all goes well."""
    refuse: list[int] = field(default_factory=list)
    """Status of the next answers."""
    wrong: bool = False
    ranges: bool = True
    hold: threading.Event | None = None
    """After `hold_after` bytes in all, wait for it."""
    hold_after: int = 0


class Hub:
    """`url` is the hub, `files_url` the host it redirects to. `seen`: (host, method, path, headers) of each request."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.faults = Faults()
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        self.sent = 0
        self.holding = threading.Event()
        """Set once an answer waits for `faults.hold`."""
        self._servers = [self._serve("hub"), self._serve("files")]
        self.url, self.files_url = (f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers)

    def add(self, name: str, files: Mapping[str, bytes | Path], **rest: Any) -> Repo:
        self.repos[name] = Repo(dict(files), **rest)
        return self.repos[name]

    def close(self) -> None:
        if self.faults.hold is not None:
            self.faults.hold.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def asked(self, host: str) -> list[str]:
        return [path for where, path, _ in self.seen if where == host]

    def _serve(self, host: str) -> ThreadingHTTPServer:
        class Handler(_Handler):
            hub = self
            who = host

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return server


@contextlib.contextmanager
def hub() -> Iterator[Hub]:
    it = Hub()
    try:
        yield it
    finally:
        it.close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    who: str
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        return

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.seen.append((self.who, path, {key.lower(): value for key, value in self.headers.items()}))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if path.startswith("/api/models/"):
                self._list(path.removeprefix("/api/models/"))
            elif self.who == "hub":
                self._redirect(path)
            else:
                self._file(path)

    def _list(self, path: str) -> None:
        name, _, revision = path.partition("/revision/")
        repo = self.hub.repos.get(name)
        if repo is None or revision not in ("main", repo.revision):
            self._answer(404, b"{}")
            return
        siblings = [_entry(path, content) | repo.lie.get(path, {}) for path, content in repo.files.items()]
        card = {"license": repo.licence} if repo.licence else {}
        self._answer(200, json.dumps({"sha": repo.revision, "siblings": siblings, "cardData": card}).encode())

    def _redirect(self, path: str) -> None:
        repo = self.hub.repos.get("/".join(path.split("/")[1:3]))
        if repo is not None and repo.gated and "authorization" not in self.hub.seen[-1][2]:
            self._answer(401, b"gated")
            return
        self.send_response(302)
        self.send_header("Location", self.hub.files_url + self.path)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _file(self, path: str) -> None:
        faults, parts = self.hub.faults, path.split("/")
        repo = self.hub.repos.get("/".join(parts[1:3]))
        content = repo.files.get("/".join(parts[5:])) if repo and parts[3:4] == ["resolve"] else None
        if faults.refuse:
            self._answer(faults.refuse.pop(0), b"busy")
        elif content is None:
            self._answer(404, b"no such file")
        else:
            self._send(content, faults)

    def _send(self, content: bytes | Path, faults: Faults) -> None:
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        start, end = 0, size
        asked = self.headers.get("Range", "").removeprefix("bytes=")
        if asked and faults.ranges:
            first, _, last = asked.partition("-")
            start, end = int(first), min(size, int(last) + 1 if last else size)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(end - start))
        self.send_header("ETag", '"one"')
        self.end_headers()
        cut = faults.cut_after if faults.cuts > 0 else None
        faults.cuts -= 1
        self._body(content, start, end, cut, faults)

    def _body(self, content: bytes | Path, start: int, end: int, cut: int | None, faults: Faults) -> None:
        with contextlib.ExitStack() as stack:
            file = None if isinstance(content, bytes) else stack.enter_context(content.open("rb"))
            for place in range(start, end, CHUNK):
                if cut is not None and place - start >= cut:
                    self.close_connection = True
                    return
                if faults.hold is not None and self.hub.sent >= faults.hold_after:
                    self.hub.holding.set()
                    faults.hold.wait()
                data = _slice(content, file, place, min(CHUNK, end - place))
                self.wfile.write(bytes(len(data)) if faults.wrong else data)
                self.hub.sent += len(data)

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _slice(content: bytes | Path, file: Any, place: int, length: int) -> bytes:
    if isinstance(content, bytes):
        return content[place : place + length]
    file.seek(place)
    data: bytes = file.read(length)
    return data


def _entry(path: str, content: bytes | Path) -> dict[str, Any]:
    """Large and binary files are in LFS, with their SHA-256; the others are known by git's own hash."""
    data = content if isinstance(content, bytes) else content.read_bytes()
    entry: dict[str, Any] = {"rfilename": path, "size": len(data)}
    if path.endswith((".gguf", ".safetensors", ".bin", ".onnx")):
        return entry | {"lfs": {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}}
    return entry | {"blobId": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()}
