"""Pictures that come in are not trusted; files that go out say what they were made from."""

from __future__ import annotations

import io
import struct
import subprocess
import time
import zlib
from typing import Any

import msgpack
import pytest

np = pytest.importorskip("numpy")
pytest.importorskip("PIL")

from PIL import Image, ImageSequence  # noqa: E402

from outbid_capabilities.image import files, film, pictures, request  # noqa: E402
from outbid_capabilities.runner_kit import RunError  # noqa: E402

MODEL = request.Model(
    name="emoji",
    engine="onnx",
    defaults={"width": 64, "height": 64, "steps": 8, "guidance": 4.0},
    loras={"sketch": "/loras/sketch.safetensors"},
)
TOLD = {
    "prompt": "red apple 🍎",
    "negative_prompt": "blue",
    "seed": 42,
    "model": "emoji",
    "steps": 8,
    "guidance": 4.0,
    "scheduler": "ddim",
    "width": 64,
    "height": 48,
}


def picture(seed: int = 1, width: int = 64, height: int = 48) -> Any:
    """Smooth colours, so that lossy formats keep them."""
    y, x = np.mgrid[0:height, 0:width]
    channels = [128 + 120 * np.sin((x * (seed + n) + y * n) / 40.0) for n in (1, 2, 3)]
    return np.stack(channels, axis=-1).astype(np.uint8)


def file(image: Any, format: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(out, format, **options)
    return out.getvalue()


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def refused(data: bytes) -> str:
    with pytest.raises(RunError) as failure:
        pictures.decode(data, "image")
    assert (failure.value.code, failure.value.retry) == ("invalid_request", False)
    return failure.value.message


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width: int, height: int) -> bytes:
    """A PNG of a hundred bytes that would be gigabytes."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


# -- what comes in -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_a_picture_comes_in_as_it_is(format: str) -> None:
    whole = np.asarray(pictures.decode(file(picture(), format, quality=95), "image")).astype(int)
    assert whole.shape == (48, 64, 3)
    assert np.abs(whole - picture()).mean() < (0.01 if format == "PNG" else 4)


@pytest.mark.parametrize(
    "data", [b"", b"\0" * 100, b"hello" * 1000, b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP", b"\xff\xd8"]
)
def test_what_is_no_picture_is_the_callers_mistake(data: bytes) -> None:
    assert "`image`" in refused(data)


@pytest.mark.parametrize("format", ["GIF", "BMP", "TIFF", "PPM", "ICO", "PDF"])
def test_only_three_formats_are_ever_decoded(format: str) -> None:
    assert "not a PNG, JPEG or WebP file" in refused(file(picture(), format))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("part", [0.2, 0.5, 0.9])
def test_a_picture_cut_off_is_the_callers_mistake(format: str, part: float) -> None:
    data = file(picture(width=256, height=256), format)
    assert "`image`" in refused(data[: int(len(data) * part)])


@pytest.mark.parametrize(
    ("width", "height"), [(9_000, 9_000), (50_000, 50_000), (2**31 - 1, 2**31 - 1), (64_000_001, 1)]
)
def test_a_decompression_bomb_is_refused_by_its_header(width: int, height: int) -> None:
    begun = time.monotonic()
    assert "too large" in refused(bomb(width, height))
    assert time.monotonic() - begun < 1.0


def test_a_damaged_picture_never_raises_anything_else() -> None:
    rng, codes = np.random.default_rng(7), set()
    for format in ("PNG", "JPEG", "WEBP"):
        whole = np.frombuffer(file(picture(), format), np.uint8)
        for _ in range(150):
            data = whole.copy()
            data[rng.integers(0, len(data), 4)] = rng.integers(0, 256, 4)
            try:
                assert pictures.decode(data.tobytes(), "image").mode == "RGB"
            except RunError as error:
                codes.add(error.code)
    assert codes == {"invalid_request"}


def test_the_orientation_a_camera_noted_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    assert pictures.decode(file(picture(), "JPEG", exif=exif), "image").size == (48, 64)


def test_what_is_transparent_becomes_white() -> None:
    image = Image.new("RGBA", (8, 8), (200, 0, 0, 0))
    image.putpixel((3, 3), (0, 0, 255, 255))
    flat = pictures.decode(file(image), "image")
    assert (flat.getpixel((0, 0)), flat.getpixel((3, 3))) == ((255, 255, 255), (0, 0, 255))


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    deep = Image.fromarray(np.full((8, 8), 0x8000, np.uint16))
    assert pictures.decode(file(deep), "image").getpixel((0, 0)) == (128, 128, 128)


def test_a_picture_is_cropped_to_the_shape_asked_for() -> None:
    image = Image.new("RGB", (200, 100), "red")
    image.paste("blue", (50, 0, 150, 100))
    fitted = pictures.fit(image, 64, 64)
    assert fitted.shape == (64, 64, 3)
    assert (fitted[:, 2:-2, 2] > 240).all()


def test_a_mask_is_black_or_white() -> None:
    image = Image.linear_gradient("L")
    mask = pictures.fit_mask(image.convert("RGB"), 32, 32)
    assert mask.shape == (32, 32)
    assert set(np.unique(mask)) == {0, 255}
    assert (mask[:15] == 0).all()
    assert (mask[17:] == 255).all()


# -- the request -------------------------------------------------------------------------------------------------------


def edit(image: bytes, mask: bytes | None = None, **params: Any) -> request.Order:
    given = {"image": image} | ({"mask": mask} if mask else {})
    return request.parse("image.edit", {"prompt": "a cat"} | params, given, MODEL)


@pytest.mark.parametrize(
    ("size", "params", "wanted"),
    [
        ((67, 50), {}, (64, 48)),
        ((67, 50), {"width": 32}, (32, 16)),
        ((67, 50), {"height": 96}, (128, 96)),
        ((67, 50), {"width": 128, "height": 8}, (128, 8)),
        ((3, 2), {}, (8, 8)),
        ((128, 128), {}, (128, 128)),
        ((400, 100), {}, (128, 32)),
    ],
)
def test_the_size_of_an_edit_follows_its_picture(size: tuple[int, int], params: Any, wanted: tuple[int, int]) -> None:
    order = edit(file(Image.new("RGB", size)), file(Image.new("L", size, 255)), **params)
    image, mask = order.request.image, order.request.mask
    assert image is not None
    assert mask is not None
    assert (order.request.width, order.request.height) == wanted == (image.shape[1], image.shape[0])
    assert mask.shape == image.shape[:2]
    assert bool(order.notes) == (size == (400, 100))


def test_a_broken_mask_is_named() -> None:
    with pytest.raises(RunError, match="`mask`"):
        edit(file(picture()), b"nonsense")


def test_what_is_left_open_is_the_models_own() -> None:
    order = request.parse("image.generate", {"prompt": "a cat", "n": 3, "seed": 7}, {}, MODEL)
    drawn = order.request
    assert (drawn.width, drawn.height, drawn.steps, drawn.guidance) == (64, 64, 8, 4.0)
    assert drawn.seeds == (7, 8, 9)
    given = {"prompt": "a cat", "guidance": 0.0, "steps": 3, "width": 16}
    drawn = request.parse("image.generate", given, {}, MODEL).request
    assert (drawn.width, drawn.height, drawn.steps, drawn.guidance) == (16, 64, 3, 0.0)


def test_a_seed_is_minted_where_none_is_given_and_goes_with_the_checkpoint() -> None:
    first, other = (request.parse("image.generate", {"prompt": "a cat"}, {}, MODEL) for _ in range(2))
    assert first.seed != other.seed
    again = request.parse("image.generate", {"prompt": "a cat"}, {"checkpoint": first.sealed(b"latents")}, MODEL)
    assert (again.seed, again.request.checkpoint, again.notes) == (first.seed, b"latents", ())


def test_a_checkpoint_of_another_engine_keeps_the_seed_only() -> None:
    sealed = msgpack.packb({"engine": "diffusers", "seed": 5, "data": b"tensors"})
    order = request.parse("image.generate", {"prompt": "a cat"}, {"checkpoint": sealed}, MODEL)
    assert (order.seed, order.request.checkpoint) == (5, None)
    assert "from the beginning" in order.notes[0]


@pytest.mark.parametrize("data", [b"", b"\xc1", msgpack.packb([1, 2]), msgpack.packb({"engine": "onnx", "seed": "x"})])
def test_a_checkpoint_nobody_can_read_costs_the_steps_and_not_the_job(data: bytes) -> None:
    order = request.parse("image.generate", {"prompt": "a cat", "seed": 3}, {"checkpoint": data}, MODEL)
    assert (order.seed, order.request.checkpoint) == (3, None)
    assert order.notes


def test_a_lora_this_node_has_not_may_be_on_another() -> None:
    with pytest.raises(RunError, match="it has: sketch") as failure:
        request.parse("image.generate", {"prompt": "a", "loras": [{"name": "oil"}]}, {}, MODEL)
    assert (failure.value.code, failure.value.retry) == ("unknown_model", True)
    given = {"prompt": "a", "loras": [{"name": "sketch", "weight": 0.5}]}
    assert request.parse("image.generate", given, {}, MODEL).request.loras == (("sketch", 0.5),)


def test_mp4_is_refused_before_anything_is_drawn_where_it_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(film, "find_spec", lambda name: None)
    with pytest.raises(RunError, match="pip install"):
        request.parse("image.animate", {"prompt": "a", "format": "mp4"}, {}, MODEL)


# -- files -------------------------------------------------------------------------------------------------------------


def test_a_png_is_the_picture_and_says_how_it_was_made() -> None:
    image: Any = opened(files.encode(picture(), "png", 90, TOLD))
    assert (np.asarray(image) == picture()).all()
    assert image.text["prompt"] == "red apple 🍎"
    assert image.text["Software"] == files.software()
    assert {name: image.text[name] for name in ("seed", "guidance", "model")} == {
        "seed": "42",
        "guidance": "4",
        "model": "emoji",
    }
    assert image.text["parameters"] == (
        "red apple 🍎\nNegative prompt: blue\n"
        f"Steps: 8, Sampler: ddim, CFG scale: 4, Seed: 42, Size: 64x48, Model: emoji, Version: {files.software()}"
    )


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_lossy_files_carry_the_same_text_as_a_user_comment(format: str) -> None:
    image = opened(files.encode(picture(), format, 90, TOLD))
    comment = image.getexif().get_ifd(0x8769)[0x9286]
    assert comment[8:].decode("utf-16-be") == files.parameters(TOLD)
    assert np.abs(np.asarray(image.convert("RGB")).astype(int) - picture()).mean() < 6


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_without_metadata_a_file_tells_nothing(format: str) -> None:
    data = files.encode(picture(), format, 90, {})
    assert b"apple" not in data
    assert not opened(data).getexif()
    assert not getattr(opened(data), "text", {})


@pytest.mark.parametrize("format", ["png", "jpeg", "webp", "gif"])
def test_the_longest_and_strangest_prompt_can_be_written(format: str) -> None:
    told = TOLD | {"prompt": "😀\0\ud800\n" * 2000, "negative_prompt": "語" * 8000}
    if format == "gif":
        data = film.encode([picture(n) for n in (1, 2)], "gif", 90, 8.0, True, told)
    else:
        data = files.encode(picture(), format, 90, told)
    assert opened(data).size == (64, 48)


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_the_same_picture_gives_the_same_bytes(format: str) -> None:
    assert files.encode(picture(), format, 80, TOLD) == files.encode(picture(), format, 80, TOLD)


@pytest.mark.parametrize("format", ["gif", "webp"])
@pytest.mark.parametrize("loop", [True, False])
def test_a_film_has_all_frames_and_the_time_asked_for(format: str, loop: bool) -> None:
    data = film.encode([picture(n) for n in range(1, 9)], format, 90, 12.0, loop, TOLD)
    image = opened(data)
    times = [frame.copy().info["duration"] for frame in ImageSequence.Iterator(image)]
    assert len(times) == 8
    assert sum(times) == pytest.approx(8 / 12 * 1000, abs=10)
    assert image.info.get("loop") == (0 if loop else 1 if format == "webp" else None)
    assert data == film.encode([picture(n) for n in range(1, 9)], format, 90, 12.0, loop, TOLD)


def test_an_mp4_has_the_size_and_the_frames() -> None:
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    data = film.encode([picture(n) for n in range(1, 9)], "mp4", 90, 12.0, True, TOLD)
    assert data[4:8] == b"ftyp"
    probe = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-v",
        "error",
        "-f",
        "mp4",
        "-i",
        "-",
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-",
    ]
    raw = subprocess.run(probe, input=data, capture_output=True, check=True, timeout=60).stdout
    frames = np.frombuffer(raw, np.uint8).reshape(-1, 48, 64, 3)
    assert len(frames) == 8
    assert np.abs(frames[3].astype(int) - picture(4)).mean() < 8


def test_film_times_do_not_drift() -> None:
    assert sum(film.durations_ms(512, 7.3, 10)) == pytest.approx(512 / 7.3 * 1000, abs=10)
    assert min(film.durations_ms(20, 500.0, 10)) == 10
