"""Who has which models, as the nodes' presence says it."""

from __future__ import annotations

from collections.abc import Iterable

from outbid_contracts.messages import HeldModel, Offer, Presence
from outbid_contracts.requests import ModelList, ModelView, PulledView


def model_list(nodes: Iterable[Presence]) -> ModelList:
    """What is offered, and what was or is being pulled without being offered, by name."""
    models: list[ModelView] = []
    pulled: list[PulledView] = []
    for node in nodes:
        held = {it.name: it for it in node.pulled}
        offered = {offer.model for offer in node.offers}
        models += [_view(node, offer, held.get(offer.model or "")) for offer in node.offers if offer.model is not None]
        pulled += [_pulled(node, it) for it in node.pulled if it.name not in offered or it.percent is not None]
    return ModelList(
        models=tuple(sorted(models, key=lambda it: (it.model, it.name, it.capability))),
        pulled=tuple(sorted(pulled, key=lambda it: (it.model, it.name))),
    )


def _view(node: Presence, offer: Offer, held: HeldModel | None) -> ModelView:
    return ModelView(
        model=offer.model or "",
        capability=offer.capability,
        node=node.node,
        name=node.name,
        warm=offer.warm,
        default=offer.default,
        slots=offer.slots,
        free=offer.free,
        blocked=offer.blocked,
        size_mib=held.size_mib if held else offer.size_mib,
        source=held.source if held else "",
        licence=held.licence if held else "",
        pinned=offer.pinned,
    )


def _pulled(node: Presence, held: HeldModel) -> PulledView:
    return PulledView(
        model=held.name,
        node=node.node,
        name=node.name,
        source=held.source,
        licence=held.licence,
        size_mib=held.size_mib,
        percent=held.percent,
    )
