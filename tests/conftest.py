"""What every tier of tests shares."""

from __future__ import annotations

import os
import signal
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


@pytest.fixture(autouse=True)
def _no_settings_of_the_developer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A test must not find the node, or obey the variables, of whoever runs it."""
    for name in [name for name in os.environ if name.startswith("OUTBID_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OUTBID_KEYRING", str(tmp_path / "keyring"))
