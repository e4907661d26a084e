"""Join codes: what a person reads on one machine and types on another.

`K7-QF3M-ZD9T`: two characters say which invitation, eight are the secret (40 bits). A code that short is safe because
SPAKE2 (RFC 9382) gives an attacker one guess per connection and nothing to try offline, and an invitation allows few
failed connections.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass

from outbid_contracts.errors import InvalidRequest

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford base 32: no I, L, O, U
_LOOKS_LIKE = str.maketrans("ILO", "110")
_FORM = re.compile(rf"[{_ALPHABET}]{{10}}")


@dataclass(frozen=True, slots=True)
class JoinCode:
    """`id` is public (the joiner says it first), `secret` never crosses the network."""

    id: str
    secret: str

    def __str__(self) -> str:
        return f"{self.id}-{self.secret[:4]}-{self.secret[4:]}"

    def __repr__(self) -> str:
        return f"JoinCode({self.id})"


def new_code() -> JoinCode:
    characters = "".join(secrets.choice(_ALPHABET) for _ in range(10))
    return JoinCode(characters[:2], characters[2:])


def read_code(text: str) -> JoinCode:
    """Accepts any case, spaces or dashes anywhere, I and L for 1, O for 0. Raises InvalidRequest."""
    plain = re.sub(r"[\s-]+", "", text).upper().translate(_LOOKS_LIKE)
    if not (text.isascii() and _FORM.fullmatch(plain)):
        raise InvalidRequest(f"{text!r} is not a join code; it looks like K7-QF3M-ZD9T (`outbid invite` prints one)")
    return JoinCode(plain[:2], plain[2:])
