"""What keys of the mesh are derived from, in one place, because every node must derive the same."""

from __future__ import annotations


def person(name: str) -> str:
    """For the credentials of a person: any node can revoke what another one issued."""
    return f"person {name}"
