"""`outbid calibrate`: measure the speed of a node now, and show what it believed before."""

from __future__ import annotations

import click

from outbid.cli import output
from outbid.cli.running import JSON, STATE, run
from outbid.mesh import Mesh
from outbid_contracts.admin import Calibrated, CalibrateReply


@click.command()
@click.option("--node", help="Which node, by name or id; default: this machine.")
@click.option("--capability", help="Only this, e.g. llm.chat; default: all that it can measure.")
@click.option("--model", help="This model instead of the default one.")
@STATE
@JSON
def calibrate(node: str | None, capability: str | None, model: str | None, state: str | None, as_json: bool) -> None:
    """Measure how fast a node is, by a few tiny jobs of each kind: its next bids rest on that, until real jobs tell
    better. A job that comes meanwhile goes first and ends it.
    """

    async def order(mesh: Mesh) -> None:
        reply = await mesh.node(node).calibrate(capability=capability, model=model)
        output.say(reply) if as_json else _tell(reply)

    run(state, order)


def _tell(reply: CalibrateReply) -> None:
    if not reply.found:
        output.line("there is nothing that this node can measure")
    for one in reply.found:
        output.line(" ".join(part for part in (one.capability, one.model) if part))
        output.line(f"  not measured: {one.error}" if one.error else _numbers(one))


def _numbers(one: Calibrated) -> str:
    """A line for each number: what was measured, and what was believed."""
    rows = [f"  {'':16} measured    believed (from {one.rests_on})"]
    for name, seconds in one.shown.items():
        before = one.believed.get(name)
        rows.append(f"  {_name(name):16} {_amount(name, seconds):>11} {_amount(name, before):>11}")
    return "\n".join(rows)


def _name(name: str) -> str:
    unit = name.removesuffix("_s")
    return {"load": "loading", "fixed": "per job"}.get(unit, unit.replace("_", " "))


def _amount(name: str, seconds: float | None) -> str:
    """Of units of work the speed, because that is how people know it."""
    if seconds is None:
        return "-"
    if name in ("load_s", "fixed_s"):
        return f"{seconds:.3g} s"
    return f"{1 / seconds:.3g}/s" if seconds > 0 else "-"
