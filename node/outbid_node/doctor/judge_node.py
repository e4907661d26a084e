"""Judgements about this node: does it run, does it answer, can it do its work?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from outbid_contracts.doctor import Finding, Vitals
from outbid_node.doctor.facts import Key, Memory, Program, Server, Settings, Store, Work
from outbid_node.doctor.words import duration, note, ok, problem, size, split, warning

MISSED_BEAT_S = 1.0
SOME_BLOCKS = 20
"""Times per hour that the event loop may be blocked before that is worth a word."""

NEARLY_FULL = 0.9
SET_S = 2.0
OF_THE_FOLDER = ("traces", "state folder", "disk speed", "disk space", "configuration")
"""Parts of a checkup that need the state folder."""


def judge_settings(settings: Settings) -> Iterator[Finding]:
    if settings.error:
        remedy = "Correct that; `outbid config` then shows what is in force. A node does not start like this."
        yield problem("configuration", settings.error, remedy)
        return
    if not settings.warnings:
        yield ok("configuration", settings.file or "no file, so the defaults")
    for told in settings.warnings:
        yield warning("configuration", *split(told, "Correct or remove it."))


def judge_key(key: Key) -> Finding:
    if key.error:
        return problem("mesh key", *split(key.error, "Put back a copy of it, or join the mesh again."))
    if key.member and not key.exists:
        remedy = "Put back a copy of it, or `outbid leave` and join again by a code from another machine."
        return problem("mesh key", f"the key of mesh {key.mesh} is not there", remedy)
    if key.loose:
        return warning("mesh key", f"others may read {key.loose}", f"Close it with `chmod 600 {key.loose}`.")
    reach = "open to other machines" if key.open else "closed to other machines"
    return ok("mesh key", f"mesh {key.mesh}, {reach}" if key.exists else f"mesh {key.mesh}, made at the first start")


# -- the programs ------------------------------------------------------------------------------------------------------


def judge_daemon(daemon: Program, ledger: Server | None, vitals: Vitals | None, why_silent: str) -> Finding:
    """`why_silent`: how it failed to answer."""
    if vitals is not None:
        return ok("node", f"{vitals.name} answers; it has run for {duration(vitals.up_s)} (pid {vitals.pid})")
    if not daemon.locked:
        return _not_running(daemon)
    if not daemon.announced:
        remedy = "Ask again in a moment; if it stays so, the log of `outbid up` says what it waits for."
        return warning("node", "it is starting or stopping", remedy)
    if daemon.life == "suspended":
        remedy = f"Let it go on with `kill -CONT {daemon.pid}` (or `fg`, where it was stopped with Ctrl-Z)."
        return problem("node", f"its daemon (pid {daemon.pid}) is suspended", remedy)
    if ledger is None or ledger.greeting != "ours" or ledger.refusal:
        return warning("node", f"its daemon (pid {daemon.pid}) runs but cannot be asked", "See the ledger, below.")
    remedy = f"Look into its log; if that says nothing, end it (`kill {daemon.pid}`) and start it with `outbid up`."
    return problem("node", f"its daemon (pid {daemon.pid}) runs but gives no answer ({why_silent})", remedy)


def _not_running(daemon: Program) -> Finding:
    if daemon.announced:
        found = "it ended without saying goodbye (a crash, a kill, a power cut)"
        remedy = "Start it with `outbid up`; its log (standard error of `outbid up`) says why it ended."
        return problem("node", found, remedy)
    return problem("node", "it does not run", "Start it with `outbid up`.")


def judge_ledger(ledger: Server) -> Finding:
    port, pid = ledger.port, ledger.program.pid
    said = f"; its log ends with: {ledger.last_error}" if ledger.last_error else ""
    if ledger.refusal:
        remedy = "Start the node again: it writes new credentials."
        return problem("ledger", f"it does not let its own node in: {ledger.refusal}{said}", remedy)
    if ledger.greeting == "ours":
        return ok("ledger", f"answers on port {port}")
    if ledger.program.life == "suspended":
        found = f"it does not answer: nats-server (pid {pid}) is suspended"
        return problem("ledger", found, f"Let it go on with `kill -CONT {pid}`.")
    if ledger.greeting == "silent":
        found = f"it does not answer: port {port} is open, but nobody says a word there{said}"
        remedy = f"Is the disk hanging, or the machine overloaded? `kill {pid or 'PID'}` makes the node start it again."
        return problem("ledger", found, remedy)
    if ledger.greeting == "other":
        remedy = "Stop the node, then that program, and start the node again."
        return problem("ledger", f"another program answers on its port {port}", remedy)
    remedy = "The node starts it again by itself; if it stays away, `bus/ledger.log` in the state folder says why."
    return problem("ledger", f"it does not answer: nobody listens on port {port}{said}", remedy)


def judge_store(store: Store, ledger: Server, node: str, trouble: Sequence[str]) -> Iterator[Finding]:
    """Durable storage. `trouble` is what the node says about itself, and says it better than the ledger."""
    for told in trouble:
        remedy = "Free space on that disk; the node notices by itself. Otherwise its log says more."
        yield problem("durable jobs", told, remedy)
    if trouble:
        return
    if store.error:
        remedy = "Look at `bus/ledger.log` in the state folder, then start the node again."
        yield problem("durable jobs", f"JetStream does not answer: {store.error}", remedy)
    elif store.domain != node:
        remedy = "Start the node again; it writes the ledger's configuration anew."
        yield problem("durable jobs", f"the ledger keeps them for {store.domain or 'nobody'}, not for {node}", remedy)
    elif ledger.synced is False:
        remedy = "Do not change `bus/ledger.conf`; start the node again, it writes that file anew."
        yield problem("durable jobs", "the ledger acknowledges them before they are on the disk", remedy)
    else:
        yield _room(store)


def _room(store: Store) -> Finding:
    found = f"kept in {store.streams} streams, {size(store.used_mib)} of {size(store.limit_mib)}, each write synced"
    if store.limit_mib and store.used_mib > NEARLY_FULL * store.limit_mib:
        return warning("durable jobs", found, "Nearly full: let jobs end, or keep their results less long (keep_s).")
    return ok("durable jobs", found)


def judge_loop(vitals: Vitals) -> Iterator[Finding]:
    """Late heartbeats, and a clock that was set while the node ran."""
    hours = max(vitals.up_s / 3600, 1.0)
    found = f"was late {vitals.blocked} times, by {duration(vitals.worst_s)} at most"
    if vitals.worst_s >= MISSED_BEAT_S or vitals.blocked / hours > SOME_BLOCKS:
        remedy = "Give the machine air: limits.cpu_share below 1, a smaller model, less beside the node."
        yield warning("responsiveness", f"the daemon {found}: others may think it is gone", remedy)
    else:
        yield ok("responsiveness", f"the daemon {found}" if vitals.blocked else "the daemon was never late")
    if vitals.drift_s is not None and abs(vitals.drift_s) > SET_S:
        which = "forward" if vitals.drift_s > 0 else "back"
        yield note("clock", f"it was set {which} by {duration(abs(vitals.drift_s))} while the node ran")


# -- its work ----------------------------------------------------------------------------------------------------------


def judge_work(work: Work, budget_mib: int, free_mib: float, stale: bool) -> Iterator[Finding]:
    """`stale`: the running daemon does not offer it, though by now it could."""
    for path, why in work.broken.items():
        section = work.name.partition(".")[0]
        remedy = f"Correct `models` in section [{section}] of the configuration, or put the file there."
        yield problem(work.name, f"the model {path} cannot be used: {why}", remedy)
    if work.missing:
        if not work.broken:
            yield warning(work.name, *split(work.missing, "See the configuration of that capability."))
    elif stale:
        remedy = "Start the node again: it looks for models and engines when it starts."
        yield warning(work.name, "it can run here now, but the running node does not offer it", remedy)
    else:
        yield _fits(work, budget_mib, free_mib)


def _fits(work: Work, budget_mib: int, free_mib: float) -> Finding:
    if not work.models:
        return ok(work.name, "can run here")
    default = next((model for model in work.models if model.default), work.models[0])
    takes_mib = default.memory_mib + default.gpu_memory_mib  # as if there were no graphics card
    needs = f"its default model {default.name} takes {size(takes_mib)}"
    if takes_mib > budget_mib:
        remedy = "Name a smaller model first in `models`, or raise limits.memory_mib."
        return warning(work.name, f"{needs}, more than the {size(budget_mib)} that limits.memory_mib allows", remedy)
    if takes_mib > free_mib:
        remedy = "Close other programs, or name a smaller model first in `models`."
        return warning(work.name, f"{needs}, but only {size(free_mib)} of memory are free", remedy)
    many = f"{len(work.models)} models; " if len(work.models) > 1 else ""
    return ok(work.name, f"{many}{needs}")


def judge_memory(memory: Memory) -> Finding:
    found = f"{size(memory.free_mib)} of {size(memory.total_mib)} are free"
    if memory.free_mib < 0.05 * memory.total_mib:
        return warning("memory", found, "Close other programs; the system may soon end one of them, also a runner.")
    return ok("memory", found)


def judge_unknown(unknown: Mapping[str, str]) -> Iterator[Finding]:
    """Parts that could not be looked at, and why. A state folder that is closed to us, or hangs, is seen here."""
    closed = [why for part, why in unknown.items() if part in OF_THE_FOLDER]
    if closed:
        theirs = "PermissionError" in closed[0]
        remedy = (
            "Run Outbid as the user it belongs to, or name another folder with --state DIR."
            if theirs
            else "Is its disk or network share hanging? Try `ls` there."
        )
        yield problem("state folder", f"could not be looked at: {closed[0]}", remedy)
    for part, why in unknown.items():
        if part not in OF_THE_FOLDER:
            remedy = "Run `outbid doctor` again when the machine is less busy."
            yield warning(part, f"could not be looked at: {why}", remedy)
