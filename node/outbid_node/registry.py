"""Who is on the mesh and what they offer now: presence as received, corrected by what this node itself knows.

Between two heartbeats a node's free slots change; each award this owner sends takes one away at once, and every reply
to
an award and every settlement brings the node's own count.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from outbid_contracts.ids import NodeId
from outbid_contracts.messages import Offer, Presence

log = logging.getLogger(__name__)

BEAT_S = 1.0
MISSED_BEATS = 3
GONE_AFTER_S = BEAT_S * MISSED_BEATS + 0.2
"""Three heartbeats missed, and a little for the network."""

REMEMBERED_S = 300.0
"""How long a node that went without a word is remembered."""

OfferKey = tuple[str, str | None]


@dataclass(slots=True)
class Peer:
    """One node as this one sees it. Times are of the monotonic clock; `rtt_s` is a running mean of request round
    trips.
    """

    presence: Presence
    seen: float
    free: dict[OfferKey, int] = field(default_factory=dict)
    taken: dict[OfferKey, float] = field(default_factory=dict)
    rtt_s: float | None = None

    def free_of(self, offer: Offer) -> int:
        return self.free.get((offer.capability, offer.model), offer.free)


@dataclass(frozen=True, slots=True)
class Standing:
    """A node's standing offer for some work, with the free slots this owner believes in now."""

    node: NodeId
    presence: Presence
    offer: Offer
    free: int
    rtt_s: float


class Registry:
    """The nodes that are alive. Calls `on_change(node)` when one appears, goes, or has room where it had none."""

    def __init__(self, me: NodeId) -> None:
        self.me = me
        self._peers: dict[NodeId, Peer] = {}
        self._lost: dict[NodeId, Peer] = {}
        self.on_change: list[Callable[[NodeId, str], None]] = []

    def __len__(self) -> int:
        return len(self._peers)

    def __iter__(self) -> Iterator[Peer]:
        return iter(self._peers.values())

    def __contains__(self, node: NodeId) -> bool:
        return node in self._peers

    def get(self, node: NodeId) -> Peer | None:
        return self._peers.get(node)

    def name_of(self, node: NodeId) -> str:
        """Also of one that has just gone; its id if it is not known."""
        peer = self._peers.get(node) or self._lost.get(node)
        return peer.presence.name if peer else node

    def names(self) -> dict[str, str]:
        return {node: peer.presence.name for node, peer in self._peers.items()}

    def receive(self, presence: Presence) -> None:
        """Take in a heartbeat. One older than what is known (same boot, lower seq) changes nothing."""
        known = self._peers.get(presence.node)
        if known is not None and known.presence.boot == presence.boot and presence.seq < known.presence.seq:
            return
        if presence.state == "leaving":
            self.drop(presence.node, "left")
            return
        now = time.monotonic()
        if known is None or known.presence.boot != presence.boot:
            self._peers[presence.node] = Peer(presence, now)
            what = "appeared" if known is None else "restarted"
            log.info("node %s %s", presence.name, what, extra={"action": f"node_{what}", "node": presence.node})
            self._changed(presence.node, what)
            return
        known.presence, known.seen = presence, now
        known.free.clear()
        self._changed(presence.node, "beat")

    def drop(self, node: NodeId, why: str) -> None:
        peer = self._peers.pop(node, None)
        if peer is not None:
            if why != "left":
                self._lost[node] = peer
            log.info("node %s %s", peer.presence.name, why, extra={"action": "node_gone", "node": node})
            self._changed(node, "gone")

    def lost(self, within_s: float) -> list[Presence]:
        """The nodes that went without a word, at most so long ago, and are not back."""
        now = time.monotonic()
        for node, peer in list(self._lost.items()):
            if node in self._peers or now - peer.seen > REMEMBERED_S:
                del self._lost[node]
        return [peer.presence for peer in self._lost.values() if now - peer.seen <= within_s]

    def sweep(self) -> list[NodeId]:
        """Drop the nodes whose heartbeats stopped; returns them."""
        now = time.monotonic()
        silent = [n for n, peer in self._peers.items() if n != self.me and now - peer.seen > GONE_AFTER_S]
        for node in silent:
            self.drop(node, "fell silent")
        return silent

    def note_free(self, node: NodeId, capability: str, model: str | None, free: int) -> None:
        """The node itself said how many more such jobs it can start now."""
        peer = self._peers.get(node)
        if peer is None:
            return
        before = peer.free.get((capability, model), 0)
        peer.free[(capability, model)] = free
        if free > before:
            self._changed(node, "room")

    def take(self, node: NodeId, capability: str, model: str | None) -> None:
        """This owner sends an award there: one slot less until the node says otherwise."""
        peer = self._peers.get(node)
        if peer is None:
            return
        for offer in peer.presence.offers:
            if offer.capability == capability and offer.model == model:
                peer.free[(capability, model)] = max(0, peer.free_of(offer) - 1)
                peer.taken[(capability, model)] = time.monotonic()
                return

    def took_last(self, node: NodeId, capability: str, model: str | None, since: float) -> bool:
        """Whether this owner sent an award for the last free slot there after that moment."""
        peer, key = self._peers.get(node), (capability, model)
        return peer is not None and peer.free.get(key) == 0 and peer.taken.get(key, 0.0) > since

    def note_full(self, node: NodeId, capability: str, model: str | None) -> None:
        """It just declined such a job: believe in no free slot there until it says otherwise."""
        peer = self._peers.get(node)
        for offer in peer.presence.offers if peer else ():
            if offer.capability == capability and (offer.model == model if model else offer.default):
                peer.free[(capability, offer.model)] = 0  # type: ignore[union-attr]

    def note_rtt(self, node: NodeId, rtt_s: float) -> None:
        peer = self._peers.get(node)
        if peer is not None:
            peer.rtt_s = rtt_s if peer.rtt_s is None else 0.8 * peer.rtt_s + 0.2 * rtt_s

    def standing(self, capability: str, model: str | None) -> list[Standing]:
        """Offers for that work: of the named model, or each node's default model if none is named."""
        found = []
        for node, peer in self._peers.items():
            if peer.presence.state != "up":
                continue
            for offer in peer.presence.offers:
                if offer.capability == capability and (offer.model == model if model else offer.default):
                    rtt_s = 0.0 if node == self.me else (peer.rtt_s or 0.001)
                    found.append(Standing(node, peer.presence, offer, peer.free_of(offer), rtt_s))
        return found

    def elsewhere(self, capability: str, model: str | None) -> bool:
        """Whether another node could do such work."""
        return any(s.node != self.me and not s.offer.blocked for s in self.standing(capability, model))

    def known_capabilities(self) -> set[str]:
        return {offer.capability for peer in self for offer in peer.presence.offers} | {
            name for peer in self for name in peer.presence.missing
        }

    def _changed(self, node: NodeId, what: str) -> None:
        for callback in self.on_change:
            callback(node, what)
