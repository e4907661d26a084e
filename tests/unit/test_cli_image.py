"""`outbid image` without a mesh: what the words mean, where the files go, what a terminal shows."""

from __future__ import annotations

import asyncio
import hashlib
import io
import re
import sys
from pathlib import Path
from typing import Any

import click
import PIL.Image
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from outbid import Mesh
from outbid.artifacts import Artifact
from outbid.cli import drawing, imaging, params, picture, saving
from outbid.cli.main import cli
from outbid.images import INPUT_BYTES, Picture, Step, sources
from outbid_contracts import artifacts as wire
from outbid_contracts.capability import Capability
from outbid_contracts.errors import OutbidError, PayloadTooLarge, StorageFailed
from outbid_contracts.events import AttemptLost, Awarded, Finished
from outbid_contracts.ids import JobId, NodeId
from outbid_contracts.images import EDIT, EditParams, ImageParams, ImageResult
from outbid_contracts.schema import request_schema

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
NOTHING: dict[str, Any] = dict.fromkeys(parameter.name for parameter in imaging.image.params if parameter.name) | {
    "loras": (),
    "animate": False,
    "no_loop": False,
    "no_metadata": False,
    "no_preview": False,
}


def artifact(content: bytes, *, type: str = "image/png", number: int = 0, here: bool = True) -> wire.Artifact:
    return wire.Artifact(
        id=f"job.1.{number}",
        name=f"{number}.png",
        type=type,
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        node=NodeId("abcdefgh"),
        bucket="ARTIFACTS_abcdefgh",
        data=content if here else None,
    )


def pictures(*contents: bytes, seed: int = 7, type: str = "image/png") -> list[Picture]:
    return [Picture(Mesh(), artifact(content, type=type, number=n), seed + n) for n, content in enumerate(contents)]


def png(size: tuple[int, int], color: tuple[int, int, int] = RED) -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", size, color).save(file, "PNG")
    return file.getvalue()


def saved(out: str | None, *contents: bytes, prompt: str | None = "red apple") -> list[Path]:
    return asyncio.run(saving.save(pictures(*contents), out, prompt))


# -- files -------------------------------------------------------------------------------------------------------------


@given(st.text(), st.integers(0, 2**53))
def test_a_name_from_any_prompt_is_a_plain_file_name(prompt: str, seed: int) -> None:
    name = saving.default_name(prompt, seed)
    assert Path(name).name == name
    assert not name.startswith((".", "-"))
    assert len(name) <= saving.NAME_LENGTH + 20
    assert name.isprintable()


def test_a_default_name_never_overwrites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = [saved(None, content)[0] for content in (b"first", b"second", b"third")]
    assert [path.name for path in paths] == ["red-apple-7.png", "red-apple-7-2.png", "red-apple-7-3.png"]
    assert [path.read_bytes() for path in paths] == [b"first", b"second", b"third"]


def test_a_folder_gets_names_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "red-apple-8.png").write_bytes(b"mine")
    paths = saved(str(tmp_path), b"a", b"b")
    assert [path.name for path in paths] == ["red-apple-7.png", "red-apple-8-2.png"]
    assert (tmp_path / "red-apple-8.png").read_bytes() == b"mine"


def test_several_pictures_of_one_file_name_are_numbered(tmp_path: Path) -> None:
    assert [path.name for path in saved(str(tmp_path / "x.png"), b"a", b"b")] == ["x-1.png", "x-2.png"]


def test_a_named_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"old")
    (path,) = saved(str(tmp_path / "x.png"), b"new")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.png"]


def test_what_cannot_be_saved_leaves_nothing_behind(tmp_path: Path) -> None:
    class Failing(Picture):
        async def save(self, path: Any, *, resume: bool = True) -> Path:
            raise OSError(28, "No space left on device")

    one = Failing(Mesh(), artifact(b"x"), 7)
    with pytest.raises(StorageFailed, match=r"red-apple-7\.png cannot be written: No space left"):
        asyncio.run(saving.save([one], str(tmp_path), "red apple"))
    assert list(tmp_path.iterdir()) == []


def test_an_artifact_without_a_prompt_keeps_its_name_and_no_folders_of_it(tmp_path: Path) -> None:
    outside = Artifact(Mesh(), wire.Artifact(**{**_fields(artifact(b"x")), "name": "../../evil.png"}))
    (path,) = asyncio.run(saving.save([outside], str(tmp_path)))
    assert path == tmp_path / "evil.png"


def _fields(one: wire.Artifact) -> dict[str, Any]:
    return {name: getattr(one, name) for name in one.__struct_fields__}


@pytest.mark.parametrize("out", ["nowhere/x.png", "nowhere/"])
def test_a_place_that_is_not_there_is_refused_before_anything_is_drawn(out: str, tmp_path: Path) -> None:
    with pytest.raises(click.BadParameter, match="there is no folder"):
        saving.check(str(tmp_path / out) + ("/" if out.endswith("/") else ""))


# -- what the words mean -----------------------------------------------------------------------------------------------


def test_options_become_parameters() -> None:
    options = NOTHING | {"size": "64x32", "loras": ("ink:0.5",), "n": 2, "no_metadata": True, "out": "x.jpg", "seed": 0}
    assert imaging.parameters(options) == {
        "width": 64,
        "height": 32,
        "loras": [{"name": "ink", "weight": 0.5}],
        "n": 2,
        "metadata": False,
        "format": "jpeg",
        "seed": 0,
    }


def test_nothing_given_leaves_everything_to_the_model() -> None:
    assert imaging.parameters(NOTHING) == {}


@pytest.mark.parametrize("size", ["64", "64x", "x64", "64*64", "-8x8", "8x8x8", "64 x 64"])
def test_a_size_that_is_none_is_refused(size: str) -> None:
    with pytest.raises(click.BadParameter, match="write 512x512"):
        imaging.size(size)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--strength", "0.5"], "--strength is for --edit"),
        (["--to", "pear"], "--to is for --animate"),
        (["--animate", "--n", "2"], "a film has --frames"),
        (["--animate", "--edit", "x.png"], "do not go together"),
        (["--size", "8x8", "--width", "8"], "not with --width"),
        (["-o", "x.png", "--format", "webp"], "x.png is no webp"),
        (["--format", "gif"], "films are made by --animate"),
        (["-o", "x.mp4"], "films are made by --animate"),
        (["--animate", "-o", "x.png"], "gif, webp or mp4"),
        (["--lora", "ink:much"], "is not a number"),
        (["--scheduler", "magic"], "is not one of"),
    ],
)
def test_words_that_do_not_fit_are_wrong_usage(words: list[str], message: str) -> None:
    done = CliRunner().invoke(cli, ["image", "red apple", *words])
    assert done.exit_code == 2
    assert message in done.output


def test_a_picture_too_large_for_a_request_is_refused_here(tmp_path: Path) -> None:
    (large := tmp_path / "large.png").write_bytes(bytes(INPUT_BYTES + 1))
    with pytest.raises(PayloadTooLarge, match=r"large\.png: 6\.0 MiB of pictures; a request takes 6"):
        sources(image=large)
    with pytest.raises(PayloadTooLarge):
        sources(image=bytes(INPUT_BYTES // 2 + 1), mask=bytes(INPUT_BYTES // 2))


def test_a_picture_is_its_content_a_path_an_artifact_or_an_id(tmp_path: Path) -> None:
    (file := tmp_path / "x.png").write_bytes(b"content")
    made = Artifact(Mesh(), artifact(b"x"))
    assert sources(image=b"content") == sources(image=file) == sources(image=str(file)) == {"image": b"content"}
    assert sources(image=made, mask="job.1.3") == {"image_from": "job.1.0", "mask_from": "job.1.3"}


def test_a_parameter_of_bytes_is_read_from_a_file(tmp_path: Path) -> None:
    schema = request_schema(Capability(name=EDIT, summary="", params=EditParams, result=ImageResult, runner="x:Y"))
    (file := tmp_path / "x.png").write_bytes(b"content")
    read = params.read([f"image=@{file}", "prompt=@home", "mask=YQ=="], schema)
    assert read == {"image": b"content", "prompt": "@home", "mask": "YQ=="}
    with pytest.raises(click.BadParameter, match=r"image: nowhere\.png cannot be read"):
        params.read(["image=@nowhere.png"], schema)


def test_text_that_begins_with_an_at_sign_stays_text_where_no_file_is_wanted() -> None:
    schema = request_schema(Capability(name="x.y", summary="", params=ImageParams, result=ImageResult, runner="x:Y"))
    assert params.read(["prompt=@home"], schema) == {"prompt": "@home"}
    assert params.read(["image=@home"], None) == {"image": "@home"}


# -- what a terminal shows ---------------------------------------------------------------------------------------------


def test_a_character_shows_two_pixels() -> None:
    image = PIL.Image.new("RGB", (2, 2))
    image.putdata([RED, GREEN, BLUE, WHITE])
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system="truecolor", width=10)

    console.print(picture.HalfBlocks(image))

    left = "\x1b[38;2;255;0;0;48;2;0;0;255m▀\x1b[0m"
    right = "\x1b[38;2;0;255;0;48;2;255;255;255m▀\x1b[0m"
    assert file.getvalue() == f"{left}{right}\n"


def test_a_small_picture_is_enlarged_to_sharp_squares() -> None:
    image = PIL.Image.new("RGB", (2, 2))
    image.putdata([RED, GREEN, BLUE, WHITE])
    lines = list(picture.rows(picture.half_blocks(image, 8, 4)._image))
    assert lines == [[(RED, RED)] * 4 + [(GREEN, GREEN)] * 4] * 2 + [[(BLUE, BLUE)] * 4 + [(WHITE, WHITE)] * 4] * 2


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 300), st.integers(1, 100))
def test_a_picture_of_any_shape_fits(width: int, height: int, columns: int, lines: int) -> None:
    wide, high = picture.cells((width, height), columns, lines)
    assert 1 <= wide <= columns
    assert 1 <= high <= lines


def test_what_is_no_picture_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert picture.decode(b"no picture") is None
    assert picture.decode(png((64, 64))[:60]) is None
    picture.show([b"no picture", png((4, 4))])
    assert capsys.readouterr().out == "", "standard output is no terminal"


def test_without_pillow_nothing_is_shown_and_nothing_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    content = png((4, 4))
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    assert picture.decode(content) is None
    assert picture.preview(content, Console(width=80, height=24)) is None


def test_several_pictures_are_shown_in_rows_of_four() -> None:
    images = [PIL.Image.new("RGB", (32, 32), RED) for _ in range(5)]
    assert picture.side_by_side(images).size == (4 * 33 - 1, 2 * 33 - 1)


def display(width: int = 80) -> tuple[drawing.Terminal, io.StringIO]:
    show, file = drawing.Terminal(), io.StringIO()
    show._console = Console(
        file=file, force_terminal=True, highlight=False, color_system="truecolor", width=width, height=24
    )
    show._live = drawing._Live(show._console)
    return show, file


def test_steps_and_previews_are_shown_in_place_and_go_in_the_end() -> None:
    show, file = display()
    show.step(Step(step=3, steps=8, eta_s=2.2, node="pi"))
    show.step(Step(step=4, steps=8, node="pi", preview=png((64, 64)), preview_type="image/png"))
    shown = file.getvalue()
    show.close()

    assert "step 3 of 8" in shown
    assert "2 s left" in shown
    assert "38;2;255;0;0;48;2;255;0;0m▀" in shown
    assert file.getvalue().endswith("\x1b[2K"), "the lines are erased"


def test_a_lost_attempt_and_where_it_went_on_stay_on_the_screen() -> None:
    job, error = JobId("j"), OutbidError("desk is gone").body()
    show, file = display()
    show.event(Awarded(job=job, node=NodeId("a"), name="desk", attempt=1, promised_s=1))
    show.event(AttemptLost(job=job, node=NodeId("a"), attempt=1, error=error, retry=True))
    show.event(Awarded(job=job, node=NodeId("b"), name="pi", attempt=2, promised_s=1, step=20))
    show.event(Awarded(job=job, node=NodeId("a"), name="desk", attempt=3, promised_s=1))
    show.close()
    assert re.findall(r"\x1b\[33m(.+?)\x1b\[0m", file.getvalue()) == [
        "desk is gone; another node takes over",
        "went on at step 20 on pi",
        "began again on desk",
    ]


def test_a_markup_in_a_name_does_nothing() -> None:
    show, file = display()
    show.step(Step(step=1, steps=2, node="[red]pi[/red]"))
    show.close()
    assert "[red]pi[/red]" in file.getvalue()


def test_json_lines_have_no_bytes_of_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    lines, content = drawing.JsonLines(), png((8, 8))
    lines.step(Step(step=1, steps=2, node="pi", preview=content, preview_type="image/png"))
    asyncio.run(lines.end(_result(content), [Path("x.png")]))
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == (
        f'{{"event":"preview","step":1,"steps":2,"node":"pi","type":"image/png","size":{len(content)}}}'
    )
    assert '"data"' not in printed[1]
    assert '"paths":["x.png"]' in printed[1]


def _result(content: bytes) -> Any:
    from outbid.images import Pictures

    result = {
        "images": [_fields(artifact(content))],
        "model": "emoji",
        "seed": 7,
        "seeds": [7],
        "steps": 8,
        "width": 8,
        "height": 8,
        "guidance": 3.0,
        "scheduler": "ddim",
        "seconds": 0.2,
        "device": "cpu",
        "dtype": "fp32",
    }
    done = Finished(job=JobId("job"), node=NodeId("abcdefgh"), name="pi", attempt=1, result=result)
    return Pictures(Mesh(), done.flat())


def test_the_facts_of_a_picture_in_one_line() -> None:
    assert drawing.facts(_result(b"x")) == "pi · emoji · 8x8 · 8 steps · seed 7 · 0.2 s"
