"""All pulls of a node: begun once for each source however many ask, told to everyone who listens."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from outbid_contracts.errors import Cancelled, InvalidRequest, UnknownModel
from outbid_contracts.files import (
    ManifestQuery,
    ManifestReply,
    PieceReply,
    PieceRequest,
    PullRequest,
    is_model_name,
)
from outbid_contracts.messages import HeldModel
from outbid_node.files.finding import is_wanted
from outbid_node.files.pull import Means, Pull, held
from outbid_node.files.source import parse
from outbid_node.files.store import Kept

log = logging.getLogger(__name__)


class Pulls:
    """`start` first; `stop` ends what is under way, to go on with it another time."""

    def __init__(self, means: Means, serve: bool) -> None:
        self.means = means
        self.serve = serve
        self.running: dict[str, Pull] = {}
        self._kept: list[Kept] = []
        self.on_change: Callable[[], None] = lambda: None

    @property
    def folders(self) -> tuple[str, ...]:
        """Of the whole models, the oldest first. `settings["pulled"]` of the capabilities."""
        return tuple(str(it.folder) for it in self._kept)

    async def start(self) -> None:
        """Look at what is there."""
        self._kept = await asyncio.to_thread(self.means.store.kept)
        self.means.shelf.put_whole(self._kept if self.serve else ())

    async def stop(self) -> None:
        for pull in list(self.running.values()):
            await pull.end(Cancelled("the node stopped; pull again to go on where it was"))

    async def changed(self) -> None:
        """A model came or went."""
        await self.start()
        await self.means.refresh()
        self.on_change()

    def pull(self, asked: PullRequest) -> Pull:
        """The pull of this source; begun, if there is none. Raises InvalidRequest."""
        source = parse(asked.source)
        if asked.name and not is_model_name(asked.name):
            raise InvalidRequest(f"{asked.name!r} is no name for a model: 1 to 96 letters, digits, dots, dashes or _")
        sha256 = asked.sha256.lower()
        if sha256 and (len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef")):
            raise InvalidRequest("sha256 must be 64 hex digits")
        key = f"{source}\n{asked.variant}"
        pull = self.running.get(key)
        if pull is None:
            pull = Pull(self.means, source, asked, sha256, self._kept, self.changed)
            self.running[key] = pull
            pull.begin(lambda: self._ended(key))
        return pull

    async def cancel(self, asked: PullRequest) -> None:
        """Stop it and throw away what came. Raises InvalidRequest if nothing of it is there."""
        source = parse(asked.source)
        pull = self.running.get(f"{source}\n{asked.variant}")
        if pull is not None:
            await pull.end(Cancelled(f"the pull of {source} was cancelled"))
        unfinished = self.means.store.begin(str(source), asked.variant)
        if pull is None and not await asyncio.to_thread(unfinished.folder.exists):
            raise InvalidRequest(f"{source} is not being pulled")
        await asyncio.to_thread(unfinished.discard)

    def find(self, name: str) -> Kept:
        """Raises UnknownModel."""
        for kept in self._kept:
            if kept.manifest.name == name:
                return kept
        raise UnknownModel(f"no model {name!r} was pulled to this node; `outbid models` shows which were")

    async def remove(self, name: str) -> Kept:
        """Raises UnknownModel."""
        kept = await asyncio.to_thread(self.means.store.remove, name)
        log.info("model %s was removed", name, extra={"action": "model_removed"})
        await self.changed()
        return kept

    def held(self) -> tuple[HeldModel, ...]:
        """Also those under way, once they have a name."""
        whole = {it.manifest.name: held(it.manifest) for it in self._kept}
        under_way = {pull.last.name: pull.held() for pull in self.running.values() if pull.last.name}
        return tuple((under_way | whole).values())

    # -- what other nodes ask -------------------------------------------------------------------------------------

    async def manifest(self, query: ManifestQuery) -> ManifestReply:
        if not self.serve:
            return ManifestReply()
        for kept in self._kept:
            if is_wanted(kept.manifest, query):
                digests = await asyncio.to_thread(self.means.store.digests, kept)
                return ManifestReply(manifest=kept.manifest, digests=digests)
        for pull in self.running.values():
            if pull.manifest is not None and is_wanted(pull.manifest, query):
                return ManifestReply(manifest=pull.manifest, whole=False)
        return ManifestReply()

    async def piece(self, asked: PieceRequest) -> PieceReply:
        data = await asyncio.to_thread(self.means.shelf.read, asked.sha256, asked.offset, asked.length)
        return PieceReply(data=data if self.serve else None)

    def _ended(self, key: str) -> None:
        self.running.pop(key, None)
        self.on_change()
