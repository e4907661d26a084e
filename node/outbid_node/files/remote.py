"""Fetching pieces from the internet: ranges of a file, several pieces per request, patience with busy servers."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

from outbid_contracts.errors import PullFailed
from outbid_node.files.assembly import Assembly
from outbid_node.files.http import Again, client, host_of, opened
from outbid_node.files.pieces import Piece, Stopped
from outbid_node.files.web import etag_of, size_of

if TYPE_CHECKING:
    import httpx

RUN_PIECES = 16
"""One request asks for at most so many in a row, 64 MiB."""

CHUNK_BYTES = 256 * 1024
PATIENCE = 6
"""Tries in a row that bring nothing before it is given up."""

BACK_OFF_S = 0.5
"""Doubled with each try."""

INTERNET = "internet"


class Remote:
    """The internet as a source. `run` in a thread of its own. Raises PullFailed when it is given up."""

    def __init__(self, assembly: Assembly, number: int = 0, start: int = 0, name: str = INTERNET) -> None:
        """`number` tells several connections apart; `start`: the piece to begin with."""
        self.name = name
        self.fetched = 0
        self.dropped = False
        self.who = f"{name} {number}"
        self._assembly = assembly
        self._pause = threading.Event()
        self._start = start

    def run(self) -> None:
        failed = 0
        with contextlib.suppress(Stopped), client() as http:
            while not self.dropped:
                piece = self._assembly.pieces.take(self.who, self._has, self._start)
                if piece is None:
                    continue
                before = self.fetched
                try:
                    self._fetch_run(http, piece)
                except Again as error:
                    failed = 1 if self.fetched > before else failed + 1
                    if failed >= PATIENCE:
                        raise PullFailed(f"{error.message}, {failed} times in a row") from error
                    self._wait(max(error.after_s, BACK_OFF_S * 2 ** (failed - 1)))
                finally:
                    self._assembly.pieces.give_back(self.who)

    def drop(self) -> None:
        self.dropped = True
        self._pause.set()

    def _has(self, piece: Piece) -> bool:
        return bool(self._assembly.plan.files[piece.file].url)

    def _wait(self, seconds: float) -> None:
        left = seconds
        while left > 0 and not self._assembly.pieces.stopped and not self._pause.wait(min(left, 0.2)):
            left -= 0.2
        if self._assembly.pieces.stopped:
            raise Stopped

    def _fetch_run(self, http: httpx.Client, first: Piece) -> None:
        """From this piece on, as far as the next ones are wanted too."""
        file, pieces = self._assembly.plan.files[first.file], self._assembly.pieces
        run = [first]
        while len(run) < RUN_PIECES and pieces.take_following(self.who, run[-1]):
            run.append(pieces.all[run[-1].number + 1])
        end = run[-1].offset + run[-1].length
        with opened(http, file.url, first.offset, end) as response:
            self._check(response, first)
            place = first.offset if response.status_code == 206 else 0
            self._read(response, run, place, on=response.status_code == 200)

    def _check(self, response: httpx.Response, piece: Piece) -> None:
        file = self._assembly.plan.files[piece.file]
        size, etag = size_of(response, file.size), etag_of(response)
        if size != file.size:
            raise PullFailed(f"{file.path} should have {file.size} bytes, but {host_of(file.url)} has {size}")
        if file.etag and etag != file.etag:
            raise PullFailed(f"{file.path} has changed at {host_of(file.url)} while it was fetched; pull again")
        if response.status_code == 206:
            begins = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
            if begins != str(piece.offset):
                raise PullFailed(f"{host_of(file.url)} sent another part of {file.path} than it was asked for")

    def _read(self, response: httpx.Response, run: list[Piece], place: int, *, on: bool) -> None:
        """`place`: offset of the first byte. A server without ranges sends all from the start: what is not wanted is
        passed over, and reading goes `on` beyond the run.
        """
        data = bytearray()
        for chunk in response.iter_raw(CHUNK_BYTES):
            if self.dropped or self._assembly.pieces.stopped:
                return
            skip = min(len(chunk), max(0, run[0].offset - place - len(data)) if not data else 0)
            place += skip
            data += memoryview(chunk)[skip:]
            self._assembly.pieces.touch(self.who, run[0])
            while run and len(data) >= run[0].length:
                piece = run.pop(0)
                self._assembly.write(piece, data[: piece.length], self.name)
                self.fetched += piece.length
                del data[: piece.length]
                place += piece.length
                if not run and on and self._assembly.pieces.take_following(self.who, piece):
                    run.append(self._assembly.pieces.all[piece.number + 1])
            if not run:
                return
        raise Again(f"{host_of(str(response.url))} cut the connection")
