"""Courtesy as a part of a node: looks each second or two, tells the worker its terms, gives back what must not stay."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from outbid_contracts import subjects
from outbid_contracts.admin import PauseReply, PauseRequest, QuietReply, QuietRequest
from outbid_contracts.codec import Format, decode
from outbid_contracts.errors import InvalidRequest
from outbid_contracts.ids import NodeId
from outbid_contracts.messages import Message, Resources
from outbid_node import aside, pace
from outbid_node.config_sections import CourtesySection
from outbid_node.courtesy import pausing, quieting
from outbid_node.courtesy.parts import Part, in_words, strictest
from outbid_node.courtesy.quiet import QuietHours
from outbid_node.courtesy.readings import Pause, Readings
from outbid_node.courtesy.rules import rules
from outbid_node.courtesy.watch import Own, Watch
from outbid_node.history.interface import History
from outbid_node.history.rows import Events
from outbid_node.micro import Request, Service
from outbid_node.runners.pool import RunnerPool
from outbid_node.terms import USUAL, Terms
from outbid_node.worker import Worker

log = logging.getLogger(__name__)

MAKE_ROOM_S = 10.0
"""So long after the person came, idle models go at once; later ones of his own stay loaded for KEEP_OWN_S."""

KEEP_OWN_S = 60.0

REST_BEATS = 2
"""Between two looks while nothing runs here. Most of what is read is two seconds old or more."""


class Courtesy:
    """Owns `worker.terms`. `in_use` is for presence; `touch` is called when it changes in kind."""

    def __init__(
        self,
        *,
        me: NodeId,
        section: CourtesySection,
        state: Path,
        worker: Worker,
        pool: RunnerPool,
        resources: Callable[[], Resources],
        touch: Callable[[], None],
        history: History,
        watch: Watch | None = None,
    ) -> None:
        self.me = me
        self.in_use = ""
        self._section, self._state, self._worker, self._pool = section, state, worker, pool
        self._resources, self._touch, self._history = resources, touch, history
        self._watch = watch or Watch(section)
        self._quiet = QuietHours(section)
        self._rules = rules(section, quiet=self._quiet)
        quieting.take_up(state, self._quiet)
        self._terms: Mapping[bool, Terms] = {True: USUAL, False: USUAL}
        self._pause = pausing.load(state)
        self._freeing_since: float | None = None
        self._complaint = ""
        worker.terms = self._terms.__getitem__
        self._last = Readings(at=time.monotonic(), clock_s=time.time())
        self.judge(self._last)

    @property
    def frees_memory(self) -> bool:
        """Whether the person at this machine needs what idle models hold."""
        return self._freeing_since is not None

    async def run(self) -> None:
        while True:
            await self.look()
            await pace.next_beat(1 if self._worker.attempts else REST_BEATS)

    async def look(self) -> None:
        """Read and judge once. A fault of ours must not take the node down: then the terms stay as they were."""
        try:
            self.judge(await aside.read(partial(self._watch.read, self._own())))
            self._complaint = ""
        except Exception as error:
            if (told := repr(error)) != self._complaint:
                self._complaint = told
                log.exception("courtesy fails", extra={"action": "courtesy_failed"})

    def _own(self) -> Own:
        running = len(self._worker.attempts)
        busy = [(key, pid, device) for key, (pid, device) in self._pool.processes().items()]
        resources = self._resources()
        return Own(
            resources=resources,
            runners=frozenset(pid for _, pid, device in busy if device not in ("", "cpu")),
            running=running,
            extra_w=self._extra_w() if resources.on_battery else 0.0,
        )

    def _extra_w(self) -> float:
        """The most that one of its offers would draw."""
        return max((offer.watts for offer in self._worker.offers()), default=0.0)

    def judge(self, readings: Readings) -> None:
        """Take the terms that follow, and act on them. On the event loop; pure but for that."""
        self._last = readings
        now = replace(readings, pause=self._pause)
        parts = [rule.judge(now) for rule in self._rules]
        before = self._terms
        self._terms = {own: strictest(parts, own=own) for own in (True, False)}
        self._worker.terms = self._terms.__getitem__
        was, self.in_use = self.in_use, in_words(parts)
        if _kind(before) != _kind(self._terms) or bool(was) != bool(self.in_use):
            self._tell()
        if readings.idle_s is not None and self._section.nice > self._pool.nice:
            self._pool.be_nice(self._section.nice)
        self._act(parts, readings.at)

    def _tell(self) -> None:
        told = self.in_use or "works as usual"
        log.info("%s", told, extra={"action": "courtesy"})
        self._history.note(Events(at_ms=time.time_ns() // 1_000_000, kind="courtesy", node=self.me, text=told))
        self._touch()

    def _act(self, parts: Sequence[Part], at: float) -> None:
        giving = [part for part in parts if part.gives_back]
        if refusing := [part for part in giving if part.refuse]:
            self._worker.withdraw(in_words(refusing))
        else:
            for part in giving:
                self._worker.withdraw(part.most_why, beyond_s=part.most_s)
        if not any(part.frees_memory for part in parts):
            self._freeing_since = None
            return
        self._freeing_since = at if self._freeing_since is None else self._freeing_since
        self._pool.unload(0.0 if at - self._freeing_since < MAKE_ROOM_S else KEEP_OWN_S)

    # -- the person's switch --------------------------------------------------------------------------------------

    def register(self, service: Service) -> None:
        for verb, handler in {"pause": self.pause, "resume": self.resume, "quiet": self.quiet}.items():
            service.add(f"admin-{verb}", subjects.admin(self.me, verb), handler, queue=str(self.me))

    async def pause(self, request: Request) -> None:
        asked: PauseRequest = _read(request, PauseRequest)
        until_s = None if asked.for_s is None else time.time() + asked.for_s
        runs = list(self._worker.attempts.values())
        await self._switch(Pause(until_s))
        handed_over = tuple(attempt.job.id for attempt in runs if attempt.given_back)
        runs_on = tuple(attempt.job.id for attempt in runs if not attempt.given_back)
        until_ms = None if until_s is None else int(until_s * 1000)
        request.respond(
            PauseReply(node=self.me, paused=True, until_ms=until_ms, runs_on=runs_on, handed_over=handed_over)
        )

    async def resume(self, request: Request) -> None:
        _read(request, Message)
        await self._switch(None)
        request.respond(PauseReply(node=self.me, paused=False))

    async def quiet(self, request: Request) -> None:
        """Quiet hours by order go before those of the configuration, and hold where courtesy is off, too: somebody
        wanted them.
        """
        asked: QuietRequest = _read(request, QuietRequest)
        if asked.undo or asked.hours is not None:
            hours = None if asked.undo else quieting.checked(asked.hours or ())
            await self._write(quieting.save, hours)
            self._quiet.hold(hours)
            log.info("quiet hours: %s", ", ".join(self._quiet.hours) or "none", extra={"action": "quiet_hours"})
            self.judge(replace(self._last, at=time.monotonic(), clock_s=time.time()))
        in_force, configured = self._quiet.hours, self._quiet.configured
        request.respond(
            QuietReply(node=self.me, hours=in_force, configured=None if configured == in_force else configured)
        )

    async def _switch(self, pause: Pause | None) -> None:
        """On disk first: whoever was told that the node pauses is not surprised after a restart."""
        await self._write(pausing.save, pause)
        self._pause = pause
        self.judge(replace(self._last, at=time.monotonic(), clock_s=time.time()))

    async def _write(self, save: Callable[[Path, Any], None], what: Any) -> None:
        """Raises InvalidRequest."""
        try:
            await asyncio.to_thread(save, self._state, what)
        except OSError as error:
            raise InvalidRequest(f"the state folder cannot be written: {error.strerror or error}") from error


def _kind(terms: Mapping[bool, Terms]) -> tuple[object, ...]:
    """What is worth telling at once; figures go out with the next heartbeat."""
    others = terms[False]
    return bool(others.refuse), bool(terms[True].refuse), others.slower > 1, others.most_s is None


def _read(request: Request, type: Any) -> Any:
    if request.read_format() is Format.TEXT and request.data:
        raise InvalidRequest("this takes a JSON object")
    return decode(request.data or b"{}", type, request.format if request.data else Format.JSON)
