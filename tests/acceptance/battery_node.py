"""A daemon on a machine with a battery that the test has made: `python -m tests.acceptance.battery_node up …`.

SYS_ROOT in the environment is the folder that stands for `/` where resources are read.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from outbid_node.__main__ import main
from outbid_node.resources import ResourceProbe

if __name__ == "__main__":
    defaults = ResourceProbe.__init__.__kwdefaults__ or {}
    defaults["root"] = Path(os.environ["SYS_ROOT"])
    sys.exit(main())
