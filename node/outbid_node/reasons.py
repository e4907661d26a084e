"""Why a job did not find its way, in sentences for the caller."""

from __future__ import annotations

from collections.abc import Sequence

from outbid_contracts.errors import AttemptsExhausted, NoBid, OutbidError, UnknownModel, from_body
from outbid_contracts.messages import AttemptRecord, Job
from outbid_node.auctioned import Auction
from outbid_node.registry import Registry


def declines(auction: Auction, registry: Registry) -> str:
    return "; ".join(f"{registry.name_of(decline.node)}: {decline.reason}" for decline in auction.declines)


def exhausted(attempts: Sequence[AttemptRecord], registry: Registry) -> OutbidError:
    """Every attempt failed: the only one's own error, or all of them."""
    errors = [(attempt.node, attempt.error) for attempt in attempts if attempt.error]
    if len(errors) == 1:
        return from_body(errors[0][1])
    told = "; ".join(f"{registry.name_of(node)}: {error.message}" for node, error in errors)
    return AttemptsExhausted(f"{len(errors)} attempts failed: {told}", attempts=len(errors))


def no_bid(job: Job, auction: Auction, registry: Registry) -> OutbidError:
    """Nobody bids: what each said, or what is missing."""
    said = declines(auction, registry)
    excluded = [f"{c.name}: {c.excluded}" for c in auction.ranked if c.excluded]
    if said or excluded:
        return NoBid(f"no bid for {job.capability}: {'; '.join([*excluded, *([said] if said else [])])}")
    return nobody_able(job.capability, job.model, registry)


def nobody_able(capability: str, model: str | None, registry: Registry) -> OutbidError:
    """No node that is here now has what the work needs."""
    if model is not None and any(o.capability == capability for peer in registry for o in peer.presence.offers):
        have = _models(capability, registry)
        there_are = f"there are: {', '.join(have)}" if have else "there it has none to choose from"
        return UnknownModel(f"no node has model {model!r} for {capability}; {there_are}")
    missing = [
        f"{peer.presence.name}: {peer.presence.missing[capability]}"
        for peer in registry
        if capability in peer.presence.missing
    ]
    return NoBid(f"no node can do {capability}: {'; '.join(missing) or 'none is known'}")


def _models(capability: str, registry: Registry) -> list[str]:
    offers = (offer for peer in registry for offer in peer.presence.offers)
    return sorted({offer.model for offer in offers if offer.capability == capability and offer.model})
