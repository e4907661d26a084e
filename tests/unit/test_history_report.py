"""The report adds up what the nodes counted, and calls people by the names that somebody knows."""

from __future__ import annotations

import datetime
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from outbid_contracts.errors import InvalidRequest
from outbid_contracts.history import ReportRequest, UsageReply, Used, month_ms
from outbid_contracts.ids import NodeId
from outbid_contracts.roles import inbox_prefix, submitter_of
from outbid_node.history.meaning import table_list
from outbid_node.history.people import People
from outbid_node.history.reports import period, report_of, usage_of
from outbid_node.identity import jwt
from outbid_node.identity.keyring import Keyring, KeyringUnusable, KnownUser
from outbid_node.identity.keys import MeshKey

A, B = NodeId("aaaaaaaa"), NodeId("bbbbbbbb")


def used(submitter: str = "U1", capability: str = "llm.chat", *, jobs: int = 1, **units: float) -> Used:
    return Used(
        submitter=submitter,
        capability=capability,
        model="m",
        jobs=jobs,
        failed=0,
        seconds=3600.0 * jobs,
        energy_j=3_600_000.0 * jobs,
        cost_usd=0.25 * jobs,
        units=units,
    )


def reply(*of: Used, **names: str) -> UsageReply:
    return UsageReply(used=of, names=names)


# -- sums --------------------------------------------------------------------------------------------------------------


def test_what_nodes_counted_is_added_up_by_person_wherever_it_ran() -> None:
    replies = [
        (A, "anna", reply(used("U1", jobs=2, tokens=5), used("U2"), U1="eve")),
        (B, "bert", reply(used("U1", tokens=2, pictures=1))),
    ]
    found = report_of(replies, ("person",), 0, 1)
    assert [(row.key, row.ids, row.jobs) for row in found.rows] == [(("eve",), ("U1",), 3), (("U2",), ("U2",), 1)]
    first = found.rows[0]
    assert (first.hours, first.energy_kwh, first.cost_usd) == (3.0, 3.0, 0.75)
    assert first.units == {"pictures": 1.0, "tokens": 7.0}
    assert (found.total.jobs, found.total.key) == (4, ())


def test_groups_can_be_of_several_things_and_their_sums_are_the_same() -> None:
    replies = [(A, "anna", reply(used("U1"), used("U1", "image.generate"))), (B, "anna", reply(used("U1")))]
    for by in (
        ("node",),
        ("capability",),
        ("model",),
        ("capability", "node"),
        ("person", "capability", "node", "model"),
    ):
        found = report_of(replies, by, 0, 1)
        assert sum(row.jobs for row in found.rows) == found.total.jobs == 3
    nodes = report_of(replies, ("node",), 0, 1)
    assert [row.ids for row in nodes.rows] == [(A,), (B,)], "two nodes of one name are two"


def test_who_is_not_known_is_shown_by_the_first_characters_of_the_key() -> None:
    key = "UABCDEFGHIJKLMNOP"
    found = report_of([(A, "anna", reply(used(key), used("")))], ("person",), 0, 1)
    assert {row.key for row in found.rows} == {("UABCDEFG",), ("unknown",)}
    assert {row.ids for row in found.rows} == {(key,), ("",)}


def test_the_name_that_the_asked_node_knows_counts() -> None:
    replies = [(A, "anna", reply(used("U1"), U1="eve")), (B, "bert", reply(used("U1"), U1="mallory"))]
    assert report_of(replies, ("person",), 0, 1).rows[0].key == ("eve",)


def test_sums_and_units_of_one_group_find_each_other() -> None:
    rows = [("U", "llm.chat", None, 2, 1, 1.5, 3.0, 0.1), ("U", "llm.chat", "m", 1, 0, 1.0, None, None)]
    units = [("U", "llm.chat", None, "tokens", 7.0), ("U", "llm.chat", "m", "tokens", 9.0)]
    first, second = usage_of(rows, units)
    assert (first.units, second.units) == ({"tokens": 7.0}, {"tokens": 9.0})
    assert (first.failed, second.energy_j) == (1, 0.0)


# -- months ------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata"])
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("zone")
def test_a_month_is_one_of_local_time_and_the_next_begins_where_it_ends() -> None:
    months = [f"{year}-{month:02}" for year in (2026, 2027) for month in range(1, 13)]
    for month, after in itertools.pairwise(months):
        begin, end = month_ms(month)
        assert datetime.datetime.fromtimestamp(begin / 1000).strftime("%Y-%m-%d %H:%M:%S") == f"{month}-01 00:00:00"
        assert end == month_ms(after)[0]


def test_without_a_month_it_is_this_one() -> None:
    now = datetime.datetime(2026, 12, 31, 23, 59)
    assert period(ReportRequest(), now) == month_ms("2026-12")
    assert period(ReportRequest(from_ms=1, to_ms=2)) == (1, 2)


@pytest.mark.parametrize(
    "asked",
    [
        ReportRequest(month="2026-13"),
        ReportRequest(month="2026-00"),
        ReportRequest(month="November"),
        ReportRequest(month="0000-01"),
        ReportRequest(month="2026-11'; DROP"),
        ReportRequest(from_ms=1),
        ReportRequest(from_ms=2, to_ms=1),
        ReportRequest(month="2026-11", from_ms=1, to_ms=2),
    ],
)
def test_a_time_that_is_none_is_refused(asked: ReportRequest) -> None:
    with pytest.raises(InvalidRequest):
        period(asked)


# -- people ------------------------------------------------------------------------------------------------------------


def test_people_are_known_by_the_credentials_made_here_and_by_the_nodes_they_sit_at(tmp_path: Path) -> None:
    keyring = Keyring(tmp_path)
    key = keyring.key("home")
    eve, local, node = (key.user(who).public for who in ("person eve", f"local {B}", f"node {A}"))
    keyring.remember("home", eve, KnownUser(name="eve", role="submitter", at_s=1))
    found = People(keyring, "home").names({eve, local, node, "UNOBODY"}, {A: "anna", B: "bert"})
    assert found == {eve: "eve", local: "on bert", node: "node anna"}


def test_names_outlive_a_new_key_but_not_leaving_the_mesh(tmp_path: Path) -> None:
    keyring = Keyring(tmp_path)
    keyring.key("home")
    keyring.remember("home", "UOLD", KnownUser(name="eve", role="submitter", at_s=1))
    keyring.put("home", MeshKey.new())
    assert People(keyring, "home").names({"UOLD"}, {}) == {"UOLD": "eve"}
    keyring.forget("home")
    assert People(keyring, "home").names({"UOLD"}, {}) == {}


def test_a_damaged_list_of_names_costs_the_names_only(tmp_path: Path) -> None:
    keyring = Keyring(tmp_path)
    local = keyring.key("home").user(f"local {A}").public
    (tmp_path / "home.people").write_text('{"U": ')
    with pytest.raises(KeyringUnusable, match=r"home\.people"):
        keyring.people("home")
    assert People(keyring, "home").names({local}, {A: "anna"}) == {local: "on anna"}


def test_the_list_of_names_is_for_its_owner_only(tmp_path: Path) -> None:
    keyring = Keyring(tmp_path)
    keyring.remember("home", "U", KnownUser(name="eve", role="viewer", at_s=1))
    assert (tmp_path / "home.people").stat().st_mode & 0o777 == 0o600


def test_the_submitter_is_the_user_whose_inbox_is_to_be_answered() -> None:
    key = MeshKey.new()
    user = key.user("person eve")
    creds = jwt.credentials(jwt.user(key, "submitter", "eve", user.public, expires_s=None), user)
    assert submitter_of(f"{inbox_prefix(creds)}.abc.1") == user.public
    for reply in ("", "_INBOX.abc", f"_INBOX_{user.public}", f"x_INBOX_{user.public}.a", "_INBOX_UABC.a", "mesh.x"):
        assert submitter_of(reply) == ""


# -- tables ------------------------------------------------------------------------------------------------------------


def test_every_column_of_the_history_has_a_meaning() -> None:
    described = [(table.name, column, text) for table in table_list().tables for column, _, text in table.columns]
    assert len(described) > 100
    assert all(text for _, _, text in described)
