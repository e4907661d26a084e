"""One job under way: what is told to the daemon, when, and what is not."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

np = pytest.importorskip("numpy")
pytest.importorskip("PIL")

from outbid_capabilities.image import canvas, pictures, request  # noqa: E402
from outbid_capabilities.image.engine import Facts  # noqa: E402
from outbid_capabilities.runner_kit import RunError  # noqa: E402
from tests.unit.test_image_pictures import MODEL, edit, file, opened, picture  # noqa: E402

FACTS = Facts(
    steps=8,
    width=64,
    height=48,
    guidance=4.0,
    scheduler="ddim",
    device="cpu",
    dtype="float32",
    seconds=0.2,
    notes=("x",),
)


class Listener:
    """Hears what a canvas tells. `slow` blocks the thread that sends chunks until it is set."""

    def __init__(self) -> None:
        self.cancelled, self.ended = threading.Event(), threading.Event()
        self.save_wanted = False
        self.heard = True
        self.shown = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()
        self.told: list[Any] = []
        self.payloads: Sequence[bytes] = ()

    def chunk(self, data: Mapping[str, Any], *payloads: bytes) -> None:
        self.shown.set()
        assert self.go_on.wait(20)
        self.told.append(("chunk", data["step"], data["image"]))

    def progress(self, step: int, steps: int, note: str = "", eta_s: float | None = None) -> None:
        self.told.append(("progress", step, eta_s))

    def checkpoint(self, step: int, steps: int, data: bytes) -> None:
        self.told.append(("checkpoint", step, data))

    def done(self, result: Any, timings: Any = None, measured: Any = None, payloads: Sequence[bytes] = ()) -> None:
        self.told.append(("done", result, timings))
        self.payloads = payloads
        self.ended.set()

    def raised(self, error: BaseException) -> None:
        self.told.append(("raised", error, None))
        self.ended.set()

    def stopped(self) -> None:
        self.told.append(("stopped", None, None))
        self.ended.set()


@pytest.fixture
def studio() -> Any:
    made = canvas.Studio()
    yield made
    made.close()


def on_canvas(
    studio: canvas.Studio, capability: str = "image.generate", **params: Any
) -> tuple[canvas.JobCanvas, Listener]:
    listener = Listener()
    order = request.parse(capability, {"prompt": "red apple", "seed": 42} | params, {}, MODEL)
    return canvas.JobCanvas(listener, order, studio), listener


def test_previews_are_dropped_and_never_queued(studio: canvas.Studio) -> None:
    drawing, listener = on_canvas(studio, preview_every=1)
    listener.go_on.clear()
    drawing.preview(1, 9, [picture()])
    assert listener.shown.wait(20)
    for step in range(2, 9):
        assert not drawing.preview_due
        drawing.preview(step, 9, [picture()])
    listener.go_on.set()
    drawing.done([picture()], FACTS, {})
    assert listener.ended.wait(20)
    assert [what[1] for what in listener.told if what[0] == "chunk"] == [1]


def test_a_quick_picture_has_no_previews_unless_they_are_asked_for(studio: canvas.Studio) -> None:
    assert not on_canvas(studio)[0].preview_due
    assert on_canvas(studio, preview_every=2)[0].preview_due
    never = on_canvas(studio, preview_every=0)[0]
    never._previewed -= 10
    assert not never.preview_due
    slow = on_canvas(studio)[0]
    slow._previewed -= canvas.PREVIEW_S
    assert slow.preview_due


def test_checkpoints_are_due_every_two_seconds_unless_told_otherwise(studio: canvas.Studio) -> None:
    drawing = on_canvas(studio)[0]
    assert not drawing.checkpoint_due
    drawing._saved -= canvas.CHECKPOINT_S
    assert drawing.checkpoint_due
    drawing.saved(3, 8, b"latents")
    assert not drawing.checkpoint_due
    assert on_canvas(studio, checkpoint_every=3)[0].checkpoint_due
    assert not on_canvas(studio, checkpoint_every=0)[0].checkpoint_due


def test_several_pictures_are_one_preview_side_by_side(studio: canvas.Studio) -> None:
    drawing, listener = on_canvas(studio, preview_every=1, n=3)
    drawing.preview(1, 9, [picture(n) for n in (1, 2, 3)])
    assert listener.shown.wait(20)
    drawing.done([picture(n) for n in (1, 2, 3)], FACTS, {"images": (3.0, 0.2)})
    assert listener.ended.wait(20)
    image = opened(listener.told[0][2])
    assert (image.format, image.size) == ("JPEG", (192, 48))
    result = listener.told[-1][1]
    assert [one["name"] for one in result["images"]] == [f"red-apple-42-{n}.png" for n in (1, 2, 3)]
    assert (result["seed"], result["seeds"], result["notes"]) == (42, [42, 43, 44], ["x"])
    assert [opened(data).text["seed"] for data in listener.payloads] == ["42", "43", "44"]  # type: ignore[attr-defined]


def test_a_large_preview_is_small(studio: canvas.Studio) -> None:
    assert max(opened(pictures.preview([picture(1, 2048, 1024)] * 12)).size) == pictures.PREVIEW_PX


def test_nothing_follows_the_end(studio: canvas.Studio) -> None:
    drawing, listener = on_canvas(studio, preview_every=1)
    drawing.failed(RunError("out of paint", code="out_of_memory"))
    drawing.preview(2, 9, [picture()])
    studio.previews.submit(lambda: None).result(20)
    assert [what[0] for what in listener.told] == ["raised"]
    assert listener.told[0][1].code == "out_of_memory"


def test_a_preview_that_the_end_overtakes_is_not_sent(studio: canvas.Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on, encode = threading.Event(), threading.Event(), pictures.preview

    def slowly(drawn: Sequence[Any]) -> bytes:
        begun.set()
        assert go_on.wait(20)
        return encode(drawn)

    monkeypatch.setattr(pictures, "preview", slowly)
    drawing, listener = on_canvas(studio, preview_every=1)
    drawing.preview(1, 9, [picture()])
    assert begun.wait(20)
    drawing.stopped()
    go_on.set()
    studio.previews.submit(lambda: None).result(20)
    assert [what[0] for what in listener.told] == ["stopped"]


def test_outside_the_mask_the_picture_is_handed_out_as_it_came(studio: canvas.Studio) -> None:
    mask = np.zeros((48, 64), np.uint8)
    mask[:, :10] = 255
    order, listener = edit(file(picture(1)), file(mask), seed=1), Listener()
    canvas.JobCanvas(listener, order, studio).done([picture(5)], FACTS, {})
    assert listener.ended.wait(20)
    found = np.asarray(opened(listener.payloads[0]))
    assert (found[:, :10] == picture(5)[:, :10]).all()
    assert (found[:, 10:] == picture(1)[:, 10:]).all()


def test_a_caller_who_wants_the_result_only_costs_no_previews(studio: canvas.Studio) -> None:
    drawing, listener = on_canvas(studio, preview_every=1)
    assert drawing.preview_due
    listener.heard = False
    assert not drawing.preview_due
    drawing.stepped(1, 9, 0.5)
    drawing.preview(1, 9, [picture()])
    drawing.done([picture()], FACTS, {})
    assert listener.ended.wait(20)
    assert [what[0] for what in listener.told] == ["done"]


def test_an_error_after_a_cancellation_is_a_stop(studio: canvas.Studio) -> None:
    drawing, listener = on_canvas(studio)
    listener.cancelled.set()
    drawing.failed(RuntimeError("torn down"))
    assert [what[0] for what in listener.told] == ["stopped"]


def test_files_that_cannot_be_written_fail_the_job_with_the_reason(studio: canvas.Studio) -> None:
    drawing, listener = on_canvas(studio, n=2)
    drawing.done([picture()], FACTS, {})  # one picture for two seeds
    assert listener.ended.wait(20)
    assert listener.told[0][0] == "raised"


def test_a_film_is_one_file(studio: canvas.Studio) -> None:
    drawing, listener = on_canvas(studio, "image.animate", frames=5, fps=10.0)
    drawing.done([picture(n) for n in range(5)], FACTS, {})
    assert listener.ended.wait(20)
    result = listener.told[-1][1]
    assert result["images"] == [{"name": "red-apple-42.gif", "type": "image/gif"}]
    assert (result["frames"], result["fps"]) == (5, 10.0)
    assert opened(listener.payloads[0]).n_frames == 5  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("Red apple!", "red-apple-7.png"),
        ("../../etc/passwd", "etc-passwd-7.png"),
        ("crème brûlée", "creme-brulee-7.png"),
        ("日本", "generate-7.png"),
        ("a" * 5000, "a" * 48 + "-7.png"),
    ],
)
def test_file_names_are_safe_everywhere(prompt: str, name: str) -> None:
    assert canvas.names(request.parse("image.generate", {"prompt": prompt, "seed": 7}, {}, MODEL)) == [name]
