"""Which addresses are used and announced, which of a peer's is nearest, and what an announcement must look like."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

import hypothesis.strategies as st
import pytest
from hypothesis import given

from outbid.cli import output
from outbid_contracts import announced
from outbid_contracts.announced import Announced
from outbid_contracts.codec import VERSION
from outbid_contracts.ids import NodeId
from outbid_node.bus.interfaces import ALL, Local, choose, local_addresses, nearest_first

NODE = NodeId("7k2f9qzt")


def local(address: str, interface: str = "eth0", index: int = 2) -> Local:
    bare = address.partition("/")[0]
    return Local(ipaddress.ip_address(bare), ipaddress.ip_network(address, strict=False), interface, index)


LO = (local("127.0.0.1/8", "lo", 1), local("::1/128", "lo", 1))
LAN = (local("192.168.1.7/24"), local("fd00::7/64"), local("fe80::7/64"))
DOCKER = local("172.17.0.1/16", "docker0", 3)


def test_all_interfaces_are_used_and_loopback_and_link_local_are_not_announced() -> None:
    choice = choose([*LO, *LAN, DOCKER], ALL)
    assert choice.v4 == ("127.0.0.1", "192.168.1.7", "172.17.0.1")
    assert choice.v6 == (2,)
    assert choice.announced == ("192.168.1.7", "fd00::7", "172.17.0.1")


def test_without_a_network_loopback_is_announced() -> None:
    assert choose(LO, ALL).announced == ("127.0.0.1",)


def test_interfaces_are_chosen_by_address_or_name() -> None:
    assert choose([*LO, *LAN, DOCKER], ["127.0.0.1"]).announced == ("127.0.0.1",)
    by_name = choose([*LO, *LAN, DOCKER], ["docker0"])
    assert (by_name.v4, by_name.v6) == (("172.17.0.1",), ())


def test_an_interface_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(OSError, match="wlan7"):
        choose([*LO, *LAN], ["wlan7"])


def test_a_machine_full_of_containers_is_kept_within_bounds() -> None:
    bridges = [local(f"172.{n}.0.1/16", f"br{n}", n) for n in range(16, 116)]
    choice = choose([*LAN, *bridges], ALL)
    assert len(choice.v4) == 32
    assert len(choice.announced) == 8
    assert choice.announced[0] == "192.168.1.7"


def test_this_machine_has_loopback() -> None:
    assert any(str(it.address) == "127.0.0.1" and it.interface for it in local_addresses())


def test_the_address_on_a_common_network_comes_first_and_one_that_is_also_ours_late() -> None:
    theirs = ["172.17.0.1", "10.9.9.9", "fd00::8", "fe80::8", "192.168.1.8", "127.0.0.1", "0.0.0.0", "nonsense"]
    assert nearest_first(theirs, [*LO, *LAN, DOCKER]) == (
        "192.168.1.8",
        "fd00::8",
        "10.9.9.9",
        "172.17.0.1",
        "127.0.0.1",
    )


def test_on_the_same_machine_all_addresses_are_ours() -> None:
    assert nearest_first(["192.168.1.7", "172.17.0.1"], [*LAN, DOCKER]) == ("192.168.1.7", "172.17.0.1")


# -- the announcement ------------------------------------------------------------------------------------------------


def texts(**more: str) -> dict[str, str]:
    return announced.properties(node=NODE, mesh="m1", name="studio", version="0.1.0", txt=more)


def read(properties: Mapping[str, str | None], full: str = announced.full_name(NODE)) -> Announced | None:
    return announced.read(full, 6222, ["10.0.0.1"], properties)


def test_what_is_announced_is_read_back() -> None:
    assert read(texts(gpu="RTX")) == Announced(
        node=NODE,
        mesh="m1",
        name="studio",
        version="0.1.0",
        wire=VERSION,
        addresses=("10.0.0.1",),
        port=6222,
        txt={"gpu": "RTX"},
    )


def test_txt_entries_cannot_pretend_to_be_another_node() -> None:
    found = read(texts(node="attacker", mesh="other", wire="99"))
    assert found is not None
    assert (found.node, found.mesh, found.wire) == (NODE, "m1", VERSION)


@given(st.dictionaries(st.text(max_size=10), st.none() | st.text(max_size=30), max_size=8), st.text(max_size=20))
def test_nonsense_is_no_node(properties: dict[str, str | None], name: str) -> None:
    assert read(properties, name) is None


@given(st.text(max_size=12))
def test_a_strange_wire_version_is_read_as_the_first(wire: str) -> None:
    found = read(texts() | {"wire": wire})
    assert found is not None
    assert 0 <= found.wire < 10**9


def test_the_remedy_names_the_machine_that_is_behind() -> None:
    assert announced.remedy("studio", VERSION + 1).startswith("update Outbid on this machine")
    assert announced.remedy("studio", VERSION - 1).startswith("update Outbid on studio")


# -- how `outbid discover` looks -------------------------------------------------------------------------------------


def on_air(name: str = "studio", **changes: object) -> Announced:
    plain: dict[str, object] = {
        "node": NODE,
        "mesh": "m1",
        "name": name,
        "version": "0.1.0",
        "wire": VERSION,
        "addresses": ("10.0.0.1", "fd00::1"),
        "port": 6222,
        "txt": {"gpu": "RTX 4090", "gpu_mib": "24576", "battery": "80", "power": "battery", "caps": "llm.chat"},
    }
    return Announced(**(plain | changes))  # type: ignore[arg-type]


def test_discover_shows_what_is_on_the_air(capsys: pytest.CaptureFixture[str]) -> None:
    output.on_air([on_air(), on_air("den", node=NodeId("otherone"), mesh="m2")], NODE, as_json=False)
    shown = capsys.readouterr().out
    for word in ("studio (here)", "10.0.0.1:6222, [fd00::1]:6222", "RTX 4090 24 GiB", "80 % (discharging)", "llm.chat"):
        assert word in " ".join(shown.split()), shown


def test_discover_says_when_a_node_of_ours_speaks_another_version(capsys: pytest.CaptureFixture[str]) -> None:
    output.on_air([on_air(), on_air("den", node=NodeId("otherone"), wire=VERSION + 1)], NODE, as_json=False)
    assert "update Outbid on this machine" in capsys.readouterr().out


def test_discover_lets_nobody_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    output.on_air([on_air("\x1b[2J[red]x[/nonsense]", txt={"gpu": "[/]\x07"})], None, as_json=False)
    shown = capsys.readouterr().out
    assert "\x1b[2J" not in shown
    assert "[red]x" in shown
