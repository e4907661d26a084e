"""Fixtures of the tests of durable jobs."""

from __future__ import annotations

from tests.journals import opened, own

__all__ = ["opened", "own"]
