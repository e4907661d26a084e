"""A node's configuration: what may be set, and the value of each key with where it came from.

Later wins: defaults, the TOML file, `OUTBID_<SECTION>_<KEY>` variables, flags. Unknown keys are refused, because a
misspelt key that is silently ignored is found weeks later. Each capability family adds a section of its own (`[llm]`
for `llm.chat`), declared by its `Capability.settings`.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from outbid_contracts.capability import Capability
from outbid_contracts.errors import InvalidConfig
from outbid_contracts.places import config_file as place_of_file
from outbid_node.config_sections import (
    ArtifactsSection,
    BusSection,
    CourtesySection,
    DurableSection,
    HistorySection,
    LimitsSection,
    LogSection,
    MeshSection,
    ModelsSection,
    NodeSection,
    PolicySection,
    PowerSection,
    QuotasSection,
)
from outbid_node.config_values import allowed, from_text


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """The whole of it. `capabilities` holds the settings of each capability family by section name."""

    node: NodeSection = msgspec.field(default_factory=NodeSection)
    mesh: MeshSection = msgspec.field(default_factory=MeshSection)
    bus: BusSection = BusSection()
    limits: LimitsSection = LimitsSection()
    durable: DurableSection = DurableSection()
    artifacts: ArtifactsSection = ArtifactsSection()
    models: ModelsSection = ModelsSection()
    power: PowerSection = msgspec.field(default_factory=PowerSection)
    quotas: QuotasSection = QuotasSection()
    log: LogSection = LogSection()
    policy: PolicySection = PolicySection()
    courtesy: CourtesySection = CourtesySection()
    history: HistorySection = HistorySection()
    capabilities: dict[str, msgspec.Struct] = {}

    def settings(self, section: str) -> dict[str, Any]:
        """A capability's settings with their defaults, as its functions and its runner take them."""
        chosen = self.capabilities.get(section)
        return {} if chosen is None else msgspec.structs.asdict(chosen)


SECTIONS: dict[str, type[msgspec.Struct]] = {
    "node": NodeSection,
    "mesh": MeshSection,
    "bus": BusSection,
    "limits": LimitsSection,
    "durable": DurableSection,
    "artifacts": ArtifactsSection,
    "models": ModelsSection,
    "power": PowerSection,
    "quotas": QuotasSection,
    "log": LogSection,
    "policy": PolicySection,
    "courtesy": CourtesySection,
    "history": HistorySection,
}

ALIASES = {"OUTBID_NAME": "node.name", "OUTBID_MESH": "mesh.name", "OUTBID_PORT": "bus.port"}
"""Short environment variables. The long one wins where both are set."""

NOT_KEYS = frozenset({"OUTBID_STATE", "OUTBID_CONFIG", "OUTBID_KEYRING"})
"""Say where things are, not how the node is to be."""


class Given(NamedTuple):
    """A value and where it came from: "default", "file PATH", a variable's name or a flag."""

    value: Any
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Effective:
    """The configuration in force. `sources` has every dotted key; `file` is None where no file was read."""

    config: Config
    sources: dict[str, str]
    file: Path | None = None
    warnings: tuple[str, ...] = ()


def sections(declarations: Mapping[str, Capability]) -> dict[str, type[msgspec.Struct]]:
    """All sections: ours and one per capability family. Raises InvalidConfig where two claim the same name."""
    found = dict(SECTIONS)
    for capability in declarations.values():
        if capability.settings is None:
            continue
        known = found.setdefault(capability.section, capability.settings)
        if known is not capability.settings:
            raise InvalidConfig(
                f"capability {capability.name} wants its own [{capability.section}], but that section is taken by "
                f"{known.__module__}.{known.__qualname__}; remove one of the two packages"
            )
    return found


def keys(known: Mapping[str, type[msgspec.Struct]]) -> dict[str, Any]:
    """The declared type of every dotted key."""
    return {
        f"{section}.{field.name}": field.type
        for section, kind in known.items()
        for field in msgspec.structs.fields(kind)
    }


def variable(key: str) -> str:
    """The environment variable of a dotted key: OUTBID_LLM_THREADS for llm.threads."""
    return "OUTBID_" + key.replace(".", "_").upper()


def load(
    state: Path | None,
    config_file: Path | None,
    environ: Mapping[str, str],
    flags: Mapping[str, Any],
    declarations: Mapping[str, Capability],
) -> Effective:
    """The configuration in force. Raises InvalidConfig, whose message names the key, its source and what is allowed.

    `config_file` (or OUTBID_CONFIG) must exist; without either, `config.toml` in `state` or in the platform's
    configuration folder is read if there. `flags` are by dotted key, plain or `Given`; text is converted.
    """
    known = sections(declarations)
    types = keys(known)
    file = _file(state, config_file, environ)
    given = _from_file(file, known, types) if file else {}
    given |= _from_environ(environ, types)
    given |= _from_flags(flags, types)
    built = {name: _section(name, kind, given) for name, kind in known.items()}
    ours: dict[str, Any] = {name: built.pop(name) for name in SECTIONS}
    return Effective(
        config=Config(**ours, capabilities=built),
        sources={key: given[key].source if key in given else "default" for key in types},
        file=file,
        warnings=_misspelt(environ, types),
    )


def _section(name: str, kind: type[msgspec.Struct], given: Mapping[str, Given]) -> msgspec.Struct:
    mine = {key.partition(".")[2]: found for key, found in given.items() if key.partition(".")[0] == name}
    try:
        return kind(**{field: found.value for field, found in mine.items()})
    except (ValueError, TypeError) as error:  # __post_init__ of the section, or a settings field without a default
        told = ", ".join(sorted({found.source for found in mine.values()})) or "nothing set it"
        raise InvalidConfig(f"[{name}] {error} ({told})", section=name) from error


# -- the file --------------------------------------------------------------------------------------------------------


def _file(state: Path | None, explicit: Path | None, environ: Mapping[str, str]) -> Path | None:
    if explicit is None and not environ.get("OUTBID_CONFIG"):
        usual = place_of_file(state or Path(), environ)
        return usual if usual.exists() else None
    file = explicit or place_of_file(Path(), environ)
    if not file.exists():
        by = "--config" if explicit else "OUTBID_CONFIG"
        raise InvalidConfig(f"{by} names {file}, which does not exist")
    return file


def _from_file(file: Path, known: Mapping[str, Any], types: Mapping[str, Any]) -> dict[str, Given]:
    source = f"file {file}"
    found: dict[str, Given] = {}
    for section, table in _parse(file).items():
        if section not in known:
            raise InvalidConfig(_unknown_section(section, table, known, types, source), key=section)
        if not isinstance(table, dict):
            raise InvalidConfig(f"{section} must be a section, [{section}], not a value ({source})", key=section)
        for name, value in table.items():
            key = f"{section}.{name}"
            found[key] = Given(_checked(key, value, types, source), source)
    return found


def _parse(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise InvalidConfig(f"{file} is not valid TOML: {error}") from error
    except UnicodeDecodeError as error:
        raise InvalidConfig(f"{file} is not UTF-8 text: {error}") from error
    except OSError as error:
        raise InvalidConfig(f"{file} cannot be read: {error.strerror or error}") from error


def _unknown_section(name: str, table: Any, known: Mapping[str, Any], types: Mapping[str, Any], source: str) -> str:
    if not isinstance(table, dict):
        homes = [key for key in types if key.partition(".")[2] == name]
        hint = f"; did you mean {name} under [{homes[0].partition('.')[0]}]?" if homes else "; keys stand in sections"
        return f"{name} stands outside any section{hint} ({source})"
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean [{close[0]}]?" if close else "no installed capability has settings of that name;"
    return f"there is no section [{name}]; {hint} sections are {', '.join(sorted(known))} ({source})"


# -- environment and flags -------------------------------------------------------------------------------------------


def _from_environ(environ: Mapping[str, str], types: Mapping[str, Any]) -> dict[str, Given]:
    """An empty variable counts as not set, as container set-ups write it."""
    names = ALIASES | {variable(key): key for key in types}
    _refuse_unknown_variables(environ, names, types)
    return {
        key: Given(_checked(key, text, types, name), name)
        for name, key in names.items()
        if key in types and (text := environ.get(name, "").strip())
    }


def _refuse_unknown_variables(environ: Mapping[str, str], names: Mapping[str, str], types: Mapping[str, Any]) -> None:
    """A variable that begins with a section's name was meant for it. Others (OUTBID_RUNNER_TOKEN) are not ours."""
    starts = tuple({variable(key.partition(".")[0]) + "_" for key in types})
    for name in sorted(environ):
        if name.startswith(starts) and name not in names and environ[name]:
            section = next(start for start in starts if name.startswith(start))
            near = difflib.get_close_matches(name, names, n=1) or sorted(n for n in names if n.startswith(section))
            hint = f"did you mean {near[0]}?" if len(near) == 1 else f"known are {', '.join(near)}"
            raise InvalidConfig(f"variable {name} sets nothing; {hint}", key=name)


def _misspelt(environ: Mapping[str, str], types: Mapping[str, Any]) -> tuple[str, ...]:
    """OUTBID_ variables that belong to nothing but resemble one that does."""
    names = {name.removeprefix("OUTBID_") for name in (*ALIASES, *NOT_KEYS, *map(variable, types))}
    strange = sorted(
        name for name in environ if name.startswith("OUTBID_") and name.removeprefix("OUTBID_") not in names
    )
    near = {name: difflib.get_close_matches(name.removeprefix("OUTBID_"), names, n=1, cutoff=0.75) for name in strange}
    return tuple(f"variable {name} sets nothing; did you mean OUTBID_{hit[0]}?" for name, hit in near.items() if hit)


def _from_flags(flags: Mapping[str, Any], types: Mapping[str, Any]) -> dict[str, Given]:
    found = {}
    for key, value in flags.items():
        given = value if isinstance(value, Given) else Given(value, f"--set {key}")
        found[key] = Given(_checked(key, given.value, types, given.source), given.source)
    return found


# -- one value -------------------------------------------------------------------------------------------------------


def _checked(key: str, value: Any, types: Mapping[str, Any], source: str) -> Any:
    """The value as its declared type. Text from the file stays text; text from elsewhere is converted."""
    if key not in types:
        raise InvalidConfig(_unknown_key(key, types, source), key=key)
    kind = types[key]
    try:
        from_elsewhere = isinstance(value, str) and not source.startswith("file ")
        good = from_text(value, kind) if from_elsewhere else msgspec.convert(value, type=kind)
        if isinstance(good, float) and not math.isfinite(good):  # TOML has inf and nan; bounds do not stop nan
            raise ValueError("not a finite number")
        return good
    except ValueError as error:
        shown = "a table" if isinstance(value, dict) else repr(value)
        raise InvalidConfig(f"{key} cannot be {shown} ({source}); allowed: {allowed(kind)}", key=key) from error


def _unknown_key(key: str, types: Mapping[str, Any], source: str) -> str:
    section, _, name = key.partition(".")
    if not name:
        return f"{key!r} is not a key; write section.key, e.g. node.name ({source})"
    mine = {known.partition(".")[2] for known in types if known.startswith(f"{section}.")}
    hint = next(_guesses(name, section, mine, types), f"[{section}] has {', '.join(sorted(mine))}" if mine else "")
    hint = hint or f"sections are {', '.join(sorted({known.partition('.')[0] for known in types}))}"
    return f"there is no key {key}; {hint} ({source})"


def _guesses(name: str, section: str, mine: set[str], types: Mapping[str, Any]) -> Iterator[str]:
    for close in difflib.get_close_matches(name, mine, n=1):
        yield f"did you mean {section}.{close}?"
    for other in types:
        if other.partition(".")[2] == name:
            yield f"did you mean {other}?"
    for close in difflib.get_close_matches(f"{section}.{name}", types, n=1):
        yield f"did you mean {close}?"
