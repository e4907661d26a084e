"""Names for the public keys that jobs are counted for, as far as this machine knows them."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping

from outbid_contracts.errors import OutbidError
from outbid_contracts.ids import NodeId
from outbid_node.identity.keyring import Keyring


class People:
    """`names` reads files and derives keys (0.1 ms each): not on the event loop."""

    def __init__(self, keyring: Keyring, mesh: str) -> None:
        self._keyring = keyring
        self._mesh = mesh

    def names(self, users: Collection[str], nodes: Mapping[NodeId, str]) -> dict[str, str]:
        """Of those users that are known: who got credentials here, and whoever sits at one of the `nodes`."""
        if not users:
            return {}
        found = self._of_nodes(nodes)
        with contextlib.suppress(OutbidError):  # a report with fewer names is better than none
            found |= {user: known.name for user, known in self._keyring.people(self._mesh).items()}
        return {user: found[user] for user in users if user in found}

    def _of_nodes(self, nodes: Mapping[NodeId, str]) -> dict[str, str]:
        """Programs of each node's own user have credentials that follow from the mesh key."""
        try:
            key = self._keyring.find(self._mesh)
        except OutbidError:
            key = None
        if key is None:
            return {}
        local = {key.user(f"local {node}").public: f"on {name}" for node, name in nodes.items()}
        return local | {key.user(f"node {node}").public: f"node {name}" for node, name in nodes.items()}
