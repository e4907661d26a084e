"""What `mesh` says about its findings: tables, aims, plots."""

from __future__ import annotations

from collections.abc import Sequence

from outbid_bench.mesh_found import ASKED, BARE, OUTBID, PLAIN_ASKED, PLAIN_STANDING, STANDING, Found
from outbid_bench.mesh_parts import CALLER, DAEMON, HISTORY, LEDGER, OTHERS, OWNER, ROUTER, RUNNER, Part
from outbid_bench.plots import Lines
from outbid_bench.report import Aim, Section, Table
from outbid_bench.stats import Spread, percentile, ratios, spread

NAMES = {
    BARE: "bare nats-py request-reply with an echo process",
    STANDING: "prototype, award from standing offers",
    ASKED: "prototype, ask 3 nodes, then award",
    OUTBID: "Outbid: request, auction, runner, reply",
    PLAIN_STANDING: "prototype on one plain nats-server, standing offers",
    PLAIN_ASKED: "prototype on one plain nats-server, ask 3",
}
MEMORY_KINDS = (DAEMON, LEDGER, ROUTER, HISTORY, RUNNER)
LEAST_PER_S, LEAST_OF_ASKED, MOST_OF_ASKED, LEAST_OF_FIVE = 5000, 0.5, 2.0, 0.6

CPU_ROWS: dict[str, Sequence[Part]] = {
    "daemon of the asked node": [(OWNER, DAEMON)],
    "its nats-servers": [(OWNER, LEDGER), (OWNER, ROUTER)],
    "its runner": [(OWNER, RUNNER)],
    "daemons of the others": [(OTHERS, DAEMON)],
    "their nats-servers": [(OTHERS, LEDGER), (OTHERS, ROUTER)],
    "their runners": [(OTHERS, RUNNER)],
    "history of all": [(OWNER, HISTORY), (OTHERS, HISTORY)],
    "caller": [(CALLER, "")],
}


def section(found: Sequence[Found]) -> Section:
    about = (
        "Real nodes on one machine, each a daemon with its ledger and router, in one full mesh; at most five have a "
        "warm runner. Jobs do nothing, so all that is measured is what the mesh costs."
    )
    made = Section("mesh", f"Meshes of {_listed(found)} nodes", about)
    made.tables = [_speed(found), _auctions(found), _messages(found), _cpu(found), _memory(found)]
    made.aims = _aims(found)
    made.plots = [
        Lines("rate", "No-op jobs per second, 64 in flight", "nodes", "jobs/s", _series(found, "per_s")),
        Lines("p50", "One no-op job at a time", "nodes", "p50, ms", _series(found, "p50", 1000)),
    ]
    return made


def _listed(found: Sequence[Found]) -> str:
    *most, last = [str(one.nodes) for one in found]
    return f"{', '.join(most)} and {last}" if most else last


def _series(found: Sequence[Found], what: str, factor: float = 1) -> dict[str, list[tuple[float, Spread]]]:
    named = {OUTBID: "Outbid", ASKED: "prototype, ask 3", STANDING: "prototype, standing offers", BARE: "bare request"}
    return {
        label: [(one.nodes, spread(getattr(one, what)[name]).scaled(factor)) for one in found]
        for name, label in named.items()
    }


# -- tables ------------------------------------------------------------------------------------------------------------


def _speed(found: Sequence[Found]) -> Table:
    rows = [_speed_row(one, name) for one in found for name in NAMES]
    kept = ", ".join(f"{one.here[True] / max(1, one.here.total()):.0%} of {one.nodes}" for one in found)
    notes = (
        "Promise of all rows: nothing is written to disk. Outbid's job is run again if its node dies and its caller "
        "hears how it ended; a lost message of the prototype loses the job, and a dead node every job awarded to it.",
        "The prototype is what an auction costs at least: the caller is the owner itself, the winner answers with the "
        "result in its own process (two processes hold all nodes, one up to 4), and nothing is kept. Outbid's job "
        "also crosses the owner's daemon and a runner process, and is held by a lease.",
        "All are connected to the ledgers of the mesh, the callers to the first node's, but for the rows that say "
        "plain; those do not depend on the mesh but for its share of the processor.",
        f"Jobs that the asked node ran itself, being the best bidder: {kept} nodes.",
        f"Auctions of the prototype that got no bid within 0.1 s: {', '.join(str(one.unanswered) for one in found)}.",
        "All nodes share this machine's cores: what 50 machines would do beside each other, two cores do here in "
        "turns. 1,000 nodes are played on a simulated clock (`simulate`); a queue of 100,000 jobs is in `waiting`.",
    )
    columns = ("nodes", "what", "p50", "p99", "of ask 3's p50", "jobs/s, 64 in flight", "of ask 3's")
    return Table("A job that does nothing: one at a time, and 64 in flight", columns, rows, notes)


def _speed_row(one: Found, name: str) -> tuple[str, ...]:
    p50, p99 = spread(one.p50[name]).scaled(1000), spread(one.p99[name]).scaled(1000)
    return (
        str(one.nodes),
        NAMES[name],
        p50.text(" ms"),
        p99.text(" ms"),
        ratios(one.p50[name], one.p50[ASKED]).text("x"),
        spread(one.per_s[name]).rate(),
        ratios(one.per_s[name], one.per_s[ASKED]).text("x"),
    )


def _auctions(found: Sequence[Found]) -> Table:
    rows = [
        (
            str(one.nodes),
            f"{percentile(one.asked_nodes, 0.5):.0f}",
            *(_ms(one.auction_s, q) for q in (0.5, 0.99)),
            *(_ms(one.awarded_s, q) for q in (0.5, 0.99)),
            str(len(one.auction_s)),
        )
        for one in found
    ]
    columns = ("nodes", "nodes asked", "auction p50", "p99", "asked for → awarded p50", "p99", "jobs")
    notes = (
        "Jobs of 60 ms, one at a time: shorter than 50 ms they are awarded from standing offers. The auction is the "
        "owner's own account of it (`mesh.auction.*`): asking, bids, ranking. The other is the caller's, through the "
        "SDK: from its request until the event `awarded`, with the auction and the award in it. A lone node has "
        "nobody to ask.",
    )
    return Table("Auctions by asking", columns, rows, notes)


def _ms(seconds: Sequence[float], q: float) -> str:
    return f"{percentile(seconds, q) * 1000:.2f} ms"


def _messages(found: Sequence[Found]) -> Table:
    rows = [
        (
            str(one.nodes),
            capability,
            f"{sum(kinds.values()):.1f}",
            ", ".join(f"{kind} {count:.1f}" for kind, count in kinds.items()),
            f"{one.other_messages_per_s:.0f}/s",
        )
        for one in found
        for capability, kinds in one.messages.items()
    ]
    notes = (
        "Counted by a client with interest in every subject, outside the timed rounds. Each message is counted once, "
        "however many servers carry it. Without jobs: heartbeats, each node's watch over its neighbour, and their "
        "answers. Daemon and runner exchange two more (ZeroMQ, no bus).",
    )
    return Table("Messages on the bus", ("nodes", "job", "per job", "of these", "without jobs"), rows, notes)


def _cpu(found: Sequence[Found]) -> Table:
    rows = [(name, *(_cpu_cell(one, parts) for one in found)) for name, parts in CPU_ROWS.items()]
    whole = [part for parts in CPU_ROWS.values() for part in parts]
    rows.append(("all", *(_cpu_cell(one, whole) for one in found)))
    rest = [sum(share for part, share in one.cpu_at_rest.items() if part[0] != CALLER) for one in found]
    rows.append(("all without jobs, of a core", *(f"{share:.0%}" for share in rest)))
    notes = (
        "Processor time of all these processes (user and system) over that of the jobs done meanwhile, 64 in flight; "
        "what goes on without jobs is in it.",
        "The asked daemon is one Python process, so it does no more jobs a second than its time per job allows. Where "
        "that goes, by a profile (py-spy --gil, one node, 2026-11-22): writing to the ledger's socket 18 %, "
        "auctions 15 %, awards and handing jobs to the runner 12 %, reading requests 8 %, the runner's answers 8 %, "
        "heartbeats 4 %; of the rest no function has 3 %.",
    )
    return Table("Processor time per job", ("what", *(f"{one.nodes} nodes" for one in found)), rows, notes)


def _cpu_cell(one: Found, parts: Sequence[Part]) -> str:
    known = [one.cpu_per_job_s[part] for part in parts if part in one.cpu_per_job_s]
    if not known:
        return "-"
    per_round = [sum(values) for values in zip(*known, strict=True)]
    return spread(per_round).scaled(1000).text(" ms", 3)


def _memory(found: Sequence[Found]) -> Table:
    rows = [(kind, *(_memory_cell(one.memory_mib[kind]) for one in found)) for kind in MEMORY_KINDS]
    rows.append(("a node without runner, private", *(f"{percentile(one.node_mib, 0.5):.0f} MiB" for one in found)))
    rows.append(("started and known to all within", *(f"{one.started_s:.0f} s" for one in found)))
    notes = (
        "Medians over the nodes, after the rounds: resident, and of it private. Nodes without a runner keep no "
        "history. The last row is for all nodes that were added to the mesh before.",
    )
    return Table("Memory of a node", ("what", *(f"{one.nodes} nodes" for one in found)), rows, notes)


def _memory_cell(found: Sequence[tuple[float, float]]) -> str:
    if not found:
        return "-"
    resident, private = (percentile(values, 0.5) for values in zip(*found, strict=True))
    return f"{resident:.0f} ({private:.0f}) MiB"


# -- aims --------------------------------------------------------------------------------------------------------------


def _aims(found: Sequence[Found]) -> list[Aim]:
    by_size = {one.nodes: one for one in found}
    five, fifty = by_size.get(5), by_size.get(50)
    aims = _aims_of_five(five) if five else []
    if five and fifty:
        kept = ratios(fifty.per_s[OUTBID], five.per_s[OUTBID])
        what = "jobs/s with 50 nodes, of those with 5"
        aims.append(Aim(what, f"≥ {LEAST_OF_FIVE}x", kept.text("x"), kept.median >= LEAST_OF_FIVE))
    return aims


def _aims_of_five(five: Found) -> list[Aim]:
    """The prototype on one plain server is the one that is harder to come near."""
    rate, of_asked = spread(five.per_s[OUTBID]), ratios(five.per_s[OUTBID], five.per_s[PLAIN_ASKED])
    slower = ratios(five.p50[OUTBID], five.p50[PLAIN_ASKED])
    asked = "the prototype that asks 3 on one plain server"
    return [
        Aim("jobs/s, 64 in flight, 5 nodes", "≥ 5 000", rate.rate(), rate.median >= LEAST_PER_S),
        Aim(f"the same, of {asked}", f"≥ {LEAST_OF_ASKED}x", of_asked.text("x"), of_asked.median >= LEAST_OF_ASKED),
        Aim(
            f"p50 one at a time, 5 nodes, of {asked}",
            f"≤ {MOST_OF_ASKED:g}x",
            slower.text("x"),
            slower.median <= MOST_OF_ASKED,
        ),
    ]
