"""Reading an artifact over a connection that fails: whole, once, and checked, or an error."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

import pytest

from outbid import Mesh
from outbid.artifacts import RANGE_BYTES, RANGES, Artifact, artifacts_of, named_in
from outbid_contracts import artifacts as wire
from outbid_contracts.errors import ChecksumMismatch, NodeUnreachable, UnknownArtifact
from outbid_contracts.ids import NodeId

CONTENT = random.Random(7).randbytes(6 * RANGE_BYTES + 12_345)
Piece = tuple[Mapping[str, str], bytes]
Spoil = Callable[[int, list[Piece]], list[Piece]]


class Wire:
    """A mesh whose node answers `read` from memory. `spoil` changes the replies of the n-th question; an end it leaves
    out is a broken connection.
    """

    owner_away_s = 5.0
    local = None

    def __init__(self, content: bytes = CONTENT, spoil: Spoil = lambda n, replies: replies) -> None:
        self.content = content
        self.spoil = spoil
        self.questions: list[wire.ReadArtifact] = []
        self.open = self.most = 0

    async def connected(self) -> Wire:
        return self

    async def pieces(
        self, subject: str, question: wire.ReadArtifact, *, idle_timeout_s: float
    ) -> AsyncGenerator[Piece, None]:
        assert subject == "mesh.artifacts.read"
        self.questions.append(question)
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            replies = self._replies(question.offset, question.offset + question.length)
            for headers, data in self.spoil(len(self.questions) - 1, replies):
                await asyncio.sleep(0)
                yield headers, data
                if not data:
                    return
            raise NodeUnreachable("the connection was interrupted")
        finally:
            self.open -= 1

    def _replies(self, offset: int, end: int) -> list[Piece]:
        starts = range(offset, end, wire.PIECE_BYTES)
        pieces: list[Piece] = [
            ({"Outbid-Offset": str(at)}, self.content[at : min(end, at + wire.PIECE_BYTES)]) for at in starts
        ]
        return [*pieces, ({"Outbid-Size": str(len(self.content))}, b"")]


def artifact(mesh: Wire, content: bytes = CONTENT) -> Artifact:
    facts = wire.Artifact(
        id="job.2.0",
        name="x.bin",
        type="application/octet-stream",
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        node=NodeId("abcdefgh"),
        bucket="ARTIFACTS_abcdefgh",
    )
    return Artifact(cast(Mesh, mesh), facts)


async def test_several_ranges_are_on_their_way_at_once_and_come_out_in_order() -> None:
    mesh = Wire()
    assert await artifact(mesh).read() == CONTENT
    assert mesh.most == RANGES
    assert [question.offset for question in mesh.questions] == list(range(0, len(CONTENT), RANGE_BYTES))


@pytest.mark.parametrize("size", [0, 1, RANGE_BYTES - 1, RANGE_BYTES, RANGE_BYTES + 1])
async def test_every_size_comes_whole(size: int) -> None:
    assert await artifact(Wire(CONTENT[:size]), CONTENT[:size]).read() == CONTENT[:size]


async def test_what_breaks_is_asked_for_again_from_where_it_broke() -> None:
    mesh = Wire(spoil=lambda n, replies: replies[:2] if n == 1 else replies)
    assert await artifact(mesh).read() == CONTENT
    again = [question for question in mesh.questions if question.offset % RANGE_BYTES]
    assert [question.offset for question in again] == [RANGE_BYTES + 2 * wire.PIECE_BYTES]


async def test_a_piece_that_got_lost_is_noticed() -> None:
    mesh = Wire(spoil=lambda n, replies: replies[:1] + replies[2:] if n == 0 else replies)
    assert await artifact(mesh).read() == CONTENT
    assert wire.PIECE_BYTES in [question.offset for question in mesh.questions]


async def test_an_end_that_comes_too_early_is_no_end() -> None:
    mesh = Wire(spoil=lambda n, replies: replies[-1:] if n == 0 else replies)
    assert await artifact(mesh).read() == CONTENT


@pytest.mark.parametrize("replies", [0, 1], ids=["no answer", "nothing but the end"])
async def test_a_holder_that_stays_away_is_given_up(replies: int) -> None:
    mesh = Wire(spoil=lambda n, whole: whole[len(whole) - replies :])
    mesh.owner_away_s = 0.3
    with pytest.raises(NodeUnreachable):
        async with asyncio.timeout(20):
            await artifact(mesh).read()
    assert mesh.open == 0
    assert len(mesh.questions) < 100, "asked again after a pause"


async def test_other_content_than_promised_is_refused(tmp_path: Path) -> None:
    mesh = Wire(CONTENT[:-1] + b"?")
    with pytest.raises(ChecksumMismatch):
        await artifact(mesh).read()
    with pytest.raises(ChecksumMismatch):
        await artifact(mesh).save(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


async def test_saving_goes_on_with_the_part_that_is_there(tmp_path: Path) -> None:
    mesh, begun = Wire(), 5 * RANGE_BYTES + 1
    (tmp_path / "x.part").write_bytes(CONTENT[:begun])
    assert await artifact(mesh).save(tmp_path / "x") == tmp_path / "x"
    assert (tmp_path / "x").read_bytes() == CONTENT
    assert min(question.offset for question in mesh.questions) == begun
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("rubbish", [b"something else", CONTENT + b"and more", b"?" + CONTENT[1:]])
async def test_a_part_of_something_else_is_fetched_anew(tmp_path: Path, rubbish: bytes) -> None:
    (tmp_path / "x.part").write_bytes(rubbish)
    await artifact(Wire()).save(tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == CONTENT


async def test_without_resume_nothing_of_the_part_is_used(tmp_path: Path) -> None:
    mesh = Wire()
    (tmp_path / "x.part").write_bytes(CONTENT[:RANGE_BYTES])
    await artifact(mesh).save(tmp_path / "x", resume=False)
    assert mesh.questions[0].offset == 0


async def test_what_is_there_stays_until_the_new_is_whole(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"old")
    mesh = Wire(spoil=lambda n, replies: [] if n > 2 else replies)
    mesh.owner_away_s = 0.3
    with pytest.raises(NodeUnreachable):
        await artifact(mesh).save(tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"old"
    assert (tmp_path / "x.part").read_bytes() == CONTENT[: 3 * RANGE_BYTES]


async def test_leaving_a_stream_early_leaves_no_question_open() -> None:
    mesh = Wire()
    async with aclosing(artifact(mesh).stream()) as pieces:
        async for piece in pieces:
            assert piece == CONTENT[: wire.PIECE_BYTES]
            break
    assert mesh.open == 0


async def test_a_stream_begins_where_it_is_told() -> None:
    assert b"".join([piece async for piece in artifact(Wire()).stream(len(CONTENT) - 10)]) == CONTENT[-10:]


# -- finding -----------------------------------------------------------------------------------------------------------


class Listing(Wire):
    """A mesh that answers `find`."""

    def __init__(self, *found: str) -> None:
        super().__init__()
        self.found = found

    async def request(self, subject: str, question: Any, type: Any, *, timeout_s: float) -> Any:
        assert subject == "mesh.artifacts.find"
        one = artifact(self).facts
        fields = {name: getattr(one, name) for name in one.__struct_fields__}
        return wire.ArtifactList(artifacts=tuple(wire.Artifact(**fields | {"id": id}) for id in self.found))


async def test_of_a_job_those_of_its_newest_attempt_count() -> None:
    mesh = cast(Mesh, Listing("j.1.0", "j.10.10", "j.10.2", "j.9.0"))
    assert [one.id for one in await artifacts_of(mesh, "j")] == ["j.10.2", "j.10.10"]


async def test_an_artifact_that_nobody_has_is_unknown() -> None:
    mesh = Mesh()
    mesh.connected = cast(Any, Listing().connected)  # type: ignore[method-assign]
    with pytest.raises(UnknownArtifact, match=r"no node of this mesh has artifact j\.1\.0"):
        await mesh.artifact("j.1.0")


def test_files_in_a_result_are_found_whatever_the_job_was() -> None:
    one = artifact(Wire()).facts
    fields = {name: getattr(one, name) for name in one.__struct_fields__ if name != "data"}
    assert named_in({"text": "hi", "n": 1, "files": [fields], "job": "j", "list": [1, 2]}) == [one]
