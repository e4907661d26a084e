"""What `outbid doctor` says about made-up facts, and the small parts it looks with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from outbid_contracts.capability import ModelFile
from outbid_contracts.doctor import Checkup, Finding, OnAir, Seen, Vitals
from outbid_contracts.ids import NodeId
from outbid_node.bus.config_text import MAX_FILE_MIB
from outbid_node.config import Config
from outbid_node.config_sections import PowerSection
from outbid_node.doctor import cli, judge_machine, judge_mesh, judge_node, show, words
from outbid_node.doctor.examine import examine
from outbid_node.doctor.facts import (
    Binary,
    Clock,
    Counters,
    Disk,
    Echo,
    Facts,
    Folder,
    Key,
    Limits,
    Memory,
    Other,
    Port,
    Power,
    Program,
    Reach,
    Server,
    Settings,
    Software,
    Store,
    Work,
    Writes,
)
from outbid_node.doctor.look_bus import read_store

ME, ANN, BEN, CAT = (NodeId(name) for name in ("7k2f9qzt", "aaaaaaaa", "bbbbbbbb", "cccccccc"))
DOCS = Path(__file__).resolve().parents[2] / "docs" / "doctor.md"


def level(found: Finding | Iterable[Finding]) -> str:
    """Of one finding, or of all in their order."""
    return found.level if isinstance(found, Finding) else " ".join(finding.level for finding in found)


def one(found: Iterable[Finding]) -> Finding:
    (finding,) = found
    return finding


def vitals(**changes: Any) -> Vitals:
    plain: dict[str, Any] = {"node": ME, "name": "me", "version": "1.0", "pid": 7, "now_ms": 0, "up_s": 7200.0}
    return Vitals(**plain | changes)


def other(node: NodeId, offset_s: float = 0.0, sees: tuple[NodeId, ...] = (ME,), version: str = "1.0") -> Other:
    seen = tuple(Seen(node=it, name=it, version="1.0") for it in sees)
    answer = vitals(node=node, name=node, sees=seen)
    return Other(node=node, name=node, version=version, vitals=answer, offset_s=offset_s, round_s=0.01)


# -- the machine -------------------------------------------------------------------------------------------------------


def test_a_missing_nats_server_is_a_problem_and_its_message_becomes_the_remedy() -> None:
    found = judge_machine.judge_binary(Binary(error="nats-server was not found; install it with pip"))
    assert (found.level, found.found, found.remedy) == ("problem", "nats-server was not found", "Install it with pip.")
    assert level(judge_machine.judge_binary(Binary(path="/n", version=(2, 15, 1)))) == "ok"


def test_missing_packages_are_a_problem_and_an_older_running_node_is_a_warning() -> None:
    software = Software(outbid="1.1", python="3.12.0", installed={"nats-py": "2"})
    assert level(judge_machine.judge_software(software, "")) == "ok"
    assert level(judge_machine.judge_software(software, "1.1")) == "ok"
    assert level(judge_machine.judge_software(software, "1.0")) == "warning"
    assert level(judge_machine.judge_software(replace(software, lacking=("pyzmq",)), "1.1")) == "problem"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, "ok"),
        ({"exists": False}, "note"),
        ({"loose": ("local.creds",)}, "warning"),
        ({"user": "root"}, "warning"),
        ({"foreign": ("bus/ledger.conf",), "loose": ("local.creds",)}, "problem"),
    ],
)
def test_who_may_read_the_state_folder(change: dict[str, Any], expected: str) -> None:
    folder = replace(Folder(path=Path("/s"), owner="ann", user="ann"), **change)
    assert level(judge_machine.judge_folder(folder)) == expected


def test_files_of_another_user_are_given_back_to_the_owner_of_the_folder() -> None:
    found = judge_machine.judge_folder(Folder(path=Path("/s"), owner="ann", user="ann", foreign=("a", "b", "c", "d")))
    assert "a, b, c and 1 more" in found.found
    assert "`sudo chown -R ann /s`" in found.remedy


def test_synced_writes_slower_than_fifty_milliseconds_are_a_warning() -> None:
    assert level(judge_machine.judge_writes(Writes(times_s=(0.001, 0.2, 0.002)))) == "ok", "the median counts"
    assert level(judge_machine.judge_writes(Writes(times_s=(0.06, 0.2, 0.06)))) == "warning"
    assert level(judge_machine.judge_writes(Writes(refused="Read-only file system"))) == "problem"


@pytest.mark.parametrize(("free", "expected"), [(10, "problem"), (40, "problem"), (500, "warning"), (5000, "ok")])
def test_room_for_durable_jobs(free: float, expected: str) -> None:
    disk = Disk(path="/s", purpose="state", free_mib=free, total_mib=10_000)
    assert level(judge_machine.judge_disk(disk)) == expected
    assert level(judge_machine.judge_disk(replace(disk, purpose="models"))) in ("note", "ok")


def test_a_clock_from_before_this_program_is_a_problem() -> None:
    assert level(judge_machine.judge_clock(Clock(year=1970, synced=True))) == "problem"
    assert level(judge_machine.judge_clock(Clock(year=2030, synced=False))) == "note"
    assert level(judge_machine.judge_clock(Clock(year=2030, synced=None))) == "ok"


LO, ETH = Echo(interface="lo", address="127.0.0.1", heard=True), Echo(interface="e", address="10.0.0.1", heard=True)


@pytest.mark.parametrize(
    ("echoes", "open", "expected"),
    [
        ([LO, ETH], True, "ok"),
        ([LO, replace(ETH, heard=False)], True, "warning"),
        ([LO, replace(ETH, heard=False, error="no route")], False, "ok"),
        ([LO, ETH, Echo(interface="docker0", address="172.17.0.1", heard=False)], True, "ok"),
        ([], False, "warning"),
    ],
)
def test_multicast_must_work_outside_loopback_once_the_node_is_open(
    echoes: list[Echo], open: bool, expected: str
) -> None:
    assert level(judge_machine.judge_multicast(echoes, wanted=True, open=open)) == expected
    assert level(judge_machine.judge_multicast(echoes, wanted=False, open=open)) == "note"


def test_only_a_port_that_was_asked_for_is_a_problem_when_taken() -> None:
    port = Port(purpose="ledger", number=4222, fixed=True, holder="nats-server (pid 9)")
    found = one(judge_machine.judge_ports([port]))
    assert found.level == "problem"
    assert "nats-server (pid 9)" in found.found
    assert level(judge_machine.judge_ports([replace(port, fixed=False)])) == "note"
    assert level(judge_machine.judge_ports([replace(port, holder=""), replace(port, purpose="routes")])) == "ok problem"


def test_open_files() -> None:
    assert level(judge_machine.judge_limits(Limits(most=None))) == "ok"
    assert level(judge_machine.judge_limits(Limits(most=256))) == "warning"
    assert level(judge_machine.judge_limits(Limits(most=4096, used=40))) == "ok"
    assert level(judge_machine.judge_limits(Limits(most=4096, used=4000))) == "problem"


def test_an_always_on_machine_on_battery_is_a_warning() -> None:
    discharging = Power(on_battery=True, percent=80.0)
    assert level(judge_machine.judge_power(discharging, always_on=True)) == "warning"
    assert level(judge_machine.judge_power(discharging, always_on=False)) == "note"
    assert level(judge_machine.judge_power(replace(discharging, on_battery=False), always_on=True)) == "ok"
    assert level(judge_machine.judge_power(Power(), always_on=True)) == ""


def test_watts_are_best_counted_else_measured_and_a_guess_is_noted() -> None:
    guessed, measured = PowerSection(), PowerSection(idle_w=4.5, busy_w=21.0)
    assert level(judge_machine.judge_watts(Counters(there=True, readable=True), guessed)) == "ok"
    denied = judge_machine.judge_watts(Counters(there=True), measured)
    assert (denied.level, "only root" in denied.found, "udev" in denied.remedy) == ("note", True, True)
    assert level(judge_machine.judge_watts(Counters(), measured)) == "ok"
    assert level(judge_machine.judge_watts(Counters(), guessed)) == "note"


# -- this node ---------------------------------------------------------------------------------------------------------


def test_a_configuration_that_cannot_be_read_is_a_problem_in_its_own_words() -> None:
    found = one(judge_node.judge_settings(Settings(error="there is no key llm.modles; did you mean llm.models?")))
    assert (found.level, found.found) == ("problem", "there is no key llm.modles; did you mean llm.models?")
    assert level(judge_node.judge_settings(Settings(config=Config(), warnings=("a; b", "c")))) == "warning warning"
    assert level(judge_node.judge_settings(Settings(config=Config()))) == "ok"


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (Key(mesh="m"), "ok"),
        (Key(mesh="m", member=True), "problem"),
        (Key(mesh="m", exists=True, member=True, open=True), "ok"),
        (Key(mesh="m", exists=True, loose="/k"), "warning"),
        (Key(mesh="m", exists=True, loose="/k", error="damaged"), "problem"),
    ],
)
def test_the_mesh_key_must_be_there_once_the_node_is_a_member(key: Key, expected: str) -> None:
    assert level(judge_node.judge_key(key)) == expected


RUNS = Program(pid=8, life="running", announced=True, locked=True)
LEDGER = Server(port=4222, greeting="ours", program=Program(pid=9, life="running", announced=True), synced=True)


@pytest.mark.parametrize(
    ("daemon", "ledger", "answers", "expected", "words"),
    [
        (RUNS, LEDGER, True, "ok", "has run for 2 h"),
        (Program(), None, False, "problem", "does not run"),
        (Program(pid=8, announced=True), None, False, "problem", "without saying goodbye"),
        (Program(locked=True), None, False, "warning", "starting or stopping"),
        (replace(RUNS, life="suspended"), LEDGER, False, "problem", "suspended"),
        (RUNS, replace(LEDGER, greeting="silent"), False, "warning", "cannot be asked"),
        (RUNS, replace(LEDGER, refusal="authorization violation"), False, "warning", "cannot be asked"),
        (RUNS, LEDGER, False, "problem", "gives no answer"),
    ],
)
def test_the_daemon_is_judged_by_what_can_be_seen_from_outside(
    daemon: Program, ledger: Server | None, answers: bool, expected: str, words: str
) -> None:
    found = judge_node.judge_daemon(daemon, ledger, vitals() if answers else None, "no answer within 1.5 s")
    assert found.level == expected
    assert words in found.found
    assert bool(found.remedy) == (expected != "ok")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"greeting": "closed"}, "nobody listens on port 4222"),
        ({"greeting": "other"}, "another program"),
        ({"greeting": "silent"}, "nobody says a word"),
        ({"greeting": "silent", "program": Program(pid=9, life="suspended")}, "(pid 9) is suspended"),
        ({"refusal": "authorization violation"}, "authorization violation"),
        ({"greeting": "closed", "last_error": "[FTL] no space left"}, "[FTL] no space left"),
    ],
)
def test_a_ledger_that_does_not_answer_is_a_problem_that_says_how(change: dict[str, Any], words: str) -> None:
    found = judge_node.judge_ledger(replace(LEDGER, **change))
    assert found.level == "problem"
    assert words in found.found
    assert level(judge_node.judge_ledger(LEDGER)) == "ok"


STORE = Store(domain=ME, used_mib=1.0, limit_mib=100.0, streams=2)


@pytest.mark.parametrize(
    ("store", "ledger", "trouble", "expected"),
    [
        (STORE, LEDGER, (), "ok"),
        (replace(STORE, used_mib=95.0), LEDGER, (), "warning"),
        (replace(STORE, domain="other"), LEDGER, (), "problem"),
        (STORE, replace(LEDGER, synced=False), (), "problem"),
        (Store(error="nobody answers"), LEDGER, (), "problem"),
        (Store(error="nobody answers"), LEDGER, ("durable storage is off: the disk is nearly full",), "problem"),
    ],
)
def test_durable_jobs_need_jetstream_in_this_nodes_domain_with_synced_writes(
    store: Store, ledger: Server, trouble: tuple[str, ...], expected: str
) -> None:
    found = one(judge_node.judge_store(store, ledger, ME, trouble))
    assert found.level == expected
    assert not trouble or found.found == trouble[0], "the node knows best what is wrong with it"


def test_jetstreams_own_answer_is_read_and_an_account_without_a_limit_has_the_servers() -> None:
    said = {"domain": ME, "storage": 2 * 2**20, "streams": 3, "limits": {"max_storage": -1}}
    assert read_store(said) == Store(domain=ME, used_mib=2.0, limit_mib=MAX_FILE_MIB, streams=3)
    assert read_store(said | {"limits": {"max_storage": 2**30}}).limit_mib == 1024


def test_a_daemon_that_was_late_by_a_heartbeat_or_often_is_a_warning() -> None:
    assert level(judge_node.judge_loop(vitals(blocked=1, worst_s=0.1))) == "ok"
    assert level(judge_node.judge_loop(vitals(blocked=1, worst_s=1.5))) == "warning"
    assert level(judge_node.judge_loop(vitals(blocked=50, worst_s=0.1))) == "warning"
    assert level(judge_node.judge_loop(vitals(drift_s=-3600.0))) == "ok note", "the clock was set back"


MODEL = ModelFile(name="m", memory_mib=500.0, default=True)
CHAT = Work(name="llm.chat", models=(MODEL,), broken={})


@pytest.mark.parametrize(
    ("work", "budget_mib", "free_mib", "stale", "expected"),
    [
        (CHAT, 1000, 1000.0, False, "ok"),
        (CHAT, 400, 1000.0, False, "warning"),
        (CHAT, 1000, 400.0, False, "warning"),
        (CHAT, 1000, 1000.0, True, "warning"),
        (replace(CHAT, models=(), missing="no engine; install one"), 1000, 1000.0, True, "warning"),
        (replace(CHAT, broken={"/m.gguf": "No such file"}), 1000, 1000.0, False, "problem ok"),
        (replace(CHAT, models=(), missing="no usable model", broken={"/m": "x"}), 1000, 1000.0, False, "problem"),
        (Work(name="test.echo", broken={}), 1000, 1000.0, False, "ok"),
    ],
)
def test_a_capability_needs_its_engine_its_models_and_memory(
    work: Work, budget_mib: int, free_mib: float, stale: bool, expected: str
) -> None:
    assert level(judge_node.judge_work(work, budget_mib, free_mib, stale)) == expected


def test_little_free_memory_is_a_warning() -> None:
    assert level(judge_node.judge_memory(Memory(total_mib=8000, free_mib=300))) == "warning"
    assert level(judge_node.judge_memory(Memory(total_mib=8000, free_mib=3000))) == "ok"


def test_a_state_folder_that_hangs_or_is_closed_is_one_problem() -> None:
    slow = {"traces": "it took longer than 1.5 s", "disk speed": "it took longer than 2.5 s", "multicast": "x"}
    found = list(judge_node.judge_unknown(slow))
    assert [(finding.check, finding.level) for finding in found] == [
        ("state folder", "problem"),
        ("multicast", "warning"),
    ]
    assert "hanging" in found[0].remedy
    assert "as the user" in one(judge_node.judge_unknown({"traces": "PermissionError: no"})).remedy
    assert level(judge_node.judge_unknown({})) == ""
    advice = Key(mesh="", error="membership.json cannot be read; `outbid leave` removes it")
    closed = nothing(key=advice, writes=Writes(refused="x"), unknown={"traces": "PermissionError: no"})
    assert [finding.check for finding in examine(closed)] == ["state folder"], "nobody is told to leave the mesh"


# -- among the others --------------------------------------------------------------------------------------------------


def test_a_machine_that_does_not_see_this_one_is_a_problem() -> None:
    seen = tuple(Seen(node=node, name=node, version="1.0") for node in (ANN, BEN))
    found = list(judge_mesh.judge_neighbours(vitals(sees=seen), [other(ANN), other(BEN, sees=())]))
    assert level(found) == "problem ok"
    assert BEN in found[0].found


def test_a_machine_that_is_on_the_air_without_a_link_is_a_warning() -> None:
    heard = OnAir(node=ANN, name="ann", route="10.0.0.5:7422")
    found = list(judge_mesh.judge_neighbours(vitals(on_air=(heard,), open=True), []))
    assert level(found) == "warning warning"
    assert "TCP port 7422" in found[0].remedy
    linked = vitals(on_air=(heard,), sees=(Seen(node=ANN, name="ann", version="1.0"),))
    assert level(judge_mesh.judge_neighbours(linked, [other(ANN)])) == "ok"


def test_being_alone_is_a_note_while_closed_and_a_warning_once_open() -> None:
    assert level(judge_mesh.judge_neighbours(vitals(), [])) == "note"
    assert level(judge_mesh.judge_neighbours(vitals(open=True), [])) == "warning"


def test_a_router_that_does_not_come_up_is_a_problem() -> None:
    down = vitals(bus={"router": {"state": "down", "last_error": "bind: in use"}})
    assert level(judge_mesh.judge_neighbours(down, [])) == "problem note"


def test_a_silent_machine_is_a_warning() -> None:
    silent = Other(node=ANN, name="ann", version="1.0", error="no answer within 1.5 s")
    assert level(judge_mesh.judge_neighbours(vitals(), [silent])) == "warning"


def test_an_address_nobody_answers_at_matters_when_no_machine_is_seen() -> None:
    reaches = [Reach(address="a:1", error="Connection refused"), Reach(address="b:1")]
    assert level(judge_mesh.judge_reach(reaches, alone=True)) == "warning ok"
    assert level(judge_mesh.judge_reach(reaches, alone=False)) == "note ok"


def test_mixed_versions_are_a_warning() -> None:
    assert level(judge_mesh.judge_versions(vitals(), [other(ANN), other(BEN, version="0.9")])) == "warning"
    assert level(judge_mesh.judge_versions(vitals(), [other(ANN)])) == "ok"
    assert level(judge_mesh.judge_versions(vitals(), [])) == ""


@pytest.mark.parametrize(
    ("others", "expected", "whose"),
    [
        ([other(ANN, 0.1), other(BEN, -0.2)], "ok", "within"),
        ([other(ANN, 30.0), other(BEN, 31.0)], "warning", "this machine's clock is 30 s behind"),
        ([other(ANN, -3600.0), other(BEN, -3600.0)], "problem", "this machine's clock is 60 min ahead"),
        ([other(ANN, 0.0), other(BEN, 0.1), other(CAT, 90.0)], "problem", f"the clock of {CAT} is 90 s ahead of ours"),
        ([other(ANN, -5.0)], "warning", f"the clock of {ANN} is 5.0 s behind ours"),
        ([], "", ""),
    ],
)
def test_the_clock_that_differs_from_most_is_the_wrong_one(others: list[Other], expected: str, whose: str) -> None:
    found = list(judge_mesh.judge_clocks(others))
    assert level(found) == expected
    assert not found or whose in found[0].found


def test_a_mesh_without_an_always_on_machine_is_a_note() -> None:
    assert level(judge_mesh.judge_keeper(vitals())) == "note"
    assert level(judge_mesh.judge_keeper(vitals(always_on=True))) == "ok"
    kept = vitals(sees=(Seen(node=ANN, name="ann", version="1.0", always_on=True),))
    assert "ann" in judge_mesh.judge_keeper(kept).found


def test_jobs_that_wait_for_a_keeper_are_a_problem_with_a_way_out() -> None:
    found = judge_mesh.judge_keeper(vitals(held="2 durable jobs wait for their keeper ann", always_on=True))
    assert level(found) == "problem"
    assert "keeper.json" in found.remedy


# -- the whole ---------------------------------------------------------------------------------------------------------


def nothing(**known: Any) -> Facts:
    """A machine at which nothing could be looked at, but what is given."""
    empty: dict[str, Any] = dict.fromkeys(Facts.__slots__)
    return Facts(**empty | {"state": Path("/s"), "config": Config(), "unknown": {}, "name": "me", "node": ME} | known)


def test_what_is_not_known_gives_no_finding_but_its_reason() -> None:
    assert examine(nothing()) == ()
    assert (
        level(examine(nothing(unknown={"multicast": "x", "vitals": "said by the daemon's own judgement"}))) == "warning"
    )


def test_only_problems_make_a_machine_unhealthy() -> None:
    findings = tuple(Finding(check="c", level=it, found="f") for it in ("ok", "note", "warning"))
    assert Checkup(name="n", findings=findings).healthy
    assert not Checkup(name="n", findings=(*findings, words.problem("c", "f", "r"))).healthy


def test_every_warning_and_problem_says_what_to_do() -> None:
    facts = nothing(
        binary=Binary(error="x"),
        software=Software(outbid="1", python="3", installed={}, lacking=("a",)),
        folder=Folder(path=Path("/s"), owner="a", user="b"),
        writes=Writes(refused="x"),
        disks=(Disk(path="/s", purpose="state", free_mib=1, total_mib=2),),
        settings=Settings(error="x"),
        key=Key(mesh="m", error="x"),
        daemon=Program(),
        ledger=replace(LEDGER, greeting="closed"),
        clock=Clock(year=1970),
        limits=Limits(most=10),
        memory=Memory(total_mib=100, free_mib=1),
        work=(replace(CHAT, missing="x"),),
        echoes=(),
        reaches=(Reach(address="a:1", error="x"),),
        unknown={"power": "x"},
    )
    findings = examine(facts)
    assert all(finding.remedy for finding in findings)
    assert {finding.level for finding in findings} == {"warning", "problem"}


def test_the_page_explains_every_check() -> None:
    source = "".join(file.read_text() for file in Path(judge_node.__file__).parent.glob("judge_*.py"))
    page = DOCS.read_text("utf-8")
    checks = {text.split('"')[1] for word in ("ok(", "problem(") for text in source.split(word)[1:] if text[0] == '"'}
    assert len(checks) > 15
    assert {check for check in checks if f"**{check}**" not in page} == set()


def test_what_others_wrote_does_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    evil = Finding(check="other machines", level="ok", found="\x1b[2Jann [red]x[/red]\n; " + "long " * 40)
    show.show([Checkup(name="n\x1b", findings=(evil, words.warning("c", "f", "r")))])
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "[red]x[/red]" in out
    assert max(map(len, out.splitlines())) <= show.WIDTH
    assert out.endswith("1 warning\n")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0004, "0.4 ms"),
        (0.084, "84 ms"),
        (2.5, "2.5 s"),
        (45, "45 s"),
        (600, "10 min"),
        (9000, "2 h"),
        (1e6, "12 days"),
    ],
)
def test_times_are_for_people(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text


def test_wrong_usage_ends_with_two() -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--frobnicate"])
    assert ended.value.code == 2
