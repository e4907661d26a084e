"""Which rows the list of models has: pulls under way, then each model with the machines that have it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Literal

from msgspec.structs import replace

from outbid_contracts.files import PullEvent
from outbid_contracts.ids import NodeId
from outbid_contracts.messages import HeldModel, Offer
from outbid_contracts.requests import ModelView, PulledView
from outbid_tui.state import MeshState

OPEN = 8
"""Models of up to so many machines show these without being asked."""


@dataclass(frozen=True, slots=True)
class Pull:
    """A model on its way to a node. `percent` None: not known yet. `mine`: what this dashboard hears of its own."""

    node: str
    name: str
    model: str
    source: str
    size_mib: float = 0.0
    percent: float | None = None
    mine: PullEvent | None = None

    @property
    def key(self) -> str:
        return f"pull {self.node} {self.source}"


@dataclass(frozen=True, slots=True)
class One:
    """A model on one machine. `views`: what it is used for there, by capabilities of one family, which share a runner
    and so are in memory together.
    """

    views: tuple[ModelView, ...]
    offers: str = ""
    """What the machine's offer rests on."""

    @property
    def view(self) -> ModelView:
        return self.views[0]

    @property
    def key(self) -> str:
        return f"one {family(self.view)} {self.view.model} {self.view.node}"

    @property
    def state(self) -> Literal["warm", "cold", "blocked"]:
        return "blocked" if self.blocked else "warm" if any(view.warm for view in self.views) else "cold"

    @property
    def blocked(self) -> str:
        return next((view.blocked for view in self.views if view.blocked), "")

    @property
    def pinned(self) -> bool:
        return any(view.pinned for view in self.views)

    @property
    def default(self) -> bool:
        return all(view.default for view in self.views)


@dataclass(frozen=True, slots=True)
class Group:
    """A model with everybody who has it."""

    ones: tuple[One, ...]
    unfolded: bool = False

    @property
    def view(self) -> ModelView:
        return self.ones[0].view

    @property
    def key(self) -> str:
        return f"model {family(self.view)} {self.view.model}"

    @property
    def capabilities(self) -> list[str]:
        return sorted({view.capability for one in self.ones for view in one.views})


@dataclass(frozen=True, slots=True)
class Unused:
    """A pulled model that no capability of its machine uses."""

    view: PulledView

    @property
    def key(self) -> str:
        return f"unused {self.view.model} {self.view.node}"


Entry = Pull | Group | One | Unused


def listed(
    state: MeshState, own: Mapping[tuple[str, str], PullEvent], turned: Set[str], words: str = ""
) -> list[Entry]:
    """`own` pulls by node and source; `turned`: keys of groups that are not folded as usual."""
    wanted = words.lower().split()
    entries: list[Entry] = list(_pulls(state, own))
    for group in groups(state):
        ones = [one for one in group.ones if _has(_text(one), wanted)]
        if ones:
            unfolded = bool(wanted) or (len(group.ones) <= OPEN) != (group.key in turned)
            entries.append(Group(group.ones, unfolded))
            entries += ones if unfolded else []
    unused = (view for view in state.models.pulled if view.percent is None)
    entries += [Unused(view) for view in unused if _has(f"{view.model} {view.name} {view.source}".lower(), wanted)]
    return entries


def _pulls(state: MeshState, own: Mapping[tuple[str, str], PullEvent]) -> Iterator[Pull]:
    """What this dashboard asked for, by what it hears; the others by the heartbeats of their nodes."""
    for (node, source), event in own.items():
        percent = 100 * event.done / event.size if event.size else None
        yield Pull(node, state.name_of(NodeId(node)), event.name, source, event.size / 2**20, percent, event)
    known = {(node, event.name) for (node, _), event in own.items()}
    for machine in state.machines.values():
        presence = machine.presence
        for held in presence.pulled:
            if held.percent is not None and (presence.node, held.name) not in known:
                yield _heard(presence.node, presence.name, held)


def _heard(node: str, name: str, held: HeldModel) -> Pull:
    return Pull(node, name, held.name, held.source, held.size_mib, held.percent)


def family(view: ModelView) -> str:
    """`image` of image.edit."""
    return view.capability.partition(".")[0]


def groups(state: MeshState) -> list[Group]:
    """By name; in each those that have it in memory first. Listings tell which models there are, heartbeats, which
    come each second, how they are.
    """
    offers = {
        (machine.presence.node, offer.capability, offer.model): offer
        for machine in state.machines.values()
        for offer in machine.presence.offers
    }
    found: dict[tuple[str, str], dict[str, list[ModelView]]] = {}
    rests: dict[str, str] = {}
    for view in state.models.models:
        if (offer := offers.get((NodeId(view.node), view.capability, view.model))) is not None:
            view = _as_offered(view, offer)
            rests.setdefault(f"{view.model} {view.node}", offer.rests_on)
        found.setdefault((family(view), view.model), {}).setdefault(view.node, []).append(view)
    return [Group(tuple(_ones(nodes, rests))) for _, nodes in sorted(found.items())]


def _as_offered(view: ModelView, offer: Offer) -> ModelView:
    return replace(
        view, warm=offer.warm, slots=offer.slots, free=offer.free, blocked=offer.blocked, pinned=offer.pinned
    )


def _ones(nodes: Mapping[str, list[ModelView]], rests: Mapping[str, str]) -> list[One]:
    ones = [One(tuple(views), rests.get(f"{views[0].model} {node}", "")) for node, views in nodes.items()]
    return sorted(ones, key=lambda one: (one.state != "warm", one.view.name))


def _text(one: One) -> str:
    view = one.view
    marks = " ".join(word for word, is_so in (("pinned", one.pinned), ("default", one.default)) if is_so)
    uses = " ".join(view.capability for view in one.views)
    return f"{view.model} {uses} {view.name} {view.source} {view.licence} {one.state} {marks}".lower()


def _has(text: str, words: Sequence[str]) -> bool:
    return all(word in text for word in words)


def counts(state: MeshState) -> tuple[int, int, float]:
    """Distinct models, copies in memory, MiB on the disks."""
    ones = [one for group in groups(state) for one in group.ones]
    models = {(family(one.view), one.view.model) for one in ones}
    return len(models), sum(one.state == "warm" for one in ones), sum(one.view.size_mib for one in ones)
