"""Pictures by the command line: real daemons, the real built-in model on ONNX Runtime, a real terminal."""

from __future__ import annotations

import asyncio
import fcntl
import io
import json
import os
import pty
import re
import shlex
import signal
import struct
import subprocess
import sys
import termios
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import PIL.Image
import pytest

from outbid_contracts.images import MAX_STEPS
from outbid_contracts.messages import JobState
from tests.fleet import NodeProcess, fleet, mesh_of

pytestmark = pytest.mark.model

ONNX = ("--set", "image.engine=onnx")
PATIENT_S = 60


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    with fleet(tmp_path_factory.mktemp("image")) as running:
        (alone,) = asyncio.run(running.start("pi", flags=ONNX))
        yield alone
        assert not alone.lines("task_failed"), alone.text()


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def command(node: NodeProcess, *words: str) -> Sequence[str]:
    return [sys.executable, "-m", "outbid", *words, "--state", str(node.state)]


def outbid(node: NodeProcess, *words: str, code: int = 0) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(command(node, *words), capture_output=True, timeout=PATIENT_S, check=False, input=b"")
    assert done.returncode == code, f"{done.returncode}: {done.stdout!r}\n{done.stderr.decode()}"
    return done


def printed(node: NodeProcess, *words: str) -> str:
    return outbid(node, *words).stdout.decode().removesuffix("\n")


def picture(file: str | Path) -> PIL.Image.Image:
    image = PIL.Image.open(file)
    image.load()
    return image


# -- drawing -----------------------------------------------------------------------------------------------------------


def test_a_picture_is_drawn_and_saved_with_what_it_was_made_from(node: NodeProcess) -> None:
    done = outbid(node, "image", "red apple", "-o", "x.png", "--seed", "3")

    image = picture("x.png")
    assert done.stdout == b"x.png\n"
    assert (image.format, image.size) == ("PNG", (64, 64))
    assert (image.info["prompt"], image.info["seed"], image.info["model"]) == ("red apple", "3", "emoji")
    assert re.search(rb"pi \xc2\xb7 emoji \xc2\xb7 64x64 .* seed 3 .* outbid why \w+", done.stderr)


def test_the_same_seed_gives_the_same_picture_under_a_new_name(node: NodeProcess) -> None:
    names = [printed(node, "image", "red apple", "--seed", "3") for _ in range(2)]
    assert names == ["red-apple-3.png", "red-apple-3-2.png"]
    assert picture(names[0]).tobytes() == picture(names[1]).tobytes()


def test_events_come_as_json_lines_without_pictures_and_the_paths_last(node: NodeProcess) -> None:
    lines = printed(node, "image", "blue heart", "--json", "-n", "2", "-o", "x.webp", "--steps", "6").splitlines()
    events = [json.loads(line) for line in lines]
    assert events[0]["event"] == "awarded"
    assert [event["step"] for event in events if event["event"] == "progress"] == [1, 2, 3, 4, 5, 6]
    assert (events[-1]["event"], events[-1]["paths"]) == ("done", ["x-1.webp", "x-2.webp"])
    assert max(map(len, lines)) < 4000
    assert picture("x-2.webp").format == "WEBP"


def test_without_metadata_nothing_of_the_prompt_is_in_the_file(node: NodeProcess) -> None:
    outbid(node, "image", "red apple", "-o", "x.png", "--no-metadata")
    assert picture("x.png").info == {}
    assert b"apple" not in Path("x.png").read_bytes()


def test_a_picture_goes_to_standard_output_for_other_programs(node: NodeProcess) -> None:
    data = outbid(node, "image", "red apple", "-o", "-").stdout
    assert PIL.Image.open(io.BytesIO(data)).size == (64, 64)


def test_a_picture_is_drawn_on_from_a_file_an_artifact_or_a_job(node: NodeProcess) -> None:
    lines = printed(node, "image", "red apple", "-o", "x.png", "--json").splitlines()
    done = json.loads(lines[-1])
    for source in ("x.png", done["images"][0]["id"], done["job"]):
        outbid(node, "image", "green apple", "--edit", source, "--strength", "0.4", "--seed", "5", "-o", "y.png")
        assert picture("y.png").size == (64, 64)
        if source == "x.png":
            first = picture("y.png").tobytes()
        assert picture("y.png").tobytes() == first, "the same picture, wherever it comes from"


def test_a_film_is_made_of_one_prompt_and_another(node: NodeProcess) -> None:
    words = ("--animate", "--frames", "3", "--steps", "3", "--to", "green apple")
    outbid(node, "image", "red apple", *words, "-o", "x.gif")
    film = picture("x.gif")
    assert (film.format, getattr(film, "n_frames", 1)) == ("GIF", 3)


def test_ctrl_c_cancels_the_job(node: NodeProcess) -> None:
    words = command(node, "image", "red apple", "--steps", str(MAX_STEPS), "--job", "long", "--json")
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert any(b'"progress"' in line for line in process.stdout), "it has begun"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=PATIENT_S)

    async def state() -> JobState:
        async with mesh_of(node) as mesh:
            return (await mesh.job("long")).state

    assert (process.returncode, asyncio.run(state())) == (130, "cancelled"), said
    assert b"cancelled job long" in said
    assert not list(Path().iterdir())


# -- in a terminal -----------------------------------------------------------------------------------------------------


def in_a_terminal(words: Sequence[str], answers: Mapping[bytes, bytes] = {}) -> str:
    """All that the command writes to a terminal of 80 x 24. `answers`: what that says to its questions."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = os.environ | {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
    with subprocess.Popen(words, stdin=follower, stdout=follower, stderr=follower, env=environment) as process:
        os.close(follower)
        written = bytearray()
        try:
            while piece := os.read(leader, 65536):
                written += piece
                for question in filter(written.endswith, answers):
                    os.write(leader, answers[question])
        except OSError:  # how Linux says that the other end is closed
            pass
        os.close(leader)
    text = written.decode()
    assert process.returncode == 0, text
    return text


def test_a_terminal_shows_the_steps_the_preview_and_the_picture(node: NodeProcess) -> None:
    text = in_a_terminal(command(node, "image", "red apple", "--steps", "40", "-o", "x.png"))
    meanwhile, _, end = text.rpartition("\x1b[?25h")  # the cursor comes back where the progress goes

    assert "step 40 of 40" in meanwhile
    assert "━" in meanwhile
    assert "▀" in meanwhile, "a preview"
    rows = [line for line in end.splitlines() if "▀" in line]
    assert (len(rows), {row.count("▀") for row in rows}) == (20, {40}), "enlarged to what fits"
    reds = [tuple(map(int, found)) for found in re.findall(r"38;2;(\d+);(\d+);(\d+)", end)]
    assert sum(r > 150 and g < 110 and b < 110 for r, g, b in reds) > len(reds) / 8, "a red apple"
    assert "x.png\r\n" in end
    assert "Traceback" not in text


def test_a_terminal_that_says_it_has_sixels_gets_them(node: NodeProcess) -> None:
    """In one of a few tries: textual-image waits a tenth of a second for the answer."""
    outbid(node, "image", "red apple", "--job", "sixels", "-o", "x.png")
    answers = {b"\x1b[c": b"\x1b[?62;4;22c", b"\x1b[16t": b"\x1b[6;20;10t"}
    for _ in range(5):
        text = in_a_terminal(command(node, "result", "sixels"), answers)
        if "\x1bP" in text:
            break
    assert "\x1bP" in text, "the beginning of sixels"
    assert "▀" not in text


def test_no_show_and_no_preview_show_no_picture(node: NodeProcess) -> None:
    text = in_a_terminal(command(node, "image", "red apple", "--no-show", "--no-preview", "-o", "x.png"))
    assert "▀" not in text
    assert "step 8 of 8" in text


def test_watching_a_picture_floods_no_terminal(node: NodeProcess) -> None:
    job = printed(node, "submit", "image.generate", "-p", "prompt=red apple", "-p", "steps=20", "-p", "preview_every=1")
    text = in_a_terminal(command(node, "watch", job))
    assert "step 20 of 20" in text
    assert '"image"' not in text
    assert max(map(len, re.split(r"[\r\n]", text))) < 400
    assert f"{job}." in text, "the artifact's id"


# -- jobs that are over ------------------------------------------------------------------------------------------------


def test_the_pictures_of_a_durable_job_are_listed_saved_and_shown(node: NodeProcess) -> None:
    job = printed(node, "submit", "image.generate", "-p", "prompt=red apple", "-p", "n=2", "-p", "seed=3")
    listed = outbid(node, "result", job, "--wait")

    assert len(re.findall(rf"{job}\.1\.[01] +red-apple-\S+ +image/png +\d+\.\d KiB", listed.stdout.decode())) == 2
    assert f"outbid result {job} -o FILE saves them".encode() in listed.stderr
    assert printed(node, "result", job, "-o", "y.png").splitlines() == ["y-1.png", "y-2.png"]
    assert picture("y-1.png").info["prompt"] == "red apple"
    assert json.loads(printed(node, "result", job, "--json"))["seeds"] == [3, 4]
    assert "▀" in in_a_terminal(command(node, "result", job))


def test_the_pictures_of_an_interactive_job_are_found_afterwards(node: NodeProcess) -> None:
    outbid(node, "image", "red apple", "--job", "before", "-o", "x.png")
    assert printed(node, "result", "before", "-o", "y.png") == "y.png"
    assert Path("x.png").read_bytes() == Path("y.png").read_bytes()
    assert "before.1.0" in printed(node, "artifacts", "before")
    assert json.loads(printed(node, "artifacts", "--json"))[0]["id"] == "before.1.0", "the newest first"
    assert b"no node knows job 'never'" in outbid(node, "result", "never", "-o", "z.png", code=1).stderr


def test_a_durable_edit_takes_its_picture_from_a_file(node: NodeProcess) -> None:
    outbid(node, "image", "red apple", "-o", "x.png")
    words = ("-p", "prompt=green apple", "-p", "image=@x.png", "-p", "strength=0.5")
    job = printed(node, "submit", "image.edit", *words)
    assert printed(node, "result", job, "--wait", "-o", "y.png") == "y.png"
    assert picture("y.png").size == (64, 64)


# -- what cannot be ----------------------------------------------------------------------------------------------------


def _bomb() -> bytes:
    """A PNG of 900 million pixels in some kilobytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(10**7)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        ([""], 1, "`prompt` is empty"),
        (["a" * 100_000], 1, "100000 characters; at most 8000"),
        (["x", "--width", "63"], 1, "multiple of 8"),
        (["x", "--steps", "100000"], 1, "<= 1000"),
        (["x", "--guidance", "nan"], 1, "guidance"),
        (["x", "--scheduler", "magic"], 2, "'magic' is not one of"),
        (["x", "--model", "nosuch"], 1, "no node has model 'nosuch'"),
        (["x", "--edit", "no-picture"], 1, "not a PNG, JPEG or WebP file"),
        (["x", "--edit", "bomb.png"], 1, "too large"),
        (["x", "--edit", "truncated.png"], 1, "broken"),
        (["x", "--edit", "huge.png"], 1, "a request takes 6"),
        (["x", "--edit", "nowhere.png"], 2, "no file here, and no artifact or job"),
        (["x", "--edit", "some.1.0"], 1, "some.1.0"),
        (["x", "-o", "nowhere/x.png"], 2, "there is no folder nowhere"),
    ],
    ids=lambda value: "-".join(value)[:30] if isinstance(value, list) else "",
)
def test_what_cannot_be_drawn_is_a_sentence(node: NodeProcess, words: list[str], code: int, sentence: str) -> None:
    Path("no-picture").write_bytes(b"no picture")
    Path("bomb.png").write_bytes(_bomb())
    Path("huge.png").write_bytes(bytes(7 * 2**20))
    PIL.Image.effect_noise((64, 64), 50).save("whole.png")
    Path("truncated.png").write_bytes(Path("whole.png").read_bytes()[:1500])

    said = outbid(node, "image", *words, code=code).stderr.decode()

    assert sentence in said
    assert "Traceback" not in said
    assert len(said.splitlines()[-1]) < 300
    assert node.process is not None
    assert node.process.poll() is None


def test_a_disk_that_takes_no_more_leaves_the_picture_with_the_mesh(node: NodeProcess) -> None:
    words = shlex.join(command(node, "image", "red apple", "--job", "kept", "-o", "x.png"))
    limited = ["bash", "-c", f"ulimit -f 2; exec {words}"]
    done = subprocess.run(limited, capture_output=True, timeout=PATIENT_S, check=False)

    assert (done.returncode, done.stdout) == (1, b"")
    assert b"x.png cannot be written: File too large; `outbid result kept -o FILE` tries again" in done.stderr
    assert not Path("x.png").exists()
    assert printed(node, "result", "kept", "-o", "x.png") == "x.png"
    assert picture("x.png").size == (64, 64)


def test_nothing_of_all_this_has_harmed_the_node(node: NodeProcess) -> None:
    outbid(node, "image", "red apple", "-o", "x.png")
    assert not node.lines("endpoint_failed")
