"""`outbid join`, `leave` and `creds`: what a person does with the mesh key on this machine, with or without a running
node.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from outbid_contracts import announced, subjects
from outbid_contracts.admin import Ok
from outbid_contracts.errors import InvalidRequest, OutbidError
from outbid_contracts.messages import Message
from outbid_contracts.places import NODE_FILE, LocalNode, state_dir
from outbid_contracts.roles import ROLES, inbox_prefix
from outbid_node.appearance import version
from outbid_node.client import Bus
from outbid_node.config_sections import default_mesh, default_name
from outbid_node.home import Home
from outbid_node.identity import jwt
from outbid_node.identity.keyring import Keyring, KnownUser
from outbid_node.identity.keys import MeshKey
from outbid_node.joining import membership
from outbid_node.joining.channel import JoinFailed
from outbid_node.joining.code import JoinCode, read_code
from outbid_node.joining.inviter import Grant
from outbid_node.joining.joiner import join
from outbid_node.joining.membership import Membership
from outbid_node.naming import person

FIND_TIMEOUT_S = 6.0
JOIN_PORT = 7420
_FOR_FACES = ("viewer", "submitter", "admin")


def main(command: str, argv: Sequence[str]) -> int:
    """Runs one command; 0 done, 1 refused, 2 wrong usage."""
    options = parser_of(command).parse_args(argv)
    try:
        said = asyncio.run(_COMMANDS[command](options))
    except OutbidError as error:
        sys.stderr.write(f"outbid {command}: {error.message}\n")
        return 2 if isinstance(error, InvalidRequest) else 1
    sys.stdout.write((json.dumps(said) if options.json else str(said["message"])) + "\n")
    return 0


def parser_of(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"outbid {command}")
    parser.add_argument("--state", metavar="DIR", help="state folder of the node (OUTBID_STATE)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    if command == "join":
        parser.add_argument("code", help="the code that `outbid invite` printed on another machine")
        parser.add_argument("--peer", metavar="HOST[:PORT]", help="where the inviter is, if multicast does not find it")
    if command == "creds":
        parser.add_argument("--role", choices=_FOR_FACES, default="submitter")
        parser.add_argument("--name", required=True, help="whose credentials they are; `outbid revoke NAME` ends them")
        parser.add_argument("--expires", default="30d", help="how long they are good: 12h, 30d, never")
        parser.add_argument("--out", metavar="FILE", help="default: NAME.creds")
    return parser


# -- join and leave ----------------------------------------------------------------------------------------------------


async def _join(options: argparse.Namespace) -> dict[str, Any]:
    state, code = state_dir(options.state), read_code(options.code)
    if (known := membership.load(state)) is not None and known.open:
        raise JoinFailed(f"this node is a member of mesh {known.mesh} already; `outbid leave` first")
    host, port = await _inviter(code, options.peer)
    node = Home(state).identity().node
    running = _running(state)
    name = running.name if running else default_name()
    grant = await join(
        code, host, port, node=node, name=name, version=version(), store=lambda grant: _store(state, grant)
    )
    restarted = await _restart(state)
    then = "the node here restarts into it" if restarted else "start the node with `outbid up`"
    return {
        "mesh": grant.mesh,
        "inviter": grant.inviter,
        "guest": grant.guest,
        "message": f"joined mesh {grant.mesh} by {grant.inviter}; {then}",
    }


def _store(state: Path, grant: Grant) -> None:
    Keyring().put(grant.mesh, MeshKey(grant.key))
    membership.save(
        state,
        Membership(
            mesh=grant.mesh,
            peers=grant.peers,
            guest=grant.guest,
            capabilities=grant.capabilities,
            slots=grant.slots,
            expires_s=grant.expires_s,
        ),
    )


async def _leave(options: argparse.Namespace) -> dict[str, Any]:
    state = state_dir(options.state)
    known = None
    with contextlib.suppress(OutbidError):  # a damaged file is what leaving also mends
        known = membership.load(state)
    mesh = known.mesh if known else default_mesh()
    Keyring().forget(mesh)
    membership.forget(state)
    restarted = await _restart(state)
    then = "the node here goes on alone" if restarted else "its key is gone from this machine"
    return {"mesh": mesh, "message": f"left mesh {mesh}; {then}"}


async def _inviter(code: JoinCode, peer: str | None) -> tuple[str, int]:
    if peer:
        found = re.fullmatch(r"(\[[^\]]+\]|[^:]+|[0-9a-fA-F:]+:[0-9a-fA-F:]*)(?::(\d{1,5}))?", peer)
        if found is None:
            raise InvalidRequest(f"--peer {peer!r} is not HOST or HOST:PORT")
        return found[1].strip("[]"), int(found[2] or JOIN_PORT)
    return await _find_inviter(code)


async def _find_inviter(code: JoinCode) -> tuple[str, int]:
    """By multicast: the node that announces this invitation. Raises JoinFailed."""
    from zeroconf import DNSQuestionType, InterfaceChoice
    from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

    found: asyncio.Future[tuple[str, int]] = asyncio.get_running_loop().create_future()
    zeroconf = AsyncZeroconf(interfaces=InterfaceChoice.All)
    tasks: set[asyncio.Task[None]] = set()

    async def look(name: str) -> None:
        info = AsyncServiceInfo(announced.SERVICE, name)
        await info.async_request(zeroconf.zeroconf, 3000, DNSQuestionType.QM)
        said = announced.read(info.name, info.port, info.parsed_addresses(), info.decoded_properties)
        port, _, ids = said.txt.get("join", "").partition(" ") if said else ("", "", "")
        if said and code.id in ids.split() and port.isdecimal() and not found.done():
            found.set_result((said.addresses[0], int(port)))

    def changed(zeroconf: Any, service_type: str, name: str, state_change: Any) -> None:
        task = asyncio.get_running_loop().create_task(look(name))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    try:
        await zeroconf.zeroconf.async_wait_for_start()
        browser = AsyncServiceBrowser(
            zeroconf.zeroconf, announced.SERVICE, handlers=[changed], question_type=DNSQuestionType.QM
        )
        async with asyncio.timeout(FIND_TIMEOUT_S):
            return await found
    except TimeoutError as error:
        raise JoinFailed(
            f"no node on this network announces invitation {code.id}; check the code, and that both machines are on "
            "the same network, or say where the inviter is: --peer HOST"
        ) from error
    finally:
        with contextlib.suppress(UnboundLocalError):
            await browser.async_cancel()
        await zeroconf.async_close()


def _inbox(creds: Path) -> str:
    return inbox_prefix(creds.read_text())


def _running(state: Path) -> LocalNode | None:
    try:
        return msgspec.json.decode((state / NODE_FILE).read_bytes(), type=LocalNode)
    except (OSError, msgspec.DecodeError):
        return None


async def _restart(state: Path) -> bool:
    """Ask the running node, if there is one, to take up what changed."""
    local = _running(state)
    if local is None:
        return False
    try:
        bus = Bus("outbid join", _inbox(Path(local.creds)))
    except (OSError, ValueError):
        return False
    try:
        async with asyncio.timeout(3):
            await bus.connect(local.url, Path(local.creds))
            await bus.call(subjects.admin(local.node, "restart"), Message(), Ok, timeout_s=2)
        return True
    except (OutbidError, TimeoutError, OSError):
        return False
    finally:
        await bus.close()


# -- credentials -------------------------------------------------------------------------------------------------------


async def _creds(options: argparse.Namespace) -> dict[str, Any]:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", options.name):
        raise InvalidRequest("--name must be 1 to 63 letters, digits, dots, dashes or underscores")
    expires_s = _seconds(options.expires)
    known = membership.load(state_dir(options.state))
    if known is not None and known.guest:
        raise InvalidRequest("this node is a guest here; only a full member may make credentials")
    mesh = known.mesh if known else default_mesh()
    key = Keyring().find(mesh)
    if key is None:
        raise OutbidError(f"this machine has no key of mesh {mesh}; start its node with `outbid up`, or join first")
    user = key.user(person(options.name))
    token = jwt.user(key, ROLES[options.role].name, options.name, user.public, expires_s=expires_s)
    file = Path(options.out or f"{options.name}.creds")
    _write(file, jwt.credentials(token, user))
    _remember(mesh, user.public, options.name, options.role)
    until = "for ever" if expires_s is None else f"for {options.expires}"
    return {
        "file": str(file),
        "role": options.role,
        "name": options.name,
        "user": user.public,
        "message": f"{file}: role {options.role}, good {until}; keep it secret. With the nats command line use also "
        f"--inbox-prefix _INBOX_{user.public}",
    }


def _remember(mesh: str, user: str, name: str, role: str) -> None:
    """So that `outbid report` can say who it was. The credentials are good without it."""
    try:
        Keyring().remember(mesh, user, KnownUser(name=name, role=role, at_s=int(time.time())))
    except OutbidError as error:
        sys.stderr.write(f"outbid creds: {error.message}; reports will not know {name} by name\n")


def _write(file: Path, text: str) -> None:
    from outbid_node.bus.files import write_private

    try:
        write_private(file, text)
    except OSError as error:
        raise OutbidError(f"{file} cannot be written: {error.strerror or error}") from error


def _seconds(text: str) -> float | None:
    if text == "never":
        return None
    found = re.fullmatch(r"(\d+)([smhd])", text)
    if found is None or int(found[1]) == 0:
        raise InvalidRequest(f"--expires {text!r} is not a time; write 90s, 30m, 12h, 30d or never")
    return float(int(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86_400}[found[2]])


_COMMANDS = {"join": _join, "leave": _leave, "creds": _creds}
