"""Draw, and see the picture grow."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any, ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import Checkbox, Input, Label, Static
from textual.worker import Worker

from outbid import Drawing, OutbidError, Pictures
from outbid.cli import drawing as words
from outbid.cli import picture
from outbid.cli.saving import SUFFIXES, default_name
from outbid_contracts.errors import InvalidRequest, StorageFailed
from outbid_contracts.events import JobEvent
from outbid_contracts.images import GENERATE
from outbid_tui.asking import Asking, Field, Tick, line
from outbid_tui.base import MeshScreen
from outbid_tui.calling_off import call_off
from outbid_tui.chat.widgets import Composer
from outbid_tui.missing import can, why_nobody
from outbid_tui.state import Kind
from outbid_tui.studio import order
from outbid_tui.studio.gallery import Drawn, Gallery, Thumb, fetch
from outbid_tui.studio.sketch import Sketch
from outbid_tui.studio.view import PictureView

LINE_EVERY_S = 0.25


class StudioScreen(MeshScreen):
    NAME = "Studio"
    HELP = """Say what to draw; the machine with the best bid draws it, and you see it come out of the noise. **Enter**
draws, **escape** stops, **ctrl+o** shows or hides the settings; what is left empty is as the model has it. Below are
the last pictures of the mesh (**ctrl+l** shows or hides them): **tab** goes there, **enter** shows one. Of the picture
on view, **ctrl+r** fills the settings in that made it, **ctrl+g** has the next one drawn on from it (*strength* 1 keeps
nothing), **ctrl+s** saves it."""
    SHOWS: ClassVar[frozenset[Kind]] = frozenset({"link", "nodes", "models"})
    HORIZONTAL_BREAKPOINTS: ClassVar[list[tuple[int, str]] | None] = [(0, "-narrow"), (100, "-wide")]  # type: ignore[misc]
    VERTICAL_BREAKPOINTS: ClassVar[list[tuple[int, str]] | None] = [(0, "-low"), (30, "-high")]  # type: ignore[misc]
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "stop", "Stop"),
        Binding("ctrl+o", "settings", "Settings"),
        Binding("ctrl+g", "draw_on", "Draw on"),
        Binding("ctrl+r", "reuse", "Its settings"),
        Binding("ctrl+s", "save", "Save"),
        Binding("ctrl+l", "gallery", "Gallery"),
    ]

    DEFAULT_CSS = """
    StudioScreen #easel { width: 1fr; }
    StudioScreen #picture { height: 1fr; margin: 1 0 0 0; }
    StudioScreen #line {
        height: 1; text-align: center; color: $text-muted; text-wrap: nowrap; text-overflow: ellipsis;
    }
    StudioScreen #happened { height: auto; text-align: center; color: $text-warning; display: none; }
    StudioScreen Asking { width: 38; border-left: vkey $primary-muted; display: none; }
    StudioScreen.-wide Asking { display: block; }
    StudioScreen.-narrow.-settings Asking { display: block; }
    StudioScreen.-wide.-settings Asking { display: none; }
    StudioScreen.-low Gallery { display: none; }
    StudioScreen.-low.-gallery Gallery { display: block; }
    StudioScreen.-high.-gallery Gallery { display: none; }
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.shown: Drawn | None = None
        self.sketch: Sketch | None = None
        self._drawing: Worker[None] | None = None
        self._decoding = False
        self._look_for_pictures = True
        """Somebody else may have drawn since the screen was on view."""

    def body(self) -> ComposeResult:
        with Horizontal():
            with Vertical(id="easel"):
                yield PictureView(id="picture", graphics=self.dashboard.graphics)
                yield Static(id="happened", markup=False)
                yield Static(id="line", markup=False)
                yield Gallery()
                yield Composer("What is to be drawn? Enter draws.", id="composer")
            yield Asking(
                GENERATE,
                Label("Settings", classes="heading"),
                Field("Without", line("negative_prompt", "what should not be in it")),
                Field("Size", line("size", "as 512x512")),
                Field("Steps", line("steps", "more take longer", "integer")),
                Field("Guidance", line("guidance", "how closely to follow", "number")),
                Field("Seed", line("seed", "any", "integer")),
                Field("Pictures", line("n", "1", "integer")),
                Field("From", Tick("the picture on view", "from")),
                Field("Strength", line("strength", "1 keeps nothing of it", "number")),
            )

    def on_mount(self) -> None:
        self.query_one(Composer).focus()
        self._clock = self.set_interval(LINE_EVERY_S, self._show_line, pause=True)

    def on_screen_resume(self) -> None:
        self._look_for_pictures = True

    @work(group="gallery", exit_on_error=False)
    async def _fill(self) -> None:
        await self.query_one(Gallery).fill(await self.dashboard.mesh.artifacts())

    def show_state(self, changed: frozenset[Kind]) -> None:
        self.query_one(Asking).show(self.state)
        if self._look_for_pictures and self.state.connected:
            self._look_for_pictures = False
            self._fill()
        if self.shown is None and not self.busy:
            able = can(self.state, GENERATE)
            said = "Say what to draw." if able else why_nobody(self.state, GENERATE, "draw")
            self.query_one(PictureView).say(said)

    @property
    def busy(self) -> bool:
        return self.sketch is not None

    # -- drawing -------------------------------------------------------------------------------------------------------

    @on(Composer.Sent)
    def _sent(self, event: Composer.Sent) -> None:
        if self.busy:
            self.notify("A picture is being drawn; escape stops it.", severity="warning")
            return
        try:
            drawing = self._begin(event.text)
        except OutbidError as error:
            self.notify(error.message, severity="error", markup=False)
            return
        self.query_one(Composer).took(event.text)
        self._drawing = self.run_worker(self._draw(event.text, drawing), group="drawing", exit_on_error=False)
        self.refresh_bindings()

    def _begin(self, prompt: str) -> Drawing:
        """Raises InvalidRequest, PayloadTooLarge."""
        asking = self.query_one(Asking)
        params = order.parameters({name: self.query_one(f"#{name}", Input).value for name in order.WORDS})
        params |= {"model": asking.model} if asking.model else {}
        policy = asking.policy()
        if not self.query_one("#from", Checkbox).value:
            return self.dashboard.mesh.image(prompt, policy=policy, on_event=self._heard, **params)
        if self.shown is None:
            raise InvalidRequest("There is no picture on view to draw on from.")
        if strength := self.query_one("#strength", Input).value.strip():
            params["strength"] = order.number("Strength", strength, float)
        return self.dashboard.mesh.edit(self.shown.artifact, prompt, policy=policy, on_event=self._heard, **params)

    def _heard(self, event: JobEvent) -> None:
        if self.sketch is not None:
            self.sketch.heard(event, self.state.name_of)
            self._show_line()

    async def _draw(self, prompt: str, drawing: Drawing) -> None:
        sketch = self.sketch = Sketch(time.monotonic())
        self._clock.resume()
        self._show_line()
        try:
            async for step in drawing:
                sketch.came(step)
                self._show_line()
                if step.preview is not None and not self._decoding:
                    self.run_worker(self._preview(step.preview), group="preview", exit_on_error=False)
            await self._finish(await drawing.result(), sketch)
        except asyncio.CancelledError:
            self._end("stopped", sketch)
            await asyncio.shield(call_off(self.dashboard.mesh, drawing.job))
            raise
        except OutbidError as error:
            self._end(f"✗ {error.message}", sketch)
            self.query_one(Composer).give_back(prompt)

    def _end(self, text: str, sketch: Sketch) -> None:
        """Nothing is drawn any more: the last words on it."""
        self.sketch = None
        self._clock.pause()
        self._say(text, sketch.happened)
        self.refresh_bindings()

    async def _preview(self, data: bytes) -> None:
        """One at a time: previews that come meanwhile are left out."""
        self._decoding = True
        try:
            image = await asyncio.to_thread(picture.decode, data)
            if image is not None and self.busy:
                self.query_one(PictureView).show(image)
        finally:
            self._decoding = False

    async def _finish(self, pictures: Pictures, sketch: Sketch) -> None:
        gallery = self.query_one(Gallery)
        found = [drawn for one in pictures if (drawn := await fetch(one)) is not None]
        for drawn in reversed(found):
            await gallery.take(drawn)
        self._end(" · ".join([words.facts(pictures), *pictures.notes]), sketch)
        if found:
            self._show(found[0])
        else:
            self.query_one(PictureView).say("This picture cannot be shown here; the artifact is kept.")

    # -- what is on view -----------------------------------------------------------------------------------------------

    @on(Thumb.Chosen)
    def _chosen(self, event: Thumb.Chosen) -> None:
        if not self.busy:
            self._show(event.drawn)
            self._say(order.facts(event.drawn.told))

    def _show(self, drawn: Drawn) -> None:
        self.shown = drawn
        self.query_one(PictureView).show(drawn.image)
        self.query_one(Gallery).mark(drawn)
        self.refresh_bindings()

    def _show_line(self) -> None:
        if self.sketch is not None:
            self._say(self.sketch.line(time.monotonic()), self.sketch.happened)

    def _say(self, text: str, happened: list[str] | None = None) -> None:
        self.query_one("#line", Static).update(text)
        above = self.query_one("#happened", Static)
        above.display = bool(happened)
        above.update("\n".join(f"⇄ {note}" for note in happened or ()))

    # -- keys ----------------------------------------------------------------------------------------------------------

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "stop":
            return self.busy
        if action in ("draw_on", "reuse", "save"):
            return self.shown is not None
        return super().check_action(action, parameters)

    def action_stop(self) -> None:
        if self._drawing is not None:
            self._drawing.cancel()

    def action_settings(self) -> None:
        self.toggle_class("-settings")
        shown = self.query_one(Asking)
        (shown.query_one("#negative_prompt") if shown.display else self.query_one(Composer)).focus()

    def action_gallery(self) -> None:
        self.toggle_class("-gallery")
        thumbs = self.query(Thumb)
        (thumbs.first() if self.query_one(Gallery).display and thumbs else self.query_one(Composer)).focus()

    def action_draw_on(self) -> None:
        tick = self.query_one("#from", Checkbox)
        tick.value = not tick.value
        if tick.value:
            self.notify("The next picture is drawn on from this one.")
        self.query_one(Composer).focus()

    def action_reuse(self) -> None:
        if self.shown is None:
            return
        found = order.words_of(self.shown.told)
        if not found:
            self.notify("Nothing is written into this file.", severity="warning")
            return
        for name in order.WORDS:
            self.query_one(f"#{name}", Input).value = found.get(name, "")
        self.query_one(Asking).choose_model(found.get("model", ""))
        self.query_one(Composer).give_back(found.get("prompt", ""))

    def action_save(self) -> None:
        if self.shown is None:
            return
        shown, told = self.shown, order.words_of(self.shown.told)
        ending = SUFFIXES.get(shown.artifact.type, Path(shown.artifact.name).suffix)
        seed = int(told["seed"]) if told.get("seed", "").isdigit() else 0
        name = default_name(told.get("prompt", ""), seed) + ending
        self.dashboard.ask("Save the picture as", name, lambda name: self._save(shown, Path(name).expanduser()))

    def _save(self, drawn: Drawn, path: Path) -> None:
        sure = f"{path} is there already. Replace it?" if path.exists() else ""
        self.dashboard.act(_saved(drawn, path), f"Saved as {path}", sure=sure)


async def _saved(drawn: Drawn, path: Path) -> None:
    """Raises StorageFailed, and what fetching it raises."""
    try:
        await drawn.artifact.save(path)
    except OSError as error:
        raise StorageFailed(f"{path} cannot be written: {error.strerror or error}") from error
