"""The emoji: pictures out of Noto Color Emoji's bitmap font, names and tags out of emojibase.

The font is Debian's package `fonts-noto-color-emoji` (pictures of 136 x 128 pixels). `captions.json` beside this file
has the 480 emoji that the published weights know; names and tags of all are in the npm package `emojibase-data`
(`en/data.json`), read with `--emojibase`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
CAPTIONS = Path(__file__).with_name("captions.json")
SIDE = 64
STRIKE = 136
"""Side of the square that holds every picture of the font."""

LEFT_OUT = {None, 2, 9}
"""emojibase's groups without pictures of their own: none, components (skin tones), flags (no single code point)."""

Picture = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Emoji:
    """`label` is its Unicode name in lower case; `picture` is SIDE x SIDE x 3, on white."""

    label: str
    tags: tuple[str, ...]
    hex: str
    picture: Picture


def load(font: Path = FONT, emojibase: Path | None = None) -> list[Emoji]:
    """The emoji of `captions.json`, or all that have one code point and a picture in the font. SystemExit with a
    sentence where the font is not there.
    """
    if not font.is_file():
        raise SystemExit(f"there is no {font}; apt install fonts-noto-color-emoji, or name the font with --font")
    wanted = json.loads(CAPTIONS.read_text("utf-8")) if emojibase is None else _all_of(emojibase)
    return list(_with_pictures(wanted, font))


def _all_of(emojibase: Path) -> list[dict[str, Any]]:
    entries = json.loads(emojibase.read_text("utf-8"))
    entries.sort(key=lambda entry: entry.get("order") or 9999)
    named = [entry for entry in entries if entry.get("group") not in LEFT_OUT]
    return [
        {
            "hex": entry["hexcode"],
            "label": entry["label"].lower(),
            "tags": [tag.lower() for tag in entry.get("tags", ())],
        }
        for entry in named
    ]


def _with_pictures(wanted: Iterable[dict[str, Any]], font: Path) -> Iterator[Emoji]:
    from fontTools.ttLib import TTFont

    opened = TTFont(font)
    glyphs, strike = opened.getBestCmap(), opened["CBDT"].strikeData[0]
    seen: set[str] = set()
    for entry in wanted:
        points = [int(part, 16) for part in entry["hex"].split("-") if part.upper() != "FE0F"]
        glyph = glyphs.get(points[0]) if len(points) == 1 else None
        if glyph is None or glyph not in strike or glyph in seen:
            continue
        seen.add(glyph)
        yield Emoji(entry["label"], tuple(entry["tags"]), entry["hex"], _picture(strike[glyph].imageData))


def _picture(png: bytes) -> Picture:
    drawn = Image.open(io.BytesIO(png)).convert("RGBA")
    square = Image.new("RGBA", (STRIKE, STRIKE), (255, 255, 255, 255))
    square.alpha_composite(drawn, ((STRIKE - drawn.width) // 2, (STRIKE - drawn.height) // 2))
    return np.asarray(square.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS), dtype=np.uint8)
