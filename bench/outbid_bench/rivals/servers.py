"""The servers that the compared systems need: on free ports, in a folder of ours, ended when the block is left."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from outbid_bench.processes import end, free_port, until_listening
from outbid_node.bus import binary


class Server(Protocol):
    """`url` is where it listens, `syncing` the process that syncs to disk (None: several); both once it is entered."""

    url: str

    @property
    def syncing(self) -> int | None: ...

    def __enter__(self) -> Server: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class _Started:
    """One process that is ready when it listens."""

    url: str
    _process: subprocess.Popen[Any]

    def _start(self, port: int, command: Sequence[str | Path], **options: Any) -> None:
        quiet: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        self._process = subprocess.Popen(list(map(str, command)), **(quiet | options))
        try:
            until_listening(port, self._process)
        except BaseException:
            end(self._process)
            raise

    @property
    def syncing(self) -> int | None:
        return self._process.pid

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        end(self._process)


class Redis(_Started):
    """`synced`: each change is on disk before it is acknowledged (those of one turn of its loop together); else nothing
    is written to disk.
    """

    def __init__(self, folder: Path, *, synced: bool = False) -> None:
        self._folder = folder
        self._synced = synced

    @staticmethod
    def missing() -> str:
        return "" if shutil.which("redis-server") else "a redis-server on the path (Debian: redis-server)"

    def __enter__(self) -> Redis:
        port = free_port()
        self.url = f"redis://127.0.0.1:{port}/0"
        options = {
            "port": str(port),
            "bind": "127.0.0.1",
            "save": "",
            "appendonly": "yes" if self._synced else "no",
            "appendfsync": "always",
            "dir": str(self._folder),
        }
        self._start(port, ["redis-server", *(word for name, value in options.items() for word in (f"--{name}", value))])
        return self


class NatsServer(_Started):
    """JetStream in files. `synced`: an acknowledged message is on disk; else it is within two minutes."""

    def __init__(self, folder: Path, *, synced: bool = False) -> None:
        self._folder = folder
        self._synced = synced

    @staticmethod
    def missing() -> str:
        return ""

    def __enter__(self) -> NatsServer:
        port = free_port()
        self.url = f"nats://127.0.0.1:{port}"
        interval = "always" if self._synced else "2m"
        settings = self._folder / "nats.conf"
        settings.write_text(
            f"listen: 127.0.0.1:{port}\njetstream {{ store_dir: '{self._folder}', sync_interval: {interval} }}\n"
        )
        self._start(port, [binary.find(), "-c", settings])
        return self


class Postgres(_Started):
    """A new cluster. `synced`: a commit is on disk before it is acknowledged (the default); else soon after.

    It refuses to run as root: then it runs as `postgres` or `nobody`, in a folder that this user can reach.
    """

    def __init__(self, folder: Path, *, synced: bool = True) -> None:
        self._synced = synced

    @staticmethod
    def missing() -> str:
        return "" if _postgres_programs() else "PostgreSQL's server (Debian: postgresql)"

    def __enter__(self) -> Postgres:
        self._folder = Path(tempfile.mkdtemp(prefix="outbid-bench-postgres-"))
        try:
            self._make()
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        return self

    def _make(self) -> None:
        programs = _postgres_programs()
        assert programs is not None
        password, port = secrets.token_hex(16), free_port()
        self.url = f"postgresql://bench:{password}@127.0.0.1:{port}/postgres"
        (self._folder / "password").write_text(password)
        user = _other_user(self._folder)
        data = self._folder / "data"
        words = ["--auth=scram-sha-256", "--username=bench", f"--pwfile={self._folder / 'password'}", "--no-sync"]
        initdb = [str(programs / "initdb"), *words, str(data)]
        subprocess.run(initdb, check=True, capture_output=True, cwd=self._folder, **user)
        settings = {
            "port": port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "synchronous_commit": "on" if self._synced else "off",
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        self._start(port, [programs / "postgres", "-D", data, *options], cwd=self._folder, **user)

    @property
    def syncing(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, traceback)
        shutil.rmtree(self._folder, ignore_errors=True)


def _postgres_programs() -> Path | None:
    """The folder of `initdb` and `postgres`. Debian keeps it off the path, one for each version."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    folders = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    return max(folders, key=lambda folder: int(folder.parent.name), default=None)


def _other_user(folder: Path) -> Mapping[str, Any]:
    """For root: options that start a process as another user, who gets the folder."""
    if os.getuid() != 0:
        return {}
    import pwd  # not on Windows

    known = {entry.pw_name: entry for entry in pwd.getpwall()}
    other = known.get("postgres") or known["nobody"]
    for path in (folder, *folder.iterdir()):
        os.chown(path, other.pw_uid, other.pw_gid)
    return {"user": other.pw_uid, "group": other.pw_gid, "extra_groups": []}
