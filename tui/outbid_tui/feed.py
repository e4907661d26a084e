"""Keeps the state of the mesh up to date over one connection, lost and found again, and tells what changed."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from outbid import LinkBack, LinkLost, LiveEvent, Mesh, OutbidError
from outbid.connection import AccessRefused
from outbid_contracts.admin import LogsReply
from outbid_contracts.ids import JobId
from outbid_contracts.live import LogLevel
from outbid_contracts.messages import JobRecord
from outbid_tui.state import KEPT_JOBS, Kind, MeshState

LIST_EVERY_S = 5.0
"""How often machines and models are asked for: what events cannot tell (models, who is away) and what was missed."""

LIST_JOBS_EVERY_S = 30.0
"""Events tell of jobs as they change, and a thousand records are some megabytes."""

JOBS = KEPT_JOBS

RETRY_S = 1.0
ASKED_AT_ONCE = 20
"""Records of jobs asked for one by one; where more are wanted, the listing is asked."""

ASK_EVERY_S = 0.2

KNOWN_AFTER_S = 1.0
"""After the first event all nodes know that somebody looks on."""


class Feed:
    """`run` until cancelled, also before there is a node to connect to. `on_change` is called on the event loop with
    each kind of change, as it comes.
    """

    def __init__(self, mesh: Mesh, state: MeshState, on_change: Callable[[Kind], None]) -> None:
        self.mesh = mesh
        self.state = state
        self._on_change = on_change
        self._ask_jobs = asyncio.Event()
        self._list_now = asyncio.Event()
        self._jobs_again_s = 0.0
        self._asked: set[str] = set()
        """The boots of the nodes that were there when jobs were listed last."""
        self._lost = False
        self._heard_at = math.inf
        """When the first event came."""
        self.log_level: LogLevel = "info"
        self._follow_anew = asyncio.Event()
        self._recall = asyncio.Event()
        self._recalled = False
        self._listed = asyncio.Event()

    async def run(self) -> None:
        await self._open()
        try:
            async with asyncio.TaskGroup() as parts:
                parts.create_task(self._follow())
                parts.create_task(self._list())
                parts.create_task(self._complete())
                parts.create_task(self._remember())
        finally:
            await self.mesh.__aexit__(None, None, None)

    async def _open(self) -> None:
        """The node may be still to start: it is tried until it is there."""
        while True:
            try:
                await self.mesh.__aenter__()
            except OutbidError as error:
                self._link(error.message)
                await asyncio.sleep(RETRY_S)
            else:
                return

    def hear_logs(self, level: LogLevel) -> None:
        """From now on, log lines from that level up."""
        if level != self.log_level and not self.state.unheard:
            self.log_level = level
            self._follow_anew.set()

    def recall_logs(self) -> None:
        """Ask the nodes for the lines they remember."""
        self._recalled = True
        self._recall.set()

    async def _follow(self) -> None:
        while True:
            self._follow_anew.clear()
            following = asyncio.create_task(self._listen())
            try:
                await _first_of(following, self._follow_anew.wait())
            finally:
                following.cancel()
                await asyncio.wait({following})

    async def _listen(self) -> None:
        """What the role may hear: log lines reach administrators only."""
        while True:
            try:
                async for event in self.mesh.live(auctions=True, logs=None if self.state.unheard else self.log_level):
                    self._heard(event)
            except AccessRefused as error:
                if self.state.unheard:
                    self._link(error.message)
                    await asyncio.sleep(RETRY_S)
                else:
                    self._no_logs()

    async def _remember(self) -> None:
        while True:
            await self._recall.wait()
            await self._listed.wait()
            self._recall.clear()
            nodes = list(self.state.machines)
            asked = (self.mesh.node(node).logs() for node in nodes)
            for found in await asyncio.gather(*asked, return_exceptions=True):
                if isinstance(found, LogsReply):
                    self._on_change(self.state.recalled_logs(found.lines))
                elif isinstance(found, AccessRefused):
                    self._no_logs()
                elif not isinstance(found, OutbidError):
                    raise found

    def _no_logs(self) -> None:
        self.state.unheard = (
            "Only administrators may read the nodes' logs; these credentials are not an administrator's."
        )
        self._on_change("logs")

    def _heard(self, event: LiveEvent) -> None:
        match event:
            case LinkLost():
                self._lost = True
                self._link(event.reason)
            case LinkBack():
                self._lost = False
                self._missed()
                self._link("")
            case _:
                self._heard_at = min(self._heard_at, time.monotonic())
                self._on_change(self.state.apply(event))
                if self.state.unknown:
                    self._ask_jobs.set()

    def _missed(self) -> None:
        """What happened in between is asked for."""
        self._jobs_again_s = 0.0
        self._list_now.set()
        if self._recalled:
            self._recall.set()

    async def _list(self) -> None:
        while True:
            self._list_now.clear()
            try:
                await self.refresh()
            except OutbidError as error:
                self._link(error.message)
                await self._wait(RETRY_S)
            else:
                await self._wait(LIST_EVERY_S)

    async def refresh(self) -> None:
        """Ask the listings now. Raises OutbidError."""
        await self.mesh.connected()
        nodes = await self.mesh.node_list()
        self._on_change(self.state.took_nodes(nodes.nodes, nodes.away))
        self._listed.set()
        if not self._lost:
            self._link("")
        boots = {view.presence.boot for view in nodes.nodes}
        if time.monotonic() >= self._jobs_again_s or not self.state.connected or not boots <= self._asked:
            await self._list_jobs()
            self._asked = boots
        self.state.models = await self.mesh.model_list()
        self._on_change("models")

    async def _list_jobs(self) -> None:
        """What those tell who are there; from one that did not answer, or comes only now, jobs may be missing. Of what
        ended before all knew that somebody looks on no event came.
        """
        is_watched = time.monotonic() - self._heard_at > KNOWN_AFTER_S
        reply = await self.mesh.jobs(limit=JOBS)
        self._on_change(self.state.took_jobs(reply.jobs))
        is_sure = is_watched and not reply.silent
        self._jobs_again_s = time.monotonic() + (LIST_JOBS_EVERY_S if is_sure else LIST_EVERY_S)

    async def _wait(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._list_now.wait()

    async def _complete(self) -> None:
        """Records of jobs that an event told of: many events, few questions, and at most a sixth of the time spent on
        them.
        """
        while True:
            await self._ask_jobs.wait()
            self._ask_jobs.clear()
            begun_s = time.monotonic()
            wanted, self.state.unknown = self.state.unknown, set()
            with suppress(OutbidError):  # the next listing has it, or says why not
                await self._complete_these(wanted)
            await asyncio.sleep(max(ASK_EVERY_S, 5 * (time.monotonic() - begun_s)))

    async def _complete_these(self, jobs: set[JobId]) -> None:
        if len(jobs) > ASKED_AT_ONCE:
            await self._list_jobs()
            return
        found = await asyncio.gather(*(self.mesh.job(id) for id in jobs), return_exceptions=True)
        self._on_change(self.state.took_jobs(one for one in found if isinstance(one, JobRecord)))

    def _link(self, trouble: str) -> None:
        connected = not trouble
        if (connected, trouble) != (self.state.connected, self.state.trouble):
            self.state.connected, self.state.trouble = connected, trouble
            self._on_change("link")


async def _first_of(task: asyncio.Task[None], event: Coroutine[Any, Any, Any]) -> None:
    """Until the event came; raises what the task raised."""
    waiting = asyncio.ensure_future(event)
    try:
        done, _ = await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if task in done:
            task.result()
    finally:
        waiting.cancel()
