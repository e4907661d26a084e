"""A short fingerprint of a result, by which two parties can say that they mean the same one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec


def digest(result: Mapping[str, Any]) -> str:
    """16 hex digits (SHA-256) of a capability's own result, whatever order its fields are in."""
    return hashlib.sha256(msgspec.json.encode(result, order="deterministic")).hexdigest()[:16]
