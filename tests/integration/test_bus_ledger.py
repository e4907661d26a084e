"""The ledger alone: a real nats-server, killed, frozen, crowded out and left without disk."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import nats
import nats.errors
import psutil
import pytest
from nats.aio.client import Client, RawCredentials

from outbid_contracts.errors import InvalidConfig, OutbidError
from outbid_contracts.ids import NodeId, new_node_id
from outbid_node.bus import binary, orphan, ports, process
from outbid_node.bus.ledger import Ledger
from outbid_node.bus.process import ServerFailed
from outbid_node.identity import jwt
from outbid_node.identity.keys import MeshKey, new_user
from outbid_node.identity.node import Identity
from tests.waiting import until

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
can_mount = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="mounts a tiny disk, which takes root on Linux"
)

NODE = NodeId("ledgertest")
KEY = MeshKey.new()
USER = new_user()
AS_NODE = RawCredentials(jwt.credentials(jwt.user(KEY, "node", "test", USER.public, expires_s=None), USER))
Make = Callable[..., Ledger]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    made: list[Ledger] = []

    def one(
        folder: Path | None = None,
        port: int | None = None,
        node: NodeId = NODE,
        on_failure: Callable[[OutbidError], None] = lambda error: None,
    ) -> Ledger:
        folder = folder or tmp_path / "bus"
        identity = Identity(KEY, node, folder)
        identity.write()
        ledger = Ledger(
            identity=identity,
            folder=folder,
            binary=binary.find(),
            port=port,
            on_failure=on_failure,
            watch_s=0.05,
        )
        made.append(ledger)
        return ledger

    yield one
    await asyncio.gather(*(ledger.stop() for ledger in made))


async def client(url: str) -> Client:
    async def quiet(error: Exception) -> None:
        pass

    return await nats.connect(
        url, user_credentials=AS_NODE, max_reconnect_attempts=-1, reconnect_time_wait=0.05, error_cb=quiet
    )


def run(argv: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(argv)


def kill(pid: int | None) -> None:
    assert pid is not None
    psutil.Process(pid).kill()


async def test_a_lone_ledger_answers_and_has_jetstream_in_its_own_domain(make: Make) -> None:
    ledger = make()
    await ledger.start()
    nc = await client(ledger.url)
    assert (await nc.jetstream(domain=NODE).account_info()).domain == NODE
    assert nc.max_payload == 16 * 2**20
    await nc.close()


async def test_killed_it_is_back_on_its_port_with_what_it_acknowledged(make: Make) -> None:
    ledger = make()
    await ledger.start()
    url, nc = ledger.url, await client(ledger.url)
    js = nc.jetstream()
    await js.add_stream(name=f"JOBS_{NODE}", subjects=["jobs.>"])
    await js.publish("jobs.a", b"precious")
    kill(ledger.server.pid)
    await until(lambda: ledger.server.restarts == 1 and ledger.server.state == "up")
    await until(lambda: nc.is_connected)
    assert ledger.url == url
    assert (await js.get_msg(f"JOBS_{NODE}", 1)).data == b"precious"
    await nc.close()


async def test_a_port_of_another_server_is_refused_by_name_and_pid(make: Make, tmp_path: Path) -> None:
    port = ports.free_port()
    with run([str(binary.find()), "-a", "127.0.0.1", "-p", str(port), "-l", str(tmp_path / "log")]) as other:
        await until(lambda: not ports.is_free(port))
        with pytest.raises(InvalidConfig) as caught:
            await make(port=port).start()
        other.terminate()
    name = "nats-server.exe" if sys.platform == "win32" else "nats-server"
    assert caught.value.message == f"port {port} is taken by {name} (pid {other.pid}); stop it or set OUTBID_PORT"


async def test_its_own_port_is_kept_from_one_start_to_the_next(make: Make) -> None:
    """Not 4222, where any other program may step in between."""
    first = make(port=ports.free_port())
    await first.start()
    await first.stop()
    second = make()
    await second.start()
    assert second.port == first.port


async def test_ledgers_that_start_at_once_get_different_ports(make: Make, tmp_path: Path) -> None:
    ledgers = [make(tmp_path / str(number), node=new_node_id()) for number in range(4)]
    await asyncio.gather(*(ledger.start() for ledger in ledgers))
    assert len({ledger.port for ledger in ledgers}) == 4


async def test_a_server_left_by_a_dead_daemon_is_replaced(make: Make) -> None:
    first = make(port=ports.free_port())
    await first.start()
    await first.stop()
    argv = [str(binary.find()), "-c", str(first.server.config_file)]
    with run(argv) as left:
        orphan.record(first.server.config_file.with_suffix(".pid"), left, argv)
        await until(lambda: not ports.is_free(first.port))
        second = make()
        await second.start()
        assert left.wait(5) is not None
    assert second.port == first.port


async def test_a_server_that_is_not_ours_is_never_killed(make: Make, tmp_path: Path) -> None:
    port = ports.free_port()
    argv = [str(binary.find()), "-a", "127.0.0.1", "-p", str(port), "-l", str(tmp_path / "log")]
    ledger = make()
    with run(argv) as other:
        orphan.record(ledger.server.config_file.with_suffix(".pid"), other, [argv[0], "-c", "elsewhere.conf"])
        await ledger.start()
        assert other.poll() is None
        other.terminate()


@posix_only
async def test_a_reload_does_not_disconnect_anyone(make: Make) -> None:
    ledger = make()
    await ledger.start()
    pid, nc = ledger.server.pid, await client(ledger.url)
    await ledger.link(ports.free_port())
    await ledger.link(None)
    await nc.flush()
    assert nc.stats["reconnects"] == 0
    assert ledger.server.pid == pid
    await nc.close()


@posix_only
async def test_a_frozen_server_is_stopped_all_the_same(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "STOP_S", 0.2)
    ledger = make()
    await ledger.start()
    pid = ledger.server.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    await ledger.stop()
    assert not psutil.pid_exists(pid)


async def test_a_ledger_that_keeps_dying_is_given_up_loudly(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "GIVE_UP", 1)
    told: asyncio.Future[OutbidError] = asyncio.get_running_loop().create_future()
    ledger = make(on_failure=told.set_result)
    await ledger.start()

    async def killer() -> None:
        while not told.done():
            with suppress(AssertionError, psutil.NoSuchProcess):
                kill(ledger.server.pid)
            await asyncio.sleep(0.01)

    async with asyncio.timeout(10):
        _, error = await asyncio.gather(killer(), told)
    assert isinstance(error, ServerFailed)
    assert ledger.server.state == "failed"


def steal(port: int) -> socket.socket:
    until = time.monotonic() + 5
    while True:
        with suppress(OSError):
            return socket.create_server(("127.0.0.1", port))
        assert time.monotonic() < until


async def test_a_port_stolen_while_it_was_down_is_named_when_it_gives_up(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "GIVE_UP", 2)
    told: asyncio.Future[OutbidError] = asyncio.get_running_loop().create_future()
    ledger = make(on_failure=told.set_result)
    await ledger.start()
    kill(ledger.server.pid)
    with steal(ledger.port):  # without giving way to the supervisor, so the thief always wins
        async with asyncio.timeout(10):
            assert f"port {ledger.port} is taken by" in (await told).message


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100M", "tmpfs", str(place)], check=True)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@contextmanager
def read_only(disk: Path, place: Path) -> Iterator[None]:
    subprocess.run(["mount", "--bind", str(disk), str(place)], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(place)], check=True)
    yield
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path) -> None:
    with suppress(OSError), (disk / "ballast").open("wb", buffering=0) as ballast:
        for _ in range(30_000):
            ballast.write(bytes(4096))


def resize(disk: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


async def jetstream_works(ledger: Ledger) -> bool:
    nc = await client(ledger.url)
    try:
        js = nc.jetstream(timeout=0.5)
        await js.add_stream(name=f"JOBS_{NODE}", subjects=["jobs.>"])
        await js.publish("jobs.a", bytes(50_000))
        return True
    except (nats.errors.Error, TimeoutError):
        return False
    finally:
        await nc.close()


@can_mount
async def test_without_disk_space_it_runs_without_jetstream_until_there_is(make: Make, disk: Path) -> None:
    resize(disk, "1M")
    ledger = make(disk / "bus")
    await ledger.start()
    nc = await client(ledger.url)
    await nc.flush()
    await nc.close()
    assert not await jetstream_works(ledger)
    assert ledger.jetstream_error is not None
    assert "1 MiB free where 64 MiB are needed" in ledger.jetstream_error
    resize(disk, "100M")
    await until(lambda: ledger.jetstream_error is None)
    await until(lambda: jetstream_works(ledger))


@can_mount
async def test_a_disk_that_fills_and_empties_gives_back_a_stream_that_takes_messages(make: Make, disk: Path) -> None:
    """A stream whose write failed answers nothing from then on, with space or without: only a restart helps."""
    ledger = make(disk / "bus")
    await ledger.start()
    assert await jetstream_works(ledger)
    fill(disk)
    while await jetstream_works(ledger):
        pass
    await until(lambda: ledger.jetstream_error is not None)
    assert "nearly full" in str(ledger.jetstream_error)
    (disk / "ballast").unlink()
    await until(lambda: ledger.jetstream_error is None)
    await until(lambda: jetstream_works(ledger))


@can_mount
async def test_a_node_that_ran_before_starts_on_a_full_disk(make: Make, disk: Path) -> None:
    first = make(disk / "bus")
    await first.start()
    await first.stop()
    fill(disk)
    second = make(disk / "bus")
    await second.start()
    nc = await client(second.url)
    await nc.flush()
    await nc.close()
    assert "0 MiB free" in str(second.jetstream_error)


@can_mount
async def test_a_store_that_cannot_be_written_costs_jetstream_only(make: Make, tmp_path: Path, disk: Path) -> None:
    store = tmp_path / "bus" / "jetstream"
    store.mkdir(parents=True)
    with read_only(disk, store):
        ledger = make()
        await ledger.start()
        assert "read-only" in str(ledger.jetstream_error)
        await ledger.stop()


async def test_start_to_first_answer_is_quick(make: Make) -> None:
    ledger = make()
    began = time.monotonic()
    await ledger.start()
    nc = await client(ledger.url)
    assert time.monotonic() - began < 2  # 0.03 s on a quiet machine
    await nc.close()
