"""A daemon and its faces: what is on disk, who is let in, and what one who is not is told."""

from __future__ import annotations

import asyncio
import json
import stat
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import nats
import psutil
import pytest
from nats.aio.msg import Msg

from outbid import Mesh
from outbid.connection import AccessRefused
from outbid_contracts.errors import OutbidError
from outbid_node.identity import jwt
from outbid_node.identity.keyring import Keyring
from outbid_node.identity.keys import MeshKey, new_user
from tests.fleet import TEST_CAPABILITY, Fleet, NodeProcess, fleet

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="POSIX modes")


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[Fleet]:
    with fleet(tmp_path) as nodes:
        yield nodes


@pytest.fixture
async def node(nodes: Fleet) -> NodeProcess:
    (node,) = await nodes.start("a")
    return node


def mesh_key(node: NodeProcess) -> MeshKey:
    found = Keyring(node.state.with_name("keyring")).find(node.mesh)
    assert found is not None
    return found


def creds(node: NodeProcess, role: str, *, expires_s: float = 600, key: MeshKey | None = None) -> Path:
    user = new_user()
    token = jwt.user(key or mesh_key(node), role, "ann", user.public, expires_s=expires_s)
    file = node.state.parent / f"{user.public}.creds"
    file.write_text(jwt.credentials(token, user))
    return file


async def test_a_program_of_the_same_user_needs_no_ceremony(node: NodeProcess) -> None:
    assert node.local.creds == str(node.state / "local.creds")
    async with Mesh(state=node.state) as mesh:
        assert (await mesh.run("test.echo", {"text": "hi"}))["text"] == "hi"


async def test_a_viewer_sees_and_is_told_at_once_what_it_may_not(node: NodeProcess) -> None:
    async with Mesh(node.local.url, creds=creds(node, "viewer")) as mesh:
        assert [view.presence.name for view in await mesh.nodes()] == ["a"]
        began = time.monotonic()
        with pytest.raises(AccessRefused, match="test"):
            await mesh.run("test.echo", {"text": "hi"})
        with pytest.raises(AccessRefused, match="cancel"):
            await mesh.cancel("j1")
        assert time.monotonic() - began < 2
        assert [view.presence.name for view in await mesh.nodes()] == ["a"]


async def test_a_submitter_works(node: NodeProcess) -> None:
    async with Mesh(node.local.url, creds=creds(node, "submitter")) as mesh:
        assert (await mesh.run("test.echo", {"text": "hi"}))["text"] == "hi"


async def test_no_node_can_be_made_to_speak_for_a_viewer(node: NodeProcess) -> None:
    """The servers do not check where a reply is asked to go; the node must."""
    heard: list[str] = []

    async def note(msg: Msg) -> None:
        heard.append(msg.subject)

    listener = await nats.connect(node.local.url, user_credentials=node.node_creds)
    eve = await nats.connect(node.local.url, user_credentials=str(creds(node, "submitter")))
    for subject in ("mesh.node.x.award", "closed.>"):
        await listener.subscribe(subject, cb=note)
    for _ in range(2):  # nats-py's first ping may overtake the subscription
        await listener.flush()
    for subject in ("mesh.nodes.list", "mesh.test.echo", "$SRV.PING", "$SRV.INFO.outbid", "mesh.jobs.get"):
        for data in (b"", b'{"text": "x", "stream": true}'):
            await eve.publish(subject, data, reply="mesh.node.x.award")
            await eve.publish(subject, data, reply=f"closed.{subject}")
    await eve.flush()
    async with Mesh(state=node.state) as mesh:  # asked later, answered: so the others were done with
        assert (await mesh.run("test.echo", {"text": "hi"}))["text"] == "hi"
        await mesh.nodes()
    await listener.flush()
    assert heard == []
    await eve.close()
    await listener.close()


async def test_whoever_is_not_let_in_is_told_so_soon(node: NodeProcess) -> None:
    stranger = creds(node, "admin", key=MeshKey.new())
    expired = creds(node, "admin", expires_s=-60)
    for given in (None, stranger, expired):
        began = time.monotonic()
        with pytest.raises(AccessRefused, match="does not let"):
            async with Mesh(node.local.url, creds=given):
                pass
        assert time.monotonic() - began < 3


async def test_credentials_that_are_none_are_named(node: NodeProcess, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("not credentials")
    for given in (tmp_path / "notes", tmp_path / "missing"):
        with pytest.raises(AccessRefused, match=given.name):
            async with Mesh(node.local.url, creds=given):
                pass


async def test_a_caller_whose_credentials_run_out_while_it_waits_is_told(node: NodeProcess) -> None:
    async with Mesh(node.local.url, creds=creds(node, "submitter", expires_s=3)) as mesh:
        with pytest.raises(OutbidError, match="no longer valid"):
            await asyncio.wait_for(mesh.run("test.echo", {"text": "hi", "delay_s": 30}), 10)


@posix_only
async def test_no_secret_is_readable_by_others_in_the_log_or_on_a_command_line(nodes: Fleet) -> None:
    a, b = await nodes.start("a", "b")
    key = mesh_key(a)
    secrets = [key.text(), key.raw.hex(), key.operator.seed, key.account.seed, "PRIVATE KEY", "SEED-----"]
    secrets += [key.user(f"{who} {node.local.node}").seed for who in ("node", "local") for node in (a, b)]
    family = [
        process for node in (a, b) for process in (psutil.Process(node.pid), *psutil.Process(node.pid).children())
    ]
    seen = "\n".join(" ".join(process.cmdline()) for process in family) + a.text() + b.text()
    seen += "".join(file.read_text(errors="replace") for node in (a, b) for file in (node.state / "bus").glob("*.*"))
    for secret in secrets:
        assert secret not in seen
    for file in [*a.state.rglob("*.creds"), *a.state.rglob("*.key"), *a.state.parent.glob("keyring/*.key")]:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    assert stat.S_IMODE(a.state.stat().st_mode) == 0o700


async def test_nodes_of_two_users_with_the_same_mesh_name_are_two_meshes(nodes: Fleet, tmp_path: Path) -> None:
    await nodes.start("a", "b")
    other = tmp_path / "other"
    other.mkdir()
    with fleet(other) as strangers:
        strangers.mesh = nodes.mesh
        (stranger,) = await strangers.start("c")
        await nodes.until_whole()
        async with Mesh(state=stranger.state) as mesh:
            assert [view.presence.name for view in await mesh.nodes()] == ["c"]


async def test_a_damaged_key_stops_the_node_with_a_sentence(nodes: Fleet, tmp_path: Path) -> None:
    (tmp_path / "keyring").mkdir()
    (tmp_path / "keyring" / f"{nodes.mesh}.key").write_text("outbid1-oops")
    node = nodes.add("a")
    assert node.process is not None
    assert await asyncio.to_thread(node.process.wait, 20) == 1
    (refused,) = node.lines("start_refused")
    assert refused["code"] == "keyring_unusable"
    assert "put back a copy" in refused["message"]


@pytest.mark.skipif(sys.platform != "linux", reason="sets the folders by their XDG variables")
async def test_the_nats_command_finds_a_node_with_the_usual_state_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "state").mkdir()
    with fleet(tmp_path / "state") as nodes:
        elsewhere, usual = nodes.add("elsewhere", *TEST_CAPABILITY), nodes.add("outbid", *TEST_CAPABILITY)
        await elsewhere.until_up()
        await usual.until_up()
        context = json.loads((tmp_path / "config/nats/context/outbid.json").read_text())
        assert context["url"] == usual.local.url
        options = {"user_credentials": context["creds"], "inbox_prefix": context["inbox_prefix"]}
        nc = await nats.connect(context["url"], **options)
        reply = await nc.request("mesh.test.echo", b"hi", timeout=10)
        assert json.loads(reply.data)["text"] == "hi"
        await nc.close()
