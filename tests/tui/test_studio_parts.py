"""What is to be drawn, how far it is, and the picture in cells."""

from __future__ import annotations

import doctest

import PIL.Image
import pytest
from textual.app import App, ComposeResult

from outbid import Step
from outbid_contracts.errors import AttemptFailed, InvalidRequest
from outbid_contracts.events import AttemptLost, Awarded
from outbid_contracts.ids import JobId, NodeId
from outbid_tui import asking
from outbid_tui.studio import graphics, order
from outbid_tui.studio.sketch import Sketch
from outbid_tui.studio.view import HalfBlocks, PictureView, strips

JOB = JobId("j1")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"size": "big"}, "Size: 'big' is not a size"),
        ({"steps": "8.5"}, "Steps: '8.5' is not a whole number"),
        ({"guidance": "much"}, "Guidance: 'much' is not a number"),
    ],
)
def test_what_cannot_be_read_is_said_with_its_field(words: dict[str, str], said: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        order.parameters(words)
    assert refused.value.message.startswith(said)


def test_what_is_written_into_a_picture_fills_the_form_again() -> None:
    told = {
        "prompt": "red apple",
        "seed": "7",
        "steps": "8",
        "guidance": "2",
        "width": "64",
        "height": "32",
        "dpi": "9",
    }
    found = order.words_of(told)
    assert order.parameters(found) == {"width": 64, "height": 32, "steps": 8, "guidance": 2.0, "seed": 7}
    assert order.facts(told) == "64x32 · 8 steps · seed 7 · red apple"
    assert order.words_of({}) == {}


def test_a_drawing_says_how_far_it_is_and_what_happened() -> None:
    sketch = Sketch(begun_s=100.0)
    assert sketch.line(102.0) == "asking the mesh for bids … 2 s"
    pi, laptop = (
        Awarded(job=JOB, node=NodeId(name), name=name, attempt=number, promised_s=1, step=step)
        for name, number, step in (("pi", 1, 0), ("laptop", 2, 10))
    )
    sketch.heard(pi, str)
    sketch.came(Step(step=10, steps=20, eta_s=4.0, node="pi"))
    assert sketch.line(103.0) == f"pi {'━' * 12}{'╌' * 12} step 10 of 20 · 4 s left"
    sketch.came(Step(step=10, steps=20, preview=b"x", node="pi"))
    assert sketch.line(103.0).endswith("4 s left")
    sketch.heard(AttemptLost(job=JOB, node=NodeId("pi"), attempt=1, error=AttemptFailed("x").body(), retry=True), str)
    assert sketch.line(104.0) == "pi was lost; another machine is looked for … 4 s"
    sketch.heard(laptop, str)
    assert sketch.happened == ["pi was lost; laptop goes on at step 10"]


def test_a_cell_shows_two_pixels_one_above_the_other() -> None:
    image = PIL.Image.new("RGB", (2, 2))
    image.putpixel((0, 0), (255, 0, 0))
    image.putpixel((0, 1), (0, 0, 255))
    (strip,) = strips(image, 2, 1)
    style = next(iter(strip)).style
    assert style is not None
    assert (style.color, style.bgcolor) == (style.color.from_rgb(255, 0, 0), style.color.from_rgb(0, 0, 255))  # type: ignore[union-attr]


async def test_a_picture_is_as_large_as_fits_in_its_proportions_and_follows_the_size() -> None:
    class Showing(App[None]):
        def compose(self) -> ComposeResult:
            yield PictureView()

    app = Showing()
    async with app.run_test(size=(80, 24)) as pilot:
        view = app.query_one(PictureView)
        view.say("nothing yet")
        view.show(PIL.Image.new("RGB", (64, 64)))
        await pilot.pause()
        shown = app.query_one(HalfBlocks)
        assert shown.size == (48, 24)
        await pilot.resize_terminal(30, 30)
        await pilot.pause()
        assert shown.size == (30, 15)
        view.show(PIL.Image.new("RGB", (128, 64)))
        await pilot.pause()
        assert shown.size == (30, 8)


def test_nobody_asks_a_terminal_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert graphics.ask_terminal() is None
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TEXTUAL_DRIVER", "textual.drivers.web_driver:WebDriver")
    assert graphics.ask_terminal() is None


@pytest.mark.parametrize("module", [asking, order])
def test_doctests(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]
