"""Models that an administrator wants kept in memory (`outbid pin`) or out of it (`outbid evict`).

Pins are in a file, so that a restart does not undo them. A pin outlives its model's absence, too: what is pulled again
is loaded again. Courtesy goes before it: a person who plays gets the memory, and the model comes back afterwards.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from outbid_contracts import subjects
from outbid_contracts.admin import EvictReply, EvictRequest, PinReply, PinRequest
from outbid_contracts.capability import ModelFile
from outbid_contracts.codec import Format, decode
from outbid_contracts.errors import InvalidRequest, OutbidError, Refused, UnknownModel
from outbid_contracts.ids import NodeId
from outbid_node.catalogue import Catalogue, Entry
from outbid_node.micro import Request, Service
from outbid_node.runners.machine import Phase
from outbid_node.runners.pool import RunnerPool, key_of
from outbid_node.runners.supervisor import Key

log = logging.getLogger(__name__)

FILE = "pinned.json"
MOST = 100

Pin = tuple[str, str]
"""Capability and model."""


class Pinning:
    """`keep` is called each second. `may_load`: whether the machine's person can spare the memory; `touch`: what is
    offered changed.
    """

    def __init__(
        self,
        *,
        me: NodeId,
        state: Path,
        pool: RunnerPool,
        catalogue: Catalogue,
        may_load: Callable[[], bool],
        touch: Callable[[], None],
    ) -> None:
        self.me = me
        self._state, self._pool, self._catalogue = state, pool, catalogue
        self._may_load, self._touch = may_load, touch
        self._pins = load(state)
        self._complaints: dict[Pin, str] = {}
        self._writing = asyncio.Lock()

    def __contains__(self, pin: Pin) -> bool:
        return pin in self._pins

    def keep(self) -> None:
        """Pin in the pool what is here by now, and load what is not loaded."""
        for pin in self._pins:
            self._complain(pin, self._try(pin))
        self._pool.load_pinned(self._may_load())

    def _try(self, pin: Pin) -> str:
        try:
            entry, file = self._catalogue.find(*pin)
            if not self._pool.is_pinned(key_of(entry.capability, file)):
                self._pin(entry, file)
        except OutbidError as error:
            self._unpin(pin)
            return error.message
        return ""

    def _unpin(self, pin: Pin) -> None:
        if (entry := self._catalogue.entries.get(pin[0])) is not None:
            self._pool.unpin((entry.capability.runner, pin[1]))

    def _complain(self, pin: Pin, why: str) -> None:
        """Once for each reason."""
        if why and self._complaints.get(pin) != why:
            log.warning("%s is pinned but not loaded: %s", pin[1], why, extra={"action": "pin_not_kept"})
        self._complaints[pin] = why

    def _pin(self, entry: Entry, file: ModelFile | None) -> Phase:
        """Raises Refused."""
        load_s = self._catalogue.speed(entry.capability, file).load_s
        return self._pool.pin(entry.capability, file, entry.settings, load_s).state.phase

    # -- orders ---------------------------------------------------------------------------------------------------

    def register(self, service: Service) -> None:
        for verb, handler in {"pin": self.pin, "evict": self.evict}.items():
            service.add(f"admin-{verb}", subjects.admin(self.me, verb), handler, queue=str(self.me))

    async def pin(self, request: Request) -> None:
        asked: PinRequest = _read(request, PinRequest)
        if asked.undo:
            request.respond(await self._undo(asked))
            return
        entry, file = self._find(asked.model, asked.capability)
        pin = entry.capability.name, asked.model
        try:
            phase = self._pin(entry, file)
        except Refused as error:
            raise InvalidRequest(f"{asked.model} cannot be pinned here: it {error.message}") from error
        if pin not in self._pins:
            await self._keep(lambda pins: tuple(dict.fromkeys((*pins, pin))))
            log.info("%s is pinned", asked.model, extra={"action": "model_pinned"})
        self.keep()
        self._touch()
        loading = phase not in (Phase.READY, Phase.BUSY)
        request.respond(
            PinReply(node=self.me, model=asked.model, capability=entry.capability.name, pinned=True, loading=loading)
        )

    async def _undo(self, asked: PinRequest) -> PinReply:
        """Also of a model that is not here any more."""
        found = [pin for pin in self._pins if pin[1] == asked.model and asked.capability in (None, pin[0])]
        if not found:
            raise InvalidRequest(f"{asked.model} is not pinned here; pinned: {_listed(pin[1] for pin in self._pins)}")
        await self._keep(lambda pins: tuple(pin for pin in pins if pin not in found))
        for pin in found:
            self._complaints.pop(pin, None)
            self._unpin(pin)
            log.info("%s is not pinned any more", pin[1], extra={"action": "model_unpinned"})
        self._touch()
        return PinReply(node=self.me, model=asked.model, capability=found[0][0], pinned=False)

    async def _keep(self, change: Callable[[tuple[Pin, ...]], tuple[Pin, ...]]) -> None:
        """On disk first: whoever was told that it is pinned is not surprised after a restart."""
        async with self._writing:
            pins = change(self._pins)
            if len(pins) > MOST:
                raise InvalidRequest(f"more than {MOST} models cannot be pinned")
            try:
                await asyncio.to_thread(save, self._state, pins)
            except OSError as error:
                raise InvalidRequest(f"the state folder cannot be written: {error.strerror or error}") from error
            self._pins = pins

    async def evict(self, request: Request) -> None:
        asked: EvictRequest = _read(request, EvictRequest)
        entry, file = self._find(asked.model, asked.capability)
        key, name = key_of(entry.capability, file), entry.capability.name
        if self._pool.is_pinned(key):
            raise InvalidRequest(f"{asked.model} is pinned here; `outbid pin … --undo` first")
        was_warm, busy = self._pool.evict(key)
        if was_warm:
            log.info("%s leaves memory by order", asked.model, extra={"action": "model_evicted"})
            self._touch()
        request.respond(EvictReply(node=self.me, model=asked.model, capability=name, was_warm=was_warm, busy=busy))

    def _find(self, model: str, capability: str | None) -> tuple[Entry, ModelFile | None]:
        """Capabilities that share a runner share the model in memory. Raises UnknownModel, UnknownCapability,
        InvalidRequest.
        """
        if capability is not None:
            return self._catalogue.find(capability, model)
        found: dict[Key, tuple[Entry, ModelFile | None]] = {}
        for entry in self._catalogue.usable():
            for file in entry.models:
                if file.name == model:
                    found.setdefault(key_of(entry.capability, file), (entry, file))
        if not found:
            models = {file.name for entry in self._catalogue.usable() for file in entry.models}
            raise UnknownModel(f"this node has no model {model!r} (it has: {_listed(models)})")
        if len(found) > 1:
            names = _listed(entry.capability.name for entry, _ in found.values())
            raise InvalidRequest(f"{model!r} serves several capabilities; say which: {names}")
        return next(iter(found.values()))


def load(state: Path) -> tuple[Pin, ...]:
    """None of a file that makes no sense: pins are a wish, and a node must start."""
    try:
        told = json.loads((state / FILE).read_text("utf-8"))["pinned"]
        return tuple(dict.fromkeys((str(one["capability"]), str(one["model"])) for one in told))[:MOST]
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s cannot be read: %s", FILE, error, extra={"action": "pins_unreadable"})
        return ()


def save(state: Path, pins: tuple[Pin, ...]) -> None:
    """Raises OSError."""
    beside = (state / FILE).with_suffix(".new")
    beside.write_text(json.dumps({"pinned": [{"capability": c, "model": m} for c, m in pins]}), "utf-8")
    beside.replace(state / FILE)


def _listed(names: Any) -> str:
    return ", ".join(sorted(names)) or "none"


def _read(request: Request, type: Any) -> Any:
    if request.read_format() is Format.TEXT and request.data:
        raise InvalidRequest("this takes a JSON object")
    return decode(request.data or b"{}", type, request.format if request.data else Format.JSON)
