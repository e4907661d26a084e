"""TLS between routers: a certificate authority and a route key that every node derives from the mesh key.

All nodes hold the same route key, and each accepts a peer only if it proves to have it (a pin), in either direction.
That is no weaker than a key of its own for each node, because a node with the mesh key could issue any certificate
anyway; and it needs no names or addresses in certificates, which change whenever a machine gets another address, and
no dates, which machines without a battery-backed clock get wrong (docs/decisions/0005-mesh-key-and-roles.md).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from outbid_contracts.ids import NodeId
from outbid_node.identity.keys import MeshKey

SINCE = datetime(2000, 1, 1, tzinfo=UTC)
UNTIL = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
"""RFC 5280 4.1.2.5: "no well-defined expiration date"."""
SHARED_NAME = "mesh"


@dataclass(frozen=True, slots=True)
class RouteTls:
    """What a router needs, as PEM. `pin` is the SHA-256 of the route key's SubjectPublicKeyInfo, in hex."""

    authority: str
    certificate: str
    key: str = field(repr=False)
    pin: str


def issue(key: MeshKey, node: NodeId) -> RouteTls:
    """The same bytes at every call."""
    authority_key = Ed25519PrivateKey.from_private_bytes(key.derive("certificate authority"))
    route_key = Ed25519PrivateKey.from_private_bytes(key.derive("route"))
    issuer = _name(f"outbid mesh {key.id}")
    authority = (
        _builder(issuer, issuer, authority_key)
        .serial_number(1)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(authority_key, None)
    )
    certificate = (
        _builder(_name(node), issuer, route_key)
        .serial_number(int.from_bytes(hashlib.sha256(node.encode()).digest()[:16]))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(node), x509.DNSName(SHARED_NAME)]), critical=False)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .sign(authority_key, None)
    )
    secret = route_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = route_key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return RouteTls(_pem(authority), _pem(certificate), secret.decode(), hashlib.sha256(public).hexdigest())


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _builder(subject: x509.Name, issuer: x509.Name, key: Ed25519PrivateKey) -> x509.CertificateBuilder:
    return x509.CertificateBuilder(
        subject_name=subject,
        issuer_name=issuer,
        public_key=key.public_key(),
        not_valid_before=SINCE,
        not_valid_after=UNTIL,
    )


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()
