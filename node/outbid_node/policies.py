"""What a caller left open in its policy, as the node that owns the job has it in its configuration."""

from __future__ import annotations

import msgspec

from outbid_contracts.policy import Policy, Weights
from outbid_node.config_sections import PolicySection

_OPEN = Policy()


class Policies:
    """Fills in goals and weights when a job is accepted, so that its record says what it was ranked by."""

    def __init__(self, section: PolicySection | None = None) -> None:
        section = section or PolicySection()
        self._default = section.default
        self._custom = Weights(p50=section.p50, p90=section.p90, per_j=section.per_j, per_usd=section.per_usd)
        self._usual = self._filled(_OPEN)

    def settled(self, policy: Policy) -> Policy:
        """With a goal, and with weights if that is custom."""
        if policy == _OPEN:
            return self._usual
        if policy.goal is None or (policy.goal == "custom" and policy.weights is None):
            return self._filled(policy)
        return policy

    def _filled(self, policy: Policy) -> Policy:
        goal = policy.goal or self._default
        weights = (policy.weights or self._custom) if goal == "custom" else None
        return msgspec.structs.replace(policy, goal=goal, weights=weights)
