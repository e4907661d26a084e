"""What the tables and columns of the history mean, for people who ask it: `outbid sql --tables`, docs/reference."""

from __future__ import annotations

from outbid_contracts.history import TableList, TableView
from outbid_node.history.rows import TABLES, Row
from outbid_node.history.schema import columns, table_of

_EVERYWHERE = {
    "job": "id of the job",
    "attempt": "number of the attempt; it only grows",
    "capability": "e.g. llm.chat",
    "model": "its name; NULL where the capability has none",
    "device": "kind of device it ran on: cpu, cuda, mps",
    "node": "id of the node",
    "name": "name of that node",
    "owner": "id of the node that owned the job",
    "submitter": "public key of the user who asked for it; empty if not known",
    "state": "done, failed or cancelled",
    "error_code": "stable word for what went wrong; empty if nothing did",
    "error": "what went wrong, in a sentence; empty if nothing did",
    "why": "in a sentence",
    "created_ms": "when the owner accepted it",
    "started_ms": "when it was awarded",
    "ended_ms": "when it ended",
    "at_ms": "when",
    "promised_s": "median time that the winning bid promised",
    "promised_p90_s": "time that it promised to keep nine times in ten",
    "took_s": "time that it took from its award on",
    "energy_j": "joules, as measured or estimated where it ran",
    "cost_usd": "dollars: energy at its price, and rent",
    "warm": "whether the model was loaded already",
    "work": "amount of each unit of work, as asked",
    "load_s": "time to load the model",
    "cpu_share": "share of the processors that runners had",
    "fixed_s": "time that a job takes besides its units of work",
    "rates": "seconds for each unit of work",
    "power_source": "where joules or watts are from: rapl, nvml, battery, declared…",
}

_OF_TABLES: dict[str, dict[str, str]] = {
    "jobs": {
        "policy": "goal and modifiers, as JSON",
        "durable": "whether it was submitted (`outbid submit`)",
        "priority": "of a durable job",
        "node": "id of the node where it was done",
        "attempts": "how many there were",
        "waited_s": "time from its acceptance to its last award",
        "timings": "seconds as measured by the runner",
    },
    "attempts": {"step": "of the checkpoint that it went on from"},
    "auctions": {
        "how": "asked, standing (from standing offers) or only (one able node)",
        "opened_ms": "when it began",
        "took_ms": "how long it took to decide",
        "asked": "how many nodes were asked",
        "winner": "id of the node that won; NULL if none did",
        "why": "why that one won, or none did",
        "waited_s": "how long the job had waited before it",
        "waited_for": "what the job waited for",
    },
    "bids": {
        "made": "true: this node's bid for another's job; false: received for a job of its own",
        "decline_code": "stable word of a decline; empty for a bid",
        "temporary": "of a decline: waiting may help",
        "start_s": "promised time until it starts",
        "finish_s": "promised time until it ends, median",
        "finish_p90_s": "promised time until it ends, kept nine times in ten",
        "energy_j": "promised joules",
        "cost_usd": "promised dollars",
        "zone": "here, lan, wan or cloud",
        "standing": "computed by the owner from a standing offer",
        "later": "its slots were taken: a promise for when one is free",
        "score": "of the ranking, in seconds-equivalents; lower is better",
        "parts": "what the score is made of",
        "stretch": "by what the owner lengthened its times, for what it knows of that node's promises",
        "excluded": "why the policy ruled it out; empty if it did not",
        "won": "whether it was the best",
        "why": "what its numbers rest on; of a decline, the reason",
    },
    "runs": {
        "outcome": "done, failed or stopped",
        "beside": "attempts that shared its runner when it began",
        "counts": "amount of each unit of work, as done",
        "seconds": "time spent on each unit of work, as the runner measured",
        "part": "it went on with what another attempt had begun",
        "slower": "by what this node had lengthened its promise out of courtesy",
    },
    "loads": {
        "memory_mib": "memory that the runner took",
        "gpu_memory_mib": "GPU memory that it took",
        "rates": "seconds for each unit of work in its warm-up",
        "error": "why it did not come up; empty if it did",
    },
    "samples": {
        "at_ms": "end of the time that it is about",
        "span_s": "how long that time is: 10 s, more in older rows",
        "cpu_percent": "of all cores",
        "memory_used_mib": "memory in use",
        "storage_free_mib": "free on the disk of the state folder",
        "disk_read_bytes_s": "read from disks",
        "disk_write_bytes_s": "written to disks",
        "network_in_bytes_s": "received",
        "network_out_bytes_s": "sent",
        "gpu_percent": "utilisation of the GPUs",
        "gpu_memory_used_mib": "GPU memory in use",
        "gpu_temperature_c": "the hottest GPU",
        "gpu_w": "watts of the GPUs",
        "temperature_c": "the hottest sensor",
        "battery_percent": "charge",
        "battery_w": "out of the battery; negative: into it",
        "power_w": "watts of the machine",
        "running": "attempts that ran",
        "waiting": "jobs that waited",
    },
    "events": {
        "kind": "stable word: node_up, node_gone…",
        "node": "id of the node that it is about",
        "text": "in a sentence",
    },
    "calibrations": {"crowding": "by what each job beside it slows one down"},
    "usage": {
        "hour_ms": "when the hour began",
        "jobs": "attempts that ran on this node",
        "failed": "of them, those that failed",
        "seconds": "that they ran, added up",
        "energy_j": "joules, added up",
        "cost_usd": "dollars, added up",
        "units": "amount of each unit of work, as done",
    },
}


def meaning(table: str, column: str) -> str:
    """Raises KeyError for a column that is not described."""
    own = _OF_TABLES[table]
    return own[column] if column in own else _EVERYWHERE[column]


def table_list() -> TableList:
    return TableList(tables=tuple(_view(kind) for kind in TABLES))


def _view(kind: type[Row]) -> TableView:
    name = table_of(kind)
    described = tuple((column, type, meaning(name, column)) for column, type in columns(kind).items())
    return TableView(name=name, meaning=" ".join((kind.__doc__ or "").split()), columns=described)
