"""`python -m outbid_bench [SUBSET…]`: measure, print tables, and with --write keep them in docs/benchmarks.md."""

from __future__ import annotations

import argparse
import importlib
import shlex
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from outbid_bench.loops import run
from outbid_bench.machine import conditions
from outbid_bench.options import Options, Simulation
from outbid_bench.pages import write_page
from outbid_bench.report import Section
from outbid_contracts.policy import GOALS

SUBSETS = {
    "dispatch": "what the mesh costs: a job that does nothing, beside bare request-reply and seven other systems",
    "mesh": "jobs, auctions, messages, processor and memory in meshes of 1 to 50 nodes, beside a hand-written auction",
    "durable": "jobs that are on disk before they are acknowledged, beside five other systems set to promise the same",
    "waiting": "a hundred thousand durable jobs that wait at one node, and a restart with all of them",
    "chat": "one to sixteen chats at once, and conversations, beside the engines called directly and two servers",
    "bids": "promise and actual of chats on three nodes of different speed, and how often the wrong one wins",
    "streams": "tokens through the mesh beside server-sent events: how many a second, and how late each one is",
    "artifacts": "a file of 100 MB that a job made, fetched on the node that holds it and from another one",
    "images": "pictures beside diffusers called directly; four at once",
    "models": "a model copied from node to node beside a plain TCP stream (root, Linux)",
    "history": "what recording costs; a file of ten million rows and how long it takes to look things up in it",
    "tui": "the dashboard with 100 nodes and 1,000 jobs: CPU at rest, from a key to the paint",
    "failure": "fifty times something is killed: until jobs run elsewhere, pauses of streams, what is lost",
    "lan": "five hosts on a network: until all see a new node, until all know that one is gone (root, Linux)",
    "weight": "memory, processor time over ten minutes at rest, start-up, size",
    "simulate": "placement on a simulated clock: 5 to 1,000 nodes, other systems' rules, a clairvoyant (only if named)",
}
MEASURED = tuple(name for name in SUBSETS if name != "simulate")
"""Those that say something about this machine."""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # so that what was started is ended
    failed: list[str] = []
    for name in arguments.subset or MEASURED:
        try:
            _report(name, arguments)
        except Exception:  # the others take half an hour: they are worth having
            traceback.print_exc()
            failed.append(name)
    if failed:
        print(f"not measured, see above: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _report(name: str, arguments: argparse.Namespace) -> None:
    known, begun = conditions(_command(arguments, name)), time.monotonic()
    section = _measure(name, arguments)
    known.append(f"Took: {(time.monotonic() - begun) / 60:.1f} minutes")
    print("\n".join([section.as_text(), "", *known, ""]), flush=True)
    if arguments.write:
        section.draw(arguments.write)
        write_page(arguments.write, {name: section.as_markdown(known)}, order=[*SUBSETS])


def _parser() -> argparse.ArgumentParser:
    listing = "\n".join(f"  {name:10} {about}" for name, about in SUBSETS.items())
    parser = argparse.ArgumentParser(
        prog="python -m outbid_bench",
        description=f"Measure Outbid on this machine. Subsets (all, unless named):\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("subset", nargs="*", choices=[[], *SUBSETS], metavar="SUBSET", help="what to measure")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of each measurement (5; 3 with --quick)")
    parser.add_argument("--quick", action="store_true", help="rough figures in a fraction of the time")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of language models (as many as a node takes)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="keep the tables in this Markdown page")
    one = parser.add_argument_group("simulate: one run instead of the whole study; any of")
    one.add_argument("--nodes", type=_nodes, metavar="N", help="5 is the home fleet (5), from 10 on a lab")
    one.add_argument("--load", type=float, metavar="SHARE", help="of what the fleet can do at most (0.7)")
    one.add_argument("--policy", choices=GOALS, help="of all jobs (fastest)")
    one.add_argument("--seed", type=int, metavar="N", help="of machines and jobs (1)")
    one.add_argument("--bursty", action="store_const", const=True, help="jobs come in bursts")
    return parser


def _nodes(text: str) -> int:
    if not text.isdecimal() or (int(text) != 5 and int(text) < 10):
        raise argparse.ArgumentTypeError("5 (the home fleet), or 10 and more (a lab)")
    return int(text)


_ONE = ("nodes", "load", "policy", "seed", "bursty")


def _simulation(arguments: argparse.Namespace) -> Simulation | None:
    chosen = {name: value for name in _ONE if (value := getattr(arguments, name)) is not None}
    return Simulation(**chosen) if chosen else None


def _measure(name: str, arguments: argparse.Namespace) -> Section:
    rounds = arguments.rounds or (3 if arguments.quick else 5)
    subset = importlib.import_module(f"outbid_bench.{name}")
    with tempfile.TemporaryDirectory(prefix="outbid-bench-", ignore_cleanup_errors=True) as folder:
        options = Options(
            Path(folder),
            rounds=rounds,
            quick=arguments.quick,
            threads=arguments.threads,
            simulation=_simulation(arguments),
        )
        section: Section = run(subset.run(options))
        return section


def _command(arguments: argparse.Namespace, subset: str) -> str:
    words = ["python", "-m", "outbid_bench", subset]
    words += ["--rounds", str(arguments.rounds)] if arguments.rounds else []
    words += ["--threads", str(arguments.threads)] if arguments.threads else []
    for name in _ONE:
        value = getattr(arguments, name)
        words += [f"--{name}", *([] if value is True else [str(value)])] if value is not None else []
    return shlex.join([*words, *(["--quick"] if arguments.quick else [])])


if __name__ == "__main__":
    sys.exit(main())
