"""Judgements about this node among the others: who sees whom, whose clock is wrong, who is another version."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from outbid_contracts.doctor import Finding, Vitals
from outbid_contracts.ids import NodeId
from outbid_node.doctor.facts import Other, Reach
from outbid_node.doctor.words import duration, note, ok, problem, some, warning

CLOCK_WARN_S = 2.0
CLOCK_WRONG_S = 60.0


def judge_neighbours(vitals: Vitals, others: Sequence[Other]) -> Iterator[Finding]:
    yield from _router(vitals)
    yield from _not_linked(vitals)
    for other in others:
        if other.vitals is None:
            remedy = f"Run `outbid doctor` on {other.name}; it may be an older version, or frozen."
            yield warning("other machines", f"{other.name} is in the mesh but does not answer: {other.error}", remedy)
    blind = [other.name for other in others if other.vitals and not _sees(other.vitals, vitals.node)]
    if blind:
        remedy = "If it stays so for a minute, start the node again on that machine, then on this one."
        yield problem("other machines", f"this node sees {some(blind)}, but not the other way round", remedy)
    answered = [other.name for other in others if other.vitals and other.name not in blind]
    if answered:
        yield ok("other machines", f"{some(answered, 5)}; they see this node too")
    if not others:
        yield _alone(vitals)


def _sees(vitals: Vitals, node: NodeId) -> bool:
    return any(seen.node == node for seen in vitals.sees)


def _router(vitals: Vitals) -> Iterator[Finding]:
    router = vitals.bus.get("router", {})
    state = router.get("state", "")
    if state in ("down", "failed", "starting"):
        why = router.get("last_error", "its log says why: `bus/router.log` in the state folder")
        remedy = "It is started again by itself; if it does not come up, choose another bus.route_port."
        yield problem("router", f"the door to other machines is {state}: {why}", remedy)
    elif state == "up":
        yield ok("router", f"listens for other machines on port {router.get('route_port', '?')}")


def _not_linked(vitals: Vitals) -> Iterator[Finding]:
    linked = {seen.node for seen in vitals.sees}
    for heard in vitals.on_air:
        if heard.node not in linked:
            port = heard.route.rpartition(":")[2]
            found = f"{heard.name} announces itself at {heard.route}, but there is no link to it"
            remedy = f"A firewall on either machine may block TCP port {port}; let it through there and here."
            yield warning("other machines", found, remedy)


def _alone(vitals: Vitals) -> Finding:
    if not vitals.open:
        found = "none, and this one is closed to the network"
        return note("other machines", found, "`outbid invite` opens it and lets others in.")
    port = vitals.bus.get("router", {}).get("route_port", "?")
    found = "none of them is seen; are they on?"
    remedy = (
        f"A firewall cannot be seen from here: let TCP port {port} and UDP port 5353 through, and try from another"
        " machine with `outbid invite` here and `outbid join CODE --peer HOST` there."
    )
    return warning("other machines", found, remedy)


def judge_reach(reaches: Sequence[Reach], *, alone: bool) -> Iterator[Finding]:
    """The addresses this node was given. One that does not answer may just be off, unless nobody is seen at all."""
    for reach in reaches:
        if reach.error:
            found = f"nobody can be reached at {reach.address}: {reach.error}"
            remedy = "Is that machine on, and is the address still right (mesh.peers)? A firewall may block the port."
            yield warning("addresses", found, remedy) if alone else note("addresses", found)
    good = [reach.address for reach in reaches if not reach.error]
    if good:
        yield ok("addresses", f"{some(good)} can be reached")


def judge_versions(vitals: Vitals, others: Sequence[Other]) -> Iterator[Finding]:
    strange = [f"{other.name} has {other.version}" for other in others if other.version != vitals.version]
    if strange:
        remedy = "Bring all machines to the same version: `pip install --upgrade outbid`, then start their nodes again."
        yield warning("versions", f"this node has {vitals.version}, {some(strange, 5)}", remedy)
    elif others:
        yield ok("versions", f"all machines have {vitals.version}")


def judge_clocks(others: Sequence[Other]) -> Iterator[Finding]:
    """Whose clock is wrong: ours if it differs from most of the others', else that of the one that stands alone."""
    known = [other for other in others if other.vitals is not None]
    if not known:
        return
    typical_s = statistics.median(other.offset_s for other in known)
    if len(known) > 1 and abs(typical_s) > CLOCK_WARN_S + max(other.round_s for other in known):
        yield _wrong("this machine's clock", "most others'", -typical_s)
        return
    for other in known:
        if abs(other.offset_s) > CLOCK_WARN_S + other.round_s:
            yield _wrong(f"the clock of {other.name}", "ours", other.offset_s)
    worst_s = max(abs(other.offset_s) for other in known)
    if worst_s <= CLOCK_WARN_S:
        yield ok("clocks", f"within {duration(max(worst_s, 0.001))} of the other machines'")


def _wrong(whose: str, whom: str, ahead_s: float) -> Finding:
    where = "ahead of" if ahead_s > 0 else "behind"
    found = f"{whose} is {duration(abs(ahead_s))} {where} {whom}"
    remedy = "Switch on time synchronisation on both: `sudo timedatectl set-ntp true`, or install chrony."
    return (problem if abs(ahead_s) > CLOCK_WRONG_S else warning)("clocks", found, remedy)


def judge_keeper(vitals: Vitals) -> Finding:
    if vitals.held:
        remedy = "Start that machine. If it is gone for good: stop this node, delete `keeper.json` in its state folder"
        return problem("keeper", vitals.held, f"{remedy} and start it again.")
    names = [vitals.name] if vitals.always_on else []
    names += [seen.name for seen in vitals.sees if seen.always_on]
    if names:
        return ok("keeper", f"{some(names)} keeps durable jobs while other machines are off")
    found = "no machine is always on: a durable job waits while the machine is off that took it"
    return note("keeper", found, "If one of them runs day and night, set node.always_on to true there.")
