"""`mesh.jobs.what-if`: an auction that awards nothing, and the bids of past jobs ranked again under other policies."""

from __future__ import annotations

import asyncio
import difflib
import time
from collections.abc import Collection, Iterable, Sequence
from functools import partial
from typing import Any

import msgspec

from outbid_contracts import subjects
from outbid_contracts.codec import Format, decode
from outbid_contracts.errors import InvalidRequest, NoBid, OutbidError, UnknownJob
from outbid_contracts.ids import NodeId, new_job_id
from outbid_contracts.messages import Bid, BidSheet, CallForProposals, Considered, Decline, Job, Proposal
from outbid_contracts.policy import Policy
from outbid_contracts.requests import parse_params, parse_policy
from outbid_contracts.what_if import Case, WhatIfReply, WhatIfRequest
from outbid_node import reasons
from outbid_node.catalogue import Catalogue
from outbid_node.choosing import choose
from outbid_node.client import Bus, NoResponders
from outbid_node.company import joining_j, thrifty
from outbid_node.lookup import Lookup
from outbid_node.micro import Request
from outbid_node.owner import Owner
from outbid_node.policies import Policies
from outbid_node.ranking import Added, Stretch, explain, rank, remaining
from outbid_node.registry import Registry, Standing

ASK_S = 2.0
"""How long the slowest node may take; nobody runs anything meanwhile."""

MOST_ASKED = 100
"""A mesh that is larger is not asked as a whole."""


class WhatIfDesk:
    def __init__(
        self,
        *,
        me: NodeId,
        bus: Bus,
        registry: Registry,
        owner: Owner,
        lookup: Lookup,
        catalogue: Catalogue,
        policies: Policies,
    ) -> None:
        self.me = me
        self.bus = bus
        self.registry = registry
        self.auctioneer = owner.placer.auctioneer
        self.lookup = lookup
        self.catalogue = catalogue
        self.policies = policies

    async def answer(self, request: Request) -> None:
        if request.read_format() is Format.TEXT:
            raise InvalidRequest('this endpoint takes a JSON object, e.g. {"capability": "llm.chat", "params": {…}}')
        asked: WhatIfRequest = decode(request.data, WhatIfRequest, request.format)
        if (asked.capability is None) == (asked.job is None):
            raise InvalidRequest("give either `capability`, for a job that might be, or `job`, for one that was")
        request.respond(await (self._again(asked) if asked.job is not None else self._now(asked)))

    # -- a job that might be --------------------------------------------------------------------------------------

    async def _now(self, asked: WhatIfRequest) -> WhatIfReply:
        job = self._job(asked)
        without = named(asked.without, self.registry.names())
        wanted = [self.policies.settled(policy) for policy in _policies(asked)]
        opened_ms, started = _now_ms(), time.perf_counter()
        standing = self.registry.standing(job.capability, job.model)[:MOST_ASKED]
        proposals = await asyncio.gather(*(self._proposal(job, one) for one in standing))
        hall = Hall(
            proposals=proposals,
            sheet=BidSheet(
                attempt=1,
                how="asked",
                opened_ms=opened_ms,
                took_ms=(time.perf_counter() - started) * 1000,
                asked=len(standing),
            ),
            names=self.registry.names(),
            stretch=partial(self.auctioneer.stretch, job.capability),
            added=partial(joining_j, self.registry.places(job.capability, job.model), time.monotonic()),
            nobody=reasons.nobody_able(job.capability, job.model, self.registry),
        )
        return WhatIfReply(
            capability=job.capability,
            model=job.model,
            work=job.work,
            base=hall.held(job.policy),
            cases=hall.cases(job.policy, wanted, without),
        )

    def _job(self, asked: WhatIfRequest) -> Job:
        """As if it had been accepted, with this node's usual policy. Raises UnknownCapability, InvalidRequest."""
        capability = self.catalogue.declared(asked.capability or "")
        params = parse_params(asked.params, capability)
        return Job(
            id=new_job_id(),
            owner=self.me,
            capability=capability.name,
            params={},
            work=capability.work(params),
            prefix=self.catalogue.prefixes.of(capability, params),
            model=capability.model_of(params),
            policy=self.policies.settled(Policy()),
        )

    async def _proposal(self, job: Job, standing: Standing) -> Proposal:
        """What that node answers to a call for proposals."""
        cfp = CallForProposals(
            job=job.id,
            owner=job.owner,
            capability=job.capability,
            work=job.work,
            model=job.model,
            policy=job.policy,
            dry=True,
            prefix=job.prefix,
        )
        if standing.node == self.me:
            return self.auctioneer.worker.propose(cfp, zone="here")
        started = time.perf_counter()
        node = standing.node
        try:
            answer: Proposal = await self.bus.call(subjects.node(node, "cfp"), cfp, Proposal, timeout_s=ASK_S)
        except (OutbidError, NoResponders, TimeoutError):
            return Decline(node=node, job=job.id, code="late", reason="did not answer in time", temporary=True)
        if (answer.job, answer.node) != (job.id, node):
            return Decline(node=node, job=job.id, code="error", reason="its answer was about something else")
        return _from_afar(answer, time.perf_counter() - started) if isinstance(answer, Bid) else answer

    # -- a job that was -------------------------------------------------------------------------------------------

    async def _again(self, asked: WhatIfRequest) -> WhatIfReply:
        """Raises UnknownJob."""
        assert asked.job is not None
        record = await self.lookup.find(asked.job, recall=True)
        sheet = next((sheet for sheet in reversed(record.sheets) if sheet.bids), None)
        if sheet is None:
            raise UnknownJob(f"job {record.id} has no bids on record: it was not ranked, or its sheet is not kept")
        bidders: dict[str, str] = {considered.bid.node: considered.name for considered in sheet.bids}
        without = named(asked.without, self.registry.names() | bidders)
        wanted = [self.policies.settled(_changed(record.policy, policy)) for policy in _policies(asked)]
        stretches = {considered.bid.node: considered.stretch for considered in sheet.bids}
        added = {considered.bid.node: considered.added_j for considered in sheet.bids}
        hall = Hall(
            proposals=[*(considered.bid for considered in sheet.bids), *sheet.declines],
            sheet=sheet,
            names=bidders,
            stretch=lambda bid: stretches[bid.node],
            added=lambda bid: added.get(bid.node),
            nobody=NoBid("no bid is left on the sheet"),
            waited_s=(sheet.opened_ms - record.created_ms) / 1000,
        )
        return WhatIfReply(
            capability=record.capability,
            model=record.model,
            job=record.id,
            base=Case(policy=record.policy, sheet=sheet),
            cases=hall.cases(record.policy, wanted, without),
        )


class Hall:
    """The same proposals, ranked as often as one likes. `sheet` is the form to fill; `nobody` is the error if there is
    no proposal at all; `waited_s` of a deadline had passed. `added` counts for thrifty policies.
    """

    def __init__(
        self,
        *,
        proposals: Sequence[Proposal],
        sheet: BidSheet,
        names: dict[str, str],
        stretch: Stretch,
        added: Added,
        nobody: OutbidError,
        waited_s: float = 0.0,
    ) -> None:
        self._proposals = proposals
        self._sheet = sheet
        self._names = names
        self._stretch = stretch
        self._added = added
        self._nobody = nobody
        self._waited_s = waited_s

    def cases(self, usual: Policy, wanted: Sequence[Policy], without: frozenset[NodeId]) -> tuple[Case, ...]:
        if not wanted and not without:
            return ()
        return tuple(self.held(policy, without) for policy in wanted or (usual,))

    def held(self, policy: Policy, without: frozenset[NodeId] = frozenset()) -> Case:
        """The auction under that policy, without those nodes."""
        left = [proposal for proposal in self._proposals if proposal.node not in without]
        counted = remaining(policy, self._waited_s)
        bids = (one for one in left if isinstance(one, Bid))
        ranked = rank(bids, counted, self._names, self._stretch, self._added if thrifty(policy) else None)
        declines = tuple(one for one in left if isinstance(one, Decline))
        best = choose(ranked, counted)
        sheet = msgspec.structs.replace(
            self._sheet,
            bids=tuple(ranked),
            declines=declines,
            winner=best.bid.node if best else None,
            why=_why(ranked, best, counted),
        )
        busy = [decline for decline in declines if decline.temporary]
        return Case(
            policy=policy,
            without=tuple(sorted(without)),
            sheet=sheet,
            waits=self._waits(best, busy),
            error=None if best or busy else self._error(ranked, declines).body(),
        )

    def _waits(self, best: Considered | None, busy: Sequence[Decline]) -> str:
        if best is None:
            return self._told(busy)
        if best.bid.later:
            return f"it would wait about {best.bid.start_s:.2g} s for a slot of {best.name}"
        return ""

    def _told(self, declines: Iterable[Decline]) -> str:
        return "; ".join(f"{self._names.get(one.node, one.node)}: {one.reason}" for one in declines)

    def _error(self, ranked: Sequence[Considered], declines: Sequence[Decline]) -> OutbidError:
        said = [f"{c.name}: {c.excluded}" for c in ranked] + ([self._told(declines)] if declines else [])
        return NoBid(f"no bid: {'; '.join(said)}") if said else self._nobody


def named(words: Collection[str], known: dict[str, str]) -> frozenset[NodeId]:
    """The nodes that the words name, by id or name. Raises InvalidRequest."""
    for word in words:
        if word not in known and word not in known.values():
            names = sorted(set(known.values()))
            close = difflib.get_close_matches(word, names, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}"
            raise InvalidRequest(f"without: no node is called {word!r}; {hint}")
    return frozenset(NodeId(node) for node, name in known.items() if node in words or name in words)


def _policies(asked: WhatIfRequest) -> list[Policy]:
    """Raises InvalidRequest that names the place."""
    found = []
    for n, value in enumerate(asked.policies):
        try:
            found.append(parse_policy(value))
        except InvalidRequest as error:
            raise InvalidRequest(f"policies[{n}]: {error.message}") from error
    return found


def _changed(usual: Policy, asked: Policy) -> Policy:
    """`usual` with the fields that `asked` has, and without weights that belonged to another goal."""
    given: dict[str, Any] = {
        field.name: value
        for field in msgspec.structs.fields(Policy)
        if (value := getattr(asked, field.name)) != field.default
    }
    if asked.goal is not None:
        given["weights"] = asked.weights
    return msgspec.structs.replace(usual, **given)


def _why(ranked: list[Considered], best: Considered | None, policy: Policy) -> str:
    if best is None or best is ranked[0]:
        return explain(ranked, policy) if ranked else ""
    return f"{best.name} can begin now; waiting for {ranked[0].name} would gain too little"


def _from_afar(bid: Bid, rtt_s: float) -> Bid:
    """As seen from here: the way there and back counts too."""
    return msgspec.structs.replace(
        bid, start_s=bid.start_s + rtt_s / 2, finish_s=bid.finish_s + rtt_s, finish_p90_s=bid.finish_p90_s + rtt_s
    )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
