"""NATS JWTs (version 2), signed here: an operator, two accounts, and users. Pure, except that users carry the time.

Operator and accounts have a fixed time of issue and sorted fields, so every node writes the same bytes. The mesh
account names one signing key per role and the permissions of each (a scoped signing key), so the JWT of a user says
only which key signed it, and cannot say more than its role may.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Mapping
from typing import Any

from outbid_contracts import subjects
from outbid_contracts.roles import ROLES, Role, Rules
from outbid_node.identity.keys import MeshKey, SigningKey

_ISSUED = 1_735_689_600
"""1 January 2025: before any machine of the mesh could have started."""
_UNLIMITED = -1
_LIMITS = dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf"), _UNLIMITED)
_JETSTREAM = dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer", "max_ack_pending"), _UNLIMITED)


def operator(key: MeshKey) -> str:
    claims = {"type": "operator", "version": 2, "system_account": key.system_account.public}
    return sign("outbid", key.operator.public, claims, key.operator, _ISSUED)


_SHUTDOWN = "$SYS.SERVER.*.SHUTDOWN"
"""What a nats-server tells the others of its cluster when it stops in order."""


def system_account(key: MeshKey) -> str:
    """The servers' own account. Nobody has credentials for it; of what it knows, the mesh is told who stops."""
    claims = _account(_LIMITS | {"wildcards": True})
    claims["exports"] = [{"name": "ended", "subject": _SHUTDOWN, "type": "stream"}]
    return sign("SYS", key.system_account.public, claims, key.operator, _ISSUED)


def mesh_account(key: MeshKey, revoked: Mapping[str, int] | None = None) -> str:
    """`revoked`: users by public key, with the time (Unix seconds) up to which their JWTs are refused."""
    claims = _account(_LIMITS | _JETSTREAM | {"wildcards": True})
    claims["signing_keys"] = [_scope(key.role(role.name).public, role) for role in ROLES.values()]
    ended = {"name": "ended", "subject": _SHUTDOWN, "type": "stream", "local_subject": subjects.ended("$1")}
    claims["imports"] = [ended | {"account": key.system_account.public}]
    if revoked:
        claims["revocations"] = dict(revoked)
    return sign("MESH", key.account.public, claims, key.operator, _ISSUED)


def user(key: MeshKey, role: str, name: str, public: str, *, expires_s: float | None, now: float | None = None) -> str:
    """Credentials of `role` for the user with this public key; for ever if `expires_s` is None."""
    issued = int(time.time() if now is None else now)
    claims = {"type": "user", "version": 2, "issuer_account": key.account.public}
    expires = None if expires_s is None else issued + int(expires_s)
    return sign(name, public, claims, key.role(role), issued, expires)


def credentials(jwt: str, user_key: SigningKey) -> str:
    """The text of a `.creds` file. Secret."""
    return (
        f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
        "Secret: whoever has this file acts as its owner.\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user_key.seed}\n------END USER NKEY SEED------\n"
    )


def claims_of(jwt: str) -> dict[str, Any]:
    """What a JWT says. Its signature is not checked."""
    claims: dict[str, Any] = json.loads(base64url(jwt.split(".")[1]))
    return claims


def base64url(text: str) -> bytes:
    """Decode what JWTs are made of: base64 without its padding."""
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _account(limits: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "account",
        "version": 2,
        "limits": dict(limits),
        "default_permissions": {"pub": {}, "sub": {}},
    }


def _scope(public: str, role: Role) -> dict[str, Any]:
    """Permissions of every user that this key signs for."""
    template = {
        "pub": _permission(role.publish),
        "sub": _permission(role.subscribe),
        "subs": _UNLIMITED,
        "data": _UNLIMITED,
        "payload": _UNLIMITED,
        "allowed_connection_types": ["STANDARD", "LEAFNODE"] if role.links else ["STANDARD", "WEBSOCKET"],
    }
    return {"kind": "user_scope", "key": public, "role": role.name, "template": template}


def _permission(rules: Rules) -> dict[str, list[str]]:
    both = {"allow": list(rules.allow), "deny": list(rules.deny)}
    return {kind: patterns for kind, patterns in both.items() if patterns}


def sign(
    name: str, subject: str, nats: Mapping[str, Any], signer: SigningKey, issued: int, expires: int | None = None
) -> str:
    claims: dict[str, Any] = {
        "name": name,
        "sub": subject,
        "iss": signer.public,
        "iat": issued,
        "nats": nats,
        "jti": "",
    }
    if expires is not None:
        claims["exp"] = expires
    claims["jti"] = base64.b32encode(hashlib.sha256(_json(claims)).digest()).decode().rstrip("=")
    signed = f"{to_base64url(_json({'alg': 'ed25519-nkey', 'typ': 'JWT'}))}.{to_base64url(_json(claims))}"
    return f"{signed}.{to_base64url(signer.sign(signed.encode()))}"


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def to_base64url(data: bytes) -> str:
    """Without padding."""
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
