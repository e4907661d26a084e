"""A conversation as it goes: what was asked, what came, from whom, and what happened on the way. No I/O, no Textual."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

from outbid.chat import Reply
from outbid_contracts.events import AttemptLost, Awarded, JobEvent, Loading, Waiting
from outbid_contracts.ids import JobId, NodeId

Stage = Literal["asking", "waiting", "loading", "answering", "done", "stopped", "failed"]
UNDER_WAY: frozenset[Stage] = frozenset(("asking", "waiting", "loading", "answering"))

NameOf = Callable[[NodeId], str]


@dataclass(slots=True)
class Turn:
    """A question and its answer. Times are those of the monotonic clock."""

    question: str
    asked_s: float
    stage: Stage = "asking"
    text: str = ""
    job: JobId | None = None
    node: str = ""
    """Name of the node that answers."""
    why: str = ""
    """Why that one."""
    model: str = ""
    doing: str = "asking the mesh for bids"
    """What goes on before the first piece of text, and between two nodes."""
    happened: list[str] = field(default_factory=list)
    """In sentences: nodes lost, answers that began again."""
    first_s: float | None = None
    ended_s: float | None = None
    tokens: int = 0
    tokens_per_s: float | None = None
    """As the node measured it, at the end."""
    cut: bool = False
    """The answer has as many tokens as it may."""
    error: str = ""
    lost: str = ""
    """Name of the node that was lost and has no successor yet; `how` it was."""
    how: str = ""

    @property
    def under_way(self) -> bool:
        return self.stage in UNDER_WAY

    def heard(self, event: JobEvent, name_of: NameOf) -> None:
        """What `Mesh.chat` tells beside the text."""
        match event:
            case Awarded():
                self._awarded(event)
            case Waiting():
                self.stage, self.doing = "waiting", f"waiting for a free machine: {event.reason}"
            case Loading():
                part = f", {event.fraction:.0%}" if event.fraction is not None else ""
                self.stage, self.doing = "loading", f"{self.node} loads {event.model or 'the model'}{part}"
            case AttemptLost():
                self.lost = name_of(event.node)
                self.how = "drains" if event.error.code == "draining" else "was lost"
                self.stage, self.doing = "waiting", f"{self.lost} {self.how}; another machine is looked for"
            case _:
                pass

    def _awarded(self, event: Awarded) -> None:
        self.stage, self.doing = "loading", f"{event.name} begins"
        if event.attempt > 1 or self.lost:
            self.happened.append(_handover(self.lost, self.how, event))
        self.lost = ""
        self.node, self.why, self.model = event.name, event.why, event.model or self.model

    def came(self, tokens: int, now_s: float) -> None:
        self.stage = "answering"
        self.tokens += tokens
        if self.first_s is None:
            self.first_s = now_s

    def ended(self, reply: Reply, now_s: float) -> None:
        self.stage, self.ended_s = "done", now_s
        self.text, self.node, self.model = reply.text, reply.name, reply.model
        self.tokens = reply.usage.completion_tokens
        self.tokens_per_s = reply.timings.get("tokens_per_s")
        self.cut = reply.finish_reason == "length"

    def stopped(self, now_s: float) -> None:
        self.stage, self.ended_s = "stopped", now_s

    def failed(self, error: str, now_s: float) -> None:
        self.stage, self.ended_s, self.error = "failed", now_s, error

    def speed(self, now_s: float) -> float | None:
        """Tokens per second; until the node tells, as they come here."""
        if self.tokens_per_s is not None or self.first_s is None:
            return self.tokens_per_s
        took_s = (self.ended_s or now_s) - self.first_s
        return (self.tokens - 1) / took_s if self.tokens > 1 and took_s > 0 else None


def _handover(lost: str, how: str, event: Awarded) -> str:
    """
    >>> award = Awarded(job=JobId("j"), node=NodeId("n"), name="laptop", attempt=2, promised_s=1, chunks=42)
    >>> _handover("pi", "was lost", award), _handover("laptop", "was lost", award)
    ('pi was lost; laptop goes on after 42 pieces', 'laptop lost the answer and goes on after 42 pieces')
    """
    then = f"goes on after {event.chunks} pieces" if event.chunks else "begins again"
    if lost == event.name:
        return f"{lost} lost the answer and {then}"
    return f"{lost} {how}; {event.name} {then}" if lost else f"{event.name} {then}"


def messages(turns: Iterable[Turn], system: str, question: str) -> list[dict[str, str]]:
    """What the model is to see: turns that failed are left out, those that were stopped count as far as they came."""
    found = [{"role": "system", "content": system}] if system.strip() else []
    for turn in turns:
        if turn.text and turn.stage in ("done", "stopped"):
            found += [{"role": "user", "content": turn.question}, {"role": "assistant", "content": turn.text}]
    return [*found, {"role": "user", "content": question}]


def facts(turn: Turn, now_s: float) -> str:
    """As `laptop · smollm2 · 46 tok/s · first token 0.21 s · 120 tokens`; while nothing came, what goes on."""
    if turn.stage in ("asking", "waiting", "loading"):
        return f"{turn.doing} … {now_s - turn.asked_s:.0f} s"
    words = [turn.node, turn.model]
    words += [f"{speed:.0f} tok/s"] if (speed := turn.speed(now_s)) else []
    words += [f"first token {turn.first_s - turn.asked_s:.2f} s"] if turn.first_s is not None else []
    words += [f"{turn.tokens} tokens"] if turn.tokens else []
    words += ["cut at the most it may have"] if turn.cut else []
    words += ["stopped"] if turn.stage == "stopped" else []
    return " · ".join(filter(None, words))


def as_markdown(turns: Iterable[Turn], system: str, now_s: float) -> str:
    """The whole conversation for a file."""
    parts = [f"> {system.strip()}\n"] if system.strip() else []
    for turn in turns:
        parts += [f"## {_first_line(turn.question)}\n"]
        parts += [f"{turn.question.strip()}\n"] if "\n" in turn.question.strip() else []
        parts += [f"{turn.text.strip()}\n"] if turn.text.strip() else []
        parts += [f"*{note}*\n" for note in turn.happened]
        parts += [f"*{turn.error or facts(turn, now_s)}*\n"]
    return "\n".join(parts)


def _first_line(text: str) -> str:
    return text.strip().split("\n", 1)[0]
