"""`mesh.admin.<this node>.vitals` and `…doctor`: what this daemon knows of itself, and the whole examination."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from outbid_contracts import subjects
from outbid_contracts.capability import Capability
from outbid_contracts.codec import Format, decode
from outbid_contracts.doctor import DoctorReply, OnAir, Seen, Vitals
from outbid_contracts.errors import OutbidError
from outbid_contracts.ids import NodeId
from outbid_node.bus.backbone import Backbone
from outbid_node.bus.config_text import listen
from outbid_node.config import Config
from outbid_node.doctor.in_force import told
from outbid_node.loopwatch import LoopWatch
from outbid_node.micro import Request, Service
from outbid_node.registry import Peer, Registry

EXAMINATION_S = 8.0
"""The command bounds itself to less; a busy machine takes its time to start it."""


class DoctorEndpoints:
    """`register` them before the service starts."""

    def __init__(
        self,
        *,
        me: NodeId,
        name: str,
        version: str,
        config: Config,
        declarations: Mapping[str, Capability],
        state: Path,
        mesh: str,
        open: bool,
        registry: Registry,
        watch: LoopWatch,
        backbone: Backbone,
    ) -> None:
        self.me = me
        self.name = name
        self.version = version
        self.state = state
        self.mesh = mesh
        self.open = open
        self.registry = registry
        self.watch = watch
        self.backbone = backbone
        self._config = told(config, declarations)
        self._began = steady_s()
        self._began_wall = time.time()
        self._examining: asyncio.Task[DoctorReply] | None = None

    def register(self, service: Service) -> None:
        for verb, handler in (("vitals", self.answer_vitals), ("doctor", self.answer_doctor)):
            service.add(f"admin-{verb}", subjects.admin(self.me, verb), handler, queue=str(self.me))

    async def answer_vitals(self, request: Request) -> None:
        request.read_format()
        request.respond(self.vitals())

    async def answer_doctor(self, request: Request) -> None:
        """One examination at a time: who asks meanwhile gets the result of the one under way."""
        request.read_format()
        if self._examining is None or self._examining.done():
            self._examining = asyncio.create_task(examine_in_child(self.state))
        request.respond(await asyncio.shield(self._examining))

    def vitals(self) -> Vitals:
        up_s = steady_s() - self._began
        here = self.registry.get(self.me)
        presence = here.presence if here else None
        return Vitals(
            node=self.me,
            name=self.name,
            version=self.version,
            pid=os.getpid(),
            now_ms=time.time_ns() // 1_000_000,
            up_s=up_s,
            drift_s=time.time() - self._began_wall - up_s if hasattr(time, "CLOCK_BOOTTIME") else None,
            blocked=self.watch.blocked,
            worst_s=self.watch.worst_s,
            mesh=self.mesh,
            open=self.open,
            always_on=presence is not None and presence.always_on,
            trouble=presence.trouble if presence else (),
            held=presence.held if presence else "",
            missing=presence.missing if presence else {},
            sees=tuple(_seen(peer) for peer in self.registry if peer.presence.node != self.me),
            on_air=self._on_air(),
            bus=self.backbone.health(),
            config=self._config,
        )

    def _on_air(self) -> tuple[OnAir, ...]:
        discovery = self.backbone.discovery
        mine = self.backbone.identity.mesh
        peers = discovery.seen.values() if discovery else ()
        return tuple(
            OnAir(node=peer.node, name=peer.name, route=listen(peer.host, peer.route_port))
            for peer in peers
            if peer.mesh == mine
        )


def steady_s() -> float:
    """Seconds of a clock that nobody sets; it also runs while the machine sleeps, where the system has such a one."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _seen(peer: Peer) -> Seen:
    presence = peer.presence
    return Seen(
        node=presence.node,
        name=presence.name,
        version=presence.version,
        age_s=round(time.monotonic() - peer.seen, 3),
        always_on=presence.always_on,
    )


async def examine_in_child(state: Path) -> DoctorReply:
    """`outbid doctor` in a process of its own: it looks at slow disks and writes to them, which would block the event
    loop. Raises OutbidError if it does not come to an end.
    """
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "outbid_node", "doctor", "--json", "--state", str(state)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(EXAMINATION_S):
            said, _ = await child.communicate()
    except TimeoutError as error:
        raise OutbidError(f"the examination took longer than {EXAMINATION_S:.0f} s") from error
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    reply: DoctorReply = decode(said, DoctorReply, Format.JSON)
    return reply
