"""Questions about the history that each node keeps: one SELECT on one node or on all of them, and the report."""

from __future__ import annotations
