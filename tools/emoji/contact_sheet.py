"""Draw docs/images/emoji.png: what the emoji model makes of known names and of new words, asked through a mesh.

    outbid up &
    python tools/emoji/contact_sheet.py

Seeds count from 0 in the order of the words; nothing is picked out.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from evaluate import draw
from outbid import Mesh

OUT = Path(__file__).resolve().parents[2] / "docs/images/emoji.png"
STEPS = 20
COLUMNS = 9
SIDE = 96
CELL = (112, 122)
TITLE = 26

KNOWN = (
    "red apple", "green apple", "cat face", "dog face", "grinning face", "crying face", "tiger face", "penguin",
    "red heart", "blue heart", "automobile", "pizza", "hamburger", "banana", "strawberry", "sun", "rainbow", "rocket",
    "house", "skull", "alien", "snowman", "octopus", "whale", "dragon", "fire", "balloon",
)  # fmt: skip
NEW = (
    "purple apple", "kitty", "a sad yellow face", "angry dog", "tree", "flower", "blue bird", "a drink",
    "birthday dessert",
)  # fmt: skip


async def pictures(mesh: Mesh, words: Sequence[str], first_seed: int) -> list[Image.Image]:
    drawn = [draw(mesh, text, {"steps": STEPS, "seed": first_seed + n}) for n, text in enumerate(words)]
    return [Image.fromarray(picture) for picture in await asyncio.gather(*drawn)]


def sheet(parts: Sequence[tuple[str, Sequence[str], Sequence[Image.Image]]]) -> Image.Image:
    rows = [-(-len(words) // COLUMNS) for _, words, _ in parts]
    size = (COLUMNS * CELL[0], sum(TITLE + n * CELL[1] for n in rows))
    paper = Image.new("RGB", size, "white")
    pen, top = ImageDraw.Draw(paper), 0
    for (title, words, drawn), n in zip(parts, rows, strict=True):
        pen.text((8, top + 7), title, fill="#a02020", font=ImageFont.load_default(13))
        for k, (text, picture) in enumerate(zip(words, drawn, strict=True)):
            x, y = k % COLUMNS * CELL[0] + 8, top + TITLE + k // COLUMNS * CELL[1]
            paper.paste(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC), (x, y))
            pen.text((x, y + SIDE + 3), text, fill="black", font=ImageFont.load_default(11))
        top += TITLE + n * CELL[1]
    return paper


async def main(state: str | None, out: Path) -> None:
    async with Mesh(state=state) as mesh:
        known, new = await pictures(mesh, KNOWN, 0), await pictures(mesh, NEW, len(KNOWN))
    parts = [(f"names it was trained on ({STEPS} steps)", KNOWN, known), ("words it never saw", NEW, new)]
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet(parts).quantize(128).save(out, optimize=True)
    print(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", help="state folder of the node to ask")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    asyncio.run(main(given.state, given.out))
