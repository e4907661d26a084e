"""The parts of the artifact store that do no I/O."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbid_capabilities.testing import files
from outbid_contracts.artifacts import PIECE_BYTES, Artifact, PutArtifact, artifact_id
from outbid_contracts.errors import InvalidRequest, NodeUnreachable, NoSpace, PayloadTooLarge, UnknownArtifact
from outbid_contracts.ids import JobId, NodeId
from outbid_contracts.messages import Done, Failed, Job, Outcome, Stopped
from outbid_contracts.runner import RunFailed
from outbid_node.artifacts.inputs import taken_out
from outbid_node.artifacts.limits import RESERVE_MIB, Limits
from outbid_node.artifacts.objects import as_ranges, digest_of, nth, sha256_of
from outbid_node.artifacts.receiving import described
from outbid_node.artifacts.shelf import Description, Kept, Shelf
from outbid_node.artifacts.stages import Delivering, Fetching
from outbid_node.catalogue import Entry
from outbid_node.config_sections import ArtifactsSection
from outbid_node.durable.always_on import NAS, looks_like_nas
from outbid_node.runners.attempt import Attempt, Nobody
from tests.waiting import until

ME = NodeId("7k2f9qzt")
SHA = "a" * 64


@given(st.sets(st.integers(1, 10_000), min_size=1))
def test_the_place_of_every_chunk_is_found_in_the_ranges(seqs: set[int]) -> None:
    ordered = sorted(seqs)
    text = as_ranges(ordered)
    assert [nth(text, number) for number in range(len(ordered))] == ordered


def test_an_object_of_one_chunk_needs_no_ranges() -> None:
    assert nth("", 0) == 1


def test_a_digest_is_written_as_the_object_store_has_it() -> None:
    assert digest_of(SHA).startswith("SHA-256=")
    assert sha256_of(digest_of(SHA)) == SHA


def kept(number: int, size: int, *, keep_s: float | None = None, made_ms: int = 0, job: str = "j") -> Kept:
    artifact = Artifact(
        id=artifact_id(JobId(job), 1, number),
        name="a",
        type="text/plain",
        size=size,
        sha256=SHA,
        node=ME,
        bucket="b",
        made_ms=made_ms,
    )
    return Kept(artifact, f"nuid{number}", "", keep_s)


class TestShelf:
    def test_the_oldest_are_those_that_came_first(self) -> None:
        shelf = Shelf()
        for number in range(5):
            shelf.add(kept(number, 10))
        assert shelf.oldest(0) == []
        assert shelf.oldest(1) == ["j.1.0"]
        assert shelf.oldest(25) == ["j.1.0", "j.1.1", "j.1.2"]
        assert [artifact.id for artifact in shelf.newest(2)] == ["j.1.4", "j.1.3"]
        assert shelf.held_bytes == 50

    def test_what_replaces_another_counts_once(self) -> None:
        shelf = Shelf()
        shelf.add(kept(0, 10))
        before = shelf.add(kept(0, 30))
        assert before is not None
        assert shelf.held_bytes == 30
        assert len(shelf.of_job(JobId("j"))) == 1

    def test_nothing_is_left_of_a_job_whose_artifacts_are_gone(self) -> None:
        shelf = Shelf()
        shelf.add(kept(0, 10))
        shelf.pop("j.1.0")
        assert shelf.held_bytes == 0
        assert shelf.of_job(JobId("j")) == []
        assert shelf.pop("j.1.0") is None

    def test_a_job_that_says_how_long_is_kept_so_long_and_the_others_as_the_node_says(self) -> None:
        shelf = Shelf()
        shelf.add(kept(0, 1))
        shelf.add(kept(1, 1, keep_s=1e12))
        shelf.add(kept(2, 1, keep_s=1.0, made_ms=1))
        assert shelf.expired(1e12) == ["j.1.2"]
        assert shelf.expired(1.0) == ["j.1.0", "j.1.2"]

    def test_what_is_written_is_what_is_read(self) -> None:
        said = Description("j.1.0", ME, "a b.png", "image/png", 3 * PIECE_BYTES, SHA, 12.5)
        found = Kept.of(said.meta("bucket", "nuid", [4, 5, 9]), ME)
        assert found is not None
        assert (found.artifact.name, found.artifact.type, found.artifact.sha256) == ("a b.png", "image/png", SHA)
        assert (found.seqs, found.keep_s, found.nuid) == ("4-5,9", 12.5, "nuid")


class TestInputs:
    def test_content_and_ids_are_taken_out_of_the_parameters(self) -> None:
        params = {"prompt": "x", "image": b"abc", "mask_from": "j.1.0", "image_from": None}
        found = taken_out(params, ("image", "mask"))
        assert found.params == {"prompt": "x"}
        assert found.files == {"image": b"abc"}
        assert found.wanted == {"mask": "j.1.0"}

    def test_base64_is_content_too(self) -> None:
        assert taken_out({"image": base64.b64encode(b"abc").decode()}, ("image",)).files == {"image": b"abc"}

    @pytest.mark.parametrize("value", ["not base64!", 5, ["x"]])
    def test_what_is_no_content_is_refused(self, value: object) -> None:
        with pytest.raises(InvalidRequest, match="image"):
            taken_out({"image": value}, ("image",))

    def test_without_declared_inputs_nothing_is_touched(self) -> None:
        assert taken_out({"image": "text"}, ()) == ({"image": "text"}, {}, {})


def put(**changed: object) -> PutArtifact:
    told: dict[str, object] = {
        "job": "j",
        "owner": ME,
        "id": "j.1.0",
        "name": "a.bin",
        "type": "image/png",
        "size": 3,
        "sha256": SHA,
        "offset": 0,
        "data": b"abc",
    }
    return PutArtifact(**(told | changed))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changed",
    [
        {"id": "j"},
        {"id": "other.1.0"},
        {"id": "../../etc.1.0", "job": "../../etc"},
        {"sha256": "A" * 64},
        {"sha256": ""},
        {"name": "../../.bashrc"},
        {"name": ""},
        {"name": "x" * 201},
        {"name": "a\nb"},
        {"type": "image"},
        {"type": "image/png\r\nX: y"},
        {"size": -1, "data": b""},
        {"size": 4},
        {"size": 2},
        {"offset": 1},
        {"offset": -PIECE_BYTES},
        {"offset": PIECE_BYTES},
        {"size": 2 * PIECE_BYTES, "data": b"x"},
    ],
)
def test_a_piece_that_cannot_be_is_refused(changed: dict[str, object]) -> None:
    described(put())
    with pytest.raises(InvalidRequest):
        described(put(**changed))


def test_pieces_of_an_empty_file_and_the_last_of_a_long_one_are_good() -> None:
    assert described(put(size=0, data=b"")).size == 0
    assert described(put(size=PIECE_BYTES + 3, offset=PIECE_BYTES)).size == PIECE_BYTES + 3


class TestLimits:
    def test_one_above_the_largest_is_too_large(self, tmp_path: Path) -> None:
        limits = Limits(tmp_path, 1.0, 100, 10)
        limits.check(10, 0)
        with pytest.raises(PayloadTooLarge, match="max_artifact_mib"):
            limits.check(11, 0)

    def test_a_disk_without_room_is_named_with_what_it_has(self, tmp_path: Path) -> None:
        limits = Limits(tmp_path, 1.0, 2**60, 2**60)
        with pytest.raises(NoSpace, match=f"{tmp_path}.* free, of which {RESERVE_MIB} MiB stay free"):
            limits.check(2**55, 0)
        with pytest.raises(NoSpace, match="free"):
            limits.check(1, 2**55)

    def test_a_storage_node_keeps_more_by_itself_and_a_number_is_a_number(self, tmp_path: Path) -> None:
        auto = ArtifactsSection()
        own, for_others = (Limits.of(auto, tmp_path, for_others=others).most_bytes for others in (False, True))
        assert for_others > own > 0
        assert Limits.of(ArtifactsSection(max_mib=7), tmp_path, for_others=True).most_bytes == 7 * 2**20


def test_a_nas_is_known_by_its_files(tmp_path: Path) -> None:
    assert not looks_like_nas(tmp_path)
    marker = tmp_path / NAS[0]
    marker.parent.mkdir(parents=True)
    marker.touch()
    assert looks_like_nas(tmp_path)


class TestMisfit:
    """A runner's result is checked before the node has added what it adds to files."""

    def check(self, listed: object) -> str:
        attempt = Attempt("j/1", files, {}, {}, Nobody())
        result = {"files": listed, "source_sha256": "", "others": [], "pid": 1, "seconds": 0.0}
        return attempt.misfit(files.result, result)

    def test_name_and_type_are_enough(self) -> None:
        assert self.check([{"name": "a", "type": "b/c"}]) == ""
        assert self.check([]) == ""

    @pytest.mark.parametrize("listed", [[{"name": "a"}], [{"name": 1, "type": "b/c"}], ["a"], "a", None])
    def test_less_is_not(self, listed: object) -> None:
        assert self.check(listed)


class Started:
    """An attempt of a worker, as far as its stages know it."""

    def __init__(self, number: int = 1) -> None:
        self.number = number
        self.key = f"j/{number}"
        self.job = Job(id=JobId("j"), owner=ME, capability="test.files", params={}, work={})
        self.entry = Entry(files, {}, (), "")
        self.model = None
        self.given_back = ""
        self.heard: list[str] = []

    def stopped(self) -> None:
        self.heard.append("stopped")

    def failed(self, message: RunFailed) -> None:
        self.heard.append(f"{message.code} {'again' if message.retry else 'for good'}")


class TestStages:
    """What an attempt does while no runner has it."""

    @pytest.mark.parametrize(
        ("error", "heard"),
        [
            (UnknownArtifact(), "unknown_artifact for good"),
            (UnknownArtifact(away=["b"]), "unknown_artifact again"),
            (PayloadTooLarge(), "payload_too_large for good"),
            (NodeUnreachable(), "node_unreachable again"),
            (RuntimeError("odd"), "internal again"),
        ],
    )
    async def test_inputs_that_do_not_come_fail_the_attempt(self, error: Exception, heard: str) -> None:
        fetching, attempt = Fetching(), Started()

        async def fetch(wanted: object) -> dict[str, bytes]:
            raise error

        fetching.fetch = fetch
        fetching.begin(attempt, {"source": "j.1.0"}, lambda files: None)  # type: ignore[arg-type]
        assert fetching.slots(files.runner, None) == 1
        await until(lambda: attempt.heard)
        assert attempt.heard == [heard]
        assert fetching.slots(files.runner, None) == 0

    async def test_a_slot_is_held_until_the_runner_has_the_attempt(self) -> None:
        fetching, attempt = Fetching(), Started()
        came: asyncio.Future[dict[str, bytes]] = asyncio.get_running_loop().create_future()
        ran: list[tuple[dict[str, bytes], int]] = []
        fetching.fetch = lambda wanted: came
        fetching.begin(
            attempt,  # type: ignore[arg-type]
            {"source": "j.1.0"},
            lambda got: ran.append((got, fetching.slots(files.runner, None))),
        )
        assert fetching.slots(files.runner, None) == 1
        assert fetching.slots(files.runner, "another") == 0
        came.set_result({"source": b"abc"})
        await until(lambda: ran)
        assert ran == [({"source": b"abc"}, 0)]
        assert not fetching.cancel(attempt.key)

    async def test_a_cancelled_fetch_is_a_stopped_attempt(self) -> None:
        fetching, attempt = Fetching(), Started()
        fetching.fetch = lambda wanted: asyncio.get_running_loop().create_future()
        fetching.begin(attempt, {"source": "j.1.0"}, lambda files: None)  # type: ignore[arg-type]
        assert fetching.cancel(attempt.key)
        await until(lambda: attempt.heard)
        assert attempt.heard == ["stopped"]
        assert fetching.slots(files.runner, None) == 0

    async def test_a_newer_attempt_ends_the_delivery_of_an_older_one(self) -> None:
        delivering = Delivering()
        delivering.deliver = lambda *told: asyncio.get_running_loop().create_future()
        settled: list[tuple[int, type]] = []
        for number in (1, 2):
            delivering.begin(
                Started(number),  # type: ignore[arg-type]
                Done(result={}),
                (),
                lambda attempt, outcome: settled.append((attempt.number, type(outcome))),
            )
        assert len(delivering) == 2
        await asyncio.sleep(0)
        delivering.supersede(JobId("j"), 2)
        await until(lambda: settled)
        assert settled == [(1, Stopped)]
        delivering.cancel("j/2")
        await until(lambda: len(settled) == 2)
        assert not len(delivering)

    @pytest.mark.parametrize(("error", "retry"), [(NoSpace(), True), (PayloadTooLarge(), False), (KeyError("x"), True)])
    async def test_files_that_nobody_keeps_fail_the_attempt(self, error: Exception, retry: bool) -> None:
        delivering = Delivering()
        settled: list[Outcome] = []

        async def deliver(*told: object) -> dict[str, object]:
            raise error

        delivering.deliver = deliver
        delivering.begin(Started(), Done(result={}), (), lambda attempt, outcome: settled.append(outcome))  # type: ignore[arg-type]
        await until(lambda: settled)
        (outcome,) = settled
        assert isinstance(outcome, Failed)
        assert outcome.retry is retry
