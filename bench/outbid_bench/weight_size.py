"""How much `pip install outbid[extra]` puts on the disk, reckoned from what is installed here.

The packages an extra brings are followed through the requirements that each names (for this Python and system), as pip
does; a package's size is that of the files its RECORD lists. What is not installed here is named, not guessed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from outbid_bench.plots import Bars
from outbid_bench.report import Table
from outbid_bench.stats import spread

EXTRAS = ("", "tui", "nvidia", "llm-prebuilt", "llm", "image-lite", "image", "all")
LARGEST = 3
OWN = ("outbid", "outbid_capabilities", "outbid_contracts", "outbid_node", "outbid_tui")

Wanted = tuple[str, str]
"""A package and one of its extras, or none."""


@dataclass(slots=True)
class Size:
    """Of an extra: bytes per package, and the names of those that are not here."""

    packages: dict[str, int]
    lacking: tuple[str, ...]

    @property
    def mib(self) -> float:
        return sum(self.packages.values()) / 2**20


def size(extra: str) -> Size:
    names = {name for name, _ in _closure(("outbid", extra))}
    found = {name: _bytes(name) for name in names}
    return Size(
        packages={name: count for name, count in found.items() if count is not None},
        lacking=tuple(sorted(name for name, count in found.items() if count is None)),
    )


def _closure(first: Wanted) -> set[Wanted]:
    seen, open_ = set[Wanted](), [first]
    while open_:
        if (wanted := open_.pop()) not in seen:
            seen.add(wanted)
            open_ += _required(*wanted)
    return seen


def _required(name: str, extra: str) -> Iterator[Wanted]:
    for text in found.requires or () if (found := _distribution(name)) else ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            yield from ((canonicalize_name(requirement.name), one) for one in ("", *requirement.extras))


@cache
def _distribution(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


@cache
def _bytes(name: str) -> int | None:
    """None if it is not installed. What Python compiled of it is counted, as after an installation."""
    if name == "outbid":
        return _own_bytes()
    found = _distribution(name)
    if found is None:
        return None
    files = (file.locate() for file in found.files or ())
    return sum(file.stat().st_size for file in files if file.is_file())  # type: ignore[attr-defined]


def _own_bytes() -> int:
    """The packages of our wheel: this may be an editable installation, whose RECORD lists none of them."""
    folders = [folder for name in OWN if (spec := find_spec(name)) for folder in spec.submodule_search_locations or ()]
    return sum(file.stat().st_size for folder in folders for file in Path(folder).rglob("*") if file.is_file())


def table_and_plot() -> tuple[Table, Bars]:
    sizes = {extra: size(extra) for extra in EXTRAS}
    base = sizes[""].mib
    rows = [_row(extra, found, base) for extra, found in sizes.items()]
    columns = ("what", "packages", "on disk", "more than alone", "the largest", "not here, so not counted")
    notes = (
        "Sizes of the files that the installed packages list, what Python compiled of them included. Most of Outbid's "
        "own are the small image model that comes with it. What pip keeps in its cache is not counted.",
        "`torch` is the build that is installed here: CUDA's libraries are counted only if they are.",
    )
    bars = [(_name(extra), spread([found.mib])) for extra, found in sizes.items()]
    return Table("Installed size", columns, rows, notes), Bars(
        "size", "What an installation takes on disk", "MiB", bars
    )


def _row(extra: str, found: Size, base_mib: float) -> tuple[str, ...]:
    largest = sorted(found.packages.items(), key=lambda item: -item[1])[:LARGEST]
    return (
        _name(extra),
        str(len(found.packages)),
        f"{found.mib:.0f} MiB",
        f"{found.mib - base_mib:.0f} MiB" if extra else "-",
        _listed(f"{name} {count / 2**20:.0f}" for name, count in largest),
        _listed(found.lacking) or "-",
    )


def _name(extra: str) -> str:
    return f"outbid[{extra}]" if extra else "outbid"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
