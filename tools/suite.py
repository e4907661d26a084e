"""Run the tests; what failed beside the others runs once more alone, and is told as unsteady if it passes then.

    python tools/suite.py ARGUMENTS OF PYTEST…

Many tests kill, freeze and restart real processes. Several workers share a machine's cores, so a wait that is long
enough on any quiet machine can be too short once in some thousand tests. Such a test is a fault, of the test or of what
it tests, and is named in the last lines; but it does not say that the tree is broken. More than AT_MOST of them do.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

AT_MOST = 3
SOME_FAILED = 1


def pytest(cache: Path, *arguments: str) -> int:
    return subprocess.run([sys.executable, "-m", "pytest", "-o", f"cache_dir={cache}", *arguments]).returncode


def failed(cache: Path) -> list[str]:
    """The ids of the tests that failed in the last run with this cache."""
    kept = cache / "v" / "cache" / "lastfailed"
    return sorted(json.loads(kept.read_text("utf-8"))) if kept.exists() else []


def main(arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory(prefix="outbid-tests-") as folder:
        cache = Path(folder)
        code = pytest(cache, *arguments)
        again = failed(cache)
        if code != SOME_FAILED or not 0 < len(again) <= AT_MOST:
            return code
        print(f"\nOnce more, alone: {', '.join(again)}", flush=True)
        code = pytest(cache, "-n", "0", *again)
        if code == 0:
            print("\nUNSTEADY, to be mended (failed beside others, passed alone):", *again, sep="\n  ", flush=True)
        return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
