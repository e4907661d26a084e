"""Orders to one node: `mesh.node("pi").drain()`. Only administrators may give them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from outbid_contracts import subjects
from outbid_contracts.admin import (
    CalibrateReply,
    CalibrateRequest,
    DrainReply,
    DrainRequest,
    EvictReply,
    EvictRequest,
    LogsReply,
    LogsRequest,
    PauseReply,
    PauseRequest,
    PinReply,
    PinRequest,
    QuietReply,
    QuietRequest,
    WakeReply,
    WakeRequest,
)
from outbid_contracts.errors import NodeUnreachable, OutbidError
from outbid_contracts.ids import NodeId
from outbid_contracts.live import LogLevel
from outbid_contracts.messages import Message

if TYPE_CHECKING:
    from outbid.mesh import Mesh

ORDER_TIMEOUT_S = 10.0

DRAIN_TIMEOUT_S = 30.0
"""It answers when what it ran is handed over."""

CALIBRATE_TIMEOUT_S = 900.0
"""A slow machine with several models takes minutes."""

T = TypeVar("T")


class NodeHandle:
    """One node of a mesh, by its id or its name; without either, the one of this machine. It is looked up with each
    order, so a handle made while the machine is away works when it is back.

    Orders raise AccessRefused without an administrator's credentials, NodeUnreachable if the node is not there.
    """

    def __init__(self, mesh: Mesh, node: str | None = None) -> None:
        self._mesh = mesh
        self._node = node

    def __repr__(self) -> str:
        return f"NodeHandle({self._node!r})"

    async def id(self) -> NodeId:
        """Raises OutbidError, whose message names the nodes there are."""
        return await find(self._mesh, self._node)

    async def drain(self) -> DrainReply:
        """Take no more work and hand over what runs, until `undrain` or its next start."""
        return await self._order("drain", DrainRequest(), DrainReply, DRAIN_TIMEOUT_S)

    async def undrain(self) -> DrainReply:
        return await self._order("drain", DrainRequest(undo=True), DrainReply, DRAIN_TIMEOUT_S)

    async def pause(self, for_s: float | None = None) -> PauseReply:
        """Work for nobody else, for `for_s` seconds or until `resume`, also over restarts."""
        return await self._order("pause", PauseRequest(for_s=for_s), PauseReply)

    async def resume(self) -> PauseReply:
        return await self._order("resume", Message(), PauseReply)

    async def pin(self, model: str, *, capability: str | None = None) -> PinReply:
        """Keep a model in memory until `unpin`, also over restarts: it is loaded now and goes for no other. Raises
        UnknownModel, InvalidRequest where it cannot fit.
        """
        return await self._order("pin", PinRequest(model=model, capability=capability), PinReply)

    async def unpin(self, model: str, *, capability: str | None = None) -> PinReply:
        return await self._order("pin", PinRequest(model=model, capability=capability, undo=True), PinReply)

    async def evict(self, model: str, *, capability: str | None = None) -> EvictReply:
        """Take a model out of memory, once nothing runs on it. Raises UnknownModel, InvalidRequest if it is pinned."""
        return await self._order("evict", EvictRequest(model=model, capability=capability), EvictReply)

    async def quiet(self, hours: Iterable[str] | None = None) -> QuietReply:
        """Set the quiet hours (`["22:00-07:00", "Sat-Sun 00:00-09:00"]`; none: `[]`), over restarts, instead of those
        of its configuration. Without `hours` it only tells which are in force.
        """
        wanted = None if hours is None else (hours,) if isinstance(hours, str) else tuple(hours)
        return await self._order("quiet", QuietRequest(hours=wanted), QuietReply)

    async def unquiet(self) -> QuietReply:
        """Go back to the quiet hours of its configuration."""
        return await self._order("quiet", QuietRequest(undo=True), QuietReply)

    async def calibrate(self, *, capability: str | None = None, model: str | None = None) -> CalibrateReply:
        """Measure its speed now, by a few tiny jobs of each kind."""
        asked = CalibrateRequest(capability=capability, model=model)
        return await self._order("calibrate", asked, CalibrateReply, CALIBRATE_TIMEOUT_S)

    async def logs(self, *, level: LogLevel = "info", limit: int = 200) -> LogsReply:
        """The last lines of its log, the oldest first; `Mesh.live(logs=…)` brings those to come."""
        return await self._order("logs", LogsRequest(level=level, limit=limit), LogsReply)

    async def wake(self) -> WakeReply:
        """Send the magic packet from a node that is there (the one of this connection first). The machine shows up by
        itself if it heard. Raises InvalidRequest if it is there already or no hardware address is known.
        """
        if self._node is None:
            raise OutbidError("say which machine is to be woken")
        listed = await self._mesh.node_list()
        refusal: OutbidError = NodeUnreachable("no node is there that could wake it")
        for view in sorted(listed.nodes, key=lambda view: not view.here):
            subject = subjects.admin(view.presence.node, "wake")
            try:
                reply: WakeReply = await self._mesh.request(
                    subject, WakeRequest(node=self._node), WakeReply, timeout_s=ORDER_TIMEOUT_S
                )
                return reply
            except OutbidError as error:
                refusal = refusal if isinstance(error, NodeUnreachable) else error
        raise refusal

    async def _order(self, verb: str, message: Any, type: type[T], timeout_s: float = ORDER_TIMEOUT_S) -> T:
        reply: T = await self._mesh.request(subjects.admin(await self.id(), verb), message, type, timeout_s=timeout_s)
        return reply


async def find(mesh: Mesh, node: str | None) -> NodeId:
    """By its id or its name; None is the node of this machine. Raises OutbidError."""
    if node is None:
        if mesh.local is None:
            raise OutbidError("say which node: this is not a connection to the one of this machine")
        return mesh.local
    listed = await mesh.node_list()
    there = {view.presence.node: view.presence.name for view in listed.nodes}
    if node in there:
        return NodeId(node)
    found = [id for id, name in there.items() if name == node]
    if len(found) > 1:
        raise OutbidError(f"{len(found)} nodes are called {node}; say which by its id: {', '.join(found)}")
    if not found:
        away = any(node in (sleeper.node, sleeper.name) for sleeper in listed.away)
        raise OutbidError(f"{_missing(node, away)}; there are {_names(there.values())}")
    return found[0]


def _missing(node: str, away: bool) -> str:
    return f"{node} is away" if away else f"no node is called {node}"


def _names(names: Iterable[str]) -> str:
    every: Sequence[str] = sorted(names)
    return ", ".join(every) or "none"
