"""Which nodes of the mesh have a source, whole or in part; and what this node answers when it is asked."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from outbid_contracts import subjects
from outbid_contracts.files import Manifest, ManifestQuery, ManifestReply
from outbid_contracts.ids import NodeId
from outbid_node.client import Bus
from outbid_node.files.source import Hub, Source, Web, parse
from outbid_node.registry import Registry

ASK_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Holder:
    """A node that has it. `addresses`: where its door is."""

    node: NodeId
    name: str
    addresses: tuple[str, ...]
    manifest: Manifest
    whole: bool
    digests: dict[str, bytes]

    @property
    def files(self) -> set[str]:
        return {part.sha256 for part in self.manifest.files}


class Finder:
    def __init__(self, me: NodeId, bus: Bus, registry: Registry) -> None:
        self._me = me
        self._bus = bus
        self._registry = registry

    async def holders(self, source: Source, variant: str, sha256: str) -> list[Holder]:
        """Every other node that is there is asked at once; those that do not answer in time have it not."""
        query = ManifestQuery(source=str(source), variant=variant, sha256=sha256)
        others = [peer.presence for peer in self._registry if peer.presence.node != self._me]
        replies = await asyncio.gather(*(self._ask(it.node, query) for it in others), return_exceptions=True)
        return [
            Holder(it.node, it.name, it.files, reply.manifest, reply.whole, reply.digests)
            for it, reply in zip(others, replies, strict=True)
            if isinstance(reply, ManifestReply) and reply.manifest is not None
        ]

    async def _ask(self, node: NodeId, query: ManifestQuery) -> ManifestReply:
        reply: ManifestReply = await self._bus.call(
            subjects.node(node, "manifest"), query, ManifestReply, timeout_s=ASK_TIMEOUT_S
        )
        return reply


def agreeing(holders: Sequence[Holder]) -> list[Holder]:
    """Of the holders of a whole model, those that have the very same files: the largest group, then the newest."""
    whole = [it for it in holders if it.whole]
    if not whole:
        return []
    count = Counter(frozenset(it.files) for it in whole)
    best = max(whole, key=lambda it: (count[frozenset(it.files)], it.manifest.pulled_ms))
    return [it for it in whole if it.files == best.files]


def is_wanted(manifest: Manifest, query: ManifestQuery, parsed: Callable[[str], Source] = parse) -> bool:
    """Whether a model is what somebody asks for. The branch that it came from may have moved on since: who wants a
    certain revision names it.
    """
    if query.sha256 and any(part.sha256 != query.sha256 for part in manifest.files):
        return False
    if query.variant != manifest.variant:
        return False
    if query.source == manifest.source:
        return not query.source.startswith("file:") or bool(query.sha256)
    wanted = parsed(query.source)
    if query.sha256 and not isinstance(wanted, Hub):
        return True
    if not isinstance(wanted, Hub) or not manifest.source.startswith("hf:"):
        return False
    have = parsed(manifest.source)
    assert not isinstance(have, Web)
    same = isinstance(have, Hub) and (have.repo, have.file) == (wanted.repo, wanted.file)
    return same and wanted.revision in ("", manifest.revision)
