"""Artifacts on real nodes: made on one, held by another, read from any."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
import nats.errors
import pytest

from outbid_capabilities.testing.filing import content
from outbid_contracts.artifacts import INLINE_BYTES, PIECE_BYTES, bucket_of
from outbid_contracts.errors import (
    AttemptsExhausted,
    InvalidRequest,
    NodeUnreachable,
    OutbidError,
    UnknownArtifact,
)
from outbid_node.identity import jwt
from outbid_node.identity.keyring import Keyring
from outbid_node.identity.keys import new_user
from tests.acceptance.node_peers.driver import Peer, install
from tests.filing import Filing, filing
from tests.fleet import TEST_CAPABILITY, Fleet, NodeProcess, eventually, fleet

BIG = INLINE_BYTES + 1
Pair = tuple[NodeProcess, NodeProcess]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """`desk` can do nothing itself, so what it asks for is made on `shed`."""
    with fleet(tmp_path_factory.mktemp("artifacts")) as nodes:
        yield cast("Pair", asyncio.run(started(nodes, {"desk": (), "shed": TEST_CAPABILITY})))


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Fleet]:
    with fleet(tmp_path) as nodes:
        yield nodes


async def started(nodes: Fleet, flags: dict[str, tuple[str, ...]]) -> tuple[NodeProcess, ...]:
    made = [nodes.add(name, *more) for name, more in flags.items()]
    await asyncio.gather(*(node.until_up() for node in made))
    await nodes.until_whole()
    return tuple(made)


class TestMade:
    async def test_a_small_file_comes_with_the_reply_and_is_kept_by_the_owner(self, pair: Pair) -> None:
        desk, shed = pair
        async with filing(desk) as here:
            made = await here.make(1000, seed=5)
            (file,) = made["files"]
            assert made["node"] == shed.local.node
            assert base64.b64decode(file["data"]) == content(5, 1000)
            assert file["node"] == desk.local.node
            assert await here.stored(file["node"], file["id"]) == content(5, 1000)

    @pytest.mark.parametrize("sizes", [(BIG,), (30_000_000, 0, 7), (3 * PIECE_BYTES,)])
    async def test_a_file_made_elsewhere_is_read_by_its_id_from_any_node(
        self, pair: Pair, sizes: tuple[int, ...]
    ) -> None:
        async with filing(pair[0]) as here, filing(pair[1]) as there:
            made = await here.make(*sizes, seed=1)
            assert made["attempt"] == 1, "its owner must not take an attempt for lost that is handing over its files"
            for number, file in enumerate(made["files"]):
                wanted = content(1 + number, sizes[number])
                assert (file["size"], file["sha256"]) == (len(wanted), hashlib.sha256(wanted).hexdigest())
                assert "data" not in file
                for asked in (here, there):
                    assert await asked.whole(file["id"]) == wanted
                assert await there.stored(file["node"], file["id"]) == wanted
                assert file["bucket"] == bucket_of(file["node"])

    async def test_a_client_that_nobody_here_wrote_gets_the_object_from_any_node(self, pair: Pair) -> None:
        install()
        async with filing(pair[0]) as here:
            files = (await here.make(10, 2 * PIECE_BYTES + 3))["files"]
        for node in pair:
            with Peer(node.local.url, node.local.creds) as peer:
                for file in files:
                    asked = {"domain": file["node"], "bucket": file["bucket"], "name": file["id"]}
                    found = peer.call("object", **asked)
                    assert (found["sha256"], found["size"]) == (file["sha256"], file["size"])
                    assert file["id"] in found["names"]
                assert peer.call("object", **(asked | {"name": "nobody.1.0"})) is None

    async def test_a_read_goes_on_where_another_stopped(self, pair: Pair) -> None:
        async with filing(pair[0]) as here, filing(pair[1]) as there:
            (file,) = (await here.make(5 * PIECE_BYTES + 9))["files"]
            wanted = content(0, file["size"])
            for asked in (here, there):
                for offset in (0, 1, PIECE_BYTES, 3 * PIECE_BYTES + 7, len(wanted) - 1, len(wanted), len(wanted) + 1):
                    assert await asked.read(file["id"], offset, 2 * PIECE_BYTES) == wanted[offset:][: 2 * PIECE_BYTES]
                named = {"node": file["node"]}
                assert await asked.read(file["id"], 17, 100, **named) == wanted[17:117]

    async def test_many_readers_at_once_each_get_all_and_no_loop_is_held_up(self, pair: Pair) -> None:
        async with filing(pair[0]) as here, filing(pair[1]) as there:
            (file,) = (await here.make(8 * PIECE_BYTES))["files"]
            reads = [asked.whole(file["id"]) for asked in (here, there) for _ in range(4)]
            small = [asyncio.create_task(here.ask("mesh.test.echo", text="hi")) for _ in range(20)]
            assert set(await asyncio.gather(*reads)) == {content(0, file["size"])}
            assert {reply["text"] for reply in await asyncio.gather(*small)} == {"hi"}

    async def test_they_are_found_by_id_by_job_and_as_the_newest(self, pair: Pair) -> None:
        async with filing(pair[0]) as here, filing(pair[1]) as there:
            made = await here.make(10, BIG, 20)
            ids = [file["id"] for file in made["files"]]
            other = (await there.make(5))["files"][0]["id"]
            for asked in (here, there):
                assert await asked.find(id=ids[1]) == [ids[1]]
                assert await asked.find(job=made["job"]) == ids
                assert (await asked.find())[:4] == [other, *reversed(ids)]
                assert await asked.find(id="nobody.1.0") == []

    async def test_what_nobody_has_is_said_at_once(self, pair: Pair) -> None:
        desk, shed = pair
        async with filing(desk) as here:
            with pytest.raises(UnknownArtifact, match="nobody"):
                await here.read("nobody.1.0")
            for node in (desk, shed):
                with pytest.raises(UnknownArtifact):
                    await here.read("nobody.1.0", node=node.local.node)
            with pytest.raises(NodeUnreachable, match="away"):
                await here.read("nobody.1.0", node="zzzzzzzz")

    @pytest.mark.parametrize(
        "asked",
        [
            {"id": "../etc/passwd"},
            {"id": 5},
            {"id": "j.1.0", "offset": -1},
            {"id": "j.1.0", "length": 2**30},
            {},
        ],
    )
    async def test_what_cannot_be_read_is_refused(self, pair: Pair, asked: dict[str, object]) -> None:
        async with filing(pair[0]) as here:
            with pytest.raises(InvalidRequest):
                await here.ask("mesh.artifacts.read", **asked)

    async def test_joules_are_what_the_watts_say_where_nobody_measured(self, fresh: Fleet) -> None:
        """By a node that owes nothing: where earlier jobs were charged too much, a short one may cost nothing."""
        (alone,) = await fresh.start("alone")
        async with filing(alone) as here:
            made = await here.make(1_000_000)
            assert made["joules"] > 0
            assert made["seconds"] > 0

    async def test_a_runner_that_gives_fewer_files_than_it_lists_has_failed(self, pair: Pair) -> None:
        async with filing(pair[0]) as here:
            with pytest.raises(AttemptsExhausted, match="lists 2 files in its result and gave 1"):
                await here.make(5, 5, withhold=1)


class TestInputs:
    async def test_content_in_the_request_reaches_the_runner_as_a_file(self, pair: Pair) -> None:
        data = content(9, 100_000)
        async with filing(pair[0]) as here:
            made = await here.make(source=base64.b64encode(data).decode())
            assert made["source_sha256"] == hashlib.sha256(data).hexdigest()
            assert made["others"] == []
            packed = msgspec.msgpack.encode({"source": data})
            msg = await here.nc.request(
                "mesh.test.files", packed, timeout=30, headers={"Content-Type": "application/msgpack"}
            )
            assert msgspec.msgpack.decode(msg.data)["source_sha256"] == hashlib.sha256(data).hexdigest()

    @pytest.mark.parametrize("size", [10, 20 * PIECE_BYTES + 1])
    async def test_an_artifact_of_an_earlier_job_is_fetched_from_whoever_holds_it(self, pair: Pair, size: int) -> None:
        async with filing(pair[0]) as here, filing(pair[1]) as there:
            for owner in (here, there):
                (file,) = (await owner.make(size))["files"]
                made = await here.make(source_from=file["id"])
                assert made["source_sha256"] == file["sha256"]
                assert made["others"] == []

    async def test_a_durable_job_takes_both_too(self, pair: Pair) -> None:
        async with filing(pair[0]) as here:
            (file,) = (await here.make(BIG))["files"]
            for params in ({"source_from": file["id"]}, {"source": base64.b64encode(content(0, BIG)).decode()}):
                made = await here.ask("mesh.jobs.submit", capability="test.files", params=params)
                result = await here.ask("mesh.jobs.result", job=made["job"], wait_s=30)
                assert result["source_sha256"] == file["sha256"]

    async def test_an_artifact_that_nobody_has_fails_the_job_at_once(self, pair: Pair) -> None:
        async with filing(pair[0]) as here:
            with pytest.raises(UnknownArtifact, match=r"nobody\.1\.0"):
                await here.make(source_from="nobody.1.0")


class TestRoles:
    def creds(self, node: NodeProcess, role: str, monkeypatch: pytest.MonkeyPatch) -> str:
        monkeypatch.setenv("OUTBID_KEYRING", str(node.state.with_name("keyring")))
        user = new_user()
        token = jwt.user(Keyring().key(node.mesh), role, role, user.public, expires_s=600)
        file = node.state.with_name(f"{user.public}.creds")
        file.write_text(jwt.credentials(token, user))
        return str(file)

    async def test_a_viewer_gets_nothing_and_a_submitter_gets_it_from_any_node(
        self, pair: Pair, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        desk = pair[0]
        async with filing(desk) as here:
            (file,) = (await here.make(BIG))["files"]
        for node in pair:
            async with filing(node, self.creds(desk, "submitter", monkeypatch)) as submitter:
                assert await submitter.whole(file["id"]) == content(0, BIG)
                assert await submitter.find(id=file["id"]) == [file["id"]]
                await self.refused(submitter, file, f"$JS.{file['node']}.API.STREAM.INFO.OBJ_{file['bucket']}")
            async with filing(node, self.creds(desk, "viewer", monkeypatch)) as viewer:
                for subject in ("mesh.artifacts.read", "mesh.artifacts.find", f"mesh.node.{file['node']}.read"):
                    await self.refused(viewer, file, subject)

    async def refused(self, filing: Filing, file: dict[str, str], subject: str) -> None:
        with pytest.raises((nats.errors.TimeoutError, TimeoutError)):
            await filing.nc.request(subject, json.dumps({"id": file["id"]}).encode(), timeout=0.3)

    async def test_an_administrator_reads_the_bucket_and_writes_nothing(self, pair: Pair) -> None:
        async with filing(pair[0]) as here:
            (file,) = (await here.make(10))["files"]
            assert await here.stored(file["node"], file["id"]) == content(0, 10)
            (subject, *_) = await here.subjects(file["node"])
            for forbidden in (subject, f"$JS.API.STREAM.PURGE.OBJ_{file['bucket']}"):
                with pytest.raises((nats.errors.Error, TimeoutError)):
                    await here.nc.request(forbidden, b"", timeout=0.3)
            assert await here.whole(file["id"]) == content(0, 10)


async def submitted(asked: Filing, *sizes: int, **more: object) -> str:
    told = await asked.ask("mesh.jobs.submit", capability="test.files", params={"sizes": sizes} | more)
    return str(told["job"])


async def until_done(asked: Filing, job: str, within_s: float = 60) -> dict[str, Any]:
    """The result, across restarts of the node that is asked."""

    async def result() -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = await asked.ask("mesh.jobs.result", job=job, wait_s=1)
        except (OutbidError, nats.errors.Error, TimeoutError):
            return None
        return found

    found: dict[str, Any] = await eventually(result, within_s, f"job {job} did not end")
    return found


async def test_an_owner_killed_while_its_job_ends_has_result_and_files_when_it_is_back(tmp_path: Path) -> None:
    """And the slot is free meanwhile: another owner's job runs though the files cannot be handed over."""
    with fleet(tmp_path) as nodes:
        flags = {"desk": (), "other": (), "shed": (*TEST_CAPABILITY, "--set", "test.slots=1")}
        desk, other, shed = await started(nodes, flags)
        async with filing(desk) as here:
            before = (await here.make(BIG))["files"][0]["id"]
            job = await submitted(here, 3 * PIECE_BYTES, 5, delay_s=0.5)
            await eventually(lambda: running(here, job), 20, "the job did not start")
        desk.kill()
        async with filing(other) as there:
            made = await there.make(5)
            assert made["node"] == shed.local.node
        desk.spawn()
        await desk.until_up()
        async with filing(desk) as here:
            result = await until_done(here, job)
            first, second = result["files"]
            assert first["node"] == second["node"] == desk.local.node
            assert "data" not in second
            assert await here.whole(first["id"]) == content(0, 3 * PIECE_BYTES)
            assert await here.find(job=job) == [first["id"], second["id"]]
            assert await here.whole(before) == content(0, BIG)


async def running(asked: Filing, job: str) -> bool:
    return bool((await asked.ask("mesh.jobs.get", job=job))["state"] == "running")


async def test_a_winner_killed_while_it_hands_over_leaves_no_half_of_it(tmp_path: Path) -> None:
    with fleet(tmp_path) as nodes:
        desk, one, two = await started(nodes, {"desk": (), "one": TEST_CAPABILITY, "two": TEST_CAPABILITY})
        size = 48 * PIECE_BYTES
        async with filing(desk) as here:
            job = await submitted(here, size)

            async def begun() -> int:
                return (await here.objects(desk.local.node))[1]

            await eventually(begun, 60, "no piece came")
            assert await here.find(job=job) == []
            record = await here.ask("mesh.jobs.get", job=job)
            winner = one if record["node"] == one.local.node else two
            winner.kill()
            result = await until_done(here, job)
            (file,) = result["files"]
            assert result["node"] == (two if winner is one else one).local.node
            assert await here.find(job=job) == [file["id"]]
            assert await here.objects(desk.local.node) == (1, 1)
            assert await here.whole(file["id"]) == content(0, size)


async def test_a_storage_node_holds_what_is_large_or_durable_and_the_owner_what_it_refuses(tmp_path: Path) -> None:
    nas = ("--set", "artifacts.for_others=true", "--set", "artifacts.max_artifact_mib=4")
    with fleet(tmp_path) as nodes:
        flags = {"desk": ("--set", "artifacts.max_artifact_mib=8"), "shed": TEST_CAPABILITY, "nas": nas}
        desk, shed, store = await started(nodes, flags)
        async with filing(desk) as here:
            (small,) = (await here.make(10))["files"]
            (large,) = (await here.make(BIG))["files"]
            assert (small["node"], large["node"]) == (desk.local.node, store.local.node)
            (durable,) = (await until_done(here, await submitted(here, 10)))["files"]
            assert durable["node"] == store.local.node
            assert await here.whole(large["id"]) == content(0, BIG)
            (refused,) = (await here.make(5 * PIECE_BYTES))["files"]
            assert refused["node"] == desk.local.node
            with pytest.raises(OutbidError, match=r"9\.0 MiB, and this node keeps none above"):
                await here.make(9 * PIECE_BYTES)
            assert shed.lines("artifact_refused")
            store.kill()
            (left,) = (await here.make(BIG))["files"]
            assert left["node"] == desk.local.node
            with pytest.raises(NodeUnreachable):
                await here.read(large["id"], node=store.local.node)
