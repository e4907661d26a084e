"""What would happen to such a job now, or would have happened to that one: `mesh.jobs.what-if`, asked of any node."""

from __future__ import annotations

from typing import Any

import msgspec

from outbid_contracts.errors import ErrorBody
from outbid_contracts.ids import JobId, NodeId
from outbid_contracts.messages import BidSheet, Considered, Message, Work
from outbid_contracts.policy import Policy


class WhatIfRequest(Message, frozen=True, kw_only=True):
    """Either `capability` and `params`, as in a request to it: the able nodes are asked for proposals, and nothing is
    awarded. Or `job`: the bids on its last sheet are ranked again.

    `policies`: each a goal's name or a map of the fields of `Policy`, as in a request; for `job`, fields that are not
    given are those of the job. `without`: ids or names of nodes that are taken for absent.
    """

    capability: str | None = None
    params: dict[str, Any] = msgspec.field(default_factory=dict)
    job: JobId | None = None
    policies: tuple[Any, ...] = ()
    without: tuple[str, ...] = ()


class Case(Message, frozen=True, kw_only=True):
    """The auction under one policy. `waits`: why the job would wait, if it would. `error`: what the caller would get,
    if nobody could do it.
    """

    policy: Policy
    without: tuple[NodeId, ...] = ()
    sheet: BidSheet
    waits: str = ""
    error: ErrorBody | None = None

    @property
    def winner(self) -> Considered | None:
        """Its bid as it was ranked."""
        return next((c for c in self.sheet.bids if c.bid.node == self.sheet.winner), None)


class WhatIfReply(Message, frozen=True, kw_only=True):
    """`base`: with every node, under the policy of `job`, or the one that a job without a policy has at the node asked.
    `cases`: one for each of the policies asked about (the base's, if none), without the nodes named.
    """

    capability: str
    model: str | None = None
    work: Work = msgspec.field(default_factory=dict)
    job: JobId | None = None
    base: Case
    cases: tuple[Case, ...] = ()
