"""Sealed boxes open for their recipient and for nobody else; membership is kept or refused, never half."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbid_contracts.errors import InvalidRequest
from outbid_node.home import StateUnusable
from outbid_node.joining import membership
from outbid_node.joining.membership import Membership
from outbid_node.joining.sealed import new_private, public_of, seal, unseal


@given(st.binary(max_size=200))
def test_a_box_opens_for_its_recipient(message: bytes) -> None:
    private = new_private()
    box = seal(message, public_of(private))
    assert unseal(box, private) == message
    assert len(message) < 8 or message not in box


@given(st.binary(min_size=1, max_size=64), st.integers(0, 10_000))
def test_a_changed_box_or_another_key_opens_nothing(message: bytes, where: int) -> None:
    private = new_private()
    box = bytearray(seal(message, public_of(private)))
    with pytest.raises(InvalidRequest):
        unseal(bytes(box), new_private())
    box[32 + where % (len(box) - 32)] ^= 1
    with pytest.raises(InvalidRequest):
        unseal(bytes(box), private)


@given(st.binary(max_size=80))
def test_nonsense_is_refused(noise: bytes) -> None:
    with pytest.raises(InvalidRequest):
        unseal(noise, new_private())


def test_membership_is_kept_private_and_forgotten(tmp_path: Path) -> None:
    assert membership.load(tmp_path) is None
    mine = Membership(mesh="home", peers=("10.0.0.1:7422",), guest=True, slots=2)
    membership.save(tmp_path, mine)
    assert membership.load(tmp_path) == mine
    assert (tmp_path / membership.FILE).stat().st_mode & 0o077 == 0
    (tmp_path / membership.FILE).write_text("{")
    with pytest.raises(StateUnusable, match="outbid leave"):
        membership.load(tmp_path)
    membership.forget(tmp_path)
    membership.forget(tmp_path)
    assert membership.load(tmp_path) is None
