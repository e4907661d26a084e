"""What courtesy reads: made-up /proc, /sys, NVML and X server, and the real thing where this machine has it."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from outbid_contracts.messages import Gpu
from outbid_node.config_sections import CourtesySection
from outbid_node.courtesy import gpu_users
from outbid_node.courtesy.critical import critical_c
from outbid_node.courtesy.gpu_users import GpuUsers
from outbid_node.courtesy.idle import Idle, Source
from outbid_node.courtesy.idle_elsewhere import hid_idle_s
from outbid_node.courtesy.idle_linux import Interrupts, Logind, Mutter, Terminals
from outbid_node.courtesy.processes import KNOWN_FOR, Names
from outbid_node.courtesy.readings import GpuUse
from outbid_node.courtesy.watch import Own, Watch
from outbid_node.courtesy.x11 import X11
from outbid_node.resources.files import Files
from outbid_node.resources.nvidia import Nvidia

GIB = 1 << 30
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def tree(root: Path, files: Mapping[str, object]) -> Path:
    for name, content in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else f"{content}\n".encode())
    return root


# -- games ------------------------------------------------------------------------------------------------------------


def process(pid: int, comm: str, cmdline: bytes = b"") -> dict[str, object]:
    return {f"proc/{pid}/comm": comm, f"proc/{pid}/cmdline": cmdline}


@linux
def test_a_real_process_that_is_named_like_a_game_is_found_and_then_gone(tmp_path: Path) -> None:
    game = tmp_path / "My-Great-Game-Win64-Shipping"
    shutil.copy(shutil.which("sleep") or "/bin/sleep", game)
    names = Names(CourtesySection().games)
    assert game.name not in names.matching()
    with subprocess.Popen([game, "60"]) as running:
        try:
            # The name is longer than what the kernel keeps, and exec fills in the command line last.
            deadline = time.monotonic() + 10
            while game.name not in names.matching():
                assert time.monotonic() < deadline
        finally:
            running.kill()
    assert game.name not in names.matching()


@linux
def test_names_match_whole_and_in_any_case(tmp_path: Path) -> None:
    root = tree(tmp_path, process(1, "systemd") | process(7, "CS2") | process(8, "cs2-notes") | process(9, "a.x86_64"))
    tree(tmp_path, {"proc/uptime": "1", "proc/12/status": "no name"})
    assert Names(["cs2", "*.X86_64"], root).matching() == ("CS2", "a.x86_64")
    assert Names([], root).matching() == ()


@linux
def test_a_long_name_is_read_whole_unless_the_command_line_says_something_else(tmp_path: Path) -> None:
    told = process(1, "Great-Game-Win6", b"Z:\\games\\Great-Game-Win64-Shipping.exe\0-full\0")
    root = tree(tmp_path, told | process(2, "abcdefghijklmno", b"/usr/bin/python3\0x\0"))
    assert Names(["*-win64-shipping*"], root).matching() == ("Great-Game-Win64-Shipping.exe",)
    assert Names(["abcdefghijklmno"], root).matching() == ("abcdefghijklmno",)


@linux
def test_a_shell_that_becomes_a_game_is_seen_and_so_is_a_number_used_again(tmp_path: Path) -> None:
    root = tree(tmp_path, process(5, "bash"))
    names = Names(["game"], root)
    assert names.matching() == ()
    tree(tmp_path, process(5, "game"))
    assert names.matching() == ("game",)
    tree(tmp_path, process(5, "other"))
    assert any(names.matching() == () for _ in range(KNOWN_FOR + 1))


@linux
def test_a_process_that_stays_is_read_twice_and_then_only_when_all_are_read_anew(tmp_path: Path) -> None:
    """Reading all of them each time is what would cost."""
    root = tree(tmp_path, process(5, "bash"))
    names = Names(["game"], root)
    assert [names.matching(), names.matching()] == [(), ()]
    tree(tmp_path, process(5, "game"))
    looked = [bool(names.matching()) for _ in range(KNOWN_FOR)]
    assert looked.index(True) == KNOWN_FOR - 3


# -- idle time --------------------------------------------------------------------------------------------------------


def test_terminals_tell_the_last_key_of_those_who_logged_in_and_of_nobody_else(tmp_path: Path) -> None:
    root = tree(tmp_path, {"dev/pts/0": "", "dev/tty2": "", "dev/pts/9": ""})
    now = time.time()
    for name, idle_s in (("pts/0", 500), ("tty2", 90), ("pts/9", 1)):
        os.utime(root / "dev" / name, (now - idle_s, now))
    logins = ["pts/0", "tty2", ":0", "pts/77", "../etc/x"]
    assert Terminals(root, lambda: logins).read() == pytest.approx(90, abs=5)
    assert Terminals(root, list).read() is None


def test_a_laptops_keyboard_is_known_by_its_interrupts_from_the_first_on(tmp_path: Path) -> None:
    clock = [0.0]
    other = "  9:  5  7  IO-APIC  9-fasteoi   acpi\n"

    def pressed(count: int) -> None:
        tree(tmp_path, {"proc/interrupts": f"     CPU0 CPU1\n  1:  {count}  3  IO-APIC  1-edge   i8042\n{other}ERR: 0"})

    pressed(10)
    reader = Interrupts(tmp_path, lambda: clock[0])
    assert [reader.read(), reader.read()] == [None, None]
    pressed(12)
    assert reader.read() == 0.0
    clock[0] = 42.0
    assert reader.read() == 42.0


def session(**properties: str) -> str:
    usual = {"Id": "2", "Type": "wayland", "Class": "user", "Remote": "no", "LockedHint": "no", "IdleHint": "no"}
    return "\n".join(f"{key}={value}" for key, value in (usual | {"IdleSinceHint": "0"} | properties).items())


@pytest.fixture
def logind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Logind, list[str]]:
    """And what it is told next."""
    tree(tmp_path, {"run/systemd/sessions/2": "", "run/systemd/sessions/c1": "", "run/systemd/sessions/2.ref": ""})
    told: list[str] = []

    def ask(command: Sequence[str]) -> str:
        assert command[:4] == ["loginctl", "show-session", "2", "c1"]
        return told.pop(0)

    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    return Logind(tmp_path, ask), told


def test_logind_is_believed_that_somebody_is_there_only_once_its_desktop_was_seen_to_say_otherwise(
    logind: tuple[Logind, list[str]],
) -> None:
    reader, told = logind
    since = int((time.time() - 600) * 1e6)
    told += [session(), session(IdleHint="yes", IdleSinceHint=str(since)), session(), session(LockedHint="yes")]
    assert reader.read() is None
    assert reader.read() == pytest.approx(600, abs=5)
    assert reader.read() == 0.0
    assert reader.read() is None


@pytest.mark.parametrize("which", [{"Type": "tty"}, {"Class": "greeter"}, {"Remote": "yes"}, {"IdleSinceHint": "x"}])
def test_sessions_without_a_person_at_a_screen_say_nothing(logind: tuple[Logind, list[str]], which: Any) -> None:
    reader, told = logind
    told.append(session(**({"IdleHint": "yes", "IdleSinceHint": "1"} | which)))
    assert reader.read() is None


def test_mutter_is_asked_under_gnome_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert Mutter(lambda command: "t 12500\n", "ubuntu:GNOME").read() == 12.5
    assert Mutter(lambda command: "u 12500\n", "GNOME").read() is None
    assert Mutter(lambda command: pytest.fail("asked"), "KDE").read() is None


def test_macos_tells_nanoseconds_and_the_least_of_several_counts() -> None:
    assert hid_idle_s('  "HIDIdleTime" = 9000000000\n  "HIDIdleTime" = 1500000000\n') == 1.5
    assert hid_idle_s("no such key") is None


def test_the_least_known_idle_time_counts_a_broken_reader_does_not_and_time_goes_on_between_readings() -> None:
    asked: list[int] = []

    def seldom() -> float:
        asked.append(1)
        return 5.0

    def broken() -> float:
        raise OSError("gone")

    idle = Idle([Source("a", 10.0, seldom), Source("b", 1.0, broken), Source("c", 1.0, lambda: None)])
    assert [idle.look(0.0), idle.look(9.0), idle.look(10.0)] == [5.0, 14.0, 5.0]
    assert len(asked) == 2
    assert Idle([Source("b", 1.0, broken)]).look(0.0) is None


# -- X ----------------------------------------------------------------------------------------------------------------

ROOT_WINDOW = 0x2D1


class FakeX(threading.Thread):
    """The three answers of an X server that we need; `cookie`: what it wants to see."""

    def __init__(self, folder: Path, idle_ms: int, cookie: bytes = b"") -> None:
        super().__init__(daemon=True)
        self.idle_ms, self.cookie = idle_ms, cookie
        self.server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.server.bind(str(folder / "X7"))
        self.server.listen()
        self.start()

    def run(self) -> None:
        while True:
            client, _ = self.server.accept()
            with client:
                self._serve(client)

    def _serve(self, client: socket.socket) -> None:
        order, major, name, data = struct.unpack("<BxHxxHHxx", client.recv(12))
        assert (order, major) == (ord("l"), 11)
        auth = client.recv((name + 3) // 4 * 4 + (data + 3) // 4 * 4) if name else b""
        if not auth.endswith(self.cookie):
            client.sendall(struct.pack("<BBHHH", 0, 0, 11, 0, 0))
            return
        vendor, formats = b"Fake X.Org ", 2
        setup = bytearray(32)
        struct.pack_into("<H", setup, 16, len(vendor))
        setup[21] = formats
        body = bytes(setup) + vendor + bytes(-len(vendor) % 4) + bytes(8 * formats)
        body += struct.pack("<I", ROOT_WINDOW) + bytes(36)
        client.sendall(struct.pack("<BBHHH", 1, 0, 11, 0, len(body) // 4) + body)
        opcode, length, letters = struct.unpack("<BxHHxx", client.recv(8))
        assert opcode == 98
        assert client.recv(length * 4 - 8)[:letters] == b"MIT-SCREEN-SAVER"
        client.sendall(bytes([34]) + bytes(31))  # an event, which is passed over
        client.sendall(struct.pack("<BBHIBB", 1, 0, 1, 0, 1, 144) + bytes(22))
        assert struct.unpack("<BBHI", client.recv(8)) == (144, 1, 2, ROOT_WINDOW)
        client.sendall(struct.pack("<BBHIIII", 1, 0, 2, 0, 0, 0, self.idle_ms) + bytes(12))


@pytest.fixture
def short(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A socket's path has 108 letters at most."""
    folder = Path(f"/tmp/outbid-x-{os.getpid()}-{time.monotonic_ns()}")
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def entry(display: bytes, cookie: bytes) -> bytes:
    """Of an Xauthority file."""
    fields = (b"host", display, b"MIT-MAGIC-COOKIE-1", cookie)
    return struct.pack(">H", 256) + b"".join(struct.pack(">H", len(field)) + field for field in fields)


@linux
def test_an_x_server_tells_the_idle_time_to_who_has_its_cookie(short: Path) -> None:
    FakeX(short, 61_500, cookie=b"0123456789abcdef")
    wrong, right = entry(b"8", b"fedcba9876543210"), entry(b"7", b"0123456789abcdef")
    (short / "authority").write_bytes(wrong + right)
    environ = {"DISPLAY": ":7.0", "XAUTHORITY": str(short / "authority")}
    assert X11(environ, short).read() == 61.5
    assert X11(environ | {"WAYLAND_DISPLAY": "wayland-0"}, short).read() is None
    with pytest.raises(ValueError, match="refuses"):
        X11(environ | {"XAUTHORITY": str(short / "missing")}, short).read()


@linux
@pytest.mark.parametrize("display", ["", "far:0", ":x", "localhost:10.0", ":7;rm"])
def test_only_a_local_display_is_asked(short: Path, display: str) -> None:
    assert X11({"DISPLAY": display}, short).read() is None


@linux
@pytest.mark.parametrize("garbage", [b"", b"\x01", b"\x01" + b"\xff" * 7, b"HTTP/1.1 400 Bad Request\r\n\r\n" * 9])
def test_something_else_behind_the_display_is_an_error_of_the_reader_and_no_more(short: Path, garbage: bytes) -> None:
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(str(short / "X7"))
    server.listen()

    def answer() -> None:
        client, _ = server.accept()
        with client:
            client.recv(64)
            client.sendall(garbage)

    threading.Thread(target=answer, daemon=True).start()
    assert Idle([Source("X11", 1.0, X11({"DISPLAY": ":7", "HOME": str(short)}, short).read)]).look(0.0) is None
    server.close()


# -- graphics processors ----------------------------------------------------------------------------------------------


class FakeNvml:
    """One card. `compute` and `graphics`: pid -> bytes; `loads`: pid -> samples of its load."""

    NVML_ERROR_UNINITIALIZED, NVML_ERROR_NOT_FOUND, NVML_ERROR_DRIVER_NOT_LOADED = 1, 6, 9
    NVML_ERROR_LIBRARY_NOT_FOUND, NVML_ERROR_GPU_IS_LOST = 12, 15

    class NVMLError(Exception):
        @property
        def value(self) -> int:
            code: int = self.args[0]
            return code

    def __init__(
        self, compute: Mapping[int, int | None], graphics: Mapping[int, int | None], loads: Mapping[int, Sequence[int]]
    ) -> None:
        self.lists = {"Compute": compute, "Graphics": graphics}
        self.loads = loads

    def __getattr__(self, name: str) -> Callable[..., Any]:
        answers: dict[str, Callable[..., Any]] = {
            "nvmlInit": lambda: None,
            "nvmlShutdown": lambda: None,
            "nvmlDeviceGetCount": lambda: 1,
            "nvmlDeviceGetHandleByIndex": lambda index: "handle",
            "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(total=8 * GIB, free=0, used=0),
            "nvmlDeviceGetComputeRunningProcesses": lambda handle: self._list("Compute"),
            "nvmlDeviceGetGraphicsRunningProcesses": lambda handle: self._list("Graphics"),
            "nvmlDeviceGetProcessUtilization": self._utilization,
        }
        return answers[name]

    def _list(self, kind: str) -> list[Any]:
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in self.lists[kind].items()]

    def _utilization(self, handle: str, since_us: int) -> list[Any]:
        assert abs(since_us / 1e6 - time.time()) < 60
        if not self.loads:
            raise self.NVMLError(self.NVML_ERROR_NOT_FOUND)
        return [SimpleNamespace(pid=pid, smUtil=load) for pid, loads in self.loads.items() for load in loads]


def users(tmp_path: Path, nvml: object) -> GpuUsers:
    return GpuUsers(Nvidia(Files(tmp_path), nvml), 30.0)


ME = os.getpid()


def test_a_stranger_on_the_card_is_told_with_load_and_memory_and_ours_are_not(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        try:
            nvml = FakeNvml({ME: 6 * GIB}, {other.pid: 2 * GIB}, {ME: [90], other.pid: [40, 60]})
            found = users(tmp_path, nvml).read((), {ME}, 1)
            assert found == (GpuUse("sleep", busy_percent=50.0, memory_percent=25.0),)
        finally:
            other.kill()


def test_memory_that_windows_does_not_tell_and_samples_that_are_not_there_are_unknown(tmp_path: Path) -> None:
    found = users(tmp_path, FakeNvml({ME: None}, {}, {})).read((), (), 0)
    assert [(use.busy_percent, use.memory_percent) for use in found] == [(None, None)]


def test_process_numbers_of_another_world_say_nothing(tmp_path: Path) -> None:
    """In a container NVML may tell those of the host: ours is not among them, though it is certainly there."""
    assert users(tmp_path, FakeNvml({ME: 6 * GIB}, {}, {ME: [99]})).read((), {2**22 - 3}, 1) == ()
    assert users(tmp_path, FakeNvml({2**22 - 3: 6 * GIB}, {}, {})).read((), (), 0) == ()


def test_a_runner_of_another_node_on_this_machine_is_no_person(tmp_path: Path) -> None:
    pretend = [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)", "outbid_capabilities.runner_kit"]
    radeon = Gpu(name="Radeon", vendor="amd", busy_percent=80.0)
    with subprocess.Popen(pretend, stdout=subprocess.PIPE) as runner:
        try:
            assert runner.stdout is not None
            runner.stdout.readline()
            assert users(tmp_path, FakeNvml({runner.pid: 6 * GIB}, {}, {})).read((), (), 0) == ()
            assert gpu_users.other_nodes_runners()
            assert users(tmp_path, FakeNvml({}, {}, {})).read((radeon,), (), 0) == ()
        finally:
            runner.kill()


def test_the_load_of_a_card_that_tells_no_processes_counts_while_no_runner_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_users, "other_nodes_runners", lambda: False)
    radeon = Gpu(name="Radeon", vendor="amd", busy_percent=80.0)
    nothing = FakeNvml({}, {}, {})
    assert users(tmp_path, nothing).read((radeon,), (), 0) == (GpuUse("", busy_percent=80.0),)
    assert users(tmp_path, nothing).read((radeon,), (), 1) == ()
    assert users(tmp_path, nothing).read((Gpu(name="Radeon", vendor="amd", busy_percent=5.0),), (), 0) == ()


# -- all of it --------------------------------------------------------------------------------------------------------


def test_critical_temperatures_are_the_lowest_of_a_chip_and_nonsense_is_none(tmp_path: Path) -> None:
    chips = {"hwmon0": ("coretemp", ["100000", "95000"]), "hwmon1": ("odd", ["0", "65261850", "x"]), "hwmon2": ("", [])}
    files: dict[str, object] = {}
    for chip, (name, limits) in chips.items():
        files[f"sys/class/hwmon/{chip}/name"] = name
        files |= {f"sys/class/hwmon/{chip}/temp{n}_crit": limit for n, limit in enumerate(limits, 1)}
    assert critical_c(Files(tree(tmp_path, files))) == {"coretemp": 95.0}


def test_a_machine_that_tells_nothing_or_nonsense_is_read_all_the_same(tmp_path: Path) -> None:
    readings = Watch(CourtesySection(), root=tmp_path / "nowhere").read(Own())
    assert (readings.games, readings.gpu_use, dict(readings.critical_c)) == ((), (), {})
    garbage = tree(
        tmp_path, {"proc/interrupts": b"\xff\xfe i8042\n", "proc/1/comm": b"\xff" * 99, "run/systemd/sessions/1": ""}
    )
    assert Watch(CourtesySection(), root=garbage).read(Own()).games == ()


def test_on_this_machine_nobody_is_taken_for_a_game() -> None:
    watch = Watch(CourtesySection())
    watch.read(Own())
    readings = watch.read(Own())
    assert readings.idle_s is None or readings.idle_s >= 0
