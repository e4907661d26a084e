"""One pull: find out what it is, look for room, fetch and check it, put it where it belongs."""

from __future__ import annotations

import asyncio
import logging
import random
import shutil
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from outbid_contracts import subjects
from outbid_contracts.errors import (
    ChecksumMismatch,
    InvalidRequest,
    NodeUnreachable,
    NoSpace,
    OutbidError,
    PullFailed,
)
from outbid_contracts.files import Manifest, ModelPart, PieceReply, PieceRequest, PullEvent, PullRequest
from outbid_contracts.ids import NodeId
from outbid_contracts.messages import HeldModel
from outbid_node.client import Bus
from outbid_node.files import hub, local, web
from outbid_node.files.assembly import Assembly
from outbid_node.files.finding import Finder, Holder, agreeing
from outbid_node.files.http import Again, client
from outbid_node.files.neighbour import Ask, Neighbour
from outbid_node.files.plan import Plan, PlannedFile
from outbid_node.files.remote import BACK_OFF_S, PATIENCE, Remote
from outbid_node.files.shelf import Shelf
from outbid_node.files.source import Hub, Local, Source, Web
from outbid_node.files.store import Kept, Store, Unfinished
from outbid_node.files.transfer import Transfer

log = logging.getLogger(__name__)

RESERVE_BYTES = 128 * 2**20
"""Left free: the ledger stops keeping jobs below 64 MiB."""

TELL_S = 0.2
FIND_AGAIN_S = 3.0
"""How often the mesh is asked again while a pull is under way: nodes come, and others pull the same."""

CONNECTIONS = 2
"""To a neighbour that is the only one: while one of them writes, the other receives."""

REMOTES = 2
"""Connections to the internet at once."""

PIECE_TIMEOUT_S = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """What every pull of this node works with. `usable(folder)`: its capabilities, or a note why none."""

    me: NodeId
    bus: Bus
    store: Store
    shelf: Shelf
    finder: Finder
    key: bytes
    from_mesh: bool
    refresh: Callable[[], Awaitable[None]]
    usable: Callable[[Path], tuple[tuple[str, ...], str]]


class Pull:
    """`begin` once; `events` for everyone who wants to know; `end` to stop it."""

    def __init__(
        self,
        means: Means,
        source: Source,
        asked: PullRequest,
        sha256: str,
        kept: Sequence[Kept],
        changed: Callable[[], Awaitable[None]],
    ) -> None:
        self.source = source
        self.last = PullEvent(state="resolving", source=str(source))
        self.manifest: Manifest | None = None
        """Of what is being fetched, as far as its hashes are known: other nodes may have pieces of it."""
        self._means = means
        self._asked = asked
        self._sha256 = sha256
        self._kept = kept
        self._changed = changed
        self._moved = asyncio.Condition()
        self._count = 0
        self._error: OutbidError | None = None
        self._task: asyncio.Task[None] | None = None
        self._holders: dict[NodeId, Holder] = {}
        self._from_internet = False
        self._resumed = False

    def begin(self, ended: Callable[[], None]) -> None:
        self._task = asyncio.create_task(self._run(ended))

    async def end(self, why: OutbidError) -> None:
        self._error = self._error or why
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def events(self) -> AsyncGenerator[PullEvent, None]:
        """From how it stands now to `done`. Raises what it failed with."""
        seen = -1
        while True:
            async with self._moved:
                while self._count == seen and self._error is None:
                    await self._moved.wait()
                seen, event, error = self._count, self.last, self._error
            if error is not None:
                raise error
            yield event
            if event.state == "done":
                return

    def held(self) -> HeldModel:
        percent = 100 * self.last.done / self.last.size if self.last.size else 0.0
        return HeldModel(
            name=self.last.name,
            source=self.last.source,
            licence=self.last.licence,
            size_mib=self.last.size / 2**20,
            percent=round(percent, 1),
        )

    # -- its course -----------------------------------------------------------------------------------------------

    async def _run(self, ended: Callable[[], None]) -> None:
        try:
            kept = self._known() or await self._fetch()
            capabilities, note = self._means.usable(kept.folder)
            done = held_event(kept.manifest, str(self.source))
            await self._tell(msgspec.structs.replace(done, capabilities=capabilities, note=note))
        except asyncio.CancelledError:
            await self._fail(self._error or NodeUnreachable("the node stopped; pull again to go on where it was"))
        except OutbidError as error:
            await self._fail(error)
        except Exception as error:
            log.exception("a pull failed", extra={"action": "pull_crashed"})
            await self._fail(PullFailed(f"{self.source}: {type(error).__name__}: {error}"))
        finally:
            ended()

    def _known(self) -> Kept | None:
        wanted = (str(self.source), self._asked.variant)
        same = (it for it in self._kept if (it.manifest.source, it.manifest.variant) == wanted)
        kept = None if isinstance(self.source, Local) else next(same, None)
        if kept is not None and self._sha256 and kept.manifest.files[0].sha256 != self._sha256:
            return None
        return kept

    async def _fetch(self) -> Kept:
        plan, digests = await self._resolve()
        name = (self._asked.name or self.source.model_name).lower()
        in_the_way = next((it for it in self._kept if it.manifest.name == name), None)
        if in_the_way is not None:
            raise InvalidRequest(
                f"this node has a model {name} already, from {in_the_way.manifest.source}; choose another --name, or "
                f"remove that one with `outbid rm {name}`"
            )
        found = PullEvent(state="found", source=str(self.source), name=name, kind=plan.kind, licence=plan.licence)
        await self._tell(msgspec.structs.replace(found, files=len(plan.files), size=plan.size))
        unfinished = self._means.store.begin(str(self.source), self._asked.variant)
        log.info("pulling %s", self.source, extra={"action": "pull_started"})
        try:
            assembly = await self._assemble(plan, unfinished, digests)
        except ChecksumMismatch:
            if not self._resumed:
                raise
            log.info("what was left of the last try is bad; once more", extra={"action": "pull_again"})
            assembly = await self._assemble(plan, unfinished, digests)
        log.info("%s is complete and checked", self.source, extra={"action": "pull_checked"})
        manifest = Manifest(
            name=name,
            source=str(self.source),
            revision=plan.revision,
            variant=self._asked.variant,
            kind=plan.kind,
            licence=plan.licence,
            files=tuple(assembly.parts),
            pulled_ms=time.time_ns() // 1_000_000,
        )
        kept = await asyncio.to_thread(self._finish, unfinished, manifest, assembly.digests)
        log.info("pulled %s as %s", self.source, name, extra={"action": "pull_done", "bytes": plan.size})
        await self._changed()
        return kept

    def _finish(self, unfinished: Unfinished, manifest: Manifest, digests: dict[str, bytes]) -> Kept:
        try:
            return self._means.store.finish(unfinished, manifest, digests)
        except OSError as error:
            raise PullFailed(f"{unfinished.folder} cannot be written: {error.strerror or error}") from error

    # -- what it is -----------------------------------------------------------------------------------------------

    async def _resolve(self) -> tuple[Plan, dict[str, bytes]]:
        """From a neighbour if one has it whole, else from where the source says."""
        await self._tell(self.last)
        await self._look_around()
        if holders := agreeing(list(self._holders.values())):
            best = holders[0]
            self._holders = {it.node: it for it in holders}
            return _plan_of(best.manifest, self.source), best.digests
        plan = await self._resolve_there()
        if self._sha256:
            plan = _with_hash(plan, self._sha256)
        return plan, {}

    async def _resolve_there(self) -> Plan:
        failed = 0
        while True:
            try:
                return await asyncio.to_thread(self._ask_there)
            except Again as error:
                failed += 1
                if failed >= PATIENCE:
                    raise PullFailed(f"{error.message}, {failed} times in a row") from error
                await asyncio.sleep(max(error.after_s, BACK_OFF_S * 2 ** (failed - 1)))

    def _ask_there(self) -> Plan:
        source, variant = self.source, self._asked.variant
        if isinstance(source, Local):
            return local.plan(source, self._sha256, variant)
        with client() as http:
            return hub.plan(http, source, variant) if isinstance(source, Hub) else web.plan(http, source, self._sha256)

    async def _look_around(self) -> None:
        if self._means.from_mesh and self._asked.mesh:
            found = await self._means.finder.holders(self.source, self._asked.variant, self._sha256)
            self._holders |= {it.node: it for it in found}

    # -- fetching -------------------------------------------------------------------------------------------------

    async def _assemble(self, plan: Plan, unfinished: Unfinished, digests: dict[str, bytes]) -> Assembly:
        assembly = await asyncio.to_thread(self._prepare, plan, unfinished, digests)
        self._resumed, self._from_internet = assembly.pieces.bytes_here > 0, False
        self.manifest = _known_parts(plan, self.last.name, self._asked.variant)
        numbers = {file.sha256: n for n, file in enumerate(plan.files) if file.sha256 and file.size}
        self._means.shelf.put_partial(numbers, assembly)
        transfer = Transfer(assembly)
        try:
            await self._follow(transfer)
        finally:
            self.manifest = None
            self._means.shelf.drop_partial(assembly)
            await asyncio.shield(transfer.close())
        return assembly

    def _prepare(self, plan: Plan, unfinished: Unfinished, digests: dict[str, bytes]) -> Assembly:
        """In a thread."""
        try:
            unfinished.keep_plan(plan)
            if isinstance(self.source, Local):
                self._check_room(plan.size, unfinished.folder)
                for number, file in enumerate(plan.files):
                    local.bring(self.source, file.path, unfinished.file(file.path))
                    unfinished.mark_whole(number, -(-file.size // (4 * 2**20)))
            assembly = Assembly(plan, unfinished, digests)
        except OSError as error:
            raise PullFailed(f"{error.filename or unfinished.folder}: {error.strerror or error}") from error
        try:
            self._check_room(plan.size - assembly.pieces.bytes_here, unfinished.folder)
        except OutbidError:
            assembly.close()
            raise
        return assembly

    def _check_room(self, needed: int, folder: Path) -> None:
        free = shutil.disk_usage(folder).free
        if needed + RESERVE_BYTES > free and needed > 0:
            raise NoSpace(
                f"{self.source} needs {_size(needed)} more on the disk of {folder.parent.parent}, and "
                f"{_size(RESERVE_BYTES)} are to stay free, but only {_size(free)} are; another disk: models.folder",
                needed=needed,
                free=free,
            )

    async def _follow(self, transfer: Transfer) -> None:
        asked, joined = time.monotonic(), set[NodeId]()
        while not transfer.over:
            transfer.check()
            self._join(transfer, joined)
            if not transfer.sources and transfer.assembly.pieces.bytes_here < transfer.assembly.plan.size:
                self._last_resort(transfer)
            await self._tell(self._progress(transfer))
            await transfer.wait(TELL_S)
            if time.monotonic() - asked > FIND_AGAIN_S:
                await self._look_around()
                asked = time.monotonic()
        transfer.check()

    def _join(self, transfer: Transfer, joined: set[NodeId]) -> None:
        """Every node that has pieces of this very model becomes a source, once."""
        plan = transfer.assembly.plan
        wanted = {file.sha256 for file in plan.files if file.sha256}
        partial_only = not any(it.whole for it in self._holders.values())
        for holder in self._holders.values():
            common = wanted & holder.files
            if holder.node in joined or not common:
                continue
            joined.add(holder.node)
            start = random.randrange(len(transfer.assembly.pieces.all)) if partial_only else 0
            for number in range(CONNECTIONS if len(self._holders) == 1 else 1):
                transfer.add(
                    Neighbour(
                        holder.name,
                        holder.addresses,
                        self._means.key,
                        transfer.assembly,
                        self._asker(holder.node),
                        only=common,
                        start=start,
                        number=number,
                    )
                )
        if not any(it.whole and it.name in transfer.sources for it in self._holders.values()):
            self._ask_internet(transfer)

    def _ask_internet(self, transfer: Transfer) -> None:
        """Once. Not while a neighbour has all of it."""
        if (
            self._from_internet
            or isinstance(self.source, Local)
            or not any(file.url for file in transfer.assembly.plan.files)
        ):
            return
        self._from_internet = True
        count = len(transfer.assembly.pieces.all)
        start = random.randrange(count) if self._holders and count else 0
        for number in range(REMOTES):
            transfer.add(Remote(transfer.assembly, number, start))

    def _last_resort(self, transfer: Transfer) -> None:
        """Nobody fetches any more, and not all is here. Raises why."""
        if self._asked.mesh and self._means.from_mesh and not transfer.failures:
            return
        reasons = "; ".join(dict.fromkeys(error.message for error in transfer.failures.values()))
        first = next(iter(transfer.failures.values()), None)
        raise PullFailed(
            f"{self.source} could not be fetched: {reasons or 'no node that is here has it any more'}. What came "
            "so far is kept for the next try",
            **(first.detail if first else {}),
        )

    def _asker(self, node: NodeId) -> Ask:
        """For a source's thread: pieces by the bus."""
        loop, bus = asyncio.get_running_loop(), self._means.bus

        def ask(sha256: str, offset: int, length: int) -> bytes | None:
            request = PieceRequest(sha256=sha256, offset=offset, length=length)
            call = bus.call(subjects.node(node, "piece"), request, PieceReply, timeout_s=PIECE_TIMEOUT_S)
            reply: PieceReply = asyncio.run_coroutine_threadsafe(call, loop).result(PIECE_TIMEOUT_S + 1)
            return reply.data

        return ask

    # -- telling --------------------------------------------------------------------------------------------------

    def _progress(self, transfer: Transfer) -> PullEvent:
        here, size = transfer.assembly.pieces.bytes_here, transfer.assembly.plan.size
        whole = here >= size
        return msgspec.structs.replace(
            self.last,
            state="verifying" if whole else "downloading",
            done=transfer.assembly.checked if whole else here,
            bytes_s=transfer.rate(),
            sources=("disk",) if isinstance(self.source, Local) else transfer.sources,
        )

    async def _tell(self, event: PullEvent) -> None:
        async with self._moved:
            self.last = event
            self._count += 1
            self._moved.notify_all()

    async def _fail(self, error: OutbidError) -> None:
        log.info("%s was not pulled: %s", self.source, error.message, extra={"action": "pull_failed"})
        async with self._moved:
            self._error = error
            self._moved.notify_all()


def held(manifest: Manifest) -> HeldModel:
    return HeldModel(
        name=manifest.name, source=manifest.source, licence=manifest.licence, size_mib=manifest.size / 2**20
    )


def held_event(manifest: Manifest, source: str) -> PullEvent:
    return PullEvent(
        state="done",
        source=source,
        name=manifest.name,
        kind=manifest.kind,
        licence=manifest.licence,
        files=len(manifest.files),
        size=manifest.size,
        done=manifest.size,
    )


def _plan_of(manifest: Manifest, source: Source) -> Plan:
    """What a neighbour has, with the addresses on the internet where the same could be had."""
    return Plan(
        source=str(source),
        kind=manifest.kind,
        revision=manifest.revision,
        licence=manifest.licence,
        files=tuple(
            PlannedFile(path=it.path, size=it.size, sha256=it.sha256, url=_url(source, manifest, it.path))
            for it in manifest.files
        ),
    )


def _url(source: Source, manifest: Manifest, path: str) -> str:
    if isinstance(source, Web):
        return source.url
    if isinstance(source, Hub) and manifest.revision:
        return hub.url_of(source.repo, manifest.revision, hub.folder_of(source) + path)
    return ""


def _with_hash(plan: Plan, sha256: str) -> Plan:
    if len(plan.files) != 1:
        raise InvalidRequest(f"--sha256 is for a single file; {plan.source} has {len(plan.files)}")
    (file,) = plan.files
    if file.sha256 and file.sha256 != sha256:
        raise ChecksumMismatch(f"{file.path} has SHA-256 {file.sha256} there, not {sha256}; nothing was fetched")
    return msgspec.structs.replace(plan, files=(msgspec.structs.replace(file, sha256=sha256),))


def _known_parts(plan: Plan, name: str, variant: str) -> Manifest:
    files = tuple(ModelPart(path=it.path, size=it.size, sha256=it.sha256) for it in plan.files if it.sha256)
    return Manifest(name=name, source=plan.source, kind=plan.kind, revision=plan.revision, variant=variant, files=files)


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
