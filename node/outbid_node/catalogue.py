"""What this node can do: declarations, which of them can run here, their models, and how fast they are."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from outbid_contracts.capability import Capability, Machine, ModelFile
from outbid_contracts.errors import UnknownCapability, UnknownModel
from outbid_contracts.runner import Ready
from outbid_node.estimating.learner import Learner, Speed, WarmUp
from outbid_node.estimating.speeds import Speeds
from outbid_node.prefix import Prefixes
from outbid_node.runners.pool import device_kind

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Entry:
    """One capability on this node. `missing` says why it cannot run here, empty if it can."""

    capability: Capability
    settings: Mapping[str, Any]
    models: Sequence[ModelFile]
    missing: str

    default_model: ModelFile | None = None


class Catalogue:
    """All declared capabilities by name, with what this machine has for them."""

    def __init__(
        self,
        declarations: Mapping[str, Capability],
        sections: Mapping[str, msgspec.Struct],
        speeds: Speeds,
        machine: Machine,
        only: Collection[str] = (),
        pulled: Sequence[str] = (),
    ) -> None:
        """Looks for models on the disk, so where there is a loop, make it in a thread. `only`: a guest offers no other
        capabilities than these (all, if empty). `pulled`: folders of models that were pulled, the oldest first.
        """
        self._declarations = declarations
        self._sections = sections
        self._refreshing = asyncio.Lock()
        self._only = only
        self.speeds = speeds
        self.machine = machine
        self.prefixes = Prefixes()
        self.entries = self._look(pulled)

    async def refresh(self, pulled: Sequence[str]) -> None:
        """Look again: models came or went."""
        async with self._refreshing:
            self.entries = await asyncio.to_thread(self._look, pulled)

    def usable(self) -> list[Entry]:
        return [entry for entry in self.entries.values() if not entry.missing]

    def declared(self, name: str) -> Capability:
        """The declaration, also if it cannot run here. Raises UnknownCapability."""
        if name not in self.entries:
            raise UnknownCapability(f"no capability {name!r}; known are {', '.join(sorted(self.entries))}")
        return self.entries[name].capability

    def find(self, name: str, model: str | None) -> tuple[Entry, ModelFile | None]:
        """The entry and model for a job. Raises UnknownCapability or UnknownModel, saying what this node has
        instead.
        """
        entry = self.entries.get(name)
        if entry is None or entry.missing:
            raise UnknownCapability(entry.missing if entry else f"this node has no capability {name!r}")
        if model is None:
            return entry, entry.default_model
        for candidate in entry.models:
            if candidate.name == model:
                return entry, candidate
        have = ", ".join(candidate.name for candidate in entry.models) or "none"
        raise UnknownModel(f"this node has no model {model!r} for {name} (it has: {have})")

    def speed(self, capability: Capability, model: ModelFile | None) -> Speed:
        """What is believed of it now."""
        return self.learner(capability, model).speed()

    def came_up(self, capability: Capability, model: ModelFile | None, ready: Ready) -> Speed:
        """Its runner is loaded: what is believed after its warm-up."""
        self.speeds.runs_on(capability.name, model.name if model else None, device_kind(ready))
        learner = self.learner(capability, model)
        learner.warmed_up(WarmUp(ready.load_s, ready.rates, ready.fixed_s))
        return learner.speed()

    def learner(self, capability: Capability, model: ModelFile | None) -> Learner:
        name = model.name if model else None
        return self.speeds.measured((capability.name, name)) or self.speeds.learner(
            capability,
            name,
            lambda: capability.prior(model, self.machine),
            on_card=model is not None and model.gpu_memory_mib > 0,
        )

    def _look(self, pulled: Sequence[str]) -> dict[str, Entry]:
        return {name: self._entry(capability, pulled) for name, capability in self._declarations.items()}

    def _entry(self, capability: Capability, pulled: Sequence[str]) -> Entry:
        section = self._sections.get(capability.section)
        settings = msgspec.to_builtins(section) if section is not None else {}
        settings["pulled"] = tuple(pulled)
        capability = dataclasses.replace(
            capability,
            slots=settings.get("slots", capability.slots),
            python=_interpreter(settings.get("python") or capability.python),
        )
        try:
            missing = capability.missing(settings) or _no_interpreter(capability) or ""
            models = () if missing else tuple(capability.models(settings))
        except Exception as error:  # third-party code: a broken declaration costs that capability, not the node
            log.exception("capability %s is broken", capability.name, extra={"action": "capability_broken"})
            return Entry(capability, settings, (), f"its declaration failed: {error}")
        if self._only and capability.name not in self._only:
            missing = f"this node is a guest and offers only {', '.join(self._only)}"
        if not missing and capability.needs_model and not models:
            missing = "no model found; name a file with the section's `models` setting"
        default = next((model for model in models if model.default), models[0] if models else None)
        return Entry(capability, settings, models, missing, default)


def _interpreter(named: str | None) -> str | None:
    return str(Path(named).expanduser()) if named else None


def _no_interpreter(capability: Capability) -> str | None:
    if capability.python is None or shutil.which(capability.python):
        return None
    setting = f"{capability.section}.python"
    return f"its interpreter {capability.python} is not there; name the one of its environment ({setting})"
