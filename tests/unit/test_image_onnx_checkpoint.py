"""A checkpoint of the ONNX engine comes back as it was, or not at all."""

from __future__ import annotations

from dataclasses import replace

import msgpack
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from outbid_capabilities.image.engine import Request
from outbid_capabilities.image.onnx_checkpoint import Checkpoint, digest, pack, unpack

SHAPE = (2, 4, 2, 2)
LATENTS = np.arange(32, dtype=np.float32).reshape(SHAPE)
REQUEST = Request(kind="generate", prompt="red apple", seeds=(1, 2))


def test_it_comes_back_as_it_was() -> None:
    found = unpack(pack("d", Checkpoint(3, LATENTS, LATENTS + 1)), "d", SHAPE)

    assert found is not None
    assert found.step == 3
    assert found.before is not None
    np.testing.assert_array_equal(found.latents, LATENTS)
    np.testing.assert_array_equal(found.before, LATENTS + 1)


def test_one_of_another_request_shape_or_version_is_no_checkpoint() -> None:
    data = pack("d", Checkpoint(3, LATENTS, None))

    assert unpack(data, "other", SHAPE) is None
    assert unpack(data, "d", (1, 4, 2, 2)) is None
    assert unpack(msgpack.packb(msgpack.unpackb(data) | {"version": 2}), "d", SHAPE) is None


def test_one_with_numbers_that_are_none_is_no_checkpoint() -> None:
    broken = LATENTS.copy()
    broken[0, 0, 0, 0] = np.nan

    assert unpack(pack("d", Checkpoint(3, broken, None)), "d", SHAPE) is None
    assert unpack(pack("d", Checkpoint(3, LATENTS, broken)), "d", SHAPE) is None


@given(st.binary(max_size=300))
def test_bytes_of_any_kind_raise_nothing(data: bytes) -> None:
    assert unpack(data, "d", SHAPE) is None


@given(st.integers(0, 200), st.integers(0, 255))
def test_a_cut_or_damaged_one_raises_nothing(at: int, byte: int) -> None:
    data = bytearray(pack("d", Checkpoint(3, LATENTS, None)))
    at %= len(data)

    assert unpack(bytes(data[:at]), "d", SHAPE) is None
    data[at] = byte
    unpack(bytes(data), "d", SHAPE)


def test_the_digest_tells_requests_and_models_apart_but_not_how_often_they_are_shown() -> None:
    own = digest(REQUEST, {"unet": "a"})
    picture = np.zeros((8, 8, 3), np.uint8)

    assert own == digest(replace(REQUEST, preview_every=1, checkpoint_every=3, checkpoint=b"x"), {"unet": "a"})
    others = [replace(REQUEST, prompt="x"), replace(REQUEST, seeds=(1,)), replace(REQUEST, image=picture)]
    others += [replace(REQUEST, image=picture + 1), replace(REQUEST, guidance=1.0), replace(REQUEST, steps=9)]
    assert len({own, digest(REQUEST, {"unet": "b"}), *(digest(other, {"unet": "a"}) for other in others)}) == 8
