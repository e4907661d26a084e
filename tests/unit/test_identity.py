"""Keys, certificates and credentials: the same on every node, and none of them told by accident."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import nkeys
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from hypothesis import given
from hypothesis import strategies as st

from outbid_contracts.ids import NodeId
from outbid_contracts.places import LocalNode
from outbid_contracts.roles import ROLES, inbox_prefix
from outbid_node.identity import certificates, jwt
from outbid_node.identity.keys import SIZE, MeshKey, new_user
from outbid_node.identity.nats_context import context_file, write_context
from outbid_node.identity.node import Identity

KEY = MeshKey(bytes(range(SIZE)))
NODE = NodeId("7k2f9qzt")
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="POSIX modes")


# -- keys ------------------------------------------------------------------------------------------------------------


def test_derived_keys_are_hkdf_of_rfc_5869() -> None:
    for purpose in ("operator", "role viewer"):
        theirs = HKDF(SHA256(), 32, b"outbid mesh key 1", purpose.encode()).derive(KEY.raw)
        assert KEY.derive(purpose) == theirs


def test_what_a_key_stands_for_never_changes() -> None:
    """A mesh in use would fall apart with the release that changed one of these."""
    assert KEY.id == "lfncmve5hcqa"
    assert KEY.text() == "outbid1-aaaqeayeaudaocajbifqydiob4ibceqtcqkrmfyydenbwha5dyp52q5rjq"
    assert KEY.operator.public.startswith("O")
    assert KEY.account.public.startswith("A")


def test_every_purpose_has_a_key_of_its_own() -> None:
    keys = [KEY.operator, KEY.system_account, KEY.account, new_user(), KEY.user("a"), KEY.user("b")]
    keys += [KEY.role(name) for name in ROLES]
    assert len({key.seed for key in keys}) == len({key.public for key in keys}) == len(keys)


@given(st.binary(min_size=SIZE, max_size=SIZE))
def test_a_key_survives_being_written_down(raw: bytes) -> None:
    key = MeshKey(raw)
    assert MeshKey.from_text(key.text()) == key
    assert MeshKey.from_text(f"  {key.text()}\n") == key


@given(st.integers(8, 65), st.sampled_from("abcdefghijklmnopqrstuvwxyz234567"))
def test_a_misread_letter_does_not_make_another_mesh(place: int, letter: str) -> None:
    text = KEY.text()
    damaged = text[:place] + letter + text[place + 1 :]
    if damaged != text:
        with pytest.raises(ValueError, match="damaged"):
            MeshKey.from_text(damaged)


@pytest.mark.parametrize("text", ["", "outbid1-", "outbid1-aaaa", "outbid1-!", "outbid2-aaaa", "Z" * 60, "outbid1-é"])
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        MeshKey.from_text(text)


def test_repr_tells_no_secret() -> None:
    tls = certificates.issue(KEY, NODE)
    shown = f"{KEY!r} {KEY.operator!r} {tls!r} {[KEY]} {KEY}"
    for secret in (KEY.text(), KEY.raw.hex(), repr(KEY.raw), KEY.operator.seed, tls.key, "PRIVATE KEY"):
        assert secret not in shown


# -- JWTs ------------------------------------------------------------------------------------------------------------

OTHER_PROCESS = """
import sys
from outbid_node.identity import certificates, jwt
from outbid_node.identity.keys import MeshKey
key = MeshKey.from_text(sys.stdin.read())
print(jwt.operator(key), jwt.system_account(key), jwt.mesh_account(key, {"U2": 2, "U1": 1}), key.id)
print(certificates.issue(key, "7k2f9qzt"))
"""


def test_two_processes_derive_the_same_bytes() -> None:
    def told() -> str:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}  # another PYTHONHASHSEED each
        done = subprocess.run(
            [sys.executable, "-c", OTHER_PROCESS], input=KEY.text(), capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert told() == told()


def test_the_order_of_revocations_does_not_matter() -> None:
    assert jwt.mesh_account(KEY, {"U1": 1, "U2": 2}) == jwt.mesh_account(KEY, {"U2": 2, "U1": 1})
    assert jwt.mesh_account(KEY, {}) == jwt.mesh_account(KEY)


def test_a_jwt_is_signed_by_the_role_it_claims() -> None:
    user = new_user()
    token = jwt.user(KEY, "submitter", "ann", user.public, expires_s=60, now=1_000)
    claims = jwt.claims_of(token)
    assert claims["iss"] == KEY.role("submitter").public
    assert (claims["name"], claims["sub"], claims["iat"], claims["exp"]) == ("ann", user.public, 1_000, 1_060)
    assert claims["nats"]["issuer_account"] == KEY.account.public
    signed, _, signature = token.rpartition(".")
    verifier = nkeys.from_seed(KEY.role("submitter").seed.encode())
    assert verifier.verify(signed.encode(), jwt.base64url(signature))


def test_without_a_time_credentials_do_not_expire() -> None:
    assert "exp" not in jwt.claims_of(jwt.user(KEY, "node", "n", new_user().public, expires_s=None))


def test_the_account_holds_the_declared_roles() -> None:
    scopes = jwt.claims_of(jwt.mesh_account(KEY))["nats"]["signing_keys"]
    assert [scope["role"] for scope in scopes] == list(ROLES)
    for scope in scopes:
        role = ROLES[scope["role"]]
        assert scope["key"] == KEY.role(role.name).public
        assert tuple(scope["template"]["pub"].get("allow", ())) == role.publish.allow
        assert tuple(scope["template"]["sub"].get("allow", ())) == role.subscribe.allow
        assert ("LEAFNODE" in scope["template"]["allowed_connection_types"]) == role.links


# -- certificates ----------------------------------------------------------------------------------------------------


def test_the_certificate_is_the_meshs_and_names_the_node() -> None:
    tls = certificates.issue(KEY, NODE)
    authority = x509.load_pem_x509_certificate(tls.authority.encode())
    certificate = x509.load_pem_x509_certificate(tls.certificate.encode())
    certificate.verify_directly_issued_by(authority)
    authority.verify_directly_issued_by(authority)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [NODE, "mesh"]
    key = load_pem_private_key(tls.key.encode(), None)
    assert key.public_key() == certificate.public_key()
    assert tls == certificates.issue(MeshKey(KEY.raw), NODE)


def test_all_nodes_have_one_pin_and_another_mesh_another() -> None:
    pins = {certificates.issue(KEY, NodeId(node)).pin for node in ("aaaa", "bbbb")}
    assert len(pins) == 1
    assert certificates.issue(MeshKey.new(), NODE).pin not in pins


# -- files -----------------------------------------------------------------------------------------------------------


@posix_only
def test_an_identitys_files_are_its_owners_alone(tmp_path: Path) -> None:
    identity = Identity(KEY, NODE, tmp_path / "state", name="studio")
    identity.write()
    files = [path for path in (tmp_path / "state").rglob("*") if path.is_file()]
    assert {file.name for file in files} == {"ca.pem", "route.pem", "route.key", "node.creds", "local.creds"}
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_written_again_the_users_and_their_inboxes_are_the_same(tmp_path: Path) -> None:
    def prefixes() -> tuple[str, ...]:
        identity = Identity(KEY, NODE, tmp_path)
        identity.write()
        return tuple(inbox_prefix(file.read_text()) for file in (identity.node_creds, identity.local_creds))

    first = prefixes()
    assert first == prefixes()
    assert first[0] != first[1]


def test_what_the_servers_are_told_has_no_secret(tmp_path: Path) -> None:
    identity = Identity(KEY, NODE, tmp_path)
    for key in (KEY.operator, KEY.system_account, KEY.account, KEY.role("node")):
        assert key.seed not in identity.auth()


# -- the nats command ------------------------------------------------------------------------------------------------


def test_the_context_has_what_the_nats_command_needs(tmp_path: Path) -> None:
    identity = Identity(KEY, NODE, tmp_path)
    identity.write()
    local = LocalNode(
        node=NODE, name="studio", url="nats://127.0.0.1:4222", pid=1, version="1", creds=str(identity.local_creds)
    )
    file = tmp_path / "config" / "nats" / "context" / "outbid.json"
    assert write_context(local, file)
    assert json.loads(file.read_text()) == {
        "description": "Outbid node studio",
        "url": "nats://127.0.0.1:4222",
        "creds": str(identity.local_creds),
        "inbox_prefix": inbox_prefix(identity.local_creds.read_text()),
        "jetstream_domain": NODE,
    }
    assert context_file({"XDG_CONFIG_HOME": str(tmp_path / "config")}) == file


def test_a_context_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "nats").write_text("a file where a folder should be")
    local = LocalNode(node=NODE, name="n", url="nats://h:1", pid=1, version="1", creds=str(tmp_path / "no.creds"))
    assert not write_context(local, tmp_path / "nats" / "context" / "outbid.json")


# -- what is promised ------------------------------------------------------------------------------------------------


NAMED_IN = ("identity*", "roles", "joining", "lan", "files_*", "pull", "prefix", "image_*", "history_*")


def test_every_test_that_the_security_page_names_exists() -> None:
    root = Path(__file__).resolve().parents[2]
    named = set(re.findall(r"`(test_\w+)`", (root / "docs" / "security.md").read_text("utf-8")))
    named -= {file.stem for file in root.glob("tests/*/test_*.py")}
    files = [file for name in NAMED_IN for file in root.glob(f"tests/*/test_{name}.py")]
    there = set(re.findall(r"def (test_\w+)", "\n".join(file.read_text("utf-8") for file in files)))
    assert len(named) > 10
    assert named <= there
