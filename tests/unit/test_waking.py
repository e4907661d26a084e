"""Machines that are away: who is remembered, what the packet is, and to whom it goes."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from outbid_contracts.ids import NodeId, new_node_id
from outbid_contracts.messages import Presence
from outbid_node.bus import interfaces
from outbid_node.waking import known, own, packet
from outbid_node.waking.known import FORGET_MS, MOST, STALE_MS, Known

MAC = "52:54:00:12:34:56"
DAY_MS = 86_400_000
NOW_MS = 1_800_000_000_000


def presence(name: str, node: str = "", macs: tuple[str, ...] = (MAC,), *, guest: bool = False) -> Presence:
    return Presence(
        node=NodeId(node or new_node_id()),
        name=name,
        version="1",
        boot="b",
        seq=1,
        state="up",
        macs=macs,
        guest=guest,
    )


def names(machines: Known) -> list[str]:
    return [machine.name for machine in machines]


def test_the_magic_packet_is_six_times_ff_and_sixteen_times_the_address() -> None:
    sent = packet.magic(MAC)
    assert len(sent) == 102
    assert sent == bytes([0xFF] * 6) + bytes([0x52, 0x54, 0x00, 0x12, 0x34, 0x56]) * 16


def test_the_packet_arrives_at_a_socket_and_a_way_that_is_closed_costs_only_itself() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as heard:
        heard.bind(("127.0.0.1", 0))
        heard.settimeout(10)
        port = heard.getsockname()[1]
        over = [("192.0.2.1", "192.0.2.255"), ("127.0.0.1", "127.0.0.1")]
        assert packet.send([MAC], over, port) == ["127.0.0.1"]
        assert heard.recv(1000) == packet.magic(MAC)
    with pytest.raises(OSError, match="in no network"):
        packet.send([MAC], [])


def test_it_goes_over_every_network_but_the_machines_own(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        interfaces._local("lo", 1, "127.0.0.1", "255.0.0.0"),
        interfaces._local("eth0", 2, "192.168.1.7", "255.255.255.0"),
        interfaces._local("eth0", 2, "fe80::1", "ffff:ffff:ffff:ffff::"),
        interfaces._local("ppp0", 3, "10.0.0.1", "255.255.255.255"),
    ]
    monkeypatch.setattr(packet, "local_addresses", lambda: found)
    assert packet.ways() == [("192.168.1.7", "192.168.1.255"), ("192.168.1.7", "255.255.255.255")]


@pytest.mark.parametrize(
    ("text", "mac"),
    [
        ("52-54-00-12-34-56", MAC),
        ("AA:BB:CC:DD:EE:FF", "aa:bb:cc:dd:ee:ff"),
        ("00:00:00:00:00:00", ""),
        ("ff:ff:ff:ff:ff:ff", ""),
        ("01:00:5e:00:00:01", ""),
        ("fe80::1", ""),
        ("52:54:00:12:34:56:78:9a", ""),
        ("", ""),
    ],
)
def test_only_the_address_of_one_machine_is_taken(text: str, mac: str) -> None:
    assert own.as_mac(text) == mac


def test_real_hardware_goes_before_what_is_only_not_known_to_be_virtual(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cards = [("eth0", MAC), ("br0", "02:42:00:00:00:01"), ("docker0", "02:42:00:00:00:02"), ("wlan0", "52:54:00:0:0")]
    monkeypatch.setattr(own, "_all", lambda: cards[:3])
    assert own.own_macs(tmp_path) == ("02:42:00:00:00:01", MAC)
    (tmp_path / "sys/class/net/eth0/device").mkdir(parents=True)
    assert own.own_macs(tmp_path) == (MAC,)


def test_who_went_is_known_with_name_address_and_time_after_a_restart(tmp_path: Path) -> None:
    machines = Known("home")
    a, b = presence("a"), presence("b", macs=("52-54-00-00-00-02", "nonsense"))
    assert machines.seen(a, NOW_MS)
    assert machines.seen(b, NOW_MS)
    assert not machines.seen(b, NOW_MS + STALE_MS - 1), "a heartbeat is not worth a write"
    assert machines.gone(a.node, NOW_MS + 5)
    known.save(tmp_path, machines)
    assert (tmp_path / known.FILE).stat().st_mode & 0o077 == 0
    again = list(known.load(tmp_path, "home", NOW_MS + 10))
    assert [(one.name, one.macs, one.last_seen_ms) for one in again] == [
        ("a", (MAC,), NOW_MS + 5),
        ("b", ("52:54:00:00:00:02",), NOW_MS),
    ]


def test_a_guest_is_not_remembered_and_neither_is_another_mesh(tmp_path: Path) -> None:
    machines = Known("home")
    assert not machines.seen(presence("g", guest=True), NOW_MS)
    member = presence("m")
    machines.seen(member, NOW_MS)
    assert names(machines) == ["m"]
    known.save(tmp_path, machines)
    assert names(known.load(tmp_path, "office", NOW_MS)) == []
    assert machines.seen(presence("m", member.node, guest=True), NOW_MS)
    assert names(machines) == []


def test_machines_are_forgotten_when_old_when_too_many_and_when_they_have_another_id(tmp_path: Path) -> None:
    machines = Known("home")
    old = presence("old", macs=())
    machines.seen(old, NOW_MS - FORGET_MS - 1)
    machines.seen(presence("pc"), NOW_MS)
    machines.seen(presence("other name, same card"), NOW_MS)
    machines.seen(presence("pc"), NOW_MS + 1)
    assert names(machines) == ["pc", "other name, same card"]
    known.save(tmp_path, machines)
    assert names(known.load(tmp_path, "home", NOW_MS + FORGET_MS + 1)) == ["pc"]
    for number in range(MOST + 5):
        machines.seen(presence(f"n{number}", macs=()), NOW_MS + 10 + number)
    assert len(names(machines)) == MOST
    assert names(machines)[0] == f"n{MOST + 4}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"mesh": "home", "machines": 7}',
        '{"mesh": "home", "machines": [{"node": "../../etc", "name": "x", "macs": [], "last_seen_ms": 1}]}',
        json.dumps({"mesh": "home", "machines": [{"node": "7k2f9qzt", "name": "x", "macs": None, "last_seen_ms": 1}]}),
        json.dumps({"mesh": "home", "machines": [{"node": "7k2f9qzt", "name": "x", "macs": [3], "last_seen_ms": 1}]}),
        "\x00",
    ],
)
def test_a_file_that_makes_no_sense_is_no_file(tmp_path: Path, text: str) -> None:
    (tmp_path / known.FILE).write_text(text)
    assert names(known.load(tmp_path, "home", NOW_MS)) == []
