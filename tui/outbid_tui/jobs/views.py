"""What opens above the list of jobs: the bid sheet, and what a job gave."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from rich.console import Group, RenderableType
from rich.text import Text
from textual.binding import Binding, BindingType

from outbid import Artifact, Mesh, OutbidError
from outbid.artifacts import named_in
from outbid.cli import explaining, saving
from outbid.cli.job_listing import names_of
from outbid_contracts.errors import InvalidRequest, UnknownJob
from outbid_tui.jobs.story import answer
from outbid_tui.looks import size
from outbid_tui.state import MeshState
from outbid_tui.widgets.sheet import Sheet, read


def why(mesh: Mesh, state: MeshState, job: str) -> Sheet:
    """The same words and numbers as `outbid why`."""
    names = {str(node): machine.presence.name for node, machine in state.machines.items()}

    async def make() -> RenderableType:
        record = await mesh.job(job)
        return read(explaining.told(record, names_of((), [record]) | names, verbose=True))

    return Sheet(f"why {job}", make, id="why")


class ResultView(Sheet):
    """What a job gave; `s` saves the files that it made."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("s", "save", "Save the files", tooltip="To the current folder")]

    def __init__(self, mesh: Mesh, job: str) -> None:
        super().__init__(f"result of {job}", self._ask, id="result")
        self.files: list[Artifact] = []
        self._mesh = mesh
        self._job = job

    async def _ask(self) -> RenderableType:
        """Of an interactive job only its files are there: its result went to its caller."""
        try:
            found = await self._mesh.attach(self._job).result(0)
        except (UnknownJob, InvalidRequest):
            self.files = await self._mesh.artifacts(self._job)
            if not self.files:
                raise
            text = ""
        else:
            self.files = [Artifact(self._mesh, one) for one in named_in(found)]
            text = "" if self.files else answer(found)
        return Group(Text(text), *(Text(_line(one)) for one in self.files))

    def action_save(self) -> None:
        self.run_worker(self._save(), exit_on_error=False)

    async def _save(self) -> None:
        if not self.files:
            self.notify("it made no files", severity="warning")
            return
        try:
            paths = await saving.save(self.files, None)
        except OutbidError as error:
            self.notify(error.message, severity="error", markup=False)
        else:
            self.notify(f"saved {', '.join(path.name for path in paths)} in {Path.cwd()}", markup=False)


def _line(one: Artifact) -> str:
    return f"{one.name}   {one.type}   {size(one.size / 2**20)}   {one.id}"
