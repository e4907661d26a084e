"""All judgements of one machine, in the order a person would ask the questions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from outbid_contracts.doctor import Finding
from outbid_node.doctor import judge_machine, judge_mesh, judge_node
from outbid_node.doctor.facts import Facts


def examine(facts: Facts) -> tuple[Finding, ...]:
    """What could not be looked at is said last; but of a state folder that cannot be opened nothing else is said."""
    if "traces" in facts.unknown:
        facts = replace(facts, folder=None, disks=None, writes=None, key=None)
    return (*_node(facts), *_machine(facts), *_work(facts), *_mesh(facts), *_unknown(facts))


def _node(facts: Facts) -> Iterator[Finding]:
    if facts.settings is not None:
        yield from judge_node.judge_settings(facts.settings)
    if facts.daemon is not None:
        why_silent = facts.unknown.get("vitals", "").partition(": ")[2]
        yield judge_node.judge_daemon(facts.daemon, facts.ledger, facts.vitals, why_silent)
    if facts.ports is not None:
        yield from judge_machine.judge_ports(facts.ports)
    if facts.ledger is not None:
        yield judge_node.judge_ledger(facts.ledger)
        if facts.store is not None:
            trouble = facts.vitals.trouble if facts.vitals else ()
            yield from judge_node.judge_store(facts.store, facts.ledger, facts.node, trouble)
    if facts.vitals is not None:
        yield from judge_node.judge_loop(facts.vitals)


def _machine(facts: Facts) -> Iterator[Finding]:
    if facts.software is not None:
        yield judge_machine.judge_software(facts.software, facts.vitals.version if facts.vitals else "")
    if facts.binary is not None:
        yield judge_machine.judge_binary(facts.binary)
    if facts.folder is not None:
        yield judge_machine.judge_folder(facts.folder)
    if facts.disks is not None:
        yield from map(judge_machine.judge_disk, facts.disks)
    if facts.writes is not None:
        yield from judge_machine.judge_writes(facts.writes)
    if facts.key is not None:
        yield judge_node.judge_key(facts.key)
    if facts.memory is not None:
        yield judge_node.judge_memory(facts.memory)
    if facts.limits is not None:
        yield judge_machine.judge_limits(facts.limits)
    if facts.power is not None:
        always_on = facts.config.node.always_on is True or (facts.vitals is not None and facts.vitals.always_on)
        yield from judge_machine.judge_power(facts.power, always_on=always_on)
    if facts.counters is not None:
        yield judge_machine.judge_watts(facts.counters, facts.config.power)
    if facts.clock is not None:
        yield judge_machine.judge_clock(facts.clock)


def _work(facts: Facts) -> Iterator[Finding]:
    budget_mib = facts.config.limits.memory_budget_mib(int(facts.memory.total_mib)) if facts.memory else 2**40
    free_mib = facts.memory.free_mib if facts.memory else 2.0**40
    for work in facts.work or ():
        stale = facts.vitals is not None and work.name in facts.vitals.missing
        yield from judge_node.judge_work(work, budget_mib, free_mib, stale)


def _mesh(facts: Facts) -> Iterator[Finding]:
    is_open = facts.key is not None and facts.key.open
    if facts.echoes is not None:
        yield judge_machine.judge_multicast(facts.echoes, wanted=facts.config.mesh.discovery, open=is_open)
    alone = not facts.others
    yield from judge_mesh.judge_reach(facts.reaches or (), alone=alone)
    if facts.vitals is None:
        return
    yield from judge_mesh.judge_neighbours(facts.vitals, facts.others or ())
    yield from judge_mesh.judge_versions(facts.vitals, facts.others or ())
    yield from judge_mesh.judge_clocks(facts.others or ())
    yield judge_mesh.judge_keeper(facts.vitals)


def _unknown(facts: Facts) -> Iterator[Finding]:
    """That the daemon gave no answer is said by its own judgement."""
    return judge_node.judge_unknown({part: why for part, why in facts.unknown.items() if part != "vitals"})
