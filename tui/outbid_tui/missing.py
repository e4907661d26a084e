"""Why nobody in the mesh can do something, and what would help."""

from __future__ import annotations

from outbid_tui.state import MeshState


def why_nobody(state: MeshState, capability: str, verb: str) -> str:
    """Sentences; the machines' own words where they know the capability."""
    if not state.machines:
        return "No machine is heard yet."
    told = sorted(
        f"{machine.presence.name}: {machine.presence.missing[capability]}"
        for machine in state.machines.values()
        if capability in machine.presence.missing
    )
    if told:
        return "\n".join([f"No machine of this mesh can {verb} yet.", "", *told])
    return f"No machine of this mesh can {verb} yet; `outbid doctor` on one of them says what to install."


def can(state: MeshState, capability: str) -> bool:
    """Whether some machine offers it, blocked or not."""
    return any(
        offer.capability == capability for machine in state.machines.values() for offer in machine.presence.offers
    )
