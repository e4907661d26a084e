"""A picture while it is drawn: how far it is, who draws it, what happened on the way. No I/O, no Textual."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from outbid import Step
from outbid.cli.drawing import remaining
from outbid_contracts.events import AttemptLost, Awarded, JobEvent, Loading, Waiting
from outbid_contracts.ids import NodeId

BAR = 24
"""Characters of the bar."""


@dataclass(slots=True)
class Sketch:
    """`begun_s` by the monotonic clock."""

    begun_s: float
    doing: str = "asking the mesh for bids"
    node: str = ""
    why: str = ""
    lost: str = ""
    step: int = 0
    steps: int = 0
    eta_s: float | None = None
    happened: list[str] = field(default_factory=list)

    def heard(self, event: JobEvent, name_of: Callable[[NodeId], str]) -> None:
        match event:
            case Awarded():
                if self.lost or event.attempt > 1:
                    how = f"goes on at step {event.step}" if event.step else "begins again"
                    before = f"{self.lost} was lost; " if self.lost else ""
                    self.happened.append(f"{before}{event.name} {how}")
                self.node, self.why, self.lost = event.name, event.why, ""
                self.doing, self.steps = f"{event.name} begins", 0
            case Waiting():
                self.doing, self.steps = f"waiting for a free machine: {event.reason}", 0
            case Loading():
                part = f", {event.fraction:.0%}" if event.fraction is not None else ""
                self.doing = f"{self.node} loads {event.model or 'the model'}{part}"
            case AttemptLost():
                self.lost = name_of(event.node)
                self.doing, self.steps = f"{self.lost} was lost; another machine is looked for", 0
            case _:
                pass

    def came(self, step: Step) -> None:
        self.node = step.node or self.node
        self.step, self.steps = step.step, step.steps
        if step.preview is None:
            self.eta_s = step.eta_s

    def line(self, now_s: float) -> str:
        """What goes on, on one line."""
        if not self.steps:
            return f"{self.doing} … {now_s - self.begun_s:.0f} s"
        filled = round(BAR * min(1.0, self.step / self.steps))
        parts = [
            f"{self.node} {'━' * filled}{'╌' * (BAR - filled)} step {self.step} of {self.steps}",
            remaining(self.eta_s),
        ]
        return " · ".join(filter(None, parts))
