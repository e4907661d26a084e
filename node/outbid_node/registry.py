"""Who is on the mesh and what they offer now: presence as received, corrected by what this node itself knows.

Between two heartbeats a node's free slots change; each award this owner sends takes one away at once, and every reply
to an award and every settlement brings the node's own count.
"""

from __future__ import annotations

import logging
import math
import time
from bisect import insort
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import msgspec

from outbid_contracts.ids import NodeId
from outbid_contracts.messages import Offer, Presence
from outbid_node.places import Place, Places

log = logging.getLogger(__name__)

BEAT_S = 1.0
MISSED_BEATS = 3
SLACK_S = 0.2
"""For the network."""

GONE_AFTER_S = BEAT_S * MISSED_BEATS + SLACK_S
"""How long nothing is heard of a node that was asked again and again before it counts as gone."""

HEARD_PER_S, RAREST_S = 8, 10.0
"""Of a mesh at rest a node hears at most so many heartbeats a second, until each node's come every RAREST_S
(docs/decisions/0022-heartbeats-of-large-meshes.md).
"""

REMEMBERED_S = 300.0
"""How long a node that went without a word is remembered."""

UNKNOWN_RTT_S = 0.001
"""Of a node that was never asked."""

NOTED_S = 0.05
"""A slot that is taken for less is not noted as free again at some moment: that moment is now."""

MOVED_S, MOVED = 0.2, 0.1
"""The moment when a slot will be free has changed if it differs by so many seconds and this part of what is left."""

MAX_KEYS = 256
"""Kinds of work whose places are kept arranged; the one that was asked for first goes."""

OfferKey = tuple[str, str | None]


@dataclass(slots=True)
class Peer:
    """One node as this one sees it. Times are of the monotonic clock; `rtt_s` is a running mean of request round
    trips. `places` has each of its offers, with the free slots this owner believes in now.
    """

    presence: Presence
    seen: float
    places: dict[OfferKey, Place] = field(default_factory=dict)
    taken: dict[OfferKey, float] = field(default_factory=dict)
    rtt_s: float | None = None

    @property
    def gone_at(self) -> float:
        """When it counts as gone unless it is heard of: three heartbeats missed."""
        return self.seen + MISSED_BEATS * min(max(self.presence.beat_s, BEAT_S), RAREST_S) + SLACK_S


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
        self._places: dict[OfferKey, Places] = {}
        self.on_change: list[Callable[[NodeId, str], None]] = []
        self.stretch: Callable[[NodeId, str], float] = lambda node, capability: 1.0
        """By how much the promises of that node for that capability run short."""

    def __len__(self) -> int:
        return len(self._peers)

    def __iter__(self) -> Iterator[Peer]:
        return iter(self._peers.values())

    def __contains__(self, node: NodeId) -> bool:
        return node in self._peers

    def get(self, node: NodeId) -> Peer | None:
        return self._peers.get(node)

    @property
    def beat_s(self) -> float:
        """Between two heartbeats of each node of a mesh of this size."""
        return beat_s(len(self._peers))

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
            what = "appeared" if known is None else "restarted"
            self._withdraw(known)
            known = self._peers[presence.node] = Peer(presence, now)
            log.info("node %s %s", presence.name, what, extra={"action": f"node_{what}", "node": presence.node})
        else:
            what = "beat"
            known.presence, known.seen = presence, now
        self._take_in(known)
        self._changed(presence.node, what)

    def drop(self, node: NodeId, why: str) -> None:
        peer = self._peers.pop(node, None)
        if peer is not None:
            if why != "left":
                self._lost[node] = peer
            self._withdraw(peer)
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
        silent = [n for n, peer in self._peers.items() if n != self.me and now > peer.gone_at]
        for node in silent:
            self.drop(node, "fell silent")
        return silent

    # -- slots ----------------------------------------------------------------------------------------------------

    def note_free(self, node: NodeId, capability: str, model: str | None, free: int) -> None:
        """The node itself said how many more such jobs it can start now."""
        place = self._place(node, capability, model)
        if place is None:
            return
        before, place.free = place.free, free
        if place.frees:
            place.frees = place.frees[max(0, len(place.frees) - max(0, place.offer.slots - free)) :]
        self._touch(place)
        if free > before:
            self._changed(node, "room")

    def take(self, node: NodeId, capability: str, model: str | None, finish_s: float | None = None) -> None:
        """This owner sends an award there: one slot less until the node says otherwise, expected to be free again in
        `finish_s`.
        """
        place = self._place(node, capability, model)
        if place is None:
            return
        now = time.monotonic()
        place.free = max(0, place.free - 1)
        place.given += 1
        if finish_s is not None and finish_s >= NOTED_S:
            frees = list(place.frees)
            insort(frees, now + finish_s)
            place.frees = tuple(frees)
        self._peers[node].taken[(capability, model)] = now
        self._touch(place)

    def took_last(self, node: NodeId, capability: str, model: str | None, since: float) -> bool:
        """Whether this owner sent an award for the last free slot there after that moment."""
        place = self._place(node, capability, model)
        taken = self._peers[node].taken.get((capability, model), 0.0) if place is not None else 0.0
        return place is not None and place.free == 0 and taken > since

    def note_full(self, node: NodeId, capability: str, model: str | None) -> None:
        """It just declined such a job: believe in no free slot there until it says otherwise."""
        for place in self._meant(node, capability, model):
            place.free = 0
            self._touch(place)

    def note_later(self, node: NodeId, capability: str, model: str | None, start_s: float) -> None:
        """It just said that all its slots are taken, and when the first is expected to be free."""
        first = time.monotonic() + start_s
        for place in self._meant(node, capability, model):
            place.free = 0
            place.frees = (first, *(free for free in place.frees[1:] if free > first))
            self._touch(place)

    def note_rtt(self, node: NodeId, rtt_s: float) -> None:
        peer = self._peers.get(node)
        if peer is not None:
            peer.rtt_s = rtt_s if peer.rtt_s is None else 0.8 * peer.rtt_s + 0.2 * rtt_s

    # -- offers ---------------------------------------------------------------------------------------------------

    def places(self, capability: str, model: str | None) -> Places:
        """All offers for that work, kept up to date: of the named model, or each node's default model if none is
        named.
        """
        key = (capability, model)
        known = self._places.get(key)
        if known is None:
            if len(self._places) >= MAX_KEYS:
                del self._places[next(iter(self._places))]
            known = self._places[key] = Places(
                place
                for peer in self._peers.values()
                if peer.presence.state == "up"
                for place in peer.places.values()
                if key in _keys(place.offer)
            )
        return known

    def standing(self, capability: str, model: str | None) -> list[Standing]:
        """The same as a list."""
        return [self.standing_of(place) for place in self.places(capability, model)]

    def standing_of(self, place: Place) -> Standing:
        peer = self._peers[place.node]
        rtt_s = 0.0 if place.node == self.me else (peer.rtt_s or UNKNOWN_RTT_S)
        return Standing(place.node, peer.presence, place.offer, place.free, rtt_s)

    def elsewhere(self, capability: str, model: str | None) -> bool:
        """Whether another node could do such work."""
        return any(p.node != self.me and not p.offer.blocked for p in self.places(capability, model))

    def known_capabilities(self) -> set[str]:
        return {offer.capability for peer in self for offer in peer.presence.offers} | {
            name for peer in self for name in peer.presence.missing
        }

    # -- places ---------------------------------------------------------------------------------------------------

    def _take_in(self, peer: Peer) -> None:
        """Bring its places up to its newest presence, which was just received."""
        presence, before = peer.presence, peer.places
        peer.places = {}
        for offer in presence.offers:
            key = (offer.capability, offer.model)
            place = before.pop(key, None)
            if place is None:
                place = Place(presence.node, offer, offer.free)
            elif place.offer.default != offer.default:
                self._leave(place)
            peer.places[key] = place
            self._renew(place, offer, peer)
        for place in before.values():
            self._leave(place)

    def _renew(self, place: Place, offer: Offer, peer: Peer) -> None:
        """A heartbeat that says nothing new leaves the orders alone: there are as many a second as nodes."""
        before, far_s = (place.offer, place.free, place.stretch), place.frees
        if not _same(place.offer, offer):
            place.offer = offer
        place.free = offer.free
        place.frees = tuple(peer.seen + frees_s for frees_s in offer.frees_s)
        place.zone = "here" if place.node == self.me else peer.presence.zone
        place.name = peer.presence.name
        place.way_s = 0.0 if place.node == self.me else (peer.rtt_s or UNKNOWN_RTT_S)
        place.stretch = self.stretch(place.node, offer.capability)
        changed = before != (place.offer, place.free, place.stretch) or _moved(far_s, place.frees, peer.seen)
        for key in _keys(offer):
            if (places := self._places.get(key)) is None:
                continue
            if peer.presence.state != "up":
                places.drop(place.node)
            elif changed or places.get(place.node) is not place:
                places.put(place)

    def _withdraw(self, peer: Peer | None) -> None:
        for place in peer.places.values() if peer is not None else ():
            self._leave(place)

    def _leave(self, place: Place) -> None:
        for key in _keys(place.offer):
            places = self._places.get(key)
            if places is not None and places.get(place.node) is place:
                places.drop(place.node)

    def _touch(self, place: Place) -> None:
        for key in _keys(place.offer):
            if (places := self._places.get(key)) is not None:
                places.changed(place.node)

    def _place(self, node: NodeId, capability: str, model: str | None) -> Place | None:
        peer = self._peers.get(node)
        return peer.places.get((capability, model)) if peer is not None else None

    def _meant(self, node: NodeId, capability: str, model: str | None) -> Iterable[Place]:
        """Of that model, or of the node's default model if none is named."""
        peer = self._peers.get(node)
        for place in peer.places.values() if peer is not None else ():
            offer = place.offer
            if offer.capability == capability and (offer.model == model if model else offer.default):
                yield place

    def _changed(self, node: NodeId, what: str) -> None:
        for callback in self.on_change:
            callback(node, what)


def beat_s(nodes: int) -> float:
    """Between two heartbeats of each of so many nodes: a whole number of BEAT_S."""
    return min(RAREST_S, max(1, math.ceil(nodes / HEARD_PER_S)) * BEAT_S)


def _keys(offer: Offer) -> tuple[OfferKey, ...]:
    """By which it can be asked for."""
    named = (offer.capability, offer.model)
    return (named, (offer.capability, None)) if offer.default and offer.model is not None else (named,)


def _moved(before: tuple[float, ...], after: tuple[float, ...], now: float) -> bool:
    """Whether slots will be free at other times, but for what is within the uncertainty of that."""
    if len(before) != len(after):
        return True
    return any(abs(b - a) > MOVED_S + MOVED * max(0.0, a - now) for b, a in zip(before, after, strict=True))


def _same(one: Offer, other: Offer) -> bool:
    """But for what a place keeps itself: free slots, and when others will be free."""
    return one == msgspec.structs.replace(other, free=one.free, frees_s=one.frees_s)
