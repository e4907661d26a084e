"""Frames into one file: GIF and WebP with Pillow, MP4 with the ffmpeg that the package imageio-ffmpeg brings."""

from __future__ import annotations

import io
import subprocess
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from outbid_capabilities.image.files import Facts, exif, parameters
from outbid_capabilities.runner_kit import RunError

if TYPE_CHECKING:
    from outbid_capabilities.image.engine import Picture

FFMPEG_S = 600.0

COMMENT_CHARS = 4_000
"""Of a prompt on ffmpeg's command line, and in a GIF."""


def check(format: str) -> None:
    """Before anything is drawn. Raises RunError where films of this format cannot be written here."""
    if format == "mp4" and find_spec("imageio_ffmpeg") is None:
        raise RunError(
            "MP4 needs the package imageio-ffmpeg; `pip install 'outbid[image]'` brings it, or ask for gif or webp",
            code="runner_unavailable",
        )


def encode(frames: Sequence[Picture], format: str, quality: int, fps: float, loop: bool, facts: Facts) -> bytes:
    """`loop`: play it again and again; an MP4 leaves that to the player."""
    if format == "gif":
        return _gif(frames, fps, loop, facts)
    return _webp(frames, quality, fps, loop, facts) if format == "webp" else _mp4(frames, quality, fps, facts)


def durations_ms(count: int, fps: float, tick_ms: int) -> list[int]:
    """How long each frame stays, in whole ticks of the format, without drifting from the rate asked for."""
    ends = [round(1000 * n / fps / tick_ms) for n in range(count + 1)]
    return [max(1, after - before) * tick_ms for before, after in pairwise(ends)]


def _gif(frames: Sequence[Picture], fps: float, loop: bool, facts: Facts) -> bytes:
    """Each frame has its own 256 colours. Browsers show no more than 50 frames a second."""
    images = [Image.fromarray(frame).quantize(256, Image.Quantize.MEDIANCUT) for frame in frames]
    times = durations_ms(len(images), min(fps, 50.0), tick_ms=10)
    more = {"loop": 0} if loop else {}
    comment = parameters(facts)[:COMMENT_CHARS].encode() if facts else b""
    out = io.BytesIO()
    images[0].save(
        out, "GIF", save_all=True, append_images=images[1:], duration=times, disposal=1, comment=comment, **more
    )
    return out.getvalue()


def _webp(frames: Sequence[Picture], quality: int, fps: float, loop: bool, facts: Facts) -> bytes:
    images, out = [Image.fromarray(frame) for frame in frames], io.BytesIO()
    times = durations_ms(len(images), fps, tick_ms=1)
    images[0].save(
        out,
        "WEBP",
        save_all=True,
        append_images=images[1:],
        duration=times,
        loop=0 if loop else 1,
        quality=quality,
        method=4,
        exif=exif(facts),
    )
    return out.getvalue()


def _mp4(frames: Sequence[Picture], quality: int, fps: float, facts: Facts) -> bytes:
    """H.264, in a form that every player and browser takes. Raises RunError with ffmpeg's own words."""
    check("mp4")
    import imageio_ffmpeg

    height, width = frames[0].shape[:2]
    comment = parameters(facts)[:COMMENT_CHARS] if facts else ""
    with tempfile.TemporaryDirectory(prefix="outbid-film-") as folder:
        file = Path(folder) / "film.mp4"
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"]
        command += ["-s", f"{width}x{height}", "-r", f"{fps:.6g}", "-i", "-", "-an", "-c:v", "libx264"]
        command += ["-crf", str(crf(quality)), "-pix_fmt", "yuv420p", "-threads", "2", "-movflags", "+faststart"]
        command += ["-fflags", "+bitexact", "-flags:v", "+bitexact", "-metadata", f"comment={comment}", str(file)]
        try:
            said = subprocess.run(
                command, input=b"".join(frame.tobytes() for frame in frames), capture_output=True, timeout=FFMPEG_S
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise RunError(f"ffmpeg made no film: {error}") from error
        if said.returncode != 0:
            last = said.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
            raise RunError(f"ffmpeg made no film: {last[0]}")
        return file.read_bytes()


def crf(quality: int) -> int:
    """x264's constant rate factor, 51 worst to 0 lossless: 90 of 100 is 18, which few can tell from the original."""
    return min(51, max(0, round(51 - quality * 0.37)))
