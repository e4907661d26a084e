"""`image.*` with the packaged model, the real pool and both engines: what one passes, the other passes."""

from __future__ import annotations

import asyncio
import io
import secrets
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import psutil
import pytest
import pytest_asyncio

np = pytest.importorskip("numpy")
pytest.importorskip("PIL")

from PIL import Image  # noqa: E402

from outbid_capabilities.image.choice import ENGINES, installed  # noqa: E402
from outbid_capabilities.image.declaration import capabilities  # noqa: E402
from outbid_contracts.capability import Capability, ModelFile  # noqa: E402
from outbid_contracts.images import Preview  # noqa: E402
from outbid_contracts.runner import Ready, RunDone, RunFailed  # noqa: E402
from outbid_node.runners.limits import Limits  # noqa: E402
from tests.integration.test_runner_support import Fleet, Sink, fleet  # noqa: E402

pytestmark = [pytest.mark.model, pytest.mark.asyncio(loop_scope="module")]

GENERATE, EDIT, ANIMATE = capabilities()
PATIENCE_S = 100.0
LIMITS = Limits(ping_s=0.2, hang_s=60.0, load_hang_s=120.0, stop_s=5.0, cancel_s=30.0, kill_grace_s=5.0)
UNITS = {"mpix_steps", "steps", "mpix", "images"}


class Drawing(Sink):
    """An attempt's sink, with its progress and its pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[int, int, float | None]] = []

    def progress(self, step: int, steps: int, note: str, eta_s: float | None) -> None:
        self.steps.append((step, steps, eta_s))
        super().progress(step, steps, note, eta_s)

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self._news.clear()
                await self._news.wait()

    async def images(self) -> list[Any]:
        await self.success()
        return [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int) for data in self.payloads]

    async def image(self) -> Any:
        (image,) = await self.images()
        return image


@dataclass
class Studio:
    """A pool with one warm image runner."""

    node: Fleet
    engine: str
    model: ModelFile
    drawn: dict[str, Any] = field(default_factory=dict)

    def draw(
        self,
        prompt: str = "red apple",
        capability: Capability = GENERATE,
        files: Mapping[str, bytes] | None = None,
        **params: Any,
    ) -> Drawing:
        """Of four steps if not told otherwise: enough to see what it is."""
        sink, key = Drawing(), f"{secrets.token_hex(4)}/1"
        given = {"prompt": prompt, "steps": 4} | params
        self.node.pool.run(capability, self.model, self.node.settings, key, given, sink, files or {})
        sink.key = key  # type: ignore[attr-defined]
        return sink

    def cancel(self, sink: Drawing, *, save: bool = False) -> None:
        self.node.pool.cancel(sink.key, save=save)  # type: ignore[attr-defined]

    @property
    def ready(self) -> Ready:
        found = self.node.pool.room(GENERATE, self.model).ready
        assert found is not None
        return found


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=list(ENGINES))
async def studio(request: pytest.FixtureRequest) -> AsyncIterator[Studio]:
    if not installed(request.param):
        pytest.skip(f"{request.param} is not installed")
    settings = {"engine": request.param, "slots": 4, "device": "cpu", "threads": 1}
    (model,) = GENERATE.models(settings)
    async with fleet(budget_mib=8000.0, limits=LIMITS, **settings) as node:
        del node.settings["enabled"]
        made = Studio(node, request.param, model)
        made.drawn["apple"] = await made.draw(seed=1).image()
        yield made


def png(image: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.asarray(image, np.uint8)).save(out, "PNG")
    return out.getvalue()


def distance(one: Any, other: Any) -> float:
    """Mean difference per channel, of 255."""
    return float(np.abs(one - other).mean())


async def fails(sink: Drawing) -> RunFailed:
    failure = await sink.failure()
    assert "Traceback" not in failure.message
    return failure


async def test_ready_tells_slots_rates_and_memory_near_the_estimate(studio: Studio) -> None:
    ready = studio.ready
    assert ready.slots == 4
    assert set(ready.rates) == UNITS
    assert all(0 < rate < 1000 for rate in ready.rates.values())
    assert ready.info["engine"] == studio.engine
    (view,) = studio.node.pool.views()
    resident_mib = psutil.Process(view.pid).memory_info().rss / 2**20
    assert 0.5 < resident_mib / studio.model.memory_mib < 1.6


async def test_a_picture_comes_with_all_that_made_it(studio: Studio) -> None:
    sink = studio.draw(prompt="Red apple!", seed=1, negative_prompt="blue")
    message = await sink.success()
    result, image = message.result, Image.open(io.BytesIO(sink.payloads[0]))
    assert (image.format, image.size) == ("PNG", (64, 64))
    assert result["images"] == [{"name": "red-apple-1.png", "type": "image/png"}]
    wanted = {"model": "emoji", "seed": 1, "seeds": [1], "steps": 4, "width": 64, "guidance": 4.0, "device": "cpu"}
    assert {name: result[name] for name in wanted} == wanted
    assert result["seconds"] > 0
    assert image.text["prompt"] == "Red apple!"  # type: ignore[attr-defined]
    assert image.text["negative_prompt"] == "blue"  # type: ignore[attr-defined]
    assert "Steps: 4, Sampler: " in image.text["parameters"]  # type: ignore[attr-defined]
    assert set(message.timings) == {"queue_s", "draw_s", "encode_s"}


async def test_an_apple_is_red_and_a_heart_can_be_blue(studio: Studio) -> None:
    apple, heart = studio.drawn["apple"], await studio.draw("blue heart", seed=1).image()
    middle = apple[20:44, 20:44].mean(axis=(0, 1)), heart[20:44, 20:44].mean(axis=(0, 1))
    assert middle[0][0] > middle[0][2] + 60
    assert middle[1][2] > middle[1][0] + 60


async def test_the_same_seed_gives_the_same_pixels_and_another_does_not(studio: Studio) -> None:
    assert (await studio.draw(seed=1).image() == studio.drawn["apple"]).all()
    assert distance(await studio.draw(seed=2).image(), studio.drawn["apple"]) > 0.5


async def test_the_nth_picture_is_that_of_seed_plus_n(studio: Studio) -> None:
    sink = studio.draw(seed=1, n=3)
    images = await sink.images()
    result = (await sink.success()).result
    assert result["seeds"] == [1, 2, 3]
    assert [one["name"] for one in result["images"]] == [f"red-apple-1-{n}.png" for n in (1, 2, 3)]
    for seed, image in zip((1, 2, 3), images, strict=True):
        assert distance(image, await studio.draw(seed=seed).image()) < 1.0


async def test_a_minted_seed_draws_the_same_again(studio: Studio) -> None:
    sink = studio.draw(steps=2)
    image, seed = await sink.image(), (await sink.success()).result["seed"]
    assert (await studio.draw(steps=2, seed=seed).image() == image).all()


@pytest.mark.parametrize("format", ["jpeg", "webp"])
async def test_other_formats_show_the_same_picture(studio: Studio, format: str) -> None:
    sink = studio.draw(seed=1, format=format, quality=95)
    assert distance(await sink.image(), studio.drawn["apple"]) < 6
    assert (await sink.success()).result["images"][0]["type"] == f"image/{format}"


async def test_progress_counts_up_and_the_eta_down_to_nothing(studio: Studio) -> None:
    sink = studio.draw(steps=6)
    await sink.success()
    assert [(step, steps) for step, steps, _ in sink.steps] == [(n, 6) for n in range(1, 7)]
    assert sink.steps[-1][2] in (None, 0.0)
    assert all(eta_s is None or eta_s >= 0 for _, _, eta_s in sink.steps)


async def test_previews_are_small_jpegs_of_a_picture_getting_clearer(studio: Studio) -> None:
    sink = studio.draw(seed=1, steps=20, preview_every=1)
    end = await sink.image()
    shown = [msgspec.convert(chunk, Preview) for chunk in sink.chunks]
    assert shown
    assert [one.step for one in shown] == sorted({one.step for one in shown})
    pictures = [Image.open(io.BytesIO(one.image)) for one in shown]
    assert {picture.format for picture in pictures} == {"JPEG"}
    first, last = (distance(np.asarray(pictures[n].convert("RGB")).astype(int), end) for n in (0, -1))
    assert last <= first


async def test_previews_and_checkpoints_can_be_left_out(studio: Studio) -> None:
    sink = studio.draw(seed=1, preview_every=0, checkpoint_every=0)
    await sink.success()
    assert (sink.chunks, sink.checkpoints) == ([], [])


async def test_a_cancelled_picture_stops_within_a_step_and_frees_its_slot(studio: Studio) -> None:
    sinks = [studio.draw(steps=1000) for _ in range(4)]
    for sink in sinks:
        await sink.until(lambda sink=sink: sink.steps)
        studio.cancel(sink)
    assert [await sink.end() for sink in sinks] == ["stopped"] * 4
    assert all(len(sink.steps) < 900 for sink in sinks)
    assert (await studio.draw(seed=1).image() == studio.drawn["apple"]).all()


@pytest.mark.parametrize("scheduler", [None, "euler-a"])
async def test_a_picture_goes_on_from_its_checkpoint_to_the_same_pixels(studio: Studio, scheduler: str | None) -> None:
    params: dict[str, Any] = {"steps": 8, "checkpoint_every": 3} | ({"scheduler": scheduler} if scheduler else {})
    whole = studio.draw(**params)
    image = await whole.image()
    assert [(step, steps) for step, steps, _ in whole.checkpoints] == [(3, 8), (6, 8)]
    seed = (await whole.success()).result["seed"]
    rest = studio.draw(**params, files={"checkpoint": whole.checkpoints[0][2]})
    assert (await rest.image() == image).all()
    done = await rest.success()
    assert (done.result["resumed_at"], done.result["seed"]) == (3, seed)
    assert rest.steps[0][:2] == (4, 8)
    assert done.measured["images"][0] == pytest.approx(5 / 8)


async def test_a_picture_that_is_sent_away_leaves_a_last_checkpoint(studio: Studio) -> None:
    sink = studio.draw(seed=5, steps=300, checkpoint_every=0)
    await sink.until(lambda: len(sink.steps) >= 3)
    studio.cancel(sink, save=True)
    assert await sink.end() == "stopped"
    ((step, steps, data),) = sink.checkpoints
    assert (steps, step) == (300, sink.steps[-1][0])
    rest = studio.draw(seed=5, steps=300, files={"checkpoint": data})
    await rest.until(lambda: rest.steps)
    assert rest.steps[0][:2] == (step + 1, 300)
    studio.cancel(rest)
    await rest.end()


@pytest.mark.parametrize("data", [b"", b"nonsense" * 100])
async def test_a_broken_checkpoint_costs_the_steps_only(studio: Studio, data: bytes) -> None:
    sink = studio.draw(seed=1, files={"checkpoint": data})
    assert (await sink.image() == studio.drawn["apple"]).all()
    done = await sink.success()
    assert done.result["resumed_at"] == 0
    assert any("from the beginning" in note for note in done.result["notes"])


async def test_four_at_once_are_the_pictures_that_they_are_alone(studio: Studio) -> None:
    prompts = ["red apple", "blue heart", "cat face", "penguin"]
    alone = [await studio.draw(prompt, seed=9).image() for prompt in prompts]
    sinks = [studio.draw(prompt, seed=9) for prompt in prompts]
    together = [await sink.image() for sink in sinks]
    assert max(distance(one, other) for one, other in zip(alone, together, strict=True)) < 1.0


async def test_jobs_of_different_shapes_share_the_runner(studio: Studio) -> None:
    sinks = [
        studio.draw(seed=1, width=32 * n, height=64, steps=3, guidance=guidance)
        for n, guidance in ((1, 4.0), (2, 0.0), (3, 4.0), (2, 1.5))
    ]
    assert [(await sink.image()).shape for sink in sinks] == [(64, 32, 3), (64, 64, 3), (64, 96, 3), (64, 64, 3)]


async def test_an_edit_of_little_strength_stays_near_its_picture(studio: Studio) -> None:
    picture = {"image": png(studio.drawn["apple"])}
    weak, strong = [
        await studio.draw("blue heart", EDIT, picture, seed=3, strength=strength).image() for strength in (0.2, 1.0)
    ]
    assert distance(weak, studio.drawn["apple"]) < distance(strong, studio.drawn["apple"])


async def test_a_mask_keeps_the_rest_to_the_last_bit(studio: Studio) -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 32:] = 255
    files = {"image": png(studio.drawn["apple"]), "mask": png(mask)}
    image = await studio.draw("blue heart", EDIT, files, seed=3).image()
    assert (image[:, :32] == studio.drawn["apple"][:, :32]).all()
    assert distance(image[:, 32:], studio.drawn["apple"][:, 32:]) > 2


async def test_a_large_photograph_is_scaled_and_the_result_says_so(studio: Studio) -> None:
    large = np.asarray(Image.fromarray(studio.drawn["apple"].astype(np.uint8)).resize((600, 300)))
    sink = studio.draw("red apple", EDIT, {"image": png(large)}, steps=2)
    assert (await sink.image()).shape == (40, 88, 3)
    assert any("600x300" in note for note in (await sink.success()).result["notes"])


@pytest.mark.parametrize("format", ["gif", "webp", "mp4"])
async def test_a_film_has_its_frames(studio: Studio, format: str) -> None:
    if format == "mp4":
        pytest.importorskip("imageio_ffmpeg")
    sink = studio.draw("red apple", ANIMATE, prompt_to="blue heart", frames=6, steps=2, seed=1, format=format)
    result = (await sink.success()).result
    assert (result["frames"], result["fps"], len(result["images"])) == (6, 8.0, 1)
    assert result["images"][0]["name"] == f"red-apple-1.{format}"
    if format == "mp4":
        assert sink.payloads[0][4:8] == b"ftyp"
    else:
        film = Image.open(io.BytesIO(sink.payloads[0]))
        assert (film.n_frames, film.size) == (6, (64, 64))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("capability", "params", "files"),
    [
        (GENERATE, {"width": 8192, "height": 8192}, {}),
        (GENERATE, {"scheduler": "heun!"}, {}),
        (GENERATE, {"loras": [{"name": "nobody-has-it"}]}, {}),
        (GENERATE, {"prompt": None, "seed": "x"}, {}),
        (EDIT, {}, {}),
        (EDIT, {}, {"image": b"no picture"}),
        (EDIT, {"width": 64, "height": 64}, {"image": png(np.zeros((9, 9, 3))), "mask": b"\x89PNG\r\n\x1a\n"}),
    ],
)
async def test_a_bad_job_fails_alone(studio: Studio, capability: Capability, params: Any, files: Any) -> None:
    beside = studio.draw(seed=1)
    failure = await fails(studio.draw(**({"prompt": "a cat"} | params), capability=capability, files=files))
    assert failure.code in ("invalid_request", "out_of_memory", "unknown_model", "attempt_failed")
    assert (await beside.image() == studio.drawn["apple"]).all() or distance(
        await beside.image(), studio.drawn["apple"]
    ) < 1


async def test_what_was_measured_matches_what_was_asked(studio: Studio) -> None:
    message: RunDone = await studio.draw(n=2).success()
    assert {unit: count for unit, (count, _) in message.measured.items()} == pytest.approx(
        {"mpix_steps": 64 * 64 * 8 / 1e6, "steps": 8, "mpix": 64 * 64 * 2 / 1e6, "images": 2}
    )
    assert all(seconds > 0 for _, seconds in message.measured.values())


async def test_a_model_whose_files_were_changed_is_not_loaded(
    studio: Studio, tmp_path_factory: pytest.TempPathFactory
) -> None:
    info = studio.model.info | {"sha256": {"unet/config.json": "0" * 64}}
    bad = msgspec.structs.replace(studio.model, name="changed", info=info)
    sink = Drawing()
    studio.node.pool.run(GENERATE, bad, studio.node.settings, "bad/1", {"prompt": "a"}, sink)
    failure = await fails(sink)
    assert failure.code == "runner_unavailable"
    assert "is not the file it should be" in failure.message
