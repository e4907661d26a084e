"""Every subject of the mesh against every role, by the rules of NATS: deny wins, an empty allow allows everything."""

from __future__ import annotations

import inspect

import pytest

from outbid_contracts import subjects
from outbid_contracts.ids import JobId, NodeId
from outbid_contracts.roles import ROLE_NAMES, ROLES, Rules, inbox_prefix, is_inbox, user_of
from outbid_node.identity import jwt
from outbid_node.identity.keys import MeshKey, new_user

NODE, JOB = NodeId("7k2f9qzt"), JobId("01k3m2v7x0")
ME = "U" + "A" * 55

READ = {
    subjects.NODES,
    subjects.MODELS,
    subjects.jobs("list"),
    subjects.jobs("get"),
    subjects.WATCH,
    "$SRV.PING",
    "$SRV.INFO.outbid",
    "$SRV.STATS.outbid.7k2f9qzt",
}
WORK = {
    subjects.capability("llm.chat"),
    subjects.capability("audio.speech.fast"),
    subjects.jobs("cancel"),
    *(subjects.jobs(verb) for verb in ("submit", "result", "watch", "retry", "priority")),
    *(subjects.artifacts(verb) for verb in ("find", "read")),
    *(subjects.history(verb) for verb in ("query", "report")),
}
ADMIN = {"mesh.admin.drain", "mesh.admin.creds.revoke"}
STORED = "OBJ_ARTIFACTS_7k2f9qzt"
META = "$O.ARTIFACTS_7k2f9qzt.M.amFu"
OBJECTS = {
    f"$JS.{where}API.{verb}"
    for where in ("", "7k2f9qzt.")
    for verb in (
        "INFO",
        "STREAM.NAMES",
        "STREAM.LIST",
        f"STREAM.INFO.{STORED}",
        f"STREAM.MSG.GET.{STORED}",
        f"DIRECT.GET.{STORED}",
        f"DIRECT.GET.{STORED}.{META}",
        f"CONSUMER.CREATE.{STORED}",
        f"CONSUMER.CREATE.{STORED}.abc.{META}",
        f"CONSUMER.INFO.{STORED}.abc",
        f"CONSUMER.DELETE.{STORED}.abc",
    )
} | {f"$JS.FC.{STORED}.abc.1"}
"""What `nats object ls | info | get` asks for."""
BETWEEN_NODES = {
    *(subjects.node(NODE, verb) for verb in ("cfp", "award", "settle", "lease", "cancel", "jobs")),
    *(subjects.node(NODE, verb) for verb in ("artifact", "artifacts", "read")),
    subjects.presence(NODE),
    subjects.HELLO,
    "mesh.suspect",
    subjects.ended("N" * 56),
    subjects.capacity(NODE),
    subjects.job_event(JOB),
    subjects.events(NODE, JOB),
    subjects.auction(NODE),
    subjects.log(NODE),
    "mesh.watch.x",
    "_INBOX.abc.1",
    f"_INBOX_{ME}.x",
    *(
        f"$JS.7k2f9qzt.API.{verb}.{STORED}"
        for verb in ("STREAM.CREATE", "STREAM.UPDATE", "STREAM.DELETE", "STREAM.PURGE", "STREAM.MSG.DELETE")
    ),
    f"$JS.API.CONSUMER.DURABLE.CREATE.{STORED}.abc",
    f"$JS.API.CONSUMER.MSG.NEXT.{STORED}.abc",
    "$JS.API.STREAM.RESTORE.x",
    "$JS.ACK.x.1.1.1.1.1",
    "$JS.7k2f9qzt.API.$O.ARTIFACTS_7k2f9qzt.C.x",
    META,
    "$KV.JOBS_7k2f9qzt.01k3m2v7x0",
    "$O.ARTIFACTS_7k2f9qzt.C.x",
    "anything.else",
}
PUBLISH = {
    "viewer": READ,
    "submitter": READ | WORK,
    "admin": READ | WORK | ADMIN | OBJECTS,
    "node": READ | WORK | ADMIN | OBJECTS | BETWEEN_NODES,
}
EVERYTHING = READ | WORK | ADMIN | OBJECTS | BETWEEN_NODES

HEAR = {
    f"_INBOX_{ME}.abc.1",
    subjects.presence(NODE),
    subjects.PRESENCE_ALL,
    subjects.job_event(JOB),
    subjects.JOB_EVENT_ALL,
    subjects.auction(NODE),
    subjects.AUCTION_ALL,
}
LOGS = {subjects.log(NODE), subjects.LOG_ALL}
"""Lines of logs name files and addresses of machines: for administrators."""
NOT_HEAR = {
    f"_INBOX_U{'B' * 55}.abc",
    "_INBOX.>",
    "_INBOX.abc.1",
    subjects.ENDED_ALL,
    ">",
    "*.>",
    "mesh.>",
    "mesh.llm.chat",
    "mesh.node.*.award",
    subjects.CAPACITY_ALL,
    subjects.events(NODE, JOB),
    "$JS.>",
    "$SRV.PING",
}


def matches(pattern: str, subject: str) -> bool:
    """Of one pattern, as nats-server has it: `*` is one token, `>` is one or more."""
    wanted, given = pattern.split("."), subject.split(".")
    for place, token in enumerate(wanted):
        if token == ">":
            return len(given) > place
        if place >= len(given) or token not in ("*", given[place]):
            return False
    return len(wanted) == len(given)


def allows(rules: Rules, subject: str) -> bool:
    def has(patterns: tuple[str, ...]) -> bool:
        return any(matches(pattern.replace("{{subject()}}", ME), subject) for pattern in patterns)

    return not has(rules.deny) and (not rules.allow or has(rules.allow))


@pytest.mark.parametrize("role", ROLE_NAMES)
def test_a_role_may_publish_what_is_written_here_and_nothing_else(role: str) -> None:
    assert {subject for subject in EVERYTHING if allows(ROLES[role].publish, subject)} == PUBLISH[role]


@pytest.mark.parametrize("role", ["viewer", "submitter", "admin"])
def test_who_is_no_node_hears_its_own_inbox_presence_job_events_and_auctions(role: str) -> None:
    heard = {subject for subject in HEAR | LOGS | NOT_HEAR if allows(ROLES[role].subscribe, subject)}
    assert heard == (HEAR | LOGS if role == "admin" else HEAR)


def test_a_node_hears_everything() -> None:
    assert all(allows(ROLES["node"].subscribe, subject) for subject in HEAR | LOGS | NOT_HEAR)


def test_every_subject_that_subjects_py_can_make_was_tried() -> None:
    """A new function there wants a decision here."""
    functions = {name for name, made in inspect.getmembers(subjects, inspect.isfunction) if not name.startswith("_")}
    assert functions <= {
        "capability",
        "jobs",
        "artifacts",
        "history",
        "node",
        "presence",
        "capacity",
        "job_event",
        "ended",
        "events",
        "admin",
        "auction",
        "log",
    }
    constants = {value for name, value in vars(subjects).items() if name.isupper() and isinstance(value, str)}
    assert {subject for subject in constants if subject.startswith("mesh.")} <= EVERYTHING | HEAR | LOGS | NOT_HEAR


def test_no_first_word_is_left_open_by_the_wildcards_for_capabilities() -> None:
    """`mesh.*.*` would cover a subject between nodes whose first word nobody thought of."""
    for word in subjects.RESERVED - {"nodes", "models", "jobs", "artifacts", "history"}:
        for rest in ("x", "x.y"):
            assert not allows(ROLES["submitter"].publish, f"mesh.{word}.{rest}")
            assert allows(ROLES["admin"].publish, f"mesh.{word}.{rest}") == (word == "admin")


def test_every_role_has_its_name_and_a_sentence() -> None:
    assert tuple(ROLES) == ROLE_NAMES
    for name, role in ROLES.items():
        assert role.name == name
        assert role.summary
        assert role.links == (name == "node")


def test_the_inbox_prefix_is_the_one_the_role_allows() -> None:
    user = new_user()
    text = jwt.credentials(jwt.user(MeshKey.new(), "viewer", "ann", user.public, expires_s=60), user)
    assert user_of(text) == user.public
    assert inbox_prefix(text) == ROLES["viewer"].subscribe.allow[0].replace("{{subject()}}", user.public)[:-2]
    assert is_inbox(f"{inbox_prefix(text)}.1")


@pytest.mark.parametrize("text", ["", "no creds", "-----BEGIN NATS USER JWT-----\na.b.c\n", "\x00"])
def test_what_is_no_credentials_file_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        user_of(text)


def test_credentials_of_an_account_are_not_a_users() -> None:
    account = jwt.mesh_account(MeshKey.new())
    with pytest.raises(ValueError, match="not a user's"):
        user_of(f"-----BEGIN NATS USER JWT-----\n{account}\n")


@pytest.mark.parametrize("reply", ["mesh.node.x.award", "_INBOX", "_INBOXES.a", "", "$JS.API.INFO", "x._INBOX.a"])
def test_a_node_answers_inboxes_only(reply: str) -> None:
    assert not is_inbox(reply)
