"""tools/suite.py over made-up test files, with real runs of pytest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SUITE = Path(__file__).resolve().parents[2] / "tools" / "suite.py"
UNSTEADY = """
from pathlib import Path
def test_once(tmp_path):
    seen = Path(__file__).with_name("seen")
    first = not seen.exists()
    seen.touch()
    assert not first
"""


def run(folder: Path, text: str) -> tuple[int, str]:
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "test_it.py").write_text(text)
    done = subprocess.run([sys.executable, str(SUITE), "-q"], cwd=folder, capture_output=True, text=True)
    return done.returncode, done.stdout


def test_all_passed_is_run_once(tmp_path: Path) -> None:
    code, said = run(tmp_path, "def test_fine(): pass")
    assert code == 0
    assert "Once more" not in said


def test_one_that_passes_alone_is_named(tmp_path: Path) -> None:
    code, said = run(tmp_path, "def test_fine(): pass\n" + UNSTEADY)
    assert code == 0
    assert "UNSTEADY" in said
    assert said.rstrip().endswith("test_it.py::test_once")


def test_one_that_fails_again_fails_the_suite(tmp_path: Path) -> None:
    code, said = run(tmp_path, UNSTEADY + "def test_broken(): assert 0")
    assert code == 1
    assert "UNSTEADY" not in said


MANY = "\n".join(f"def test_{n}(): assert 0" for n in range(7))


@pytest.mark.parametrize("text", [MANY, "import nothing_"])
def test_many_failures_and_unreadable_tests_are_not_tried_again(tmp_path: Path, text: str) -> None:
    code, said = run(tmp_path, text)
    assert code != 0
    assert "Once more" not in said
