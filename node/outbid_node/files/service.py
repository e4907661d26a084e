"""Model files as the rest of the daemon sees them: started, stopped, and what may be asked over the bus."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from nats.aio.msg import Msg

from outbid_contracts import subjects
from outbid_contracts.codec import Format, decode
from outbid_contracts.errors import InvalidRequest, OutbidError
from outbid_contracts.files import ManifestQuery, PieceRequest, PullRequest, Removed, RemoveRequest
from outbid_contracts.ids import NodeId
from outbid_contracts.messages import HeldModel
from outbid_node.admin import own_addresses
from outbid_node.catalogue import Catalogue
from outbid_node.client import Bus
from outbid_node.config_sections import ModelsSection
from outbid_node.files.door import Door
from outbid_node.files.finding import Finder
from outbid_node.files.pull import Means
from outbid_node.files.pulls import Pulls
from outbid_node.files.shelf import Shelf
from outbid_node.files.store import Store
from outbid_node.micro import Request, Service
from outbid_node.registry import Registry
from outbid_node.runners.pool import RunnerPool

log = logging.getLogger(__name__)

PURPOSE = "model files"
"""Of the key that both ends of a direct connection must have."""

ADDRESSES_FOR_S = 10.0
MOST_ADDRESSES = 4


class ModelFiles:
    """`host`: where other nodes may come in; a loopback address while the mesh is closed to the network. `serve`:
    whether this node gives anything.
    """

    def __init__(
        self,
        *,
        me: NodeId,
        bus: Bus,
        registry: Registry,
        catalogue: Catalogue,
        store: Store,
        section: ModelsSection,
        key: bytes,
        host: str,
        serve: bool,
        pool: RunnerPool,
        on_change: Callable[[], None],
    ) -> None:
        self.me = me
        shelf = Shelf()
        self._catalogue = catalogue
        self._section = section
        self._host = host
        self._pool = pool
        self._door = Door(key, shelf)
        self._port = 0
        self._addresses: tuple[float, tuple[str, ...]] = (-ADDRESSES_FOR_S, ())
        means = Means(
            me=me,
            bus=bus,
            store=store,
            shelf=shelf,
            finder=Finder(me, bus, registry),
            key=key,
            from_mesh=section.from_mesh,
            refresh=self._refresh,
            usable=self._usable,
        )
        self.pulls = Pulls(means, serve and section.serve)
        self.pulls.on_change = on_change

    async def start(self) -> None:
        await self.pulls.start()
        if not self.pulls.serve:
            return
        try:
            self._port = self._door.open(self._host, 0 if self._section.port == "auto" else self._section.port)
        except OSError as error:
            log.warning(
                "no door for model files at port %s: %s", self._section.port, error, extra={"action": "door_not_open"}
            )

    async def stop(self) -> None:
        self._door.close()
        await self.pulls.stop()

    def register(self, service: Service) -> None:
        for verb, handler in (("pull", self._pull), ("rm", self._remove)):
            service.add(f"admin-{verb}", subjects.admin(self.me, verb), handler, queue=str(self.me))

    def answers(self, verb: str) -> Callable[[Msg], Awaitable[Any]] | None:
        """What other nodes are answered at `mesh.node.<me>.<verb>`."""
        match verb:
            case "manifest":
                return lambda msg: self.pulls.manifest(decode(msg.data, ManifestQuery))
            case "piece":
                return lambda msg: self.pulls.piece(decode(msg.data, PieceRequest))
            case _:
                return None

    # -- for presence ---------------------------------------------------------------------------------------------

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where the door is, for `Presence.files`."""
        if not self._port:
            return ()
        if self._host.startswith("127."):
            return (f"{self._host}:{self._port}",)
        when, known = self._addresses
        if time.monotonic() - when >= ADDRESSES_FOR_S:
            known = tuple(_joined(address, self._port) for address in own_addresses()[:MOST_ADDRESSES])
            self._addresses = (time.monotonic(), known)
        return known

    def held(self) -> tuple[HeldModel, ...]:
        return self.pulls.held()

    # -- asked by an administrator --------------------------------------------------------------------------------

    async def _pull(self, request: Request) -> None:
        """Goes on without the caller: this only tells how far it is."""
        asked: PullRequest = _read(request, PullRequest)
        try:
            if asked.cancel:
                await self.pulls.cancel(asked)
            else:
                async with contextlib.aclosing(self.pulls.pull(asked).events()) as events:
                    async for event in events:
                        request.respond(event)
        except OutbidError as error:
            request.respond_error(error)
            raise
        finally:
            request.end_stream()

    async def _remove(self, request: Request) -> None:
        asked: RemoveRequest = _read(request, RemoveRequest)
        kept = self.pulls.find(asked.model)
        if why := self._in_use(kept.folder):
            raise InvalidRequest(f"{asked.model} is {why}; it is unloaded when it was idle for limits.keep_warm_s")
        await self.pulls.remove(asked.model)
        request.respond(Removed(node=self.me, model=asked.model, size=kept.manifest.size))

    def _in_use(self, folder: Path) -> str:
        """What the model there does now, empty if it does nothing."""
        entries = self._catalogue.entries.values()
        models = {model.name for entry in entries for model in entry.models if _lies_in(model.path, folder)}
        phases = {view.phase for view in self._pool.views() if view.model in models}
        return next((word for phase, word in _AT_WORK.items() if phase in phases), "")

    # -- the catalogue --------------------------------------------------------------------------------------------

    async def _refresh(self) -> None:
        await self._catalogue.refresh(self.pulls.folders)

    def _usable(self, folder: Path) -> tuple[tuple[str, ...], str]:
        entries = self._catalogue.entries
        found = tuple(name for name, entry in entries.items() if any(_lies_in(it.path, folder) for it in entry.models))
        if found:
            return found, ""
        reasons = [f"{name}: {entry.missing}" for name, entry in entries.items() if entry.missing]
        return (), "no capability of this node can use it; " + ("; ".join(reasons) or "it is of no kind they know")


_AT_WORK = {"busy": "at work", "starting": "being loaded", "ready": "loaded", "draining": "being unloaded"}


def _lies_in(path: str | None, folder: Path) -> bool:
    return path is not None and Path(path).is_relative_to(folder)


def _joined(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _read(request: Request, type: Any) -> Any:
    if request.read_format() is Format.TEXT and request.data:
        raise InvalidRequest('this takes a JSON object, e.g. {"source": "hf:org/name"}')
    return decode(request.data or b"{}", type, request.format if request.data else Format.JSON)
