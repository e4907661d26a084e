"""An editor for SQL, with its words in colour. Regular expressions do for that; no parser is needed."""

from __future__ import annotations

import re
from typing import ClassVar

from rich.style import Style
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import TextArea
from textual.widgets.text_area import TextAreaTheme

_KEYWORDS = """
    all and any as asc asof between by case cast cross desc describe distinct else end except exclude exists
    explain false filter first following from full group having ilike in inner intersect interval into is join
    last lateral left like limit not null nulls offset on or order outer over partition pivot positional
    preceding qualify range recursive right row rows sample select show summarize table tables then true
    unbounded union unnest unpivot using values when where window with
"""
KEYWORDS = frozenset(_KEYWORDS.split())

_TOKEN = re.compile(
    r"(?P<comment>--.*)"
    r"|(?P<string>'(?:[^']|'')*'?)"
    r"|(?P<name>\"(?:[^\"]|\"\")*\"?)"
    r"|(?P<number>\b\d[\d_]*(?:\.\d+)?(?:[eE][+-]?\d+)?\b)"
    r"|(?P<word>[A-Za-z_]\w*)(?P<call>\s*\()?"
)

Highlight = tuple[int, int, str]

DARK = {"keyword": "#56B4E9", "function": "#E69F00", "string": "#5FD7AF", "number": "#CC79A7", "comment": "#808080"}
LIGHT = {"keyword": "#0072B2", "function": "#A0522D", "string": "#00664B", "number": "#8B3A6B", "comment": "#707070"}


def highlights(line: str) -> list[Highlight]:
    """Begin, end (in bytes of UTF-8) and kind of what is coloured. Strings and comments end with their line.

    >>> highlights("SELECT max(a) -- é")
    [(0, 6, 'keyword'), (7, 10, 'function'), (14, 19, 'comment')]
    """
    found: list[Highlight] = []
    for token in _TOKEN.finditer(line):
        kind = _kind(token)
        if kind:
            begin, end = token.span("word" if token["word"] else 0)
            found.append((len(line[:begin].encode()), len(line[:end].encode()), kind))
    return found


def _kind(token: re.Match[str]) -> str:
    word = token["word"]
    if not word:
        return token.lastgroup if token.lastgroup in ("comment", "string", "number") else ""
    if word.lower() in KEYWORDS:
        return "keyword"
    return "function" if token["call"] else ""


class SqlEditor(TextArea):
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+r,ctrl+enter,f9", "run", "Run", key_display="^r", priority=True),
    ]

    DEFAULT_CSS = """
    SqlEditor { border: round $primary-muted; background: transparent; padding: 0 1; scrollbar-size-vertical: 1; }
    SqlEditor:focus { border: round $accent; }
    """

    class Run(Message):
        pass

    def __init__(self, text: str, id: str | None = None) -> None:
        super().__init__(text, id=id, show_line_numbers=False, soft_wrap=True, tab_behavior="focus")
        self.highlight_cursor_line = False

    def on_mount(self) -> None:
        self._colour()
        self.app.theme_changed_signal.subscribe(self, lambda _: self._colour())

    def action_run(self) -> None:
        self.post_message(self.Run())

    def _colour(self) -> None:
        dark = self.app.current_theme.dark
        styles = {
            kind: Style(color=colour, bold=kind == "keyword") for kind, colour in (DARK if dark else LIGHT).items()
        }
        name = f"outbid-sql-{'dark' if dark else 'light'}"
        self.register_theme(TextAreaTheme(name, syntax_styles=styles))
        self.theme = name

    def _build_highlight_map(self) -> None:
        """Called by TextArea after each change of the text."""
        self._line_cache.clear()
        self._highlights.clear()
        for number in range(self.document.line_count):
            self._highlights[number].extend(highlights(self.document.get_line(number)))
