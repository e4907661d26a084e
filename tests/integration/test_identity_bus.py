"""Who gets in and what each role can do, tried against the real servers of two nodes of one mesh."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import nats
import nats.errors
import nats.js.errors
import psutil
import pytest
from nats.aio.client import Client, RawCredentials
from nats.aio.msg import Msg

from outbid_contracts.ids import NodeId, new_node_id
from outbid_contracts.roles import inbox_prefix
from outbid_node.bus import ports
from outbid_node.bus.backbone import Backbone
from outbid_node.identity import jwt
from outbid_node.identity.keys import MeshKey, SigningKey, new_user
from outbid_node.identity.node import Identity
from tests.waiting import hears, until

REFUSED_S = 0.3
ANSWERED = ("mesh.nodes.list", "mesh.watch", "mesh.jobs.get", "mesh.llm.chat", "mesh.jobs.cancel", "mesh.admin.drain")
PEERS = ("mesh.node.x.award", "mesh.hello", "mesh.presence.x", "mesh.job.j.event", "mesh.capacity.x", "a.secret")


class Caller:
    """A client and the refusals it was told of."""

    def __init__(self, key: SigningKey, creds: str) -> None:
        self.key = key
        self.creds = creds
        self.refused: list[str] = []
        self.told = asyncio.Event()
        self.closed = asyncio.Event()
        self.nc = Client()

    async def connect(self, url: str, **changed: Any) -> Caller:
        async def note(error: Exception) -> None:
            self.refused.append(str(error).lower())
            self.told.set()

        async def closed() -> None:
            self.closed.set()

        options: dict[str, Any] = {
            "user_credentials": RawCredentials(self.creds),
            "inbox_prefix": inbox_prefix(self.creds),
            "error_cb": note,
            "closed_cb": closed,
            "connect_timeout": 2,
        }
        self.nc = await nats.connect(url, **options | changed)
        return self

    async def answered(self, subject: str) -> bool:
        """Whether a request there is answered; if not, the server must have said that it is not allowed."""
        self.told.clear()
        asking = asyncio.create_task(self.nc.request(subject, b"", timeout=5))
        told = asyncio.create_task(self.told.wait())
        await asyncio.wait([asking, told], return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        if not self.told.is_set():
            wanted = b"io.nats.jetstream.api" if subject.startswith("$JS.") else b"yes"
            assert wanted in asking.result().data
            return True
        asking.cancel()
        assert f'publish to "{subject.lower()}"' in self.refused[-1]
        return False

    async def may_hear(self, subject: str) -> bool:
        before = len(self.refused)
        await self.nc.subscribe(subject)
        for _ in range(2):  # nats-py's first ping may overtake the subscription
            await self.nc.flush()
        return len(self.refused) == before


def caller(key: MeshKey, role: str, **limits: Any) -> Caller:
    user = new_user()
    token = jwt.user(key, role, "ann", user.public, **{"expires_s": 600.0} | limits)
    return Caller(user, jwt.credentials(token, user))


class Place:
    """Two nodes of one mesh with a discovery of their own, joined by a route; `far` answers requests."""

    def __init__(self, root: Path) -> None:
        self.key = MeshKey.new()
        self.route = ports.free_port()
        self._root = root
        self._stack = contextlib.AsyncExitStack()

    async def open(self) -> None:
        self.near = await self.node(route_port=self.route)
        self.far = await self.node(peers=[f"127.0.0.1:{self.route}"])
        self.worker = await self.client(self.far)

        async def yes(msg: Msg) -> None:
            await self.worker.publish(msg.reply, b"yes")

        for subject in (*ANSWERED, *PEERS):
            await self.worker.subscribe(subject, cb=yes)
        asker = await self.client(self.near)
        await until(lambda: hears(asker, PEERS[0]))

    async def node(self, key: MeshKey | None = None, **changed: Any) -> Backbone:
        id = new_node_id()
        state = self._root / id
        wanted: dict[str, Any] = {"port": ports.free_port(), "route_port": None, "peers": [], "txt": {}}
        backbone = Backbone(
            identity=Identity(key or self.key, id, state), state=state, version="1", discovery=False, **wanted | changed
        )
        self._stack.push_async_callback(backbone.stop)
        await backbone.start()
        backbone.follow()
        return backbone

    async def client(self, node: Backbone) -> Client:
        creds = str(node.identity.node_creds)
        nc = await nats.connect(node.url, user_credentials=creds, reconnect_time_wait=0.05, error_cb=quiet)
        self._stack.push_async_callback(nc.close)
        return nc

    async def call(self, role: str, **limits: Any) -> Caller:
        made = await caller(self.key, role, **limits).connect(self.near.url)
        self._stack.push_async_callback(made.nc.close)
        return made

    async def close(self) -> None:
        await self._stack.aclose()


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    place = Place(tmp_path)
    try:
        await place.open()
        yield place
    finally:
        await place.close()


async def quiet(error: Exception) -> None:
    pass


# -- what each role can do -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "answered"),
    [
        ("viewer", {"mesh.nodes.list", "mesh.watch", "mesh.jobs.get"}),
        ("submitter", set(ANSWERED) - {"mesh.admin.drain"}),
        ("admin", set(ANSWERED)),
        ("node", {*ANSWERED, *PEERS}),
    ],
)
async def test_a_role_reaches_the_other_node_with_what_it_may_and_nothing_else(
    place: Place, role: str, answered: set[str]
) -> None:
    ann = await place.call(role)
    assert {subject for subject in (*ANSWERED, *PEERS) if await ann.answered(subject)} == answered


@pytest.mark.parametrize("role", ["viewer", "submitter", "admin"])
async def test_nobody_reads_the_replies_to_another(place: Place, role: str) -> None:
    ann, eve = await place.call("submitter"), await place.call(role)
    for subject in (">", "*.>", "_INBOX.>", f"{inbox_prefix(ann.creds)}.>", "mesh.>", "mesh.llm.chat", "$JS.>"):
        assert not await eve.may_hear(subject), subject
    assert await eve.may_hear(f"{inbox_prefix(eve.creds)}.more.*")
    assert await eve.may_hear("mesh.presence.*")
    assert await eve.may_hear("mesh.job.j.event")
    assert await eve.may_hear("mesh.auction.*")
    assert await eve.may_hear("mesh.log.*") == (role == "admin")


async def test_a_client_that_was_not_told_its_inbox_prefix_hears_nothing(place: Place) -> None:
    ann = await caller(place.key, "admin").connect(place.near.url, inbox_prefix="_INBOX")
    with pytest.raises((TimeoutError, nats.errors.Error)):
        await ann.nc.request("mesh.llm.chat", b"", timeout=REFUSED_S)
    assert any("subscription" in said for said in ann.refused)
    await ann.nc.close()


async def test_only_nodes_write_to_jetstream_and_only_admins_read_it_beside_them(place: Place) -> None:
    domain = place.far.identity.node
    node = await place.client(place.near)
    await place.worker.jetstream().add_stream(name=f"JOBS_{domain}", subjects=["jobs.>"])
    assert (await node.jetstream(domain=domain).stream_info(f"JOBS_{domain}")).config.name == f"JOBS_{domain}"
    for role in ("viewer", "submitter", "admin"):
        ann = await place.call(role)
        for subject in (f"$JS.{domain}.API.STREAM.DELETE.JOBS_{domain}", f"$KV.JOBS_{domain}.x"):
            assert not await ann.answered(subject)
        for subject in ("$JS.API.INFO", f"$JS.{domain}.API.STREAM.INFO.JOBS_{domain}"):
            assert await ann.answered(subject) == (role == "admin")


async def test_the_servers_own_account_is_closed_to_everyone(place: Place) -> None:
    node = await place.client(place.near)
    heard: list[str] = []

    async def note(msg: Msg) -> None:
        heard.append(msg.subject)

    await node.subscribe("$SYS.>", cb=note)
    await node.flush()
    await place.call("viewer")
    with pytest.raises((nats.errors.Error, TimeoutError)):
        await node.request("$SYS.REQ.SERVER.PING", b"", timeout=REFUSED_S)
    assert [subject for subject in heard if subject.startswith("$SYS.SERVER")] == []
    assert not any("CONNECT" in subject for subject in heard)


# -- who gets in -----------------------------------------------------------------------------------------------------


async def refused(url: str, **options: Any) -> str:
    with pytest.raises((nats.errors.Error, OSError)) as caught:
        await nats.connect(url, allow_reconnect=False, error_cb=quiet, connect_timeout=2, **options)
    return str(caught.value)


async def test_without_credentials_nobody_gets_in(place: Place) -> None:
    for port in (place.near.ledger.port, place.near.router.leaf_port):
        assert "Authorization Violation" in await refused(f"nats://127.0.0.1:{port}")
    assert "Authorization Violation" in await refused(place.near.url, user="admin", password="admin")


async def test_credentials_of_another_mesh_a_wrong_key_and_expired_ones_are_refused(place: Place) -> None:
    stranger = caller(MeshKey.new(), "node")
    forged = caller(place.key, "admin")
    forged.creds = jwt.credentials(forged.creds.splitlines()[1], new_user())
    expired = caller(place.key, "admin", now=time.time() - 100, expires_s=60)
    for one in (stranger, forged, expired):
        assert "Authorization Violation" in await refused(place.near.url, user_credentials=RawCredentials(one.creds))


async def test_a_role_cannot_be_raised_by_writing_more_into_the_jwt(place: Place) -> None:
    """Signed by the submitters' key, whatever else it says, it is a submitter or nothing."""
    user = new_user()
    claims = {"type": "user", "version": 2, "issuer_account": place.key.account.public, "pub": {"allow": [">"]}}
    signer = place.key.role("submitter")
    token = jwt.sign("eve", user.public, claims, signer, int(time.time()))
    said = await refused(place.near.url, user_credentials=RawCredentials(jwt.credentials(token, user)))
    assert "Authorization Violation" in said


async def test_credentials_that_run_out_end_the_connection(place: Place) -> None:
    ann = await place.call("viewer", expires_s=2)
    assert await ann.answered("mesh.nodes.list")
    await asyncio.wait_for(ann.closed.wait(), 5)
    assert any("expired" in said for said in [str(ann.nc.last_error).lower()])


async def test_a_server_cannot_link_itself_with_a_users_credentials(place: Place, tmp_path: Path) -> None:
    """Only nodes may be leaf nodes: a leaf's own clients need no credentials of ours."""
    node = await place.node(route_port=ports.free_port())
    node.identity.node_creds.write_text(caller(place.key, "admin").creds)
    await until(lambda: node.health()["router"]["state"] == "up")
    psutil.Process(node.health()["ledger"]["pid"]).kill()  # so that it links itself anew
    await until(lambda: "uthorization" in str(node.health()["ledger"].get("last_error")))


async def test_two_meshes_do_not_mix(place: Place) -> None:
    stranger = await place.node(key=MeshKey.new(), peers=[f"127.0.0.1:{place.route}"])
    await until(lambda: "not pinned" in str(stranger.health()["router"].get("last_error")))
    outside = await place.client(stranger)
    with pytest.raises(nats.errors.NoRespondersError):
        await outside.request("mesh.llm.chat", b"", timeout=2)


# -- the route port, which the network can reach ---------------------------------------------------------------------


async def route_says(place: Place, tls: ssl.SSLContext | None, words: bytes = b"") -> bytes:
    """What one hears there, after saying `words`."""
    said = b""
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(2):
            reader, writer = await asyncio.open_connection("127.0.0.1", place.route, ssl=tls)
            writer.write(words)
            while piece := await reader.read(4096):
                said += piece
            writer.close()
    return said


@pytest.mark.parametrize("words", [b"", b"GET / HTTP/1.1\r\n\r\n", b"CONNECT {}\r\nPING\r\n", bytes(5000)])
async def test_a_scanner_learns_nothing_from_the_route_port(place: Place, words: bytes) -> None:
    assert b"INFO" not in await route_says(place, None, words)


async def test_a_tls_client_without_a_certificate_of_the_mesh_hears_no_word(place: Place, tmp_path: Path) -> None:
    stranger = Identity(MeshKey.new(), NodeId("stranger"), tmp_path)
    stranger.write()
    for certificate in (None, stranger.routes):
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
        if certificate:
            tls.load_cert_chain(certificate.certificate, certificate.key)
        assert b"INFO" not in await route_says(place, tls)


async def test_an_impostor_who_waits_to_be_called_is_hung_up_on(place: Place, tmp_path: Path) -> None:
    """The caller must not trust whoever answers at the address of a peer, e.g. one announced by multicast."""
    stranger = Identity(MeshKey.new(), NodeId("stranger"), tmp_path)
    stranger.write()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(stranger.routes.certificate, stranger.routes.key)
    heard: list[bytes] = []

    async def impostor(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        info = {"server_id": "NX", "server_name": "x", "cluster": f"outbid-{place.key.id}", "proto": 1, "headers": True}
        writer.write(b"INFO " + json.dumps(info).encode() + b"\r\n")
        with contextlib.suppress(OSError):
            while piece := await reader.read(4096):
                heard.append(piece)
        writer.close()

    async with await asyncio.start_server(impostor, "127.0.0.1", 0, ssl=tls) as server:
        port = server.sockets[0].getsockname()[1]
        victim = await place.node(peers=[f"127.0.0.1:{port}"])
        await until(lambda: "not pinned" in str(victim.health()["router"].get("last_error")))
    assert heard == []


async def test_what_crosses_the_network_is_not_readable(place: Place) -> None:
    """A relay on the route between two nodes sees none of the text that they exchange."""
    seen = bytearray()
    relays: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(65536):
                seen.extend(piece)
                writer.write(piece)
        writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", place.route)
        for one in (pump(reader, back), pump(there, writer)):
            relays.add(asyncio.create_task(one))

    async with await asyncio.start_server(relay, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        third = await place.node(peers=[f"127.0.0.1:{port}"])
        nc = await place.client(third)
        await until(lambda: hears(nc, "mesh.llm.chat"))
        await nc.request("mesh.llm.chat", b"a secret prompt" * 100, timeout=2)
    assert len(seen) > 1000
    assert b"secret" not in seen
    assert b"mesh.llm" not in seen


# -- revocation ------------------------------------------------------------------------------------------------------


async def test_a_revoked_user_is_out_within_a_second_and_stays_out_while_others_notice_nothing(place: Place) -> None:
    eve, ann = await place.call("submitter"), await place.call("submitter")
    node = await place.client(place.near)
    assert await eve.answered("mesh.llm.chat")
    began = time.monotonic()
    await place.near.update_revocations({eve.key.public: int(time.time())})
    await asyncio.wait_for(eve.closed.wait(), 5)
    assert time.monotonic() - began < 1
    assert "revoked" in str(eve.nc.last_error).lower()
    assert "Authorization Violation" in await refused(place.near.url, user_credentials=RawCredentials(eve.creds))
    assert await ann.answered("mesh.llm.chat")
    assert await hears(node, "mesh.llm.chat")
    assert node.stats["reconnects"] == ann.nc.stats["reconnects"] == 0
    assert place.near.health()["router"]["restarts"] == place.near.health()["ledger"]["restarts"] == 0


async def test_credentials_made_after_the_revocation_are_good(place: Place) -> None:
    ann = caller(place.key, "viewer")
    await place.near.update_revocations({ann.key.public: int(time.time()) - 10})
    await ann.connect(place.near.url)
    assert await ann.answered("mesh.nodes.list")
    await ann.nc.close()


async def test_a_revocation_survives_a_killed_ledger(place: Place) -> None:
    eve = caller(place.key, "admin")
    await place.near.update_revocations({eve.key.public: int(time.time())})
    psutil.Process(place.near.health()["ledger"]["pid"]).kill()
    await until(lambda: place.near.health()["ledger"].get("restarts") == 1)
    await until(lambda: place.near.health()["ledger"]["state"] == "up")
    assert "Authorization Violation" in await refused(place.near.url, user_credentials=RawCredentials(eve.creds))
