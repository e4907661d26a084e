"""Pictures that callers sent, decoded without trusting them, and previews.

A file may claim any size, be cut off, or be no picture at all: all of that is a RunError for the caller, before more
memory is taken than a picture of MAX_PIXELS needs.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageFile, ImageOps

from outbid_capabilities.runner_kit import RunError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from outbid_capabilities.image.engine import Picture

FORMATS = ("PNG", "JPEG", "WEBP")

MAX_PIXELS = 64_000_000
"""192 MB as RGB: a photograph of any camera, and little enough to decode beside a model."""

PREVIEW_PX = 512
"""Longest side of a preview."""

PREVIEW_PICTURES = 8
"""Pictures of a preview side by side; more would be too small to see."""

ImageFile.LOAD_TRUNCATED_IMAGES = False
Image.MAX_IMAGE_PIXELS = MAX_PIXELS


def decode(data: bytes, name: str) -> Image.Image:
    """An upright RGB picture, transparent parts white. `name` is the parameter's. Raises RunError(invalid_request)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # each oddity of a file would be a line in the node's log
        image = _opened(data, name)
        if image.width * image.height > MAX_PIXELS:
            raise invalid(_too_large(name, f"{image.width}x{image.height}"))
        try:
            image.load()
            return _flat(ImageOps.exif_transpose(image))
        except MemoryError:
            raise RunError(f"no memory to decode `{name}`", code="out_of_memory") from None
        except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error and more
            raise invalid(f"`{name}` is broken: {_sentence(error)}") from error


def fit(image: Image.Image, width: int, height: int) -> Picture:
    """Scaled to cover this size, what is over cropped at both sides alike."""
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    return np.asarray(image.convert("RGB"))


def fit_mask(image: Image.Image, width: int, height: int) -> NDArray[np.uint8]:
    """Likewise, height x width: 255 where the picture is to change, 0 elsewhere."""
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    return np.where(np.asarray(image.convert("L")) >= 128, np.uint8(255), np.uint8(0))


def preview(pictures: Sequence[Picture]) -> bytes:
    """A small JPEG, several pictures side by side."""
    strip = Image.fromarray(np.concatenate(list(pictures[:PREVIEW_PICTURES]), axis=1))
    strip.thumbnail((PREVIEW_PX, PREVIEW_PX), Image.Resampling.BILINEAR, reducing_gap=2.0)
    out = io.BytesIO()
    strip.save(out, "JPEG", quality=75)
    return out.getvalue()


def invalid(message: str) -> RunError:
    """The caller's mistake: no other node would do better."""
    return RunError(message, code="invalid_request", retry=False)


def _opened(data: bytes, name: str) -> Image.Image:
    """Reads the header only."""
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise invalid(_too_large(name, "more than twice that many")) from None
    except Exception as error:
        if data:
            raise invalid(f"`{name}` is not a PNG, JPEG or WebP file (it has {len(data)} bytes)") from error
        raise invalid(f"`{name}` is empty") from error


def _too_large(name: str, size: str) -> str:
    return f"`{name}` is too large: {size} pixels, at most {MAX_PIXELS // 1_000_000} million are taken; scale it down"


def _flat(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits, which `convert` would clip at 255
        return Image.fromarray((np.asarray(image).clip(0, 65_535) >> 8).astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def _sentence(error: BaseException) -> Any:
    return str(error) or type(error).__name__
