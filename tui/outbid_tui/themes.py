"""Themes of the dashboard, beside Textual's own."""

from __future__ import annotations

from rich.terminal_theme import TerminalTheme
from textual.color import Color
from textual.theme import Theme

DARK = Theme(
    name="outbid-dark",
    # Okabe and Ito's palette (jfly.uni-koeln.de/color): told apart with every common kind of colour blindness.
    primary="#56B4E9",
    secondary="#0072B2",
    accent="#CC79A7",
    warning="#E69F00",
    error="#D55E00",
    success="#009E73",
    foreground="#E6E8EB",
    background="#0F1318",
    surface="#151A21",
    panel="#1E252E",
    dark=True,
)
LIGHT = Theme(
    name="outbid-light",
    primary="#0072B2",
    secondary="#56B4E9",
    accent="#AA4480",
    warning="#B07A00",
    error="#C04E00",
    success="#007A58",
    foreground="#16202A",
    background="#F6F7F9",
    surface="#FFFFFF",
    panel="#E7EBEF",
    dark=False,
)
OWN = (DARK, LIGHT)
DEFAULT = DARK.name


def terminal(theme: Theme) -> TerminalTheme:
    """For what the command line paints in the sixteen colours of a terminal: the same, in the theme's."""

    def rgb(color: str | None) -> tuple[int, int, int]:
        return Color.parse(color or "#808080").rgb

    black, white = rgb(theme.panel), rgb(theme.foreground)
    colors = [
        rgb(one) for one in (theme.error, theme.success, theme.warning, theme.secondary, theme.accent, theme.primary)
    ]
    grey = (128, 134, 142)
    return TerminalTheme(rgb(theme.background), white, [black, *colors, white], [grey, *colors, white])
