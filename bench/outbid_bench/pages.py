"""A page of several sections, each measured when it was measured: docs/benchmarks.md."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from outbid_bench.report import AIM_COLUMNS

HEAD = """# Benchmarks

Written by `make bench ARGS="--write docs/benchmarks.md"`; do not edit. Each section says when, on what machine and by
which command it was measured. Absolute numbers depend on the machine and on what else it does; the ratios are between
systems measured in turns within the same run. Cells are medians over rounds, with (lowest–highest).

`make bench-quick` takes three minutes and says which ratios moved since the runs that are kept in `bench/quick.json`.
"""
OVERVIEW = "overview"


def write_page(page: Path, sections: Mapping[str, str], order: Sequence[str]) -> None:
    """Put `sections` (name: Markdown) into the page, in this order; those of earlier runs that are not among them stay,
    and so does what stands before the first. A page of several begins with what they say of their aims.
    """
    before = page.read_text("utf-8") if page.exists() else ""
    head = before.partition("<!-- ")[0].rstrip() + "\n" if before else HEAD
    kept = {name: body.strip() for name, body in _SECTION.findall(before) if name != OVERVIEW}
    merged = kept | dict(sections)
    names = [*(name for name in order if name in merged), *sorted(merged.keys() - set(order))]
    if len(merged) > 1:
        merged[OVERVIEW] = _overview({name: merged[name] for name in names})
        names = [OVERVIEW, *names]
    bodies = [f"<!-- {name} begins -->\n\n{merged[name].strip()}\n\n<!-- {name} ends -->" for name in names]
    page.write_text("\n".join([head, "\n\n".join(bodies), ""]), "utf-8")


_SECTION = re.compile(r"<!-- (\w+) begins -->(.*?)<!-- \1 ends -->", re.DOTALL)


def _overview(sections: Mapping[str, str]) -> str:
    """How many aims each section met, and which were missed by how much."""
    aims = {name: list(_aims(body)) for name, body in sections.items()}
    counts = [
        f"| [{name}](#{_anchor(sections[name])}) | {sum(met == 'yes' for *_, met in found)} of {len(found)} |"
        for name, found in aims.items()
        if found
    ]
    missed = [
        f"| {name} | {what} | {target} | {measured} |"
        for name, found in aims.items()
        for what, target, measured, met in found
        if met != "yes"
    ]
    parts = ["## Aims, and which were missed", "\n".join(["| section | aims met |", "| --- | ---: |", *counts])]
    if missed:
        parts.append(
            "\n".join(["| section | missed aim | target | measured |", "| --- | --- | ---: | ---: |", *missed])
        )
    return "\n\n".join(parts)


def _aims(body: str) -> Iterable[tuple[str, str, str, str]]:
    _, found, table = body.partition(f"| {' | '.join(AIM_COLUMNS)} |\n")
    for line in table.splitlines()[1:] if found else ():
        if not line.startswith("| "):
            return
        what, target, measured, met = line.strip("| ").split(" | ")
        yield what, target, measured, met


def _anchor(body: str) -> str:
    """As GitHub makes it from the section's title."""
    title = body.strip().partition("\n")[0].lstrip("# ").lower()
    return re.sub(r"[^\w\- ]", "", title).replace(" ", "-")
