"""Write what docs/reference says about the bus from the contracts: subjects.md, and the tables inside nats.md.

`python tools/reference_docs.py` writes; a test holds the pages to what this would write.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from outbid_contracts import errors, events, policy, requests, subjects

REFERENCE = Path(__file__).resolve().parent.parent / "docs" / "reference"
NATS = REFERENCE / "nats.md"
SUBJECTS = REFERENCE / "subjects.md"

SUBJECTS_HEAD = """\
# Subjects

<!-- Written by `python tools/reference_docs.py` from contracts/outbid_contracts/subjects.py; edit that instead. -->

Everything Outbid says travels over NATS on these subjects. Programs use the first two lines, see [nats.md](nats.md);
the rest is what nodes say to each other, in MessagePack. The fields of every message are in
[messages.schema.json](messages.schema.json).
"""


def pages() -> dict[Path, str]:
    """Each page with its text. Raises ValueError if nats.md has lost a marker."""
    return {SUBJECTS: subjects_page(), NATS: with_tables(NATS.read_text("utf-8"))}


def subjects_page() -> str:
    _, table = (subjects.__doc__ or "").strip().split("\n\n", 1)
    reserved = ", ".join(f"`{word}`" for word in sorted(subjects.RESERVED))
    return "\n".join(
        [
            SUBJECTS_HEAD,
            table,
            "",
            "Written out:",
            "",
            *(f"- `{literal}`" for literal in literals()),
            "",
            f"`{subjects.capability('<capability>')}` and the listings are answered in the queue group "
            f"`{subjects.OWNERS}`: NATS prefers the member on the caller's own server.",
            "",
            f"A capability's name may not begin with a word that is taken: {reserved}.",
            "",
        ]
    )


def literals() -> list[str]:
    """The example above each function of subjects.py, and the constants."""
    source = inspect.getsource(subjects)
    written = re.findall(r"^# (mesh\.\S+)\ndef ", source, re.MULTILINE)
    constants = [value for value in vars(subjects).values() if isinstance(value, str) and value.startswith("mesh.")]
    return sorted({*written, *constants})


def with_tables(text: str) -> str:
    for name, table in TABLES.items():
        start, end = f"<!-- {name}: written by tools/reference_docs.py -->", f"<!-- /{name} -->"
        if text.count(start) != 1 or text.count(end) != 1:
            raise ValueError(f"{NATS.name} must have `{start}` and `{end}` once each")
        before, rest = text.split(start)
        text = before + "\n".join([start, "", *table(), "", end]) + rest.split(end)[1]
    return text


def error_table() -> Iterator[str]:
    yield "| `Outbid-Error`, `code` | status | meaning |"
    yield "|---|---|---|"
    for code, kind in sorted(errors.BY_CODE.items(), key=lambda item: (item[1].status, item[0])):
        yield f"| `{code}` | {kind.status} | {sentence(kind)} |"


def event_table() -> Iterator[str]:
    """What a stream may hold: its errors are messages with headers, so `Ended` is for those who watch from beside."""
    yield "| `event` | meaning | fields beside `job` |"
    yield "|---|---|---|"
    for kind in streamed():
        fields = [field for field in msgspec.structs.fields(kind) if field.name != "job"]
        listed = ", ".join(f"`{field.encode_name}`" for field in fields)
        yield f"| `{kind.__struct_config__.tag}` | {sentence(kind)} | {listed} |"


def streamed() -> list[type[events.Event]]:
    return [kind for kind in events.Event.__subclasses__() if kind is not events.Ended]


def policy_fields() -> Iterator[str]:
    goals = ", ".join(f"`{goal}`" for goal in policy.GOALS)
    names = ", ".join(f"`{field.encode_name}`" for field in msgspec.structs.fields(policy.Policy))
    yield f"Goals: {goals}. Fields of the map: {names}."


def limits() -> Iterator[str]:
    yield f"A request may have {requests.MAX_REQUEST_BYTES // 2**20} MiB."


def sentence(kind: type) -> str:
    """The first paragraph of the docstring; what a class without one is called."""
    text = kind.__doc__ if kind.__dict__.get("__doc__") else None
    if not text or text.startswith(f"{kind.__name__}("):
        return kind.__name__
    return " ".join(text.partition("\n\n")[0].split()).replace("|", "\\|")


TABLES: dict[str, Callable[[], Iterator[str]]] = {
    "limits": limits,
    "policy": policy_fields,
    "events": event_table,
    "errors": error_table,
}


def main() -> int:
    for path, text in pages().items():
        path.write_text(text, "utf-8", newline="\n")
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
