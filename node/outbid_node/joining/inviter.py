"""The inviting side: open invitations, and the small server that answers joiners while there are any."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import msgspec

from outbid_node.joining.channel import Channel, Exchange, Hello, JoinFailed, Welcome, WrongCode
from outbid_node.joining.code import JoinCode, new_code

log = logging.getLogger(__name__)

PROTOCOL = 1
MAX_FAILURES = 5
"""Failed conversations before an invitation is void: with 40 bits of secret, guessing succeeds once in 200 billion."""

MAX_CONNECTIONS = 8
REMEMBER_S = 60.0
CLOCK_SKEW_S = 12 * 3600.0
"""Node certificates are backdated by a day; clocks further apart than half of that are refused with a clear word."""


class Applicant(msgspec.Struct, frozen=True, kw_only=True):
    """Who wants in (sealed)."""

    node: str
    name: str
    version: str
    time_s: float


class Grant(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a machine gets when it may join (sealed). `peers` are route addresses; `guest` caps what it may do."""

    mesh: str = ""
    key: bytes = b""
    peers: tuple[str, ...] = ()
    inviter: str = ""
    guest: bool = False
    capabilities: tuple[str, ...] = ()
    slots: int | None = None
    expires_s: float | None = None
    refusal: str = ""


class Joined(msgspec.Struct, frozen=True, kw_only=True):
    """The joiner's last word (sealed): it has stored the key."""

    node: str


@dataclass
class Invitation:
    """An open invitation. `expires` is of the monotonic clock."""

    code: JoinCode
    expires: float
    uses: int
    grant: Callable[[Applicant], Grant]
    failures: int = 0
    joined: list[str] = field(default_factory=list)

    def refusal(self) -> str:
        """Why it is of no use any more, or nothing."""
        if time.monotonic() > self.expires:
            return "this invitation has expired; ask for a new code"
        if self.uses <= 0:
            return "this invitation is used up; ask for a new code"
        if self.failures >= MAX_FAILURES:
            return "this invitation was blocked after too many wrong codes; ask for a new one"
        return ""


class Inviter:
    """Listens while there are invitations. `on_change` hears when the set of open invitations changes."""

    def __init__(self, on_joined: Callable[[Applicant], Awaitable[None]] | None = None) -> None:
        self._invitations: dict[str, Invitation] = {}
        self._server: asyncio.Server | None = None
        self._connections = 0
        self._on_joined = on_joined
        self.port = 0
        self.on_change: Callable[[], None] = lambda: None

    @property
    def open_ids(self) -> tuple[str, ...]:
        return tuple(id for id, invitation in self._invitations.items() if not invitation.refusal())

    async def invite(
        self, grant: Callable[[Applicant], Grant], *, valid_s: float, uses: int, host: str, port: int
    ) -> Invitation:
        """Open an invitation, and the server at `host:port` (0: any) with the first one."""
        self._drop_dead()
        code = new_code()
        while code.id in self._invitations:
            code = new_code()
        if self._server is None:
            await self._listen(host, port)
        invitation = Invitation(code, time.monotonic() + valid_s, uses, grant)
        self._invitations[code.id] = invitation
        log.info("invitation %s is open", code.id, extra={"action": "invitation_opened"})
        self.on_change()
        return invitation

    async def stop(self) -> None:
        self._invitations.clear()
        if self._server is not None:
            self._server.close()
            self._server = None
            self.port = 0

    def sweep(self) -> None:
        """Called each second: forget invitations that are long over, and close the port with the last of them."""
        self._drop_dead()
        if self._server is not None and not self._invitations and not self._connections:
            self._server.close()
            self._server = None
            self.port = 0

    def _drop_dead(self) -> None:
        """Dead invitations are remembered for REMEMBER_S, so that a late joiner hears why."""
        now = time.monotonic()
        self._invitations = {
            id: invitation
            for id, invitation in self._invitations.items()
            if not (invitation.refusal() and now > invitation.expires + REMEMBER_S)
        }

    async def _listen(self, host: str, port: int) -> None:
        try:
            self._server = await asyncio.start_server(self._serve, host, port)
        except OSError:
            self._server = await asyncio.start_server(self._serve, host, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        channel = Channel(reader, writer)
        peer = writer.get_extra_info("peername")
        self._connections += 1
        try:
            if self._connections <= MAX_CONNECTIONS:
                await self._talk(channel)
        except JoinFailed as error:
            log.warning("a join from %s failed: %s", peer, error.message, extra={"action": "join_refused"})
        except Exception:
            log.exception("a join from %s broke", peer, extra={"action": "join_broke"})
        finally:
            self._connections -= 1
            with contextlib.suppress(OSError):
                await channel.close()

    async def _talk(self, channel: Channel) -> None:
        hello: Hello = await channel.receive(Hello)
        invitation = self._invitations.get(hello.invitation)
        refusal = (
            invitation.refusal() if invitation else "no invitation has this code here; check its first two letters"
        )
        if hello.v != PROTOCOL:
            refusal = f"this node speaks join protocol {PROTOCOL}, yours {hello.v}; install the same version of Outbid"
        if invitation is None or refusal:
            await channel.send(Welcome(v=PROTOCOL, refusal=refusal))
            raise JoinFailed(refusal)
        invitation.failures += 1  # taken back when the joiner has proved that it knows the code
        exchange = Exchange(invitation.code.secret, invitation.code.id, joiner=False)
        mine = await exchange.start()
        shared = await exchange.finish(hello.spake)
        await channel.send(Welcome(v=PROTOCOL, spake=mine))
        channel.key(shared, joiner=False)
        applicant: Applicant = await channel.receive(Applicant)
        invitation.failures -= 1
        await self._admit(channel, invitation, applicant)

    async def _admit(self, channel: Channel, invitation: Invitation, applicant: Applicant) -> None:
        skew_s = applicant.time_s - time.time()
        refusal = invitation.refusal()
        if abs(skew_s) > CLOCK_SKEW_S:
            refusal = f"the clocks differ by {abs(skew_s) / 3600:.0f} hours; set this machine's clock and join again"
        if refusal:
            await channel.send(Grant(refusal=refusal))
            raise JoinFailed(refusal)
        invitation.uses -= 1
        try:
            await channel.send(invitation.grant(applicant))
            await channel.receive(Joined)
        except (JoinFailed, OSError):
            invitation.uses += 1  # it never got the key stored
            raise
        invitation.joined.append(applicant.name)
        log.info("%s joined the mesh", applicant.name, extra={"action": "machine_joined", "node": applicant.node})
        self.on_change()
        if self._on_joined is not None:
            await self._on_joined(applicant)


__all__ = ["Applicant", "Grant", "Invitation", "Inviter", "Joined", "WrongCode"]
