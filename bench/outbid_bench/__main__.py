"""`python -m outbid_bench [SUBSET…]`: measure, print tables, and with --write keep them in docs/benchmarks.md."""

from __future__ import annotations

import argparse
import importlib
import shlex
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from outbid_bench.loops import run
from outbid_bench.machine import conditions
from outbid_bench.options import Options
from outbid_bench.report import Section, write_page

SUBSETS = {
    "dispatch": "what the mesh costs: a job that does nothing, beside bare request-reply and Celery",
    "durable": "jobs that are on disk before they are acknowledged, beside Celery with a Redis that promises the same",
    "waiting": "a hundred thousand durable jobs that wait at one node, and a restart with all of them",
    "chat": "a streamed chat beside the engine called directly; eight at once",
    "artifacts": "a file of 100 MB that a job made, fetched on the node that holds it and from another one",
    "images": "pictures beside diffusers called directly; four at once",
    "models": "a model copied from node to node beside a plain TCP stream (root, Linux)",
    "weight": "memory, processor time at rest, start-up",
    "lan": "five hosts on a network: until all see a new node, until all know that one is gone (root, Linux)",
}


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # so that what was started is ended
    sections: dict[str, str] = {}
    for name in arguments.subset or SUBSETS:
        known = conditions(_command(arguments, name))
        section = _measure(name, arguments)
        print("\n".join([section.as_text(), "", *known, ""]), flush=True)
        sections[name] = section.as_markdown(known)
        if arguments.write:
            write_page(arguments.write, sections)
    return 0


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
    return parser


def _measure(name: str, arguments: argparse.Namespace) -> Section:
    rounds = arguments.rounds or (3 if arguments.quick else 5)
    subset = importlib.import_module(f"outbid_bench.{name}")
    with tempfile.TemporaryDirectory(prefix="outbid-bench-", ignore_cleanup_errors=True) as folder:
        options = Options(Path(folder), rounds=rounds, quick=arguments.quick, threads=arguments.threads)
        section: Section = run(subset.run(options))
        return section


def _command(arguments: argparse.Namespace, subset: str) -> str:
    words = ["python", "-m", "outbid_bench", subset]
    words += ["--rounds", str(arguments.rounds)] if arguments.rounds else []
    words += ["--threads", str(arguments.threads)] if arguments.threads else []
    return shlex.join([*words, *(["--quick"] if arguments.quick else [])])


if __name__ == "__main__":
    sys.exit(main())
