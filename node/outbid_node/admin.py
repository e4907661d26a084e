"""Membership of the mesh, as asked for by an administrator: inviting, leaving, changing the mesh key.

Whatever changes who a node is to the others (opening it to the network, another mesh, another key) is written to disk
first and then
takes effect by a restart in place: the ledger's port and the state stay, jobs get their usual grace.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import psutil

from outbid_contracts import subjects
from outbid_contracts.admin import (
    DrainReply,
    DrainRequest,
    InvitationsReply,
    InviteReply,
    InviteRequest,
    NewKey,
    Ok,
    RekeyReply,
    RekeyRequest,
    Revocations,
    RevokeReply,
    RevokeRequest,
)
from outbid_contracts.codec import Format, decode
from outbid_contracts.errors import InvalidRequest
from outbid_contracts.ids import JobId, NodeId
from outbid_contracts.messages import Message
from outbid_node.bus import carry_over
from outbid_node.client import Bus
from outbid_node.home import Home
from outbid_node.identity.keyring import Keyring
from outbid_node.identity.keys import MeshKey
from outbid_node.joining import membership
from outbid_node.joining.inviter import Grant, Invitation, Inviter
from outbid_node.joining.membership import Membership
from outbid_node.joining.sealed import seal, unseal
from outbid_node.micro import Request, Service
from outbid_node.naming import person
from outbid_node.registry import Registry

log = logging.getLogger(__name__)

JOIN_PORT = 7420
"""Where invitations are answered, if free; the announcement has the real one."""

REKEY_DELAY_S = 1.5
"""From telling the nodes to the moment all switch: long enough for every answer, short enough to wait for."""


Drained = tuple[Sequence[JobId], Sequence[JobId]]


class Admin:
    """`mesh.admin.<this node>.<verb>`."""

    def __init__(
        self,
        *,
        me: NodeId,
        home: Home,
        bus: Bus,
        registry: Registry,
        mesh: str,
        keyring: Keyring,
        member: Membership | None,
        private_key: bytes,
        refuse: Callable[[Mapping[str, int]], Awaitable[None]],
        route_port: Callable[[], int],
        restart: Callable[[], None],
    ) -> None:
        self.me = me
        self.home = home
        self.bus = bus
        self.registry = registry
        self.mesh = mesh
        self.keyring = keyring
        self.member = member
        self._private_key = private_key
        self._refuse = refuse
        self.inviter = Inviter()
        self.on_drain: Callable[[bool], Drained] = lambda drain: ([], [])
        """Start (True) or end to drain: the jobs finished here, and those given back."""
        self._route_port = route_port
        self._restart = restart
        self._invitations: list[Invitation] = []
        self._timers: list[asyncio.TimerHandle] = []
        self._digest = _digest(keyring.revoked(mesh))
        self._exchanging: set[NodeId] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def is_open(self) -> bool:
        return self.member is not None and self.member.open

    def register(self, service: Service) -> None:
        verbs = {
            "invite": self.invite,
            "invitations": self.invitations,
            "rekey": self.rekey,
            "revoke": self.revoke,
            "restart": self.restart,
            "drain": self.drain,
        }
        for verb, handler in verbs.items():
            service.add(f"admin-{verb}", subjects.admin(self.me, verb), handler, queue=str(self.me))

    def announced(self) -> dict[str, str]:
        """What the announcement says about open invitations: `join` = port, then the public part of each code."""
        ids = self.inviter.open_ids
        return {"join": " ".join([str(self.inviter.port), *ids])} if ids else {}

    async def stop(self) -> None:
        for timer in self._timers:
            timer.cancel()
        await self.inviter.stop()

    # -- inviting -------------------------------------------------------------------------------------------------

    async def invite(self, request: Request) -> None:
        asked: InviteRequest = _read(request, InviteRequest)
        self._full_members_only("invite")
        if not self.is_open:
            self._open()
            request.respond(InviteReply(restarting=True))
            return
        invitation = await self.inviter.invite(
            lambda applicant: self._grant(asked), valid_s=asked.valid_s, uses=asked.uses, host="", port=JOIN_PORT
        )
        self._invitations.append(invitation)
        request.respond(
            InviteReply(
                code=str(invitation.code),
                valid_s=asked.valid_s,
                uses=asked.uses,
                port=self.inviter.port,
                addresses=tuple(own_addresses()),
            )
        )

    async def invitations(self, request: Request) -> None:
        _read(request, Message)
        joined = [name for invitation in self._invitations for name in invitation.joined]
        request.respond(InvitationsReply(open=self.inviter.open_ids, joined=tuple(joined)))

    def _full_members_only(self, what: str) -> None:
        if self.member is not None and self.member.guest:
            raise InvalidRequest(f"this node is a guest here; only a full member may {what}")

    def _open(self) -> None:
        log.info("opening this node to the network", extra={"action": "node_opened"})
        membership.save(self.home.path, self.member or Membership(mesh=self.mesh))
        self._restart()

    def _grant(self, asked: InviteRequest) -> Grant:
        peers = tuple(
            f"[{a}]:{self._route_port()}" if ":" in a else f"{a}:{self._route_port()}" for a in own_addresses()
        )
        return Grant(
            mesh=self.mesh,
            key=self.keyring.key(self.mesh).raw,
            peers=peers[:4],
            inviter=self.registry.name_of(self.me),
            guest=asked.guest,
            capabilities=asked.capabilities,
            slots=asked.slots,
            expires_s=time.time() + asked.guest_s if asked.guest_s else None,
        )

    # -- a new key ------------------------------------------------------------------------------------------------

    async def rekey(self, request: Request) -> None:
        asked: RekeyRequest = _read(request, RekeyRequest)
        self._full_members_only("change the mesh's key")
        others = [peer.presence for peer in self.registry if peer.presence.node != self.me]
        out = [p for p in others if p.node in asked.without or p.name in asked.without]
        unknown = set(asked.without) - {p.node for p in out} - {p.name for p in out}
        if unknown:
            log.info("not here anyway: %s", ", ".join(unknown), extra={"action": "rekey_absent"})
        staying = [p for p in others if p not in out]
        key, at_s = secrets.token_bytes(32), time.time() + REKEY_DELAY_S
        answers = await asyncio.gather(
            *(self._send_key(p.node, key, p.box, at_s) for p in staying), return_exceptions=True
        )
        followed = [p.name for p, answer in zip(staying, answers, strict=True) if not isinstance(answer, BaseException)]
        silent = [p.name for p, answer in zip(staying, answers, strict=True) if isinstance(answer, BaseException)]
        self._switch(key, at_s)
        request.respond(RekeyReply(followed=tuple(followed), left_out=tuple(p.name for p in out), silent=tuple(silent)))

    async def _send_key(self, node: NodeId, key: bytes, box: str, at_s: float) -> None:
        message = NewKey(box=seal(key, bytes.fromhex(box)), at_s=at_s)
        await self.bus.call(subjects.node(node, "rekey"), message, Ok, timeout_s=REKEY_DELAY_S * 0.6)

    def take_key(self, message: NewKey) -> Ok:
        """Another node changes the mesh's key and wants this one to follow. Raises InvalidRequest for a box not
        ours.
        """
        key = unseal(message.box, self._private_key)
        if len(key) != 32:
            raise InvalidRequest("that is not a mesh key")
        self._switch(key, min(message.at_s, time.time() + 10 * REKEY_DELAY_S))
        return Ok(node=self.me)

    def _switch(self, key: bytes, at_s: float) -> None:
        def switch() -> None:
            log.info("the mesh has a new key", extra={"action": "mesh_rekeyed"})
            old, new = self.keyring.key(self.mesh), MeshKey(key)
            carry_over.note(self.home.path / "bus", old.account.public, new.account.public)
            self.keyring.put(self.mesh, new)
            self._restart()

        delay_s = max(0.0, at_s - time.time())
        self._timers.append(asyncio.get_running_loop().call_later(delay_s, switch))

    # -- credentials ----------------------------------------------------------------------------------------------

    async def revoke(self, request: Request) -> None:
        """Refuse the credentials of a person from now on, on every node; those issued later are good again."""
        asked: RevokeRequest = _read(request, RevokeRequest)
        self._full_members_only("revoke credentials")
        user = self.keyring.key(self.mesh).user(person(asked.name)).public
        await self._merge({user: int(time.time())})
        told = await asyncio.gather(
            *(self._exchange(peer.presence.node) for peer in self.registry if peer.presence.node != self.me),
            return_exceptions=True,
        )
        silent = sum(isinstance(answer, BaseException) for answer in told)
        request.respond(RevokeReply(name=asked.name, told=len(told) - silent, silent=silent))

    def revoked_digest(self) -> str:
        """Goes out with presence: a node that sees another one exchanges lists with it."""
        return self._digest

    async def take_revocations(self, message: Revocations) -> Revocations:
        """Another node's list; ours, with theirs in it, is the answer."""
        return Revocations(users=await self._merge(message.users))

    def saw(self, node: NodeId, digest: str) -> None:
        """Catch up with a node whose list differs: one of us was away when somebody was revoked."""
        if digest == self._digest or node == self.me or node in self._exchanging:
            return
        self._exchanging.add(node)
        task = asyncio.create_task(self._exchange(node))
        self._tasks.add(task)
        task.add_done_callback(functools.partial(self._exchanged, node))

    def _exchanged(self, node: NodeId, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._timers.append(asyncio.get_running_loop().call_later(1.0, self._exchanging.discard, node))
        if not task.cancelled() and (error := task.exception()):
            log.info("lists of revoked users not exchanged: %s", error, extra={"action": "revocations_not_exchanged"})

    async def _exchange(self, node: NodeId) -> None:
        mine = Revocations(users=self.keyring.revoked(self.mesh))
        theirs: Revocations = await self.bus.call(subjects.node(node, "revoked"), mine, Revocations, timeout_s=2.0)
        await self._merge(theirs.users)

    async def _merge(self, users: Mapping[str, int]) -> dict[str, int]:
        before = self.keyring.revoked(self.mesh)
        merged = await asyncio.to_thread(self.keyring.revoke, self.mesh, users) if users else before
        if merged != before or self._digest != _digest(merged):
            self._digest = _digest(merged)
            await self._refuse(merged)
        return merged

    # -- draining -------------------------------------------------------------------------------------------------

    async def drain(self, request: Request) -> None:
        """Take no new work until undone or restarted: it is an order of the moment, and a machine that was switched
        off and on again should not sit idle because somebody forgot it.
        """
        asked: DrainRequest = _read(request, DrainRequest)
        runs_on, handed_over = self.on_drain(not asked.undo)
        log.info("%s", "works again" if asked.undo else "drains", extra={"action": "node_drained"})
        request.respond(
            DrainReply(node=self.me, draining=not asked.undo, runs_on=tuple(runs_on), handed_over=tuple(handed_over))
        )

    # -- taking effect --------------------------------------------------------------------------------------------

    async def restart(self, request: Request) -> None:
        """`outbid join` and `outbid leave` have changed the state folder."""
        request.respond(Ok(node=self.me))
        self._restart()


def own_addresses() -> list[str]:
    """Addresses by which other machines may reach this one: IPv4 first, no loopback, no link-local."""
    found = []
    up = {name for name, stats in psutil.net_if_stats().items() if stats.isup}
    for name, addresses in psutil.net_if_addrs().items():
        found += [a.address for a in addresses if name in up and a.family.name in ("AF_INET", "AF_INET6")]
    usable = [a for a in found if not a.startswith(("127.", "169.254.", "fe80:")) and a != "::1" and "%" not in a]
    return sorted(usable, key=lambda address: ":" in address)


def _digest(users: Mapping[str, int]) -> str:
    text = json.dumps(sorted(users.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16] if users else ""


def _read(request: Request, type: Any) -> Any:
    if request.read_format() is Format.TEXT and request.data:
        raise InvalidRequest("this takes a JSON object")
    return decode(request.data or b"{}", type, request.format if request.data else Format.JSON)
