"""Pictures and artifacts through a mesh of two nodes: for Python, for any NATS client, and while nodes die."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import nats
import PIL.Image
import pytest
import pytest_asyncio

from outbid import Mesh, Policy
from outbid.artifacts import RANGE_BYTES, Artifact, named_in
from outbid.connection import AccessRefused
from outbid.images import Step
from outbid_contracts.errors import InvalidRequest, UnknownArtifact
from outbid_contracts.events import AttemptLost, Awarded, JobEvent
from outbid_contracts.images import MAX_STEPS
from outbid_contracts.roles import inbox_prefix
from outbid_node.identity import jwt
from outbid_node.identity.keyring import Keyring
from outbid_node.identity.keys import new_user
from tests.acceptance.test_image_cli import ONNX, outbid
from tests.fleet import TEST_CAPABILITY, Fleet, NodeProcess, fleet, mesh_of

pytestmark = [pytest.mark.model, pytest.mark.asyncio(loop_scope="module")]

BIG = 8 * RANGE_BYTES
PATIENT_S = 60


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def nodes(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    with fleet(tmp_path_factory.mktemp("images")) as running:
        await running.start("a", "b", flags=(*TEST_CAPABILITY, *ONNX))
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def pair(nodes: Fleet) -> Sequence[NodeProcess]:
    """Both up and known to one another, whatever the test before did to them."""
    await nodes.until_whole(PATIENT_S)
    return nodes.nodes


def opened(data: bytes) -> PIL.Image.Image:
    image = PIL.Image.open(io.BytesIO(data))
    image.load()
    return image


# -- for Python --------------------------------------------------------------------------------------------------------


async def test_a_drawing_tells_its_steps_and_gives_pictures(pair: Sequence[NodeProcess]) -> None:
    events: list[JobEvent] = []
    async with mesh_of(pair[0]) as mesh:
        drawing = mesh.image("red apple", seed=3, n=2, steps=6, preview_every=2, on_event=events.append)
        steps: list[Step] = [step async for step in drawing]
        pictures = await drawing.result()

    assert [step.step for step in steps if step.preview is None] == [1, 2, 3, 4, 5, 6]
    previews = [step for step in steps if step.preview is not None]
    assert previews
    assert all(step.preview is not None and opened(step.preview).height for step in previews)
    assert {step.node for step in steps} == {pictures.name}
    assert isinstance(events[0], Awarded)
    assert [(one.seed, one.type, opened(one.data or b"").size) for one in pictures] == [
        (3, "image/png", (64, 64)),
        (4, "image/png", (64, 64)),
    ]
    assert (pictures.model, pictures.seeds, pictures.facts.steps) == ("emoji", (3, 4), 6)
    assert pictures.seconds > 0
    assert pictures.joules is None or pictures.joules > 0


async def test_a_picture_is_read_on_every_node_by_its_id(pair: Sequence[NodeProcess], tmp_path: Path) -> None:
    a, b = pair
    async with mesh_of(a) as mesh:
        (made,) = await mesh.image("red apple").result()
        data = await made.read()
    async with mesh_of(b) as mesh:
        found = await mesh.artifact(made.id)
        assert (found.sha256, found.node, found.data) == (made.sha256, made.node, None)
        assert await found.read() == data
        assert (await found.save(tmp_path / "x.png")).read_bytes() == data
        assert [one.id for one in await mesh.artifacts(made.job)] == [made.id]
        with pytest.raises(UnknownArtifact):
            await mesh.artifact("never.1.0")


async def test_a_durable_job_gives_its_pictures_elsewhere(pair: Sequence[NodeProcess]) -> None:
    a, b = pair
    async with mesh_of(a) as mesh:
        job = await mesh.submit("image.generate", {"prompt": "red apple", "seed": 3})
    async with mesh_of(b) as mesh:
        (picture,) = await mesh.attach(job.id).pictures(PATIENT_S)
        assert opened(await picture.read()).info["prompt"] == "red apple"
        other = await mesh.submit("test.echo", {"text": "no picture"})
        with pytest.raises(InvalidRequest, match="not the result of an image job"):
            await other.pictures(PATIENT_S)


async def test_a_picture_drawn_on_one_node_is_worked_on_from_the_other(pair: Sequence[NodeProcess]) -> None:
    a, b = pair
    async with mesh_of(a) as mesh:
        (apple,) = await mesh.image("red apple", seed=3).result()
        content = await apple.read()
    async with mesh_of(b) as mesh:
        edits = [
            await mesh.edit(source, "green apple", strength=0.5, seed=1).result()
            for source in (apple, apple.id, content)
        ]
    assert len({opened(await edit[0].read()).tobytes() for edit in edits}) == 1


async def test_many_jobs_at_once_give_each_its_own_picture(pair: Sequence[NodeProcess]) -> None:
    prompts = ["red apple", "blue heart", "yellow banana", "green apple"] * 2
    async with mesh_of(pair[0]) as mesh:
        alone = [await mesh.image(prompt, seed=7).result() for prompt in prompts[:4]]
        together = await asyncio.gather(*(mesh.image(prompt, seed=7).result() for prompt in prompts))
    for number, pictures in enumerate(together):
        assert opened(pictures[0].data or b"").info["prompt"] == prompts[number]
        assert _distance(pictures[0], alone[number % 4][0]) < 2, "a batch changes no picture"
        assert _distance(pictures[0], alone[(number + 1) % 4][0]) > 10


def _distance(one: Artifact, other: Artifact) -> float:
    """Mean difference of the pixels' bytes."""
    these, those = (opened(each.data or b"").tobytes() for each in (one, other))
    return sum(abs(x - y) for x, y in zip(these, those, strict=True)) / len(these)


async def test_leaving_a_drawing_cancels_it(pair: Sequence[NodeProcess]) -> None:
    async with mesh_of(pair[0]) as mesh:
        async with mesh.image("red apple", steps=MAX_STEPS) as drawing:
            async for _ in drawing:
                break
        assert (await mesh.job(drawing.job)).state == "cancelled"


# -- for any NATS client -----------------------------------------------------------------------------------------------


async def test_a_plain_request_gives_base64_and_the_object_store_the_same_bytes(pair: Sequence[NodeProcess]) -> None:
    local = pair[0].local
    client = await nats.connect(
        local.url, user_credentials=local.creds, inbox_prefix=inbox_prefix(Path(local.creds).read_text())
    )
    try:
        reply = await client.request("mesh.image.generate", b'{"prompt": "red apple", "seed": 3}', timeout=PATIENT_S)
        (picture,) = json.loads(reply.data)["images"]
        data = base64.b64decode(picture["data"])
        bare = json.loads((await client.request("mesh.image.generate", b"red apple", timeout=PATIENT_S)).data)
        store = await client.jetstream(domain=picture["node"]).object_store(picture["bucket"])
        stored = await store.get(picture["id"])
    finally:
        await client.close()

    assert opened(data).size == (64, 64)
    assert hashlib.sha256(data).hexdigest() == picture["sha256"]
    assert stored.data == data
    assert len(bare["images"]) == 1


async def test_a_submitter_draws_and_reads_and_a_viewer_does_not(nodes: Fleet, pair: Sequence[NodeProcess]) -> None:
    async with Mesh(pair[0].local.url, creds=_creds(nodes, "submitter")) as mesh:
        (picture,) = await mesh.image("red apple").result()
        found = await mesh.artifact(picture.id)
        assert await found.read() == picture.data
    async with Mesh(pair[0].local.url, creds=_creds(nodes, "viewer")) as mesh:
        with pytest.raises(AccessRefused):
            await mesh.image("red apple").result()
        with pytest.raises(AccessRefused):
            await mesh.artifact(picture.id)
        with pytest.raises(AccessRefused):
            await Artifact(mesh, found.facts).read()


def _creds(nodes: Fleet, role: str) -> Path:
    key, user = Keyring(nodes.folder / "keyring").find(nodes.mesh), new_user()
    assert key is not None
    file = nodes.folder / f"{role}.creds"
    file.write_text(jwt.credentials(jwt.user(key, role, role, user.public, expires_s=600), user))
    return file


# -- large ones, and nodes that die ------------------------------------------------------------------------------------


async def big(node: NodeProcess, size: int = BIG) -> Artifact:
    """An artifact that this node holds."""
    async with mesh_of(node) as mesh:
        result = await mesh.run("test.files", {"sizes": [size]}, policy=Policy(prefer=(node.name,)))
    (facts,) = named_in(result)
    async with mesh_of(node) as mesh:
        assert facts.node == mesh.local
        return Artifact(mesh, facts)


async def test_what_lies_here_is_read_past_the_daemon(pair: Sequence[NodeProcess], tmp_path: Path) -> None:
    made = await big(pair[0])
    async with mesh_of(pair[0]) as mesh:
        here = await mesh.artifact(made.id)
        await here.save(tmp_path / "here")
        assert here._direct is not None
    async with mesh_of(pair[1]) as mesh:
        elsewhere = await mesh.artifact(made.id)
        await elsewhere.save(tmp_path / "elsewhere")
        assert elsewhere._direct is None
    assert _sha256(tmp_path / "here") == _sha256(tmp_path / "elsewhere") == made.sha256


@pytest.mark.parametrize("through", ["the node itself", "the other node"])
async def test_a_reader_goes_on_when_the_node_that_serves_it_is_killed_and_comes_back(
    pair: Sequence[NodeProcess], tmp_path: Path, through: str
) -> None:
    """From the first half there is a part; of the rest some is on its way when the node dies."""
    b = pair[1]
    made = await big(b)
    asked = b if through == "the node itself" else pair[0]
    async with mesh_of(asked) as mesh:
        found = await mesh.artifact(made.id)
        digest, pieces = hashlib.sha256(), 0
        async with aclosing(found.stream()) as arriving:
            async for piece in arriving:
                digest.update(piece)
                pieces += 1
                if pieces == 2:
                    b.kill()
                    b.spawn()
    assert digest.hexdigest() == made.sha256
    await b.until_up()


async def test_a_drawing_whose_node_is_killed_says_so_and_is_finished_elsewhere(
    nodes: Fleet, pair: Sequence[NodeProcess]
) -> None:
    a, b = pair
    events: list[JobEvent] = []
    asked: dict[str, Any] = {"seed": 3, "steps": 40, "checkpoint_every": 5}
    async with mesh_of(a) as mesh:
        drawing = mesh.image("red apple", policy=Policy(prefer=("b",)), on_event=events.append, **asked)
        async for step in drawing:
            if step.step == 17 and step.node == "b":
                b.kill()
        pictures = await drawing.result()
        record = await mesh.job(drawing.job)
    why = await asyncio.to_thread(outbid, a, "why", drawing.job)
    b.spawn()
    await b.until_up()

    assert [type(event) for event in events if isinstance(event, Awarded | AttemptLost)] == [
        Awarded,
        AttemptLost,
        Awarded,
    ]
    assert (pictures.name, pictures.attempt > 1) == ("a", True)
    assert 0 < pictures.facts.resumed_at <= 17
    assert record.attempts[-1].step == pictures.facts.resumed_at
    assert f"attempt 2 on a from step {pictures.facts.resumed_at}: ended" in why.stdout.decode()


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
