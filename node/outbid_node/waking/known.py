"""The machines that were in the mesh, in a small file, so that they can be named and woken after a restart, too."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from outbid_contracts.ids import NodeId, is_node_id
from outbid_contracts.messages import Presence
from outbid_node.waking.own import MOST as MOST_MACS
from outbid_node.waking.own import as_mac

FILE = "machines.json"
MOST = 256
FORGET_MS = 90 * 86_400_000
STALE_MS = 600_000
"""How old the file may be about a machine that is there."""

MAX_NAME = 200


@dataclass(frozen=True, slots=True)
class Machine:
    node: NodeId
    name: str
    macs: tuple[str, ...]
    last_seen_ms: int


class Known:
    """Of one mesh. Times are Unix."""

    def __init__(self, mesh: str, machines: Iterable[Machine] = ()) -> None:
        self.mesh = mesh
        self._machines = {machine.node: machine for machine in machines}

    def __iter__(self) -> Iterator[Machine]:
        """The last seen first."""
        return iter(sorted(self._machines.values(), key=lambda machine: -machine.last_seen_ms))

    def seen(self, presence: Presence, now_ms: int) -> bool:
        """It is there. True if that is worth writing down."""
        if presence.guest:
            return self._machines.pop(presence.node, None) is not None
        before = self._machines.get(presence.node)
        macs = tuple(filter(None, map(as_mac, presence.macs[:MOST_MACS])))
        machine = Machine(presence.node, presence.name[:MAX_NAME], macs, now_ms)
        same = before is not None and (before.name, before.macs) == (machine.name, macs)
        if before is not None and same and now_ms - before.last_seen_ms < STALE_MS:
            return False
        self._machines[machine.node] = machine
        self._forget(machine, now_ms)
        return True

    def gone(self, node: NodeId, now_ms: int) -> bool:
        machine = self._machines.get(node)
        if machine is None:
            return False
        self._machines[node] = Machine(node, machine.name, machine.macs, now_ms)
        return True

    def _forget(self, new: Machine, now_ms: int) -> None:
        """Those not seen for long, the oldest of too many, and what this machine was under another id: its state was
        made anew.
        """
        for machine in list(self._machines.values()):
            same = machine.name == new.name and set(machine.macs) & set(new.macs) and machine.node != new.node
            if same or now_ms - machine.last_seen_ms > FORGET_MS:
                del self._machines[machine.node]
        while len(self._machines) > MOST:
            oldest = min(self._machines.values(), key=lambda machine: machine.last_seen_ms)
            del self._machines[oldest.node]


def load(state: Path, mesh: str, now_ms: int) -> Known:
    """Nothing of a file that makes no sense or is about another mesh."""
    try:
        told = json.loads((state / FILE).read_text("utf-8"))
        if told["mesh"] != mesh:
            return Known(mesh)
        machines = [_machine(one) for one in told["machines"][:MOST]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Known(mesh)
    return Known(mesh, (machine for machine in machines if now_ms - machine.last_seen_ms <= FORGET_MS))


def _machine(told: dict[str, object]) -> Machine:
    node, macs, seen_ms = str(told["node"]), told["macs"], told["last_seen_ms"]
    if not is_node_id(node) or not isinstance(macs, list) or not isinstance(seen_ms, int):
        raise ValueError("not a machine")
    return Machine(NodeId(node), str(told["name"])[:MAX_NAME], tuple(filter(None, map(as_mac, macs))), seen_ms)


def save(state: Path, known: Known) -> None:
    """Raises OSError."""
    beside = (state / FILE).with_suffix(".new")
    told = {"mesh": known.mesh, "machines": [asdict(machine) for machine in known]}
    beside.write_text(json.dumps(told), "utf-8")
    beside.chmod(0o600)
    beside.replace(state / FILE)
