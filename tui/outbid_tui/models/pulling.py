"""The form that a pull is asked for with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import Button, Input, Label, Select, Static

HINT = """hf:org/name · hf:org/name:file.gguf · hf:org/name@revision · file:/path · https://host/file.gguf
A machine of the mesh that has it gives it first; then it comes from where it is."""


class PullOrder(NamedTuple):
    source: str
    node: str
    name: str


class PullForm(ModalScreen[PullOrder | None]):
    """`machines`: names by node id; `node` is proposed. Escape gives it up."""

    DEFAULT_CSS = """
    PullForm { align: center middle; }
    PullForm .dialog { width: 76; }
    PullForm .dialog-hint { margin-bottom: 1; }
    PullForm Horizontal.field { height: 1; margin-bottom: 1; }
    PullForm Horizontal.field > Label { width: 10; color: $text-muted; }
    PullForm Horizontal.field > Input, PullForm Horizontal.field > Select { width: 1fr; }
    PullForm Input { background: $boost; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "give_up", "Cancel")]

    def __init__(self, machines: Mapping[str, str], node: str | None = None, source: str = "") -> None:
        super().__init__()
        self._machines = machines
        self._node = node if node in machines else next(iter(machines), None)
        self._source = source

    def compose(self) -> ComposeResult:
        names = [(name, node) for node, name in self._machines.items()]
        with Vertical(classes="dialog") as dialog:
            dialog.border_title = "Pull a model"
            with Horizontal(classes="field"):
                yield Label("Source")
                yield Input(self._source, placeholder="hf:org/name:file.gguf", id="source", compact=True)
            with Horizontal(classes="field"):
                yield Label("Machine")
                yield Select(names, value=self._node or Select.NULL, allow_blank=not names, id="node", compact=True)
            with Horizontal(classes="field"):
                yield Label("Name")
                yield Input("", placeholder="as in the source", id="name", compact=True)
            yield Static(HINT, classes="dialog-hint", markup=False)
            with Horizontal(classes="dialog-buttons"):
                yield Button("Cancel", id="no")
                yield Button("Pull", variant="primary", id="yes")

    def on_mount(self) -> None:
        self.query_one("#source").focus()

    def on_input_submitted(self) -> None:
        self._take()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        if event.button.id == "yes":
            self._take()
        else:
            self.dismiss(None)

    def action_give_up(self) -> None:
        self.dismiss(None)

    def _take(self) -> None:
        source, node = self.query_one("#source", Input).value.strip(), self.query_one("#node", Select).value
        if not source or not isinstance(node, str):
            self.notify("say what to pull, and to which machine", severity="warning")
            return
        self.dismiss(PullOrder(source, node, self.query_one("#name", Input).value.strip()))
