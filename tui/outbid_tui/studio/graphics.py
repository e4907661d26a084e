"""Whether the terminal shows pictures by itself (kitty's graphics, sixel).

It is asked before the dashboard starts, because it answers on standard input, which is the dashboard's from then on. So
textual-image, which asks as it is imported, must not be imported anywhere else in the dashboard.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Any


def ask_terminal() -> Any:
    """The widget of textual-image that shows a picture by the terminal's own graphics; None: half-blocks it is.

    Takes a quarter of a second, and some tenths more where the terminal is silent.
    """
    if "TEXTUAL_DRIVER" in os.environ or not (sys.stdin.isatty() and sys.stdout.isatty()):
        return None  # a browser, or a pipe
    logging.getLogger("textual_image").setLevel(logging.ERROR)  # it warns of terminals that tell nothing
    try:
        from textual_image import renderable, widget
    except Exception:  # not installed, or a terminal that it does not get on with
        return None
    return widget.Image if renderable.Image in (renderable.SixelImage, renderable.TGPImage) else None
