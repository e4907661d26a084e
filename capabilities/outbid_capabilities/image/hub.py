"""Where all pictures under way wait for the denoiser, and are denoised together: continuous batching for any pipeline.

A pipeline's own call runs in a greenlet, with a `Denoiser` in place of its U-Net or transformer. Calling that parks the
greenlet here. The hub takes the call that has waited longest and all others that fit with it, runs the model once, and
lets each greenlet go on with its part of the answer, until it comes back with the next step or ends. So pictures join
and leave at any step, none waits for a batch to fill, none starves, and everything but the model (scheduler, guidance,
text encoder, VAE) is the pipeline's own code, working for one picture. All of it happens in one thread.
"""

from __future__ import annotations

import contextlib
import inspect
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import greenlet
import torch

from outbid_capabilities.image import batching
from outbid_capabilities.image.batching import Shape
from outbid_capabilities.image.memory import is_shortage


class Owner(Protocol):
    """The job that a call is for. `max_rows`: what memory allows at the size of its pictures."""

    max_rows: int

    def note(self, text: str) -> None: ...


Blank = Callable[[int, bool], Any]
Seen = Callable[[int, Any], None]


@dataclass(slots=True, eq=False)
class Call:
    """One call of the denoiser that waits for its turn. `scope`: what else must be equal to share a batch (LoRAs)."""

    model: Any
    names: list[str]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shape: Shape
    scope: Hashable
    owner: Owner
    who: greenlet.greenlet

    def fits(self, other: Call) -> bool:
        return self.model is other.model and self.scope == other.scope and self.shape.fits(other.shape)

    @property
    def kind(self) -> Hashable:
        return id(self.model), self.shape.key


class Denoiser:
    """Stands in a pipeline for its U-Net or transformer; all but the call is the real one's.

    `blank(rows, return_dict)` gives the answer for a step that is skipped because a checkpoint already has it, None for
    a real step; `seen(rows, answer)` gets each real answer.
    """

    def __init__(self, model: Any, owner: Owner, scope: Hashable, blank: Blank, seen: Seen) -> None:
        self._model, self._owner, self._scope, self._blank, self._seen = model, owner, scope, blank, seen
        self._names = names_of(model)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        shape = batching.shape_of(self._names, args, kwargs)
        blank = self._blank(shape.rows, bool(kwargs.get("return_dict", True)))
        if blank is not None:
            return blank
        who = greenlet.getcurrent()
        call = Call(self._model, self._names, args, kwargs, shape, self._scope, self._owner, who)
        answer = who.parent.switch(call)
        self._seen(shape.rows, answer)
        return answer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    @contextlib.contextmanager
    def cache_context(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """The real one's is for caches over the steps of a single picture; here steps of several are mixed."""
        yield


def names_of(model: Any) -> list[str]:
    """The positional parameters of the model's forward."""
    kinds = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = inspect.signature(getattr(model, "forward", model)).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind in kinds]


class Hub:
    """`max_rows`: samples per batch at most; less where memory turned out to be short. `activate` puts a scope in
    force. `economise` makes the model take less memory, and says False when it cannot.
    """

    def __init__(self, max_rows: int, activate: Callable[[Any], None], economise: Callable[[], bool]) -> None:
        self.waiting: deque[Call] = deque()
        self.max_rows = max_rows
        self._activate, self._economise = activate, economise
        self._limits: dict[Hashable, int] = {}
        self._alone: set[Hashable] = set()

    def begin(self, work: Callable[[], Any]) -> Any:
        """Run `work` up to its first call of a denoiser. Returns what it returned, if it is over already, else None."""
        return self._take(greenlet.greenlet(work).switch())

    def drop(self, owner: Owner, error: BaseException) -> None:
        """End the greenlets of an owner: they see `error` at the call they wait in."""
        mine = [call for call in self.waiting if call.owner is owner]
        self.waiting = deque(call for call in self.waiting if call.owner is not owner)
        for call in mine:
            self._take(call.who.throw(error))

    def next_batch(self) -> list[Call]:
        """The call that has waited longest, and those that may run with it. They are taken from the waiting ones."""
        first = self.waiting.popleft()
        if first.kind in self._alone or first.shape.key is None:
            return [first]
        batch, rest, rows = [first], deque[Call](), first.shape.rows
        for call in self.waiting:
            if rows + call.shape.rows <= self.limit(call) and first.fits(call):
                batch.append(call)
                rows += call.shape.rows
            else:
                rest.append(call)
        self.waiting = rest
        return batch

    def limit(self, call: Call) -> int:
        return min(self.max_rows, call.owner.max_rows, self._limits.get(call.kind, self.max_rows))

    def answer(self, batch: Sequence[Call]) -> list[Any]:
        """The model's answers, or an exception in place of each that it has none for."""
        try:
            self._activate(batch[0].scope)
            return list(self._answer(batch))
        except Exception as error:
            if len(batch) == 1:
                return [error]
            answers = [self.answer([call])[0] for call in batch]
            if not any(isinstance(answer, Exception) for answer in answers):  # so they cannot be batched after all
                self._alone.add(batch[0].kind)
            return answers

    def resume(self, call: Call, answer: Any) -> Any:
        """Let a greenlet go on up to its next call. Returns what it returned if it is over, else None."""
        back = call.who.throw(answer) if isinstance(answer, BaseException) else call.who.switch(answer)
        return self._take(back)

    def _take(self, back: Any) -> Any:
        if torch.is_grad_enabled():
            torch.set_grad_enabled(False)  # a pipeline ended or waits between what it switches on and off
        if isinstance(back, Call):
            self.waiting.append(back)
            return None
        return back

    def _answer(self, batch: Sequence[Call]) -> Sequence[Any]:
        total = sum(call.shape.rows for call in batch)
        while True:
            rows = min(total, self.limit(batch[0])) if batch[0].shape.key is not None else total
            try:
                return self._run(batch, total, rows)
            except Exception as error:
                if not is_shortage(error):
                    raise
                shortage = error
            if rows > 1 and batch[0].shape.key is not None:
                self._limits[batch[0].kind] = rows // 2
                for call in batch:
                    call.owner.note(f"short of memory: batches of {rows // 2} instead of {rows}")
            elif not self._economise():
                raise shortage

    def _run(self, batch: Sequence[Call], total: int, rows: int) -> Sequence[Any]:
        """`rows` at a time, `total` in all."""
        first = batch[0]
        if len(batch) == 1 and rows == total:
            return [first.model(*first.args, **first.kwargs)]
        sizes = [call.shape.rows for call in batch]
        args = [
            batching.merge(name, [call.args[n] for call in batch], sizes)
            for n, name in enumerate(first.names[: len(first.args)])
        ]
        kwargs = {name: batching.merge(name, [call.kwargs[name] for call in batch], sizes) for name in first.kwargs}
        answers = []
        for begin in range(0, total, rows):
            part = total, begin, min(begin + rows, total)
            if rows < total:
                some = [batching.narrow(name, value, *part) for name, value in zip(first.names, args, strict=False)]
                more = {name: batching.narrow(name, value, *part) for name, value in kwargs.items()}
                answers.append(first.model(*some, **more))
            else:
                answers.append(first.model(*args, **kwargs))
        answer = batching.join(answers) if len(answers) > 1 else answers[0]
        return [answer] if len(batch) == 1 else batching.split(answer, sizes)
