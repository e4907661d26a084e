"""Joining by code: over real TCP, with right, wrong, late and worn-out codes, and with people who poke at the port."""

from __future__ import annotations

import asyncio
import os
import struct
import time
from collections.abc import AsyncIterator

import msgspec
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from outbid_contracts.errors import InvalidRequest
from outbid_node.joining import inviter as inviter_module
from outbid_node.joining.channel import Hello, JoinFailed
from outbid_node.joining.code import JoinCode, new_code, read_code
from outbid_node.joining.inviter import MAX_FAILURES, Applicant, Grant, Invitation, Inviter
from outbid_node.joining.joiner import join
from tests.fleet import eventually

KEY = bytes(range(32))


@pytest_asyncio.fixture
async def inviter() -> AsyncIterator[Inviter]:
    server = Inviter()
    yield server
    await server.stop()


async def invite(inviter: Inviter, *, valid_s: float = 60, uses: int = 1) -> Invitation:
    def grant(applicant: Applicant) -> Grant:
        return Grant(mesh="home", key=KEY, peers=("127.0.0.1:7422",), inviter="desk")

    return await inviter.invite(grant, valid_s=valid_s, uses=uses, host="127.0.0.1", port=0)


async def apply(inviter: Inviter, code: JoinCode, stored: list[Grant] | None = None) -> Grant:
    store = (stored if stored is not None else []).append
    return await join(code, "127.0.0.1", inviter.port, node="n1", name="pi", version="1", store=store)


async def test_the_right_code_brings_the_key(inviter: Inviter) -> None:
    invitation = await invite(inviter)
    stored: list[Grant] = []
    grant = await apply(inviter, read_code(str(invitation.code).lower()), stored)
    assert (grant.key, grant.mesh, stored) == (KEY, "home", [grant])
    await eventually(lambda: invitation.joined == ["pi"], 5, "the inviter never heard that the key is stored")


async def test_a_wrong_code_brings_nothing_and_is_counted(inviter: Inviter) -> None:
    invitation = await invite(inviter)
    wrong = JoinCode(invitation.code.id, "00000000")
    for _ in range(MAX_FAILURES):
        stored: list[Grant] = []
        with pytest.raises(JoinFailed, match="not accepted"):
            await apply(inviter, wrong, stored)
        assert stored == []
    with pytest.raises(JoinFailed, match="too many wrong codes"):
        await apply(inviter, invitation.code)


async def test_right_codes_in_between_do_not_wear_the_invitation_out(inviter: Inviter) -> None:
    invitation = await invite(inviter, uses=20)
    for _ in range(MAX_FAILURES + 2):
        await apply(inviter, invitation.code)
    assert invitation.failures == 0


async def test_uses_are_counted_also_when_many_join_at_once(inviter: Inviter) -> None:
    invitation = await invite(inviter, uses=2)
    results = await asyncio.gather(*(apply(inviter, invitation.code) for _ in range(4)), return_exceptions=True)
    assert sum(isinstance(result, Grant) for result in results) == 2
    assert all("used up" in str(result) for result in results if isinstance(result, JoinFailed))


async def test_an_expired_invitation_says_so(inviter: Inviter) -> None:
    invitation = await invite(inviter, valid_s=-1)
    with pytest.raises(JoinFailed, match="expired"):
        await apply(inviter, invitation.code)


async def test_an_unknown_invitation_says_so(inviter: Inviter) -> None:
    invitation = await invite(inviter)
    other = "ZZ" if invitation.code.id != "ZZ" else "YY"
    with pytest.raises(JoinFailed, match="first two letters"):
        await apply(inviter, JoinCode(other, invitation.code.secret))


async def test_a_clock_that_is_days_off_is_named(inviter: Inviter, monkeypatch: pytest.MonkeyPatch) -> None:
    invitation = await invite(inviter)
    now = time.time()
    monkeypatch.setattr("outbid_node.joining.joiner.time.time", lambda: now)
    monkeypatch.setattr(inviter_module, "CLOCK_SKEW_S", -1.0)
    with pytest.raises(JoinFailed, match="clock"):
        await apply(inviter, invitation.code)


async def test_a_joiner_that_cannot_store_the_key_does_not_use_the_invitation_up(inviter: Inviter) -> None:
    invitation = await invite(inviter)

    def full(grant: Grant) -> None:
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        await join(invitation.code, "127.0.0.1", inviter.port, node="n", name="pi", version="1", store=full)
    assert (await apply(inviter, invitation.code)).key == KEY


async def test_nobody_there_is_a_clear_error() -> None:
    server = Inviter()
    invitation = await invite(server)
    port = server.port
    await server.stop()
    with pytest.raises(JoinFailed, match=str(port)):
        await join(invitation.code, "127.0.0.1", port, node="n", name="pi", version="1", store=lambda grant: None)


async def test_noise_on_the_port_harms_nobody(inviter: Inviter) -> None:
    invitation = await invite(inviter)
    hello = msgspec.msgpack.encode(Hello(v=1, invitation=invitation.code.id, spake=b"A" + bytes(32)))
    noises = [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        os.urandom(4096),
        struct.pack(">I", 2**31),
        struct.pack(">I", 3) + b"\xc1\xc1\xc1",
        struct.pack(">I", len(hello)) + hello,
    ]
    for noise in noises:
        reader, writer = await asyncio.open_connection("127.0.0.1", inviter.port)
        writer.write(noise)
        writer.write_eof()
        answer = await asyncio.wait_for(reader.read(), 5)
        assert KEY not in answer
        writer.close()
    assert (await apply(inviter, invitation.code)).key == KEY


async def test_the_key_never_crosses_in_clear(inviter: Inviter) -> None:
    invitation = await invite(inviter)
    seen = bytearray()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", inviter.port)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            while data := await source.read(4096):
                seen.extend(data)
                sink.write(data)
            sink.close()

        await asyncio.gather(pump(reader, back), pump(there, writer))

    eavesdropper = await asyncio.start_server(relay, "127.0.0.1", 0)
    port = eavesdropper.sockets[0].getsockname()[1]
    grant = await join(invitation.code, "127.0.0.1", port, node="n", name="pi", version="1", store=lambda grant: None)
    eavesdropper.close()
    assert grant.key == KEY
    assert KEY not in seen
    assert invitation.code.secret.encode() not in seen


def test_codes_are_forgiving_to_read_and_hide_their_secret() -> None:
    code = new_code()
    assert read_code(f" {str(code).lower().replace('-', ' ')} ") == code
    assert read_code("o7 qf3m zdlt") == JoinCode("07", "QF3MZD1T")
    assert code.secret not in repr(code)


@given(st.text())
def test_any_text_is_a_code_or_a_clear_error(text: str) -> None:
    plain = "".join(text.split()).replace("-", "")
    if len(plain) != 10 or not text.isascii() or not plain.isalnum() or "u" in plain.lower():
        with pytest.raises(InvalidRequest, match="join code"):
            read_code(text)
    else:
        assert len(read_code(text).secret) == 8


async def test_the_port_closes_after_the_last_invitation(inviter: Inviter, monkeypatch: pytest.MonkeyPatch) -> None:
    await invite(inviter, valid_s=60)
    port = inviter.port
    inviter.sweep()
    assert inviter.port == port
    later = time.monotonic() + 60 + inviter_module.REMEMBER_S + 1
    monkeypatch.setattr("outbid_node.joining.inviter.time.monotonic", lambda: later)
    inviter.sweep()
    assert inviter.port == 0
    with pytest.raises(OSError, match=str(port)):
        await asyncio.open_connection("127.0.0.1", port)
