"""The files that are handed out: PNG, JPEG and WebP, with what they were made from written into them.

The same picture and words give the same bytes: no dates, fixed settings.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import lru_cache
from importlib import metadata
from typing import TYPE_CHECKING, Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

if TYPE_CHECKING:
    from outbid_capabilities.image.engine import Picture

TYPES = {
    "png": "image/png",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
    "gif": "image/gif",
    "mp4": "video/mp4",
}
ENDINGS = {"jpeg": "jpg"}

PNG_LEVEL = 4
"""Of zlib. A megapixel takes 0.26 s and is as small as at the usual 6 (0.30 s); 1 takes 0.12 s for 15 % more bytes."""

EXIF_CHARS = 15_000
"""EXIF takes 64 kB, and a character up to four bytes."""

_EXIF_IFD, _USER_COMMENT, _SOFTWARE = 0x8769, 0x9286, 0x0131

Facts = Mapping[str, Any]
"""What a file tells: prompt, negative_prompt, seed, model, steps, guidance, scheduler, width, height; or nothing."""


def encode(picture: Picture, format: str, quality: int, facts: Facts) -> bytes:
    """One picture as a file."""
    image, out = Image.fromarray(picture), io.BytesIO()
    if format == "png":
        image.save(out, "PNG", compress_level=PNG_LEVEL, pnginfo=_png_text(facts))
    elif format == "jpeg":
        image.save(out, "JPEG", quality=quality, exif=exif(facts), subsampling=0 if quality > 90 else 2)
    else:
        image.save(out, "WEBP", quality=quality, method=4, exif=exif(facts))
    return out.getvalue()


def parameters(facts: Facts) -> str:
    """The text that AUTOMATIC1111's web UI writes and most programs read."""
    lines = [str(facts["prompt"])]
    if facts.get("negative_prompt"):
        lines.append(f"Negative prompt: {facts['negative_prompt']}")
    named = {
        "Steps": facts["steps"],
        "Sampler": facts["scheduler"],
        "CFG scale": f"{facts['guidance']:g}",
        "Seed": facts["seed"],
        "Size": f"{facts['width']}x{facts['height']}",
        "Model": facts["model"],
        "Version": software(),
    }
    lines.append(", ".join(f"{name}: {value}" for name, value in named.items()))
    return _clean("\n".join(lines))


def exif(facts: Facts) -> bytes:
    """The same text as the user comment of a JPEG or WebP file, where those programs look for it."""
    if not facts:
        return b""
    found = Image.Exif()
    found[_SOFTWARE] = software()
    found.get_ifd(_EXIF_IFD)[_USER_COMMENT] = b"UNICODE\0" + parameters(facts)[:EXIF_CHARS].encode(
        "utf-16-be", "replace"
    )
    return found.tobytes()


@lru_cache(maxsize=1)
def software() -> str:
    try:
        return f"Outbid {metadata.version('outbid')}"
    except metadata.PackageNotFoundError:
        return "Outbid"


def _png_text(facts: Facts) -> PngInfo | None:
    if not facts:
        return None
    info = PngInfo()
    info.add_text("parameters", parameters(facts))
    info.add_text("Software", software())
    for name, value in facts.items():
        info.add_text(name, _clean(f"{value:g}" if isinstance(value, float) else str(value)))
    return info


def _clean(text: str) -> str:
    """NUL ends a text in these formats, and half a surrogate pair cannot be written."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()
