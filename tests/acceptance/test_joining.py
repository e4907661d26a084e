"""Two machines become one mesh by a code, and part again: real daemons, each with a keyring of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import nats
import pytest
import pytest_asyncio

from outbid import Mesh, OutbidError
from outbid_contracts import subjects
from outbid_contracts.admin import InviteReply
from outbid_contracts.errors import InvalidRequest
from outbid_contracts.policy import Policy
from outbid_contracts.roles import inbox_prefix
from tests.fleet import TEST_CAPABILITY, Fleet, NodeProcess, eventually, fleet, mesh_of


class Machine:
    """A node with a keyring of its own, as on another computer, and the command line there."""

    def __init__(self, running: Fleet, name: str, *flags: str) -> None:
        self.keyring = running.folder / f"keys of {name}"
        self.node = NodeProcess(running.folder / name, name, running.mesh, [*TEST_CAPABILITY, *flags])
        self.node.environment["OUTBID_KEYRING"] = str(self.keyring)
        running.nodes.append(self.node)

    async def start(self) -> Machine:
        self.node.spawn()
        await self.node.until_up()
        return self

    def outbid(self, *arguments: str, code: int = 0) -> str:
        """Run a command there; returns what it printed (or said, if it was to fail)."""
        command = [sys.executable, "-m", "outbid", *arguments, "--state", str(self.node.state)]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("OUTBID_")}
        environment["OUTBID_KEYRING"] = str(self.keyring)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == code, (arguments, done.returncode, done.stdout, done.stderr)
        return done.stdout if code == 0 else done.stderr

    def invite(self, *options: str) -> dict[str, Any]:
        invitation: dict[str, Any] = json.loads(self.outbid("invite", "--json", *options))
        return invitation

    def join(self, invitation: dict[str, Any], *, code: int = 0) -> str:
        peer = f"127.0.0.1:{invitation['port']}"
        return self.outbid("join", invitation["code"], "--peer", peer, code=code)

    async def names(self) -> list[str]:
        try:
            async with mesh_of(self.node) as mesh:
                return sorted(view.presence.name for view in await mesh.nodes())
        except OutbidError:
            return []

    async def sees(self, *names: str, timeout_s: float = 15) -> None:
        async def so() -> bool:
            return await self.names() == sorted(names)

        await eventually(so, timeout_s, f"{self.node.name} does not see {names}:\n{self.node.text()[-3000:]}")


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Fleet]:
    with fleet(tmp_path) as running:
        yield running


@pytest_asyncio.fixture
async def pair(machines: Fleet) -> AsyncIterator[tuple[Machine, Machine]]:
    """Two machines of one mesh."""
    desk = await Machine(machines, "desk").start()
    pi = await Machine(machines, "pi").start()
    assert await desk.names() == ["desk"], "without a common key they must not meet, whatever the mesh is called"
    assert "joined" in pi.join(desk.invite())
    await desk.sees("desk", "pi")
    await pi.sees("desk", "pi")
    yield desk, pi


async def test_a_code_makes_two_machines_one_mesh_that_survives_restarts(pair: tuple[Machine, Machine]) -> None:
    desk, pi = pair
    async with mesh_of(pi.node) as mesh:
        result = await mesh.run("test.echo", {"text": "hello"}, policy=Policy(prefer=("desk",)), timeout_s=20)
        assert (result["text"], result["name"]) == ("hello", "desk")
    assert pi.node.stop() == 0
    await desk.sees("desk")
    await pi.start()
    await desk.sees("desk", "pi")


async def test_secrets_are_private_files_and_never_in_logs_or_process_lists(pair: tuple[Machine, Machine]) -> None:
    for machine in pair:
        (key_file,) = machine.keyring.glob("*.key")
        key = key_file.read_text().strip()
        assert key_file.stat().st_mode & 0o077 == 0
        assert key not in machine.node.text()
        for file in machine.node.state.rglob("*"):
            if file.is_file() and any(mark in file.name for mark in ("creds", "key", "identity", "membership")):
                assert file.stat().st_mode & 0o077 == 0, file
    listing = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True, check=True).stdout
    assert key not in listing


async def test_wrong_used_up_and_malformed_codes_are_refused_with_the_reason(machines: Fleet) -> None:
    desk = await Machine(machines, "desk").start()
    pi = await Machine(machines, "pi").start()
    invitation = desk.invite()
    wrong = invitation | {"code": invitation["code"][:3] + "0000-0000"}
    assert "not accepted" in pi.join(wrong, code=1)
    assert "join code" in pi.join(invitation | {"code": "hello"}, code=2)
    pi.join(invitation)
    late = await Machine(machines, "late").start()
    assert "used up" in late.join(invitation, code=1)
    assert "already" in pi.join(invitation, code=1)
    assert await late.names() == ["late"]


async def test_leaving_parts_the_machines(pair: tuple[Machine, Machine]) -> None:
    desk, pi = pair
    assert "left mesh" in pi.outbid("leave")
    await desk.sees("desk")
    await pi.sees("pi")
    assert (
        not list(pi.keyring.glob("*.key"))
        or next(pi.keyring.glob("*.key")).read_text() != next(desk.keyring.glob("*.key")).read_text()
    )


async def test_rekey_takes_along_who_is_there_and_locks_out_the_stolen_machine(machines: Fleet) -> None:
    desk = await Machine(machines, "desk").start()
    others = [await Machine(machines, name).start() for name in ("pi", "stolen")]
    invitation = desk.invite("--uses", "2")
    for machine in others:
        machine.join(invitation)
    pi, stolen = others
    await desk.sees("desk", "pi", "stolen")
    before = next(desk.keyring.glob("*.key")).read_text()
    job = desk.outbid("submit", "test.echo", "--param", "text=kept", "--delay", "1m").strip()
    told = json.loads(desk.outbid("rekey", "--without", "stolen", "--yes", "--json"))
    assert (told["followed"], told["left_out"]) == (["pi"], ["stolen"])
    await desk.sees("desk", "pi", timeout_s=25)
    await pi.sees("desk", "pi", timeout_s=25)
    assert next(desk.keyring.glob("*.key")).read_text() == next(pi.keyring.glob("*.key")).read_text() != before
    assert next(stolen.keyring.glob("*.key")).read_text() == before
    await stolen.sees("stolen")
    async with mesh_of(desk.node) as mesh:
        assert (await mesh.job(job)).state == "waiting"


async def test_a_guest_offers_what_it_may_and_leaves_when_its_time_is_over(machines: Fleet) -> None:
    desk = await Machine(machines, "desk").start()
    guest = await Machine(machines, "guest").start()
    options = ("--guest", "--capability", "test.noop", "--slots", "1", "--guest-for", "8s")
    guest.join(desk.invite(*options))
    await desk.sees("desk", "guest")
    async with mesh_of(desk.node) as mesh:
        presence = next(view.presence for view in await mesh.nodes() if view.presence.name == "guest")
    assert {offer.capability for offer in presence.offers} == {"test.noop"}
    assert [offer.free for offer in presence.offers] == [1]
    assert presence.guest
    assert presence.macs == ()
    async with mesh_of(guest.node) as mesh:
        with pytest.raises(InvalidRequest, match="this node is a guest here"):
            await mesh.request(subjects.admin(presence.node, "invite"), {}, InviteReply, timeout_s=10)
    await desk.sees("desk", timeout_s=25)
    async with mesh_of(desk.node) as mesh:
        assert not (await mesh.node_list()).away, "a guest is not remembered"
    await guest.sees("guest")


async def test_credentials_let_a_person_in_until_they_are_revoked(
    pair: tuple[Machine, Machine], tmp_path: Path
) -> None:
    desk, pi = pair
    file = tmp_path / "alice.creds"
    made = json.loads(desk.outbid("creds", "--name", "alice", "--expires", "1h", "--out", str(file), "--json"))
    assert made["role"] == "submitter"
    assert file.stat().st_mode & 0o077 == 0
    async with Mesh(pi.node.local.url, creds=file) as alice:
        assert (await alice.run("test.echo", {"text": "alice"}, timeout_s=20))["text"] == "alice"
    kicked: list[str] = []

    async def on_error(error: Exception) -> None:
        kicked.append(str(error))

    prefix = inbox_prefix(file.read_text())
    connection = await nats.connect(
        pi.node.local.url, user_credentials=str(file), inbox_prefix=prefix, error_cb=on_error, allow_reconnect=False
    )
    assert json.loads(desk.outbid("revoke", "alice", "--json"))["told"] == 1
    await eventually(lambda: connection.is_closed, 20, "alice is still connected to the other node")
    with pytest.raises(OutbidError):
        async with Mesh(pi.node.local.url, creds=file) as alice:
            await alice.nodes()
    desk.outbid("creds", "--name", "alice", "--out", str(file))


async def test_a_revocation_reaches_a_node_that_was_away(pair: tuple[Machine, Machine], tmp_path: Path) -> None:
    desk, pi = pair
    file = tmp_path / "bob.creds"
    desk.outbid("creds", "--name", "bob", "--out", str(file))
    pi.node.stop()
    await desk.sees("desk")
    desk.outbid("revoke", "bob")
    await pi.start()
    await desk.sees("desk", "pi")

    async def refused() -> bool:
        try:
            async with Mesh(pi.node.local.url, creds=file) as bob:
                await bob.nodes()
        except OutbidError:
            return True
        return False

    await eventually(refused, 10, "bob is let in by the node that was away")


async def test_roles_are_kept_to(pair: tuple[Machine, Machine], tmp_path: Path) -> None:
    desk, _ = pair
    viewer, submitter = tmp_path / "viewer.creds", tmp_path / "submitter.creds"
    desk.outbid("creds", "--role", "viewer", "--name", "vera", "--out", str(viewer))
    desk.outbid("creds", "--role", "submitter", "--name", "sam", "--out", str(submitter))
    async with Mesh(desk.node.local.url, creds=viewer) as mesh:
        assert len(await mesh.nodes()) == 2
        with pytest.raises(OutbidError):
            await mesh.run("test.echo", {"text": "x"}, timeout_s=3)
    async with Mesh(desk.node.local.url, creds=submitter) as mesh:
        assert (await mesh.run("test.echo", {"text": "x"}, timeout_s=20))["text"] == "x"
        with pytest.raises(OutbidError):
            await mesh.connection.request(f"mesh.node.{desk.node.local.node}.award", {}, dict, timeout_s=3)
        with pytest.raises(OutbidError):
            await mesh.connection.request(f"mesh.admin.{desk.node.local.node}.invite", {}, dict, timeout_s=3)
