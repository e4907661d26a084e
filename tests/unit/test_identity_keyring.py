"""The keyring: made once, by whoever comes first, readable by its owner, never silently replaced."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from outbid_contracts.places import keyring_dir
from outbid_node.identity.keyring import Keyring, KeyringUnusable
from outbid_node.identity.keys import MeshKey

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="POSIX modes")

CHILD = "from outbid_node.identity.keyring import Keyring; print(Keyring().key('home').id)"


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    return Keyring(tmp_path / "ring")


def test_the_first_makes_the_key_and_all_others_find_it() -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    children = [
        subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(6)
    ]
    ids = {child.communicate(timeout=60)[0].strip() for child in children}
    assert ids == {Keyring().key("home").id}


def test_another_name_is_another_mesh(keyring: Keyring) -> None:
    assert keyring.key("home") == keyring.key("home") != keyring.key("work")
    assert keyring.find("nowhere") is None


@posix_only
def test_key_and_folder_are_their_owners_alone(keyring: Keyring) -> None:
    keyring.key("home")
    keyring.revoke("home", {"U1": 5})
    assert stat.S_IMODE(keyring.folder.stat().st_mode) == 0o700
    for name in ("home.key", "home.revoked"):
        assert stat.S_IMODE((keyring.folder / name).stat().st_mode) == 0o600


@posix_only
def test_a_key_that_others_could_read_is_made_private(keyring: Keyring) -> None:
    key = keyring.key("home")
    file = keyring.folder / "home.key"
    file.chmod(0o644)
    assert keyring.key("home") == key
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize("text", ["", "outbid1-aaaa", "\x00\xff", "someone's notes"])
def test_a_damaged_key_is_told_and_left_alone(keyring: Keyring, text: str) -> None:
    keyring.key("home")
    file = keyring.folder / "home.key"
    file.write_text(text, "latin-1")
    with pytest.raises(KeyringUnusable, match=r"home\.key"):
        keyring.key("home")
    assert file.read_text("latin-1") == text


def test_a_joined_mesh_takes_the_place_of_the_old_one(keyring: Keyring) -> None:
    keyring.key("home")
    keyring.revoke("home", {"U1": 1})
    joined = MeshKey.new()
    keyring.put("home", joined)
    assert keyring.key("home") == joined
    assert keyring.revoked("home") == {}
    keyring.revoke("home", {"U2": 2})
    keyring.put("home", joined)
    assert keyring.revoked("home") == {"U2": 2}
    keyring.forget("home")
    assert keyring.find("home") is None
    assert keyring.revoked("home") == {}


def test_revocations_only_grow(keyring: Keyring) -> None:
    keyring.revoke("home", {"U1": 10, "U2": 20})
    assert keyring.revoke("home", {"U1": 5, "U3": 1}) == {"U1": 10, "U2": 20, "U3": 1}
    assert keyring.revoke("home", {"U1": 11}) == keyring.revoked("home") == {"U1": 11, "U2": 20, "U3": 1}


def test_a_damaged_list_does_not_let_the_revoked_back_in(keyring: Keyring) -> None:
    keyring.revoke("home", {"U1": 10})
    (keyring.folder / "home.revoked").write_text("{")
    with pytest.raises(KeyringUnusable, match="revoked"):
        keyring.revoked("home")


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a" * 64, "a\0"])
def test_a_name_that_is_no_file_name_is_refused(keyring: Keyring, name: str) -> None:
    with pytest.raises(KeyringUnusable, match="mesh name"):
        keyring.key(name)


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(KeyringUnusable, match="file"):
        Keyring(tmp_path / "file" / "ring").key("home")


def test_the_keyring_is_where_the_variable_says(tmp_path: Path) -> None:
    assert keyring_dir({"OUTBID_KEYRING": str(tmp_path)}) == tmp_path
    assert keyring_dir({}).name == "meshes"
