"""What this node offers now, for bids, awards and heartbeats: made anew only when something it rests on has changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from msgspec.structs import replace

from outbid_contracts.capability import ModelFile
from outbid_contracts.messages import Offer, Work
from outbid_contracts.runner import Ready
from outbid_node.catalogue import Catalogue, Entry
from outbid_node.estimate import Estimate, estimate
from outbid_node.estimating.learner import Speed
from outbid_node.estimating.speeds import Typical
from outbid_node.power.meter import Meter
from outbid_node.runners.pool import Room, device_kind, key_of
from outbid_node.terms import Terms

Kind = tuple[str, str | None]
"""Capability and model."""

MOST_KEPT = 1024
"""Offers that differ only in their free slots: as many as a runner can have."""


@dataclass(slots=True)
class _Made:
    """The offers of one kind by free slots. They hold while all of `grounds` are the same."""

    grounds: tuple[object, ...] = ()
    offers: dict[int, Offer] = field(default_factory=dict)


class Offering:
    """Jobs come by the thousand a second, and what an offer says changes some times a second but for its free slots."""

    def __init__(self, catalogue: Catalogue, meter: Meter, on_ready: Callable[[str, str | None, Ready], None]) -> None:
        """`on_ready`: a runner said of itself what it is."""
        self._catalogue = catalogue
        self._meter = meter
        self._on_ready = on_ready
        self._heard: dict[Kind, tuple[Ready, str]] = {}
        """What its runner said last, and on what kind of device it runs."""
        self._made: dict[Kind, _Made] = {}
        self._last: tuple[Offer, Work, Estimate] | None = None

    def offer(self, entry: Entry, file: ModelFile | None, room: Room, free: int, terms: Terms) -> Offer:
        """`free`: of the slots that the pool has room for, those that may be given away."""
        kind = entry.capability.name, file.name if file else None
        speed, device = self._speed(entry, file, kind, room.ready)
        watts = self._meter.watts(device, key_of(entry.capability, file))
        usd_per_s = self._meter.usd_per_s(watts)
        typical = self._catalogue.speeds.typical(*kind, speed)
        state = (room.warm, room.slots, room.blocked, room.temporary)
        grounds = (state, entry, speed, typical, terms, device, watts, usd_per_s)
        made = self._made.get(kind)
        if made is None or made.grounds != grounds or len(made.offers) > MOST_KEPT:
            made = self._made[kind] = _Made(grounds)
        offer = made.offers.get(free)
        if offer is None:
            offer = _fresh(entry, file, room, free, speed, terms, typical)
            offer = made.offers[free] = replace(offer, device=device, watts=watts, usd_per_s=usd_per_s)
        return offer

    def estimate(self, offer: Offer, work: Work) -> Estimate:
        """As `estimate.estimate`; a bid is mostly followed by its award, which asks the same again."""
        last = self._last
        if last is None or last[0] is not offer or last[1] != work:
            last = self._last = offer, dict(work), estimate(offer, work)
        return last[2]

    def _speed(self, entry: Entry, file: ModelFile | None, kind: Kind, ready: Ready | None) -> tuple[Speed, str]:
        """What is believed of it, after what its runner measured when it came up; and the kind of its device."""
        speed = self._catalogue.speed(entry.capability, file)
        heard = self._heard.get(kind)
        if ready is not None and (heard is None or heard[0] is not ready):
            heard = self._heard[kind] = ready, device_kind(ready)
            speed = self._catalogue.came_up(entry.capability, file, ready)
            self._on_ready(*kind, ready)
        return speed, heard[1] if heard is not None else ""


def _fresh(
    entry: Entry, file: ModelFile | None, room: Room, free: int, speed: Speed, terms: Terms, typical: Typical
) -> Offer:
    """But for what it costs, which the meter knows."""
    default, model = entry.default_model, file.name if file else None
    return Offer(
        capability=entry.capability.name,
        model=model,
        warm=room.warm,
        slots=room.slots,
        free=free,
        load_s=speed.load_s * terms.slower,
        fixed_s=speed.fixed_s * terms.slower,
        rates={unit: rate * terms.slower for unit, rate in speed.rates.items()},
        crowding=speed.crowding,
        spread=speed.spread,
        typical=typical[0],
        typical_from=typical[1],
        default=default is None or default.name == model,
        blocked=terms.refuse or room.blocked,
        waiting_helps=terms.passes if terms.refuse else room.temporary,
        size_mib=round(file.size_mib, 1) if file else 0.0,
        most_s=terms.most_s,
        most_why=terms.most_why,
        rests_on=f"{speed.source}; {terms.slower_why}" if terms.slower_why else speed.source,
    )
