"""What can be done to machines and jobs, as commands of the palette. Screens bind the same to keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from outbid_contracts.admin import DrainReply, PauseReply, QuietReply, Sleeper, WakeReply
from outbid_tui.commands import Command
from outbid_tui.looks import clock, first
from outbid_tui.state import JobView, Machine

if TYPE_CHECKING:
    from outbid_tui.app import Dashboard

Order = Callable[["Dashboard", Machine], None]

HOURS = "22:00-07:00, or sat,sun 00:00-10:00; several with a ; between; empty: none; - for those of its configuration"


def drain(dashboard: Dashboard, machine: Machine) -> None:
    """Or take work again, where it drains."""
    name = machine.presence.name
    node = dashboard.mesh.node(machine.presence.node)
    if machine.presence.state == "draining":
        dashboard.act(node.undrain(), f"{name} takes work again")
        return
    running = machine.presence.running
    sure = f"Drain {name}? {_jobs(running)} handed over, or ended there." if running else ""
    dashboard.act(node.drain(), partial(_drained, name), sure=sure)


def pause(dashboard: Dashboard, machine: Machine) -> None:
    """Or end the pause, where it is paused."""
    name = machine.presence.name
    node = dashboard.mesh.node(machine.presence.node)
    if paused(machine):
        dashboard.act(node.resume(), f"{name} works for others again")
        return
    running = machine.presence.running
    sure = f"Pause {name}? {_jobs(running)} handed over, or ended there." if running else ""
    dashboard.act(node.pause(), partial(_paused, name), sure=sure)


def quiet(dashboard: Dashboard, machine: Machine) -> None:
    """Asks which, with those in force filled in."""
    name = machine.presence.name
    node = dashboard.mesh.node(machine.presence.node)

    def set_hours(text: str) -> None:
        if text.strip() == "-":
            dashboard.act(node.unquiet(), partial(_quiet, name))
            return
        hours = [part.strip() for part in text.split(";") if part.strip()]
        dashboard.act(node.quiet(hours), partial(_quiet, name))

    def ask(reply: QuietReply) -> str:
        dashboard.ask(f"Quiet hours of {name}", "; ".join(reply.hours), set_hours, hint=HOURS)
        return ""

    dashboard.act(node.quiet(), ask)


def wake(dashboard: Dashboard, sleeper: Sleeper) -> None:
    dashboard.act(dashboard.mesh.node(sleeper.node).wake(), _woken)


def cancel(dashboard: Dashboard, job: JobView) -> None:
    id = job.record.id
    sure = f"Cancel job {id} ({job.record.capability})? What it did so far is lost."
    dashboard.act(dashboard.mesh.cancel(id), f"cancelled {id}", sure=sure)


def commands(dashboard: Dashboard) -> Iterator[Command]:
    for machine in sorted(dashboard.state.machines.values(), key=lambda machine: machine.presence.name):
        yield from _of_machine(dashboard, machine)
    for sleeper in dashboard.state.sleepers():
        yield Command(f"Wake {sleeper.name}", "Send it the magic packet", partial(wake, dashboard, sleeper))
    for job in dashboard.state.jobs.values():
        if job.record.state in ("waiting", "running"):
            where = f" on {dashboard.state.name_of(job.record.node)}" if job.record.node else ""
            told = f"{job.record.capability} {job.record.model or ''}, {job.record.state}{where}"
            yield Command(f"Cancel job {job.record.id}", told, partial(cancel, dashboard, job))


def _of_machine(dashboard: Dashboard, machine: Machine) -> Iterator[Command]:
    name = machine.presence.name
    if machine.presence.state == "draining":
        yield Command(f"Undrain {name}", "Take work again", partial(drain, dashboard, machine))
    else:
        yield Command(f"Drain {name}", "Hand over what runs, take no more", partial(drain, dashboard, machine))
    if paused(machine):
        yield Command(f"Resume {name}", "Work for others again", partial(pause, dashboard, machine))
    else:
        yield Command(f"Pause {name}", "Work for nobody else", partial(pause, dashboard, machine))
    yield Command(f"Quiet hours of {name}", "When it works for nobody else", partial(quiet, dashboard, machine))


def paused(machine: Machine) -> bool:
    return "paused" in machine.presence.in_use


def _jobs(count: int) -> str:
    return "The job that runs there is" if count == 1 else f"The {count} jobs that run there are"


def _drained(name: str, reply: DrainReply) -> str:
    return f"{name} drains{_went(reply.handed_over, reply.runs_on)}"


def _paused(name: str, reply: PauseReply) -> str:
    until = "" if reply.until_ms is None else f" until {clock(reply.until_ms)}"
    return f"{name} is paused{until}{_went(reply.handed_over, reply.runs_on)}"


def _went(handed_over: Sequence[str], runs_on: Sequence[str]) -> str:
    told = f"; handed over {first(handed_over, 3)}" if handed_over else ""
    return f"{told}; still finishes {first(runs_on, 3)}" if runs_on else told


def _quiet(name: str, reply: QuietReply) -> str:
    return f"{name} is quiet {', '.join(reply.hours)}" if reply.hours else f"{name} has no quiet hours"


def _woken(reply: WakeReply) -> str:
    return f"sent the magic packet for {reply.name}; it shows up here if it heard"
