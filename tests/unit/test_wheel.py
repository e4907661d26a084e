"""What a user installs: the wheel holds every package, the licence and the entry points, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"outbid", "outbid_bench", "outbid_capabilities", "outbid_contracts", "outbid_node", "outbid_tui"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(next(out.glob("*.whl")))


def test_it_holds_our_packages_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    tops = {name.partition("/")[0] for name in wheel.namelist()}

    assert {top for top in tops if not top.endswith(".dist-info")} == PACKAGES


def test_it_is_pure_python(wheel: zipfile.ZipFile) -> None:
    assert wheel.filename is not None
    assert wheel.filename.endswith("-py3-none-any.whl")


def test_it_is_typed(wheel: zipfile.ZipFile) -> None:
    assert {"outbid/py.typed", "outbid_contracts/py.typed"} <= set(wheel.namelist())


def test_the_licence_is_in_it(wheel: zipfile.ZipFile) -> None:
    licence = next(name for name in wheel.namelist() if name.endswith("/licenses/LICENSE"))

    assert wheel.read(licence) == (ROOT / "LICENSE").read_bytes()


def test_its_entry_points_are_the_command_and_the_capabilities(wheel: zipfile.ZipFile) -> None:
    told = wheel.read(next(name for name in wheel.namelist() if name.endswith("/entry_points.txt"))).decode()

    assert {"outbid = outbid.cli:main", "[outbid.capability]"} <= set(told.splitlines())
