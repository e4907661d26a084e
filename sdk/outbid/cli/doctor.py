"""`outbid doctor`: it must help most where no daemon answers, so the daemon's own program does it."""

from __future__ import annotations

from outbid.cli.running import passed_on

doctor = passed_on("doctor", "Is this node healthy, and if not, what helps?")
