"""`outbid what-if`: who would run such a job now, or would have run that one, without running anything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from outbid.cli import params, policies, sheets
from outbid.cli.output import plain, say, show, table
from outbid.cli.running import JSON, STATE, run
from outbid.cli.sheets import dollars, joules, seconds, times_as
from outbid.cli.submitting import json_object
from outbid.mesh import Mesh
from outbid_contracts.images import GENERATE
from outbid_contracts.llm import CHAT
from outbid_contracts.messages import Considered
from outbid_contracts.policy import GOALS, Policy
from outbid_contracts.what_if import Case, WhatIfReply

_SHORT = {"chat": CHAT, "image": GENERATE}
"""Words for the capabilities whose command has that name; a text after them is the prompt."""

ALL = "all"
_COMPARED = ("fastest", "balanced", "green", "cheap", "private")


@click.command("what-if")
@click.argument("capability", required=False)
@click.argument("prompt", required=False)
@click.option("--job", metavar="ID", help="Rank the bids for this job again, instead of asking for new ones.")
@click.option("--without", multiple=True, metavar="NODE", help="As if this node were not there (repeatable).")
@click.option("-p", "--param", "words", multiple=True, metavar="KEY=VALUE", help="A parameter (repeatable).")
@click.option("--params", metavar="JSON", help="All parameters as one JSON object; - reads it from standard input.")
@click.option("--model", help="Name of the model; default: each node's own default.")
@click.option(
    "--policy",
    "goals",
    multiple=True,
    type=click.Choice([*GOALS, ALL]),
    help="What counts when the bids are ranked (repeatable); all: each of the goals, side by side.",
)
@policies.modifiers
@STATE
@JSON
def what_if(
    capability: str | None, prompt: str | None, state: str | None, as_json: bool, without: Sequence[str], **options: Any
) -> None:
    """What would happen to such a job now: the nodes are asked for bids, and nothing runs.

    \b
    outbid what-if --without gaming-pc chat "why is the sky blue?"
    outbid what-if --policy all image "red apple"
    outbid what-if llm.chat --param prompt="hi" --param max_tokens=2000 --deadline 30s
    outbid what-if --job JOB --policy green       # a job that was: its own bids, ranked again
    """
    _check(capability, prompt, options)
    wanted = _policies(options)

    async def ask(mesh: Mesh) -> None:
        given = await _params(mesh, capability, prompt, options) if capability else None
        reply = await mesh.what_if(
            _SHORT.get(capability or "", capability), given, job=options["job"], policy=wanted, without=without
        )
        if as_json:
            say(reply)
        else:
            names: dict[str, str] = {view.presence.node: view.presence.name for view in await mesh.nodes()}
            tell(reply, names)

    run(state, ask)


def _check(capability: str | None, prompt: str | None, options: Mapping[str, Any]) -> None:
    if (capability is None) == (options["job"] is None):
        raise click.UsageError('say what kind of job, as in: outbid what-if chat "hi"; or name one that was with --job')
    if options["job"] is not None and (options["words"] or options["params"] or options["model"]):
        raise click.UsageError("a job that was has its own parameters; leave out --param, --params and --model")
    if prompt is not None and capability not in (*_SHORT, *_SHORT.values()):
        raise click.UsageError(f"a text alone is for chat and image; write outbid what-if {capability} -p KEY=VALUE")


def _policies(options: Mapping[str, Any]) -> list[Policy]:
    """One for each goal named; one without a goal if only modifiers are given."""
    named = [goal for word in options["goals"] for goal in (_COMPARED if word == ALL else (word,))]
    if named:
        return [policies.policy_of(options, goal) for goal in dict.fromkeys(named)]
    plain = policies.policy_of(options)
    return [] if plain == Policy() else [plain]


async def _params(mesh: Mesh, capability: str, prompt: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
    given = json_object(options["params"]) if options["params"] else {}
    name = _SHORT.get(capability, capability)
    schema = await params.schema_of(mesh.connection, name) if options["words"] else None
    given |= params.read(options["words"], schema)
    given |= {"prompt": prompt} if prompt is not None else {}
    return given | ({"model": options["model"]} if options["model"] else {})


# -- what is shown ---------------------------------------------------------------------------------------------------


def tell(reply: WhatIfReply, names: sheets.Names) -> None:
    show(*_told(reply, names))


def _told(reply: WhatIfReply, names: sheets.Names) -> Iterator[Any]:
    amounts = ", ".join(f"{amount:g} {unit}" for unit, amount in reply.work.items())
    job = f"job {reply.job}" if reply.job else ""
    yield plain("  ".join(filter(None, (job, reply.capability, reply.model, amounts))))
    yield ""
    yield _side_by_side(reply, names)
    yield ""
    if not reply.cases and reply.base.waits:
        yield f"[yellow]{plain(reply.base.waits)}[/yellow]"
    for case in reply.cases:
        yield f"[bold]{plain(summary(reply, case, names))}[/bold]"
    if len(reply.cases) <= 1:
        yield from _sheet(reply.cases[0] if reply.cases else reply.base, names)


def _side_by_side(reply: WhatIfReply, names: sheets.Names) -> Any:
    rows = table("", "goal", "winner", ">finish", ">p90", ">energy", ">cost")
    for n, case in enumerate((reply.base, *reply.cases)):
        what = ("was" if reply.job else "now") if n == 0 else "if"
        best = case.winner
        rows.add_row(
            what,
            case.policy.goal or "balanced",
            plain(best.name) if best else "[yellow]nobody[/yellow]",
            *(_numbers(best) if best else ("–",) * 4),
        )
    return rows


def _numbers(best: Considered) -> tuple[str, str, str, str]:
    bid, by = best.bid, best.stretch
    finish_s, p90_s = sheets.stretched(bid.finish_s, by), sheets.stretched(bid.finish_p90_s, by)
    return seconds(finish_s), seconds(p90_s), joules(bid.energy_j * by), dollars(bid.cost_usd)


def summary(reply: WhatIfReply, case: Case, names: sheets.Names) -> str:
    """`without gaming-pc, green: laptop instead of gaming-pc, 3.2x slower, 60 % fewer joules`."""
    gone = f"without {', '.join(names.get(node, node) for node in case.without)}, " if case.without else ""
    return f"{gone}{', '.join(policies.told(case.policy))}: {_outcome(reply.base, case)}"


def _outcome(base: Case, case: Case) -> str:
    before, best = base.winner, case.winner
    if best is None and case.error is None:
        return f"it would wait: {case.waits}"
    if best is None:
        return "nobody could do it"
    waits = [case.waits] if case.waits else []
    if before is None:
        return "; ".join([f"{best.name}, where nobody could else", *waits])
    if before.bid.node == best.bid.node:
        return "; ".join([f"{best.name} all the same", *waits])
    apart = ", ".join(difference(best, before)) or "about as good"
    return "; ".join([f"{best.name} instead of {before.name}, {apart}", *waits])


def difference(one: Considered, other: Considered) -> list[str]:
    """What choosing `one` instead of `other` means."""
    a, b = one.bid, other.bid
    found = [
        times_as(
            sheets.stretched(a.finish_s, one.stretch),
            sheets.stretched(b.finish_s, other.stretch),
            more="slower",
            less="quicker",
            inverse=True,
        ),
        times_as(a.energy_j * one.stretch, b.energy_j * other.stretch, more="more joules", less="fewer joules"),
        times_as(a.cost_usd, b.cost_usd, more="dearer", less="cheaper"),
    ]
    return [text for text in found if text]


def _sheet(case: Case, names: sheets.Names) -> Iterator[Any]:
    if case.sheet.bids:
        yield ""
        yield sheets.numbers(case.sheet)
        yield ""
        yield f"[dim]{sheets.rates(case.policy)}[/dim]"
    if case.sheet.bids or case.sheet.declines:
        yield sheets.reasons(case.sheet, case.policy, names)
    elif case.error:
        yield f"[red]{plain(case.error.message)}[/red]"
    if case.sheet.why and case.winner:
        yield f"[bold]{plain(case.sheet.why)}[/bold]"
