"""The artifact store on a real ledger, read by nats-py's object store, killed and cut off."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import nats
import pytest
from nats.aio.msg import Msg

from outbid_contracts.artifacts import PIECE_BYTES, Artifact, PutArtifact, artifact_id, bucket_of
from outbid_contracts.codec import Format, decode, encode
from outbid_contracts.errors import ChecksumMismatch, InvalidRequest, NoSpace, OutbidError, PayloadTooLarge
from outbid_contracts.ids import JobId, NodeId
from outbid_node.artifacts import receiving, store
from outbid_node.artifacts.limits import Limits
from outbid_node.artifacts.reach import Reach
from outbid_node.artifacts.receiving import AHEAD, Receiver
from outbid_node.artifacts.sending import send
from outbid_node.artifacts.shelf import Description
from outbid_node.artifacts.store import ArtifactStore
from outbid_node.client import Bus
from outbid_node.micro import error_headers
from outbid_node.registry import Registry
from tests.ledgers import OwnLedger, own_ledger
from tests.waiting import until

Open = Callable[..., Awaitable[ArtifactStore]]
MIB = 2**20
OWNER, HOLDER = NodeId("owner123"), NodeId("holder12")


@pytest.fixture
async def opened(own: OwnLedger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Open]:
    """Each is as a daemon's that has just started."""
    monkeypatch.setattr(store, "LOOK_S", 0.1)
    tasks: list[asyncio.Task[None]] = []

    async def one(
        *, most: int = 2**40, largest: int = 2**40, keep_s: float = 1e9, folder: Path = tmp_path
    ) -> ArtifactStore:
        for task in tasks:
            task.cancel()
        limits = Limits(folder, keep_s, most, largest)
        made = ArtifactStore(
            bus=await own.connect(), node=own.node, limits=limits, trouble=lambda: own.ledger.jetstream_error
        )
        tasks.append(asyncio.create_task(made.run()))
        await made.until_ready()
        return made

    yield one
    for task in tasks:
        task.cancel()


def content(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def about(
    data: bytes, number: int = 0, *, job: str = "job", attempt: int = 1, keep_s: float | None = None
) -> Description:
    id = artifact_id(JobId(job), attempt, number)
    return Description(id, OWNER, "a.bin", "image/png", len(data), hashlib.sha256(data).hexdigest(), keep_s)


async def put(kept: ArtifactStore, data: bytes, number: int = 0, **more: object) -> Artifact:
    return await kept.put(about(data, number, **more), data)  # type: ignore[arg-type]


async def read(kept: ArtifactStore, id: str, offset: int = 0, length: int = 2**40) -> bytes:
    pieces = [piece async for _, piece in kept.read(id, offset, length)]
    assert all(0 < len(piece) <= PIECE_BYTES for piece in pieces)
    return b"".join(pieces)


async def objects(kept: ArtifactStore) -> tuple[int, int]:
    """(objects, files of chunks) on disk."""
    return len([meta async for meta in kept.bucket.metas()]), len(await kept.bucket.chunk_counts())


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 5 * MIB + 17])
async def test_nats_own_object_store_reads_what_was_kept(own: OwnLedger, opened: Open, size: int) -> None:
    kept, data = await opened(), content(size)
    artifact = await put(kept, data)
    assert (artifact.size, artifact.bucket, artifact.node) == (size, bucket_of(own.node), own.node)
    assert await read(kept, artifact.id) == data
    nc = await nats.connect(own.ledger.url, user_credentials=str(own.identity.node_creds))
    try:
        bucket = await nc.jetstream(domain=own.node).object_store(artifact.bucket)
        assert (await bucket.get(artifact.id)).data == (data or None) or data == b""
        (info,) = await bucket.list()
        assert (info.name, info.size, info.chunks) == (artifact.id, size, -(-size // PIECE_BYTES))
    finally:
        await nc.close()


async def test_a_read_begins_at_any_byte_though_chunks_of_others_lie_between(opened: Open) -> None:
    kept = await opened()
    data = [content(4 * MIB + 123, seed) for seed in range(2)]
    incoming = [await kept.begin(about(one, number)) for number, one in enumerate(data)]
    for start in range(0, len(data[0]), PIECE_BYTES):
        for one, into in zip(data, incoming, strict=True):
            await into.write(one[start : start + PIECE_BYTES])
    ids = [(await into.finish()).id for into in incoming]
    for offset in (0, 1, MIB - 1, MIB, 3 * MIB + 5, 4 * MIB + 122, 4 * MIB + 123, 9 * MIB):
        for length in (1, MIB, 2 * MIB + 1, 2**40):
            for id, one in zip(ids, data, strict=True):
                assert await read(kept, id, offset, length) == one[offset : offset + length]


async def test_what_is_kept_is_there_after_the_ledger_was_killed_and_the_daemon_started_again(
    own: OwnLedger, opened: Open
) -> None:
    kept, data = await opened(), content(3 * MIB)
    artifacts = [await put(kept, data, number) for number in range(3)]
    await own.kill()
    again = await opened()
    assert again.shelf.of_job(JobId("job")) == artifacts
    assert await read(again, artifacts[2].id) == data


async def test_what_was_removed_does_not_come_back_when_the_ledger_is_killed(own: OwnLedger, opened: Open) -> None:
    kept = await opened()
    artifacts = [await put(kept, content(2 * MIB if number % 2 else 10), number) for number in range(4)]
    for artifact in artifacts[:3]:
        await kept.remove(artifact.id)
    for _ in range(2):
        await own.kill()
        again = await opened()
        assert again.shelf.newest(10) == [artifacts[3]]
        assert await objects(again) == (1, 1)


async def test_a_put_that_is_given_up_leaves_nothing(opened: Open) -> None:
    kept, data = await opened(), content(5 * MIB)
    incoming = await kept.begin(about(data))
    for start in range(0, 3 * MIB, PIECE_BYTES):
        await incoming.write(data[start : start + PIECE_BYTES])
    assert await objects(kept) <= (0, 1)
    await incoming.abort()
    assert await objects(kept) == (0, 0)
    assert not kept.incoming


async def test_what_a_killed_daemon_was_writing_is_swept_by_the_next(opened: Open) -> None:
    kept, data = await opened(), content(5 * MIB)
    whole = await put(kept, data)
    incoming = await kept.begin(about(data, 1))
    await incoming.write(data[:PIECE_BYTES])
    await until(lambda: has(kept, 1, 2))
    again = await opened()
    await until(lambda: has(again, 1, 1))
    assert again.shelf.newest(10) == [whole]
    assert await read(again, whole.id) == data


async def has(kept: ArtifactStore, metas: int, chunks: int) -> bool:
    return await objects(kept) == (metas, chunks)


async def test_an_object_that_lost_chunks_is_removed_at_the_next_start(opened: Open) -> None:
    kept = await opened()
    artifacts = [await put(kept, content(2 * MIB), number) for number in range(2)]
    broken = kept.shelf.get(artifacts[0].id)
    assert broken is not None
    await kept.bucket.drop_chunks(broken.nuid)
    again = await opened()
    assert again.shelf.newest(10) == artifacts[1:]
    assert await objects(again) == (1, 1)


async def test_sweeping_spares_what_is_being_written(opened: Open) -> None:
    kept, data = await opened(), content(3 * MIB)
    incoming = await kept.begin(about(data))
    await incoming.write(data[:PIECE_BYTES])
    kept.sweeps = 1
    await until(lambda: not kept.sweeps)
    for start in (PIECE_BYTES, 2 * PIECE_BYTES):
        await incoming.write(data[start : start + PIECE_BYTES])
    assert await read(kept, (await incoming.finish()).id) == data


class TestRetention:
    async def test_the_oldest_go_where_all_are_too_much(self, opened: Open) -> None:
        kept = await opened(most=5 * MIB)
        artifacts = [await put(kept, content(MIB), number) for number in range(8)]
        assert kept.shelf.newest(10) == artifacts[:2:-1]
        assert kept.shelf.held_bytes == 5 * MIB
        assert await objects(kept) == (5, 5)

    async def test_what_is_coming_counts(self, opened: Open) -> None:
        kept = await opened(most=5 * MIB)
        await put(kept, content(2 * MIB))
        await kept.begin(about(content(3 * MIB), 1))
        await put(kept, content(MIB), 2)
        assert [artifact.id for artifact in kept.shelf.newest(9)] == ["job.1.2"]

    async def test_they_go_when_their_time_is_over_and_a_jobs_own_term_comes_first(self, opened: Open) -> None:
        kept = await opened(keep_s=0.0)
        await put(kept, content(10))
        stays = await put(kept, content(10), 1, keep_s=1000.0)
        await until(lambda: has(kept, 1, 1))
        assert kept.shelf.newest(9) == [stays]

    async def test_a_short_term_of_the_job_counts_too(self, opened: Open) -> None:
        kept = await opened()
        await put(kept, content(10), keep_s=0.0)
        await until(lambda: has(kept, 0, 0))


class TestRefusals:
    async def test_too_large_or_no_room_is_said_before_anything_is_written(self, opened: Open) -> None:
        kept = await opened(most=3 * MIB, largest=4 * MIB)
        stays = await put(kept, content(MIB))
        with pytest.raises(PayloadTooLarge, match="4\\.0 MiB"):
            await put(kept, content(5 * MIB), 1)
        with pytest.raises(NoSpace, match="3\\.0 MiB in all"):
            await put(kept, content(4 * MIB), 2)
        assert kept.shelf.newest(9) == [stays]
        assert await objects(kept) == (1, 1)

    @pytest.mark.parametrize("size", [10, 3 * MIB])
    async def test_another_content_than_was_said_leaves_nothing(self, opened: Open, size: int) -> None:
        kept, data = await opened(), content(size)
        with pytest.raises(ChecksumMismatch):
            await kept.put(about(data)._replace(sha256="0" * 64), data)
        assert await objects(kept) == (0, 0)
        assert await kept.find("job.1.0") is None

    async def test_an_input_above_the_limit_is_refused_with_its_size(self, own: OwnLedger, opened: Open) -> None:
        kept, data = await opened(), content(3 * MIB)
        artifact = await put(kept, data)
        reach = Reach(me=own.node, bus=await own.connect(), registry=Registry(own.node), store=kept)
        assert await reach.fetch(artifact.id, 3 * MIB) == data
        with pytest.raises(PayloadTooLarge, match=r"3\.0 MiB; 2 MiB"):
            await reach.fetch(artifact.id, 2 * MIB)

    async def test_a_ledger_that_does_not_answer_is_an_error_and_the_rest_is_kept(
        self, own: OwnLedger, opened: Open, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("outbid_node.artifacts.objects.PATIENCE_S", 0.3)
        kept = await opened()
        stays = await put(kept, content(2 * MIB))
        let_go = await own.freeze()
        with pytest.raises(OutbidError, match="cannot be written"):
            await put(kept, content(2 * MIB), 1)
        let_go()
        await until(lambda: has(kept, 1, 1))
        assert await read(kept, stays.id) == content(2 * MIB)


@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="mounts a tiny disk, which takes root on Linux"
)
class TestFullDisk:
    @pytest.fixture
    async def own(self, tmp_path: Path) -> AsyncIterator[OwnLedger]:
        disk = tmp_path / "disk"
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200M", "tmpfs", str(disk)], check=True)
        try:
            async with own_ledger(disk) as ledger:
                yield ledger
        finally:
            subprocess.run(["umount", "-l", str(disk)], check=True)

    async def test_what_does_not_fit_is_refused_and_the_rest_is_kept(self, opened: Open, tmp_path: Path) -> None:
        kept = await opened(folder=tmp_path / "disk")
        stays = await put(kept, content(MIB))
        ballast = tmp_path / "disk" / "ballast"
        ballast.write_bytes(bytes(80 * MIB))
        with pytest.raises(NoSpace, match="MiB free, of which 128 MiB stay free"):
            await put(kept, content(3 * MIB), 1)
        assert await read(kept, stays.id) == content(MIB)
        ballast.unlink()
        await put(kept, content(3 * MIB), 1)

    async def test_a_disk_that_fills_up_meanwhile_is_told_as_such(
        self, own: OwnLedger, opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        kept = await opened(folder=tmp_path / "disk")
        stays = await put(kept, content(MIB))
        monkeypatch.setattr("outbid_node.artifacts.limits.RESERVE_MIB", -(2**30))
        monkeypatch.setattr("outbid_node.artifacts.objects.PATIENCE_S", 1.0)
        ballast = tmp_path / "disk" / "ballast"
        ballast.write_bytes(bytes(100 * MIB))
        with pytest.raises(OutbidError, match=r"disk is nearly full|no room|cannot be written"):
            await put(kept, content(150 * MIB), 1)
        assert await kept.find("job.1.1") is None
        ballast.unlink()
        await own.kill()
        again = await opened(folder=tmp_path / "disk")
        assert again.shelf.newest(9) == [stays]
        assert await read(again, stays.id) == content(MIB)
        await until(lambda: has(again, 1, 1))


@pytest.fixture
async def bus(own: OwnLedger) -> Bus:
    return await own.connect()


class TestReceiving:
    """Uploads of another node, piece by piece."""

    async def test_pieces_come_in_any_order_and_more_than_once(self, opened: Open) -> None:
        kept, data = await opened(), content(6 * MIB + 5)
        receiver, pieces = Receiver(kept), cut(data)
        random.Random(7).shuffle(pieces)
        replies = [await receiver.take(piece) for piece in [*pieces[:-1], *pieces[:3], pieces[-1]]]
        (artifact,) = [reply.artifact for reply in replies if reply.artifact is not None]
        assert await read(kept, artifact.id) == data

    async def test_what_is_kept_already_is_told_again_and_not_replaced(self, opened: Open) -> None:
        kept, data = await opened(), content(10)
        receiver = Receiver(kept)
        (piece,) = cut(data)
        first, second = await receiver.take(piece), await receiver.take(piece)
        assert first == second
        (other,) = cut(content(10, 1))
        with pytest.raises(InvalidRequest, match="another content"):
            await receiver.take(other)

    async def test_a_newer_attempt_ends_the_upload_of_an_older_one(self, opened: Open) -> None:
        kept, data = await opened(), content(3 * MIB)
        receiver = Receiver(kept)
        await receiver.take(cut(data)[0])
        newer = cut(data, attempt=2)
        for piece in newer:
            reply = await receiver.take(piece)
        assert reply.artifact is not None
        assert [artifact.id for artifact in kept.shelf.newest(9)] == ["job.2.0"]
        assert await objects(kept) == (1, 1)

    async def test_an_upload_of_which_nothing_more_comes_is_forgotten(
        self, opened: Open, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(receiving, "IDLE_S", 0.05)
        monkeypatch.setattr(receiving, "LOOK_S", 0.02)
        kept = await opened()
        receiver = Receiver(kept)
        running = asyncio.create_task(receiver.run())
        await receiver.take(cut(content(3 * MIB))[0])
        await until(lambda: has(kept, 0, 0))
        await until(lambda: not kept.incoming)
        running.cancel()

    async def test_a_wrong_checksum_and_a_piece_too_far_ahead_leave_nothing(self, opened: Open) -> None:
        kept, data = await opened(), content(2 * MIB)
        receiver = Receiver(kept)
        pieces = cut(data, sha256="0" * 64)
        await receiver.take(pieces[0])
        with pytest.raises(ChecksumMismatch):
            await receiver.take(pieces[1])
        far = cut(bytes(1), size=(AHEAD + 3) * MIB)[0]
        far = msgspec.structs.replace(far, offset=(AHEAD + 2) * MIB, data=bytes(MIB))
        with pytest.raises(InvalidRequest, match="too far ahead"):
            await receiver.take(far)
        assert await objects(kept) == (0, 0)
        assert not kept.incoming

    @pytest.mark.parametrize("size", [0, 10, 20 * MIB + 1])
    async def test_an_upload_over_the_bus_arrives_whole(self, bus: Bus, opened: Open, size: int) -> None:
        kept, data = await opened(), content(size)
        await answering(bus, Receiver(kept))
        artifact = await send(bus, HOLDER, about(data), data)
        assert await read(kept, artifact.id) == data
        assert artifact == await send(bus, HOLDER, about(data), data)

    async def test_a_refusal_reaches_who_sends(self, bus: Bus, opened: Open) -> None:
        kept = await opened(largest=MIB)
        await answering(bus, Receiver(kept))
        data = content(20 * MIB)
        with pytest.raises(PayloadTooLarge, match=r"1\.0 MiB"):
            await send(bus, HOLDER, about(data), data)
        assert await objects(kept) == (0, 0)


async def answering(bus: Bus, receiver: Receiver) -> None:
    """As a node that holds artifacts."""

    async def answer(data: bytes, reply: str) -> None:
        try:
            bus.post(reply, encode(await receiver.take(decode(data, PutArtifact))))
        except OutbidError as error:
            bus.post(reply, encode(error.body()), headers=error_headers(error, Format.MSGPACK))

    async def heard(msg: Msg) -> None:
        bus.background(answer(msg.data, msg.reply))

    await bus.subscribe(f"mesh.node.{HOLDER}.artifact", heard)
    await bus.flush()


def cut(data: bytes, *, attempt: int = 1, sha256: str | None = None, size: int | None = None) -> list[PutArtifact]:
    """The pieces of an upload."""
    said = about(data, attempt=attempt)
    size = len(data) if size is None else size
    return [
        PutArtifact(
            job=JobId("job"),
            owner=said.owner,
            id=said.id,
            name=said.name,
            type=said.type,
            size=size,
            sha256=sha256 or said.sha256,
            offset=start,
            data=data[start : start + PIECE_BYTES],
        )
        for start in range(0, len(data), PIECE_BYTES)
    ]
