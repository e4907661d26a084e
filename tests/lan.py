"""A LAN of network namespaces: hosts on a switch, with links that can be cut, moved, slowed and made lossy.

Needs Linux, root and iproute2 (`unavailable()` says what is missing). Everything lives in namespaces of this run, named
after its process id; those of runs that were killed are removed by the next. Nothing of it touches the machine's own
network.

    with lan(folder) as net:
        a, b = net.host("a"), net.host("b")
        node = a.node("mesh"); node.spawn()
        net.split([a], [b]); net.heal(); b.power_cut()
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import ctypes
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from outbid_node.identity.keyring import Keyring
from outbid_node.identity.keys import MeshKey
from outbid_node.joining import membership
from outbid_node.joining.membership import Membership
from tests.fleet import NodeProcess

T = TypeVar("T")

HERE = Path(__file__).resolve().parent
NETNS = Path("/var/run/netns")
PREFIX = "outbid"
CLONE_NEWNET = 0x40000000
_numbers = itertools.count(1)


def ip(*arguments: str, inside: str | None = None) -> str:
    where = ["-n", inside] if inside else []
    return _run(["ip", *where, *arguments])


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def _batch(*lines: str, inside: str | None = None) -> None:
    """Several `ip` commands in one process."""
    where = ["-n", inside] if inside else []
    done = subprocess.run(["ip", *where, "-batch", "-"], input="\n".join(lines), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ip -batch: {done.stderr.strip()}\n" + "\n".join(lines))


def unavailable() -> str | None:
    """Why there can be no such LAN here; None if there can."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "making network namespaces takes root"
    if shutil.which("ip") is None:
        return "iproute2 (`ip`) is not installed"
    _remove_leftovers()
    name = f"{PREFIX}-{os.getpid()}-try"
    try:
        ip("netns", "add", name)
        try:
            _batch("link add name br0 type bridge", "link add name p0 type veth peer name p1", inside=name)
        finally:
            ip("netns", "del", name)
    except RuntimeError as error:
        return f"no network namespaces here: {error}"
    return None


def _remove_leftovers() -> None:
    """Of runs that were killed before they could clean up."""
    for entry in NETNS.glob(f"{PREFIX}-*-*") if NETNS.exists() else ():
        pid = entry.name.split("-")[1]
        if pid.isdecimal() and not Path(f"/proc/{pid}").exists():
            _remove(entry.name)


def _remove(namespace: str) -> None:
    _kill(namespace)
    with contextlib.suppress(RuntimeError):
        ip("netns", "del", namespace)


def _kill(namespace: str) -> None:
    """SIGKILL to every process in that namespace, which only ours are."""
    for _ in range(20):
        pids = [int(pid) for pid in ip("netns", "pids", namespace).split()]
        if not pids:
            return
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


@dataclass(frozen=True, slots=True)
class Rough:
    """A bad link: each frame is late by `delay_s`, and lost with probability `loss`, in each direction."""

    delay_s: float
    loss: float


class LanNode(NodeProcess):
    """A daemon on a host of the LAN."""

    def __init__(self, host: Host, mesh: str, flags: Sequence[str]) -> None:
        super().__init__(host.folder / "state", host.name, mesh, flags)
        self.host = host

    def spawn(self) -> None:
        command = [sys.executable, "-m", "outbid_node", "up", "--state", str(self.state)]
        command += ["--name", self.name, "--mesh", self.mesh, "--json-logs", *self.flags]
        self.process = self.host.popen(command, self.log)

    def times(self, action: str, node: str) -> list[float]:
        """When it logged `action` about that node, in seconds of Unix time."""
        lines = [line for line in self.lines(action) if line.get("node") == node]
        return [datetime.fromisoformat(line["time"]).timestamp() for line in lines]


class Host:
    """A machine: a namespace with one network card, `lan0`, and its own folder for state and keys."""

    def __init__(self, net: Lan, name: str, rough: Rough | None) -> None:
        self.net = net
        self.name = name
        self.number = next(_numbers)
        self.namespace = f"{PREFIX}-{os.getpid()}-h{self.number}"
        self.folder = net.folder / name
        self.folder.mkdir(parents=True)
        self.keyring = Keyring(self.folder / "keyring")
        self.nodes: list[LanNode] = []
        self._rough = rough
        self._wire: subprocess.Popen[bytes] | None = None
        self._inside: _Inside | None = None

    @property
    def port(self) -> str:
        """Its end of the cable at the switch."""
        return f"p{self.number}"

    def build(self, addresses: Sequence[str]) -> None:
        ip("netns", "add", self.namespace)
        if self._rough and not self.net.has_netem:
            self._wire = _wire(self, self._rough)
        else:
            ip("link", "add", self.port, "type", "veth", "peer", "name", "lan0", "netns", self.namespace,
               inside=self.net.switch)  # fmt: skip
        _batch("link set lo up", *self._added(addresses), "link set lan0 up", inside=self.namespace)
        _batch(f"link set {self.port} master br0", f"link set {self.port} up", inside=self.net.switch)
        if self._rough and self.net.has_netem:
            late, lost = f"{self._rough.delay_s * 1000:.0f}ms", f"{self._rough.loss:.1%}"
            _run(
                [
                    "tc",
                    "-n",
                    self.namespace,
                    "qdisc",
                    "add",
                    "dev",
                    "lan0",
                    "root",
                    "netem",
                    "delay",
                    late,
                    "loss",
                    lost,
                ]
            )

    def _added(self, addresses: Sequence[str]) -> list[str]:
        return [f"address add {it} dev lan0{' nodad' if ':' in it else ''}" for it in addresses]

    # -- what runs there -----------------------------------------------------------------------------------------

    def node(self, mesh: str, *flags: str, member: bool = True) -> LanNode:
        """Not started yet. A `member` has joined the mesh already, as by `outbid join`; else it is alone."""
        node = LanNode(self, mesh, flags)
        if member:
            self.keyring.put(mesh, self.net.key(mesh))
            membership.save(node.state, Membership(mesh=mesh))
        self.nodes.append(node)
        return node

    def popen(self, command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("OUTBID_")}
        environment["OUTBID_KEYRING"] = str(self.keyring.folder)
        inside = ["ip", "netns", "exec", self.namespace, *command]
        with log.open("ab") as file:
            return subprocess.Popen(inside, stderr=file, stdin=subprocess.DEVNULL, env=environment)

    def run(self, *command: str) -> str:
        """A program's standard output; raises RuntimeError with its standard error if it fails."""
        return _run(["ip", "netns", "exec", self.namespace, *command])

    async def call(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run `work()` in this process, but with the host's network: what it opens, it opens there."""
        if self._inside is None:
            self._inside = _Inside(self.namespace)
        return await asyncio.wrap_future(self._inside.submit(work))

    # -- what happens to it --------------------------------------------------------------------------------------

    def unplug(self) -> None:
        ip("link", "set", self.port, "down", inside=self.net.switch)

    def plug(self) -> None:
        ip("link", "set", self.port, "up", inside=self.net.switch)

    def move(self, *addresses: str) -> None:
        """These instead of its present addresses, as after a new lease."""
        _batch("address flush dev lan0 scope global", *self._added(addresses), inside=self.namespace)

    def power_cut(self) -> None:
        """Nothing leaves any more, not even the end of a connection; then everything there is dead."""
        self.unplug()
        _kill(self.namespace)
        for node in self.nodes:
            if node.process is not None:
                node.process.wait()

    def close(self) -> None:
        if self._inside is not None:
            self._inside.stop()
        with contextlib.suppress(RuntimeError):
            _kill(self.namespace)
        for node in self.nodes:
            node.kill()
        if self._wire is not None:
            self._wire.kill()
            self._wire.wait()
        _remove(self.namespace)


class Lan:
    """A switch and the hosts on it: 10.77.0.0/24 and fd77::/64, which exist in the namespaces only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hosts: list[Host] = []
        self._keys: dict[str, MeshKey] = {}
        self.switch = f"{PREFIX}-{os.getpid()}-s{next(_numbers)}"
        ip("netns", "add", self.switch)
        self._bridges = 0
        self._bridge()
        self.has_netem = self._try_netem()

    def _bridge(self) -> str:
        """Without multicast snooping: it would need a querier, which no home has."""
        name = f"br{self._bridges}"
        self._bridges += 1
        _batch(
            f"link add {name} type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
            f"link set {name} up",
            inside=self.switch,
        )
        return name

    def _try_netem(self) -> bool:
        try:
            _run(["tc", "-n", self.switch, "qdisc", "add", "dev", "br0", "root", "netem", "delay", "1ms"])
            _run(["tc", "-n", self.switch, "qdisc", "del", "dev", "br0", "root"])
        except (RuntimeError, FileNotFoundError):
            return False
        return True

    def host(self, name: str, *addresses: str, rough: Rough | None = None) -> Host:
        """`addresses` with prefix length; default: one of each family."""
        number = len(self.hosts) + 1
        host = Host(self, name, rough)
        self.hosts.append(host)
        host.build(addresses or (f"10.77.0.{number}/24", f"fd77::{number:x}/64"))
        return host

    def key(self, mesh: str) -> MeshKey:
        """The same for all members of the mesh that is called so on this LAN."""
        return self._keys.setdefault(mesh, MeshKey.new())

    def split(self, *groups: Sequence[Host]) -> None:
        """Each group on a switch of its own. Its hosts keep their carrier: they cannot see that anything happened."""
        for group in groups:
            bridge = self._bridge()
            _batch(*(f"link set {host.port} master {bridge}" for host in group), inside=self.switch)

    def heal(self) -> None:
        """All on one switch again."""
        _batch(*(f"link set {host.port} master br0" for host in self.hosts), inside=self.switch)

    def close(self) -> None:
        for host in self.hosts:
            host.close()
        _remove(self.switch)


@contextlib.contextmanager
def lan(folder: Path) -> Iterator[Lan]:
    net = Lan(folder)
    try:
        yield net
    finally:
        net.close()


class _Inside:
    """A thread with an event loop in a namespace: sockets belong to the namespace of the thread that opens them."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=namespace, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        file = os.open(NETNS / self._namespace, os.O_RDONLY)
        if libc.setns(file, CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"setns {self._namespace}")
        os.close(file)
        self._loop.run_forever()

    def submit(self, work: Callable[[], Awaitable[T]]) -> concurrent.futures.Future[T]:
        async def run() -> T:
            return await work()

        return asyncio.run_coroutine_threadsafe(run(), self._loop)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)


def _wire(host: Host, rough: Rough) -> subprocess.Popen[bytes]:
    """A cable that is a program, where the kernel has no netem: two TAP devices and what happens between them."""
    ask = {
        "here": host.port,
        "there": "lan0",
        "namespace": host.namespace,
        "delay_s": rough.delay_s,
        "loss": rough.loss,
    }
    command = ["ip", "netns", "exec", host.net.switch, sys.executable, str(HERE / "lan_wire.py"), json.dumps(ask)]
    wire = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert wire.stdout is not None
    if wire.stdout.readline() != b"ready\n":
        raise RuntimeError("the wire did not come up")
    return wire
