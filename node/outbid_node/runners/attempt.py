"""An attempt as the pool sees it, and who hears how it goes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from outbid_contracts import runner as wire
from outbid_contracts.capability import Capability

_log = logging.getLogger(__name__)


class AttemptSink(Protocol):
    """Hears how an attempt goes, on the loop. Exactly one of done, failed, stopped is called, once, as the last."""

    def loading(self, fraction: float | None, note: str) -> None: ...

    def chunk(self, data: dict[str, Any], payloads: list[bytes]) -> None: ...

    def progress(self, step: int, steps: int, note: str, eta_s: float | None) -> None: ...

    def checkpoint(self, step: int, steps: int, data: bytes) -> None: ...

    def done(self, message: wire.RunDone, payloads: list[bytes]) -> None: ...

    def failed(self, message: wire.RunFailed) -> None: ...

    def stopped(self) -> None: ...


class Nobody:
    """Takes the place of a sink that has heard its last."""

    def loading(self, fraction: float | None, note: str) -> None: ...

    def chunk(self, data: dict[str, Any], payloads: list[bytes]) -> None: ...

    def progress(self, step: int, steps: int, note: str, eta_s: float | None) -> None: ...

    def checkpoint(self, step: int, steps: int, data: bytes) -> None: ...

    def done(self, message: wire.RunDone, payloads: list[bytes]) -> None: ...

    def failed(self, message: wire.RunFailed) -> None: ...

    def stopped(self) -> None: ...


@dataclass(slots=True, eq=False)
class Attempt:
    """`cancelled`: the runner was told. `timer` runs while its answer is awaited."""

    key: wire.AttemptKey
    capability: Capability
    params: dict[str, Any]
    files: Mapping[str, bytes]
    sink: AttemptSink
    heard: bool = True
    cancelled: bool = False
    timer: asyncio.TimerHandle | None = None

    def misfit(self, kind: type[msgspec.Struct] | None, data: dict[str, Any]) -> str:
        """Why this chunk or result is not what the capability declares; empty if it is."""
        if kind is None:
            return "the capability declares none"
        field = self.capability.artifacts
        try:
            msgspec.convert(_filled(data, field) if field and kind is self.capability.result else data, kind)
        except msgspec.ValidationError as error:
            return str(error)
        return ""

    def fail(self, fault: wire.Crashed) -> None:
        """The runner is gone, or as good as gone."""
        if self.cancelled:
            tell(self.sink.stopped)
        else:
            tell(self.sink.failed, failure(self.key, fault))


def _filled(result: dict[str, Any], field: str) -> dict[str, Any]:
    """With what the node adds to each file that the runner lists."""
    files = result.get(field)
    if not isinstance(files, list) or not all(isinstance(file, dict) for file in files):
        return result
    return result | {field: [_UNKEPT | file for file in files]}


_UNKEPT = {"id": "", "size": 0, "sha256": "", "node": "", "bucket": ""}


def failure(key: wire.AttemptKey, fault: wire.Crashed) -> wire.RunFailed:
    return wire.RunFailed(attempt=key, message=fault.message, code=fault.code, traceback=fault.traceback)


def tell(say: Callable[..., None], *args: Any) -> None:
    """Call a sink; what it raises is its own affair and must not stop the pool."""
    try:
        say(*args)
    except Exception:
        _log.exception("a sink failed", extra={"action": "sink_failed"})
