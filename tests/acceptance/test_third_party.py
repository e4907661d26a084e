"""Outbid as others use it: the built wheel in a fresh environment, an application with modules of common names, a
capability of a third party in an environment of its own, and a package that is broken.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
OURS = Path(sysconfig.get_path("purelib"))
EXAMPLE = ROOT / "examples" / "outbid-wordcount"

APPLICATION = """
import asyncio, json, sys
import contracts, node, psutil, tui
import outbid
from outbid import Mesh
from outbid.cli.params import schema_of

async def main():
    settings = {"words.python": sys.argv[1], "courtesy.enabled": False, "limits.calibrate": False}
    async with Mesh.start_node(settings=settings, name="third") as mesh:
        counted = await mesh.run("words.count", {"text": "one three two"}, timeout_s=60)
        family = [child.cmdline() for child in psutil.Process().children(recursive=True)]
        (view,) = await mesh.nodes()
        print(json.dumps({
            "outbid": outbid.__file__,
            "own": [module.OWN for module in (contracts, node, tui)],
            "counted": counted,
            "interpreters": [line[0] for line in family if "outbid_wordcount.runner:Counter" in line],
            "schema": await schema_of(mesh.connection, "words.count"),
            "missing": view.presence.missing,
        }))

asyncio.run(main())
"""

BROKEN = {
    "raises": "raise ImportError('no such library')",
    "leaves": "raise SystemExit(1)",
    "wrong": "from outbid_wordcount.declaration import *\nfrom dataclasses import replace\n"
    "declared = replace(count, name='words.other', params=dict)",
}

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="the environments are POSIX ones")]


def build(project: Path, out: Path) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(out)]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    return next(out.glob(f"{project.name.replace('-', '_')}-*.whl" if project == EXAMPLE else "outbid-*.whl"))


def environment(folder: Path, *wheels: Path) -> Path:
    """A new virtual environment with these wheels and nothing else; its `site-packages`."""
    venv.create(folder)
    site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    install = [sys.executable, "-m", "pip", "--quiet", "--python", str(folder / "bin" / "python"), "install"]
    command = [*install, "--no-deps", "--no-index", "--no-compile", *map(str, wheels)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    return site


def break_into(site: Path, name: str, code: str) -> None:
    """What an installed package with a broken declaration leaves there."""
    (site / f"lab_{name}.py").write_text(code)
    told = site / f"lab_{name}-1.0.dist-info"
    told.mkdir()
    (told / "METADATA").write_text(f"Metadata-Version: 2.1\nName: lab-{name}\nVersion: 1.0\n")
    (told / "entry_points.txt").write_text(f"[outbid.capability]\n{name} = lab_{name}:declared\n")


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the application found. The daemon's environment borrows the packages that Outbid needs from ours; that of
    the runner has those two which the example names, and no other.
    """
    folder = tmp_path_factory.mktemp("third")
    wheels = build(ROOT, folder / "dist"), build(EXAMPLE, folder / "dist")
    site = environment(folder / "app", *wheels)
    (site / "needed.pth").write_text(f"{OURS}\n")
    for name, code in BROKEN.items():
        break_into(site, name, code)
    runner = environment(folder / "runner", *wheels)
    for needed in ("zmq", "pyzmq.libs", "msgpack"):
        if (OURS / needed).exists():
            (runner / needed).symlink_to(OURS / needed)

    work = folder / "work"
    work.mkdir()
    for name in ("node", "contracts", "tui"):
        (work / f"{name}.py").write_text(f"OWN = {name!r}\n")
    (work / "application.py").write_text(APPLICATION)
    started_in = folder / "started-in"
    started_in.mkdir()
    (started_in / "nats.py").write_text("raise ImportError('not the one that is meant')\n")
    done = subprocess.run(
        [
            str(folder / "app" / "bin" / "python"),
            str(work / "application.py"),
            str(folder / "runner" / "bin" / "python"),
        ],
        cwd=started_in,
        env={key: value for key, value in os.environ.items() if not key.startswith(("OUTBID_", "PYTHON"))},
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found | {"folder": folder}


def test_the_wheel_is_what_runs_beside_modules_named_node_contracts_and_tui(said: dict[str, Any]) -> None:
    assert Path(said["outbid"]).is_relative_to(said["folder"] / "app")
    assert said["own"] == ["contracts", "node", "tui"]


def test_a_capability_of_a_third_party_runs_in_its_own_environment(said: dict[str, Any]) -> None:
    assert (said["counted"]["words"], said["counted"]["longest"]) == (3, "three")
    assert said["interpreters"] == [str(said["folder"] / "runner" / "bin" / "python")]


def test_its_schema_is_in_the_listing_of_the_service(said: dict[str, Any]) -> None:
    assert said["schema"]["properties"]["text"]["type"] == "string"
    assert said["schema"]["required"] == ["text"]


def test_broken_packages_cost_themselves_only_and_the_node_tells_why(said: dict[str, Any]) -> None:
    why = {name: text for key, text in said["missing"].items() for name in BROKEN if key.startswith(f"{name} = lab_")}
    assert why["raises"] == "ImportError: no such library"
    assert why["leaves"] == "SystemExit: 1"
    assert "`params` of words.other must be a msgspec.Struct" in why["wrong"]
