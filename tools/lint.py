"""The checks that run nothing: format, lint, types, import floors. All of them, then a non-zero exit if any failed.

python tools/lint.py [--fix]    with --fix, format and repair what can be repaired instead
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BIN = Path(sys.executable).parent
CHECKS = {
    "format": ["ruff", "format", "--check"],
    "lint": ["ruff", "check"],
    "types": ["mypy"],
    "floors": ["lint-imports", "--no-logo"],
}
FIXES = {"lint": ["ruff", "check", "--fix"], "format": ["ruff", "format"]}


def main(arguments: list[str]) -> int:
    failed = []
    for name, (program, *rest) in (FIXES if "--fix" in arguments else CHECKS).items():
        print(f"── {name}", flush=True)
        if subprocess.run([str(BIN / program), *rest], stdin=subprocess.DEVNULL).returncode:
            failed.append(name)
    print(f"failed: {', '.join(failed)}" if failed else "all good")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
