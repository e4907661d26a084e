"""A picture that loses its node half way is drawn to its end on another one, and is the same picture."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio
from PIL import Image

from outbid import Mesh
from outbid_contracts.errors import Cancelled
from outbid_contracts.events import AttemptLost, Awarded, Finished, JobEvent, Progressed
from outbid_contracts.policy import Policy
from tests.acceptance.test_checkpoints import awards
from tests.acceptance.test_handover import drain, runner_of, until_idle
from tests.fleet import Fleet, NodeProcess, fleet, mesh_of

pytestmark = [pytest.mark.model, pytest.mark.asyncio(loop_scope="module")]

ASKED: dict[str, Any] = {"prompt": "red apple", "seed": 7, "steps": 30, "n": 2, "checkpoint_every": 10}
AT = 22
LAST = 20
"""The last checkpoint before step AT; the next is far enough for a kill that comes late."""

ON_B = Policy(prefer=("b",), avoid=("a",))

Blow = Callable[[], object]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def started(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    flags = ("--set", "image.engine=onnx", "--set", "image.threads=1", "--set", "node.always_on=false")
    with fleet(tmp_path_factory.mktemp("images")) as nodes:
        await nodes.start("a", "b", "c", flags=flags)
        yield nodes


@pytest_asyncio.fixture(loop_scope="module")
async def nodes(started: Fleet) -> list[NodeProcess]:
    """With the model loaded on b and c."""
    for node in started.nodes:
        if node.process is None or node.process.poll() is not None:
            node.spawn()
    await asyncio.gather(*(node.until_up() for node in started.nodes))
    await started.until_whole()
    async with mesh_of(started.nodes[0]) as mesh:
        quick = {"prompt": "dog", "steps": 1}
        for name in ("b", "c"):
            await mesh.run("image.generate", quick, policy=Policy(prefer=(name,)), timeout_s=60)
    return started.nodes


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def unbroken(started: Fleet) -> list[bytes]:
    """The pixels of what is drawn in one go."""
    async with mesh_of(started.nodes[0]) as mesh:
        result = await mesh.run("image.generate", ASKED, policy=ON_B, timeout_s=60)
    assert result["resumed_at"] == 0
    return pixels(result)


def pixels(result: dict[str, Any]) -> list[bytes]:
    return [decoded(image["data"]) for image in result["images"]]


def decoded(file: bytes) -> bytes:
    return Image.open(io.BytesIO(file)).tobytes()


async def draw(mesh: Mesh, blow: Blow, at: int = AT, **more: Any) -> list[JobEvent]:
    """All events of a picture that b begins. `blow` falls after a step."""
    seen: list[JobEvent] = []
    async for event in mesh.stream("image.generate", ASKED | more, policy=ON_B):
        seen.append(event)
        if isinstance(event, Progressed) and event.step == at and len(awards(seen)) == 1:
            await asyncio.to_thread(blow)
    return seen


def result_of(seen: list[JobEvent]) -> dict[str, Any]:
    assert isinstance(seen[-1], Finished)
    return seen[-1].result


@pytest.mark.parametrize("what", ["runner", "daemon"])
async def test_a_picture_whose_node_is_killed_is_drawn_on_from_its_last_checkpoint(
    nodes: list[NodeProcess], unbroken: list[bytes], what: str
) -> None:
    a, b, _ = nodes
    async with mesh_of(a) as mesh:
        seen = await draw(mesh, runner_of(b).kill if what == "runner" else b.kill)
    assert awards(seen) == [("b", 0), ("c", LAST)]
    result = result_of(seen)
    assert result["resumed_at"] == LAST
    assert pixels(result) == unbroken
    after = [event.step for event in seen[-20:] if isinstance(event, Progressed)]
    assert after[-(30 - LAST) :] == list(range(LAST + 1, 31)), "only what was missing was drawn again"


async def test_a_picture_is_drawn_on_at_the_very_step_when_its_node_drains(
    nodes: list[NodeProcess], unbroken: list[bytes]
) -> None:
    a, b, _ = nodes
    async with mesh_of(a) as mesh:
        seen = await draw(mesh, lambda: asyncio.run(drain(b)))
    await drain(b, undo=True)
    (_, (name, step)) = awards(seen)
    assert (name, step >= AT) == ("c", True)
    assert [event.step for event in seen if isinstance(event, Progressed)] == list(range(1, 31))
    assert [event.error.code for event in seen if isinstance(event, AttemptLost)] == ["draining"]
    result = result_of(seen)
    assert result["resumed_at"] == step
    assert pixels(result) == unbroken


async def test_a_durable_picture_goes_on_from_the_disk_of_its_owner(
    nodes: list[NodeProcess], unbroken: list[bytes]
) -> None:
    """Which is the node that draws it too, killed and started again."""
    _, b, _ = nodes
    steps: list[int] = []
    async with Mesh(state=b.state, owner_away_s=60) as mesh:
        job = await mesh.submit("image.generate", ASKED, policy=ON_B)
        async for event in job.watch():
            if isinstance(event, Progressed) and event.step >= AT and len(steps) == 1:
                b.kill()
                b.spawn()
            if isinstance(event, Awarded):
                steps.append(event.step)
        pictures = await job.pictures(60)
        drawn = [decoded(await picture.read()) for picture in pictures]
    assert steps[0] == 0
    assert steps[-1] >= 10, "where the ledger died with the daemon, its last moments may be lost"
    assert pictures.facts.resumed_at == steps[-1]
    assert drawn == unbroken


async def test_a_cancelled_picture_ends_within_a_step(nodes: list[NodeProcess]) -> None:
    a, b, _ = nodes
    done: list[int] = []
    async with mesh_of(a) as mesh:

        async def draw_slowly() -> None:
            async for event in mesh.stream("image.generate", ASKED | {"width": 192, "height": 192}, policy=ON_B):
                if isinstance(event, Progressed):
                    done.append(event.step)
                if done == [1, 2]:
                    await mesh.cancel(event.job)

        with pytest.raises(Cancelled):
            await draw_slowly()
    assert done[-1] <= 4, "the step under way, and one that was told before the cancellation came"
    await until_idle(b)
