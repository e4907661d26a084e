"""What every tier of tests shares."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# No deadline: the machines that run this share their processors, and a slow example is not a wrong one.
settings.register_profile("usual", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", settings.get_profile("usual"), max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "usual"))

# A shell that starts this in the background has it ignore Ctrl-C, and so would every process that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests start some thousand interpreters. Where none may keep compiled modules, each start of a node compiles all of its
# source again: half of its CPU time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

PLACES = {"acceptance": 0, "unit": 2}
"""Where a folder's tests come among the others, when several workers share them."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Workers take one file after the other: the long ones first, so that none is left to run alone at the end."""
    if hasattr(config, "workerinput"):
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: (PLACES.get(item.path.parent.name, 1), item.path not in slow))


@pytest.fixture(autouse=True)
def _no_settings_of_the_developer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A test must not find the node, or obey the variables, of whoever runs it."""
    for name in [name for name in os.environ if name.startswith("OUTBID_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OUTBID_KEYRING", str(tmp_path / "keyring"))
