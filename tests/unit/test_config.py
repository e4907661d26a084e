"""Configuration: later sources win, every value knows where it came from, every mistake is told with its cure."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from outbid_contracts.capability import Capability
from outbid_contracts.errors import InvalidConfig
from outbid_node import config, config_sections
from outbid_node.config import Effective, Given, keys, load, sections, variable
from outbid_node.config_values import allowed, describe, from_text


class ToySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of a capability that nobody here wrote."""

    threads: Annotated[int, Meta(ge=1, le=64, description="threads to use")] | None = None
    engine: Literal["auto", "fast", "slow"] = "auto"
    folders: tuple[str, ...] = ()
    hints: dict[str, int] = {}
    token: Annotated[str, Meta(extra={"secret": True})] = ""

    def __post_init__(self) -> None:
        if self.engine == "slow" and self.threads is not None and self.threads > 1:
            raise ValueError("engine slow has one thread")


class Nothing(msgspec.Struct, frozen=True, kw_only=True):
    pass


def _capability(name: str, settings: type[msgspec.Struct] | None = None) -> Capability:
    return Capability(name=name, summary="", params=Nothing, result=Nothing, runner="nowhere:Runner", settings=settings)


TOY = {"toy.play": _capability("toy.play", ToySettings)}


def _load(
    tmp_path: Path,
    toml: str | None = None,
    environ: dict[str, str] | None = None,
    flags: dict[str, Any] | None = None,
    declared: dict[str, Capability] | None = None,
) -> Effective:
    if toml is not None:
        (tmp_path / "config.toml").write_text(toml)
    elsewhere = {"OUTBID_CONFIG": ""}
    return load(tmp_path, None, elsewhere | (environ or {}), flags or {}, TOY if declared is None else declared)


@pytest.fixture(autouse=True)
def _no_user_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("platformdirs.user_config_path", lambda *_, **__: tmp_path / "nobody")


# -- what wins -------------------------------------------------------------------------------------------------------


def test_without_anything_every_value_is_the_default(tmp_path: Path) -> None:
    effective = _load(tmp_path)

    assert effective.file is None
    assert set(effective.sources.values()) == {"default"}
    assert effective.sources.keys() == keys(sections(TOY)).keys()
    assert effective.config.bus.port == "auto"
    assert effective.config.capabilities == {"toy": ToySettings()}


def test_later_sources_win_and_are_named(tmp_path: Path) -> None:
    toml = '[limits]\nmax_attempts = 2\nmax_waiting = 2\ngrace_s = 2\n[node]\nzone = "wan"'
    environ = {"OUTBID_LIMITS_MAX_WAITING": "3", "OUTBID_LIMITS_GRACE_S": "3"}

    effective = _load(tmp_path, toml, environ, {"limits.grace_s": "4"})

    limits = effective.config.limits
    assert (limits.max_attempts, limits.max_waiting, limits.grace_s) == (2, 3, 4.0)
    assert effective.config.node.zone == "wan"
    assert effective.sources["limits.keep_warm_s"] == "default"
    assert effective.sources["limits.max_attempts"] == f"file {tmp_path / 'config.toml'}"
    assert effective.sources["limits.max_waiting"] == "OUTBID_LIMITS_MAX_WAITING"
    assert effective.sources["limits.grace_s"] == "--set limits.grace_s"


def test_a_flag_of_its_own_is_named_as_it_was_typed(tmp_path: Path) -> None:
    effective = _load(tmp_path, flags={"bus.port": Given("4222", "--port"), "mesh.peers": Given(["a:1"], "--peer")})

    assert (effective.config.bus.port, effective.sources["bus.port"]) == (4222, "--port")
    assert (effective.config.mesh.peers, effective.sources["mesh.peers"]) == (("a:1",), "--peer")


@pytest.mark.parametrize(("alias", "key", "text"), [(a, k, "7422") for a, k in config.ALIASES.items()])
def test_short_variables_stand_for_keys_and_long_ones_win(tmp_path: Path, alias: str, key: str, text: str) -> None:
    assert _load(tmp_path, environ={alias: text}).sources[key] == alias
    assert _load(tmp_path, environ={alias: text, variable(key): text}).sources[key] == variable(key)


def test_an_empty_variable_counts_as_not_set(tmp_path: Path) -> None:
    effective = _load(tmp_path, environ={"OUTBID_PORT": "", "OUTBID_TOY_THREADS": " "})

    assert effective.sources["bus.port"] == effective.sources["toy.threads"] == "default"


def test_a_capability_has_a_section_of_its_own(tmp_path: Path) -> None:
    toml = '[toy]\nthreads = 4\nfolders = ["a b", "c"]\nhints = { x = 1 }'

    effective = _load(tmp_path, toml, {"OUTBID_TOY_ENGINE": "fast"})

    assert effective.config.settings("toy") == {
        "threads": 4,
        "engine": "fast",
        "folders": ("a b", "c"),
        "hints": {"x": 1},
        "token": "",
    }
    assert effective.config.settings("other") == {}


def test_capabilities_of_one_family_share_their_section(tmp_path: Path) -> None:
    declared = TOY | {"toy.sleep": _capability("toy.sleep", ToySettings), "toy.eat": _capability("toy.eat")}

    assert _load(tmp_path, declared=declared).config.capabilities == {"toy": ToySettings()}


@pytest.mark.parametrize("name", ["toy.other", "node.other", "limits.other"])
def test_two_different_claims_on_a_section_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidConfig, match=rf"capability {name} wants its own \[{name.partition('.')[0]}\]"):
        _load(tmp_path, declared=TOY | {name: _capability(name, Nothing)})


def test_the_file_in_the_state_folder_goes_before_the_users(tmp_path: Path) -> None:
    (tmp_path / "nobody").mkdir()
    (tmp_path / "nobody" / "config.toml").write_text("[limits]\nmax_attempts = 7")
    assert _load(tmp_path).config.limits.max_attempts == 7

    assert _load(tmp_path, "[limits]\nmax_attempts = 8").config.limits.max_attempts == 8


def test_a_named_file_goes_before_both(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[limits]\nmax_attempts = 7")
    mine, other = tmp_path / "mine.toml", tmp_path / "other.toml"
    mine.write_text("[limits]\nmax_attempts = 8")
    other.write_text("[limits]\nmax_attempts = 9")

    by_variable = load(tmp_path, None, {"OUTBID_CONFIG": str(other)}, {}, {})
    by_flag = load(tmp_path, mine, {"OUTBID_CONFIG": str(other)}, {}, {})

    assert (by_variable.config.limits.max_attempts, by_variable.file) == (9, other)
    assert (by_flag.config.limits.max_attempts, by_flag.file) == (8, mine)


# -- what is refused -------------------------------------------------------------------------------------------------

WRONG = [
    ("[limits]\ncpu_share = 0", r"limits\.cpu_share cannot be 0 .*a number above 0 and at most 1"),
    ("[limits]\ncpu_share = nan", r"limits\.cpu_share cannot be nan"),
    ("[limits]\nkeep_warm_s = inf", r"limits\.keep_warm_s cannot be inf .*a number 0 or more"),
    ("[limits]\nmemory_mib = 0", r'limits\.memory_mib cannot be 0 .*a whole number 1 or more or "auto"'),
    ('[limits]\nmemory_mib = "lots"', r"limits\.memory_mib cannot be 'lots' .*\"auto\""),
    ("[limits]\nmax_attempts = 0", r"limits\.max_attempts cannot be 0 .*from 1 to 100"),
    ("[limits]\nmax_waiting = 1.5", r"limits\.max_waiting cannot be 1\.5 .*whole number 0 or more"),
    ("[bus]\nport = 65536", r'bus\.port cannot be 65536 .*from 1 to 65535 or "auto"'),
    ("[bus]\nroute_port = 0", r"bus\.route_port cannot be 0 .*from 1 to 65535"),
    ('[node]\nzone = "moon"', r"node\.zone cannot be 'moon' .*\"cloud\", \"here\", \"lan\", \"wan\""),
    ('[node]\nname = "a b"', r"node\.name cannot be 'a b' .*1 to 63 letters"),
    ('[node]\nname = ""', r"node\.name cannot be '' .*1 to 63 letters"),
    ("[node]\nname = 7", r"node\.name cannot be 7 .*1 to 63 letters"),
    ('[mesh]\npeers = ["a"]', r"mesh\.peers cannot be \['a'\] .*host:port"),
    ('[mesh]\npeers = "a:1"', r"mesh\.peers cannot be 'a:1' .*a list of \"host:port\""),
    ('[mesh]\npeers = ["a:70000"]', r"\[mesh\] peers: 'a:70000' has a port above 65535"),
    ("[mesh]\ndiscovery = 1", r"mesh\.discovery cannot be 1 .*true or false"),
    ('[log]\nlevel = "loud"', r'log\.level cannot be \'loud\' .*"debug", "error", "info", "warning"'),
    ("[log.json]\na = 1", r"log\.json cannot be a table .*true or false"),
    ("[power]\nidle_w = -1", r"power\.idle_w cannot be -1 .*a number 0 or more"),
    ("[toy]\nthreads = 0", r"toy\.threads cannot be 0 .*a whole number from 1 to 64"),
    ("[toy]\nfolders = [1]", r"toy\.folders cannot be \[1\] .*a list, each text"),
    ('[toy]\nengine = "slow"\nthreads = 2', r"\[toy\] engine slow has one thread"),
]


@pytest.mark.parametrize(("toml", "message"), WRONG, ids=[toml for toml, _ in WRONG])
def test_a_wrong_value_is_refused_with_key_value_source_and_what_is_allowed(
    tmp_path: Path, toml: str, message: str
) -> None:
    with pytest.raises(InvalidConfig, match=message) as caught:
        _load(tmp_path, toml)
    assert str(tmp_path / "config.toml") in caught.value.message


UNKNOWN = [
    ("[limits]\nmax_attempt = 2", r"there is no key limits\.max_attempt; did you mean limits\.max_attempts\?"),
    ("[limits]\nzone = 2", r"there is no key limits\.zone; did you mean node\.zone\?"),
    ("[bus]\nxyz = 2", r"there is no key bus\.xyz; \[bus\] has nats_context, port, route_port"),
    ("[toy]\nthread = 2", r"there is no key toy\.thread; did you mean toy\.threads\?"),
    ("[limit]\nmax_attempts = 2", r"there is no section \[limit\]; did you mean \[limits\]\?"),
    ("[image]\nsteps = 2", r"no section \[image\]; no installed capability .* sections are artifacts, bus, courtesy, "),
    ('zone = "lan"', r"zone stands outside any section; did you mean zone under \[node\]\?"),
    ("xyz = 1", r"xyz stands outside any section"),
    ("node = 1", r"node must be a section, \[node\], not a value"),
]


@pytest.mark.parametrize(("toml", "message"), UNKNOWN, ids=[toml for toml, _ in UNKNOWN])
def test_an_unknown_key_is_refused_with_the_nearest_known(tmp_path: Path, toml: str, message: str) -> None:
    with pytest.raises(InvalidConfig, match=message) as caught:
        _load(tmp_path, toml)
    assert str(tmp_path / "config.toml") in caught.value.message


def test_a_syntax_error_is_told_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"config\.toml is not valid TOML: .*line 2"):
        _load(tmp_path, "[node]\nname = lan\n")


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidConfig, match=r"config\.toml is not UTF-8 text"):
        _load(tmp_path)


def test_a_folder_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.toml").mkdir()
    with pytest.raises(InvalidConfig, match=r"config\.toml cannot be read: "):
        _load(tmp_path)


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"--config names .*none\.toml, which does not exist"):
        load(tmp_path, tmp_path / "none.toml", {}, {}, {})
    with pytest.raises(InvalidConfig, match=r"OUTBID_CONFIG names .*none\.toml, which does not exist"):
        load(tmp_path, None, {"OUTBID_CONFIG": str(tmp_path / "none.toml")}, {}, {})


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"OUTBID_PORT": "http"}, r"bus\.port cannot be 'http' \(OUTBID_PORT\); allowed: a whole number from 1"),
        ({"OUTBID_LOG_JSON": "maybe"}, r"log\.json cannot be 'maybe' \(OUTBID_LOG_JSON\); allowed: true or false"),
        ({"OUTBID_LIMITS_CPU_SHARE": "nan"}, r"limits\.cpu_share cannot be 'nan'"),
        ({"OUTBID_TOY_HINTS": "{"}, r"toy\.hints cannot be '\{' .*a table"),
        ({"OUTBID_TOY_THREDS": "2"}, r"variable OUTBID_TOY_THREDS sets nothing; did you mean OUTBID_TOY_THREADS\?"),
        ({"OUTBID_BUS_Q": "2"}, r"variable OUTBID_BUS_Q sets nothing; (did you mean|known are) OUTBID_BUS_"),
    ],
)
def test_a_wrong_variable_is_refused_by_name(tmp_path: Path, environ: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        _load(tmp_path, environ=environ)


def test_a_variable_that_resembles_ours_is_warned_about(tmp_path: Path) -> None:
    environ = {"OUTBID_PROT": "2", "OUTBID_RUNNER_TOKEN": "x", "OUTBID_STATE": "x"}

    assert _load(tmp_path, environ=environ).warnings == (
        "variable OUTBID_PROT sets nothing; did you mean OUTBID_PORT?",
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"bus.prot": "1"}, r"there is no key bus\.prot; did you mean bus\.port\? \(--set bus\.prot\)"),
        ({"port": "1"}, r"'port' is not a key; write section\.key"),
        ({"lim.x": "1"}, r"there is no key lim\.x; sections are artifacts, bus"),
        ({"bus.port": Given("0", "--port")}, r"bus\.port cannot be '0' \(--port\); allowed: a whole number from 1"),
    ],
)
def test_a_wrong_flag_is_refused_as_it_was_typed(tmp_path: Path, flags: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        _load(tmp_path, flags=flags)


def test_a_settings_key_without_a_default_is_asked_for(tmp_path: Path) -> None:
    class Needy(msgspec.Struct, frozen=True, kw_only=True):
        url: str

    with pytest.raises(InvalidConfig, match=r"\[needy\].*url"):
        _load(tmp_path, declared={"needy.call": _capability("needy.call", Needy)})


# -- text becomes a value --------------------------------------------------------------------------------------------

ITEM = st.text("abcxyz019:./-", min_size=1)
PORT = config_sections.AutoPort


@given(st.integers(1, 65535))
def test_a_port_may_be_written_as_a_number(port: int) -> None:
    assert from_text(f" {port} ", PORT) == port
    assert from_text("auto", PORT) == "auto"


@given(st.integers().filter(lambda n: not 1 <= n <= 65535))
def test_a_number_out_of_bounds_is_refused_from_text_too(number: int) -> None:
    with pytest.raises(ValueError, match=r"."):
        from_text(str(number), PORT)


@given(st.floats(0, 1e12))
def test_a_number_keeps_its_value(number: float) -> None:
    assert from_text(repr(number), float) == number


@given(st.lists(ITEM))
def test_a_list_is_separated_by_commas(items: list[str]) -> None:
    assert from_text(", ".join(items), tuple[str, ...]) == tuple(items)
    assert from_text(",".join(items) + ",", list[str]) == items


@given(st.sampled_from(["1", "true", "TRUE", "yes", "on"]), st.sampled_from(["0", "false", "False", "no", "off"]))
def test_yes_and_no_have_several_words(yes: str, no: str) -> None:
    assert from_text(yes, bool) is True
    assert from_text(no, bool) is False


@given(st.dictionaries(st.text(), st.integers(-(2**63), 2**63 - 1)))
def test_a_table_is_written_as_json(table: dict[str, int]) -> None:
    assert from_text(msgspec.json.encode(table).decode(), dict[str, int]) == table


@given(st.text(), st.sampled_from(sorted(keys(sections(TOY)))))
def test_text_of_any_kind_is_taken_or_refused_with_the_key(text: str, key: str) -> None:
    environ = {variable(key): text}
    try:
        effective = load(Path("/nonexistent"), None, environ, {}, TOY)
    except InvalidConfig as refused:
        section = key.partition(".")[0]
        told = refused.message
        if not re.search(rf"^({re.escape(key)} cannot be|\[{section}\])", told) or variable(key) not in told:
            raise
    else:
        assert effective.sources[key] == (variable(key) if text.strip() else "default")


def test_every_key_says_what_it_may_hold_and_what_it_means() -> None:
    for key, kind in keys(sections({})).items():
        assert allowed(kind) not in ("", "a value of another type"), key
        assert describe(kind), key


# -- defaults that depend on the machine -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "name"),
    [("box.example.org", "box"), ("", "node"), ("Anna's Mac", "Anna-s-Mac"), ("x" * 80, "x" * 63), ("-a-", "a")],
)
def test_the_host_name_makes_a_good_name(monkeypatch: pytest.MonkeyPatch, host: str, name: str) -> None:
    monkeypatch.setattr("platform.node", lambda: host)

    assert config_sections.default_name() == name


@given(st.text())
def test_any_host_name_makes_a_name_that_is_allowed(text: str) -> None:
    made = config_sections._plain_name(text, "node")

    assert msgspec.convert({"name": made}, config_sections.NodeSection).name == made


def test_users_of_one_machine_have_different_meshes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "anna")
    assert config_sections.default_mesh() == "anna"
    monkeypatch.setattr("getpass.getuser", lambda: "bob")
    assert config_sections.default_mesh() == "bob"


def test_a_user_without_a_name_has_a_mesh(monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 4711")

    monkeypatch.setattr("getpass.getuser", nameless)

    assert msgspec.convert({"name": config_sections.default_mesh()}, config_sections.MeshSection)


def test_the_guessed_watts_are_those_of_the_machines_they_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    for machine, cores, idle, busy in (("aarch64", 4, 3.5, 11.0), ("x86_64", 16, 34.0, 127.0)):
        monkeypatch.setattr("platform.machine", lambda machine=machine: machine)
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        assert (config_sections.default_idle_w(), config_sections.default_busy_w()) == (idle, busy)


def test_memory_is_seventy_per_cent_unless_said() -> None:
    assert config_sections.LimitsSection().memory_budget_mib(1000) == 700
    assert config_sections.LimitsSection(memory_mib=123).memory_budget_mib(1000) == 123
