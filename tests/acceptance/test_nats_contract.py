"""The contract of the `nats` command line, seen by clients that nobody here wrote: NATS' own JavaScript libraries."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from outbid_contracts.errors import BY_CODE
from outbid_node.micro import semantic
from tests.acceptance.node_peers.driver import Peer, PeerError, install
from tests.fleet import NodeProcess, eventually, fleet

ECHO = "mesh.test.echo"
SEMVER = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?\Z")
NAME = re.compile(r"[a-zA-Z0-9_-]+\Z")


def endpoints(peer: Peer, verb: str = "stats") -> dict[str, dict[str, Any]]:
    (answer,) = peer.call("discover", name="outbid")[verb]
    return {endpoint["subject"]: endpoint for endpoint in answer["endpoints"]}


def fails_with(reply: dict[str, Any], code: str, *words: str) -> None:
    """The reply is this error in all the places where the contract has it, and its sentence has these words."""
    headers, body = reply["headers"], reply["body"]
    assert headers["Outbid-Error"] == code
    assert body["code"] == code
    assert headers["Nats-Service-Error-Code"] == str(BY_CODE[code].status) == str(body["status"])
    assert reply["error"] == {"code": BY_CODE[code].status, "message": headers["Nats-Service-Error"]}
    assert headers["Nats-Service-Error"].isascii()
    for word in words:
        assert word in body["message"], body["message"]


@pytest.mark.usefixtures("alive")
class TestDiscovery:
    def test_ping_info_and_stats_name_the_same_service(self, peer: Peer, node: NodeProcess) -> None:
        found = peer.call("discover", name="outbid")
        identities = set()
        for verb in ("ping", "info", "stats"):
            (answer,) = found[verb]
            assert answer["type"] == f"io.nats.micro.v1.{verb}_response"
            identities.add((answer["name"], answer["id"], answer["version"], answer["metadata"]["node"]))
        ((name, id, version, called),) = identities
        assert (name, id, called) == ("outbid", node.local.node, "a")
        assert SEMVER.match(version), "NATS tools refuse a service whose version is not semantic"

    @pytest.mark.parametrize("asked", [{}, {"name": "outbid"}, {"name": "outbid", "id": True}])
    def test_each_of_the_three_subjects_is_answered(self, peer: Peer, node: NodeProcess, asked: dict[str, Any]) -> None:
        if asked.get("id"):
            asked = asked | {"id": node.local.node}
        found = peer.call("discover", **asked)
        assert [len(found[verb]) for verb in ("ping", "info", "stats")] == [1, 1, 1]

    def test_info_has_what_nats_tools_insist_on(self, peer: Peer) -> None:
        (info,) = peer.call("discover", name="outbid")["info"]
        assert info["description"]
        for endpoint in info["endpoints"]:
            assert NAME.match(endpoint["name"])
            one_node_only = endpoint["subject"].startswith("mesh.admin.")
            assert (endpoint["queue_group"] == "owners") is not one_node_only
            assert all(isinstance(value, str) for value in endpoint["metadata"].values())
        assert {ECHO, "mesh.test.noop", "mesh.jobs.list", "mesh.jobs.get", "mesh.jobs.cancel"} <= endpoints(
            peer, "info"
        ).keys()
        assert {"mesh.nodes.list", "mesh.models.list"} <= endpoints(peer, "info").keys()

    def test_stats_have_what_nats_tools_insist_on(self, peer: Peer) -> None:
        (stats,) = peer.call("discover", name="outbid")["stats"]
        assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z\Z", stats["started"])
        for endpoint in stats["endpoints"]:
            for key in ("num_requests", "num_errors", "processing_time", "average_processing_time"):
                assert isinstance(endpoint[key], int)
            assert isinstance(endpoint["last_error"], str)

    @pytest.mark.parametrize(
        ("request_", "valid"),
        [
            ({"text": "hi", "chunks": 3, "policy": "green", "stream": True, "job": "me-1"}, True),
            ({"text": "hi", "policy": {"goal": "cheap", "deadline_s": 5, "prefer": ["a"]}}, True),
            ({"text": 5}, False),
            ({"text": "hi", "chnks": 3}, False),
            ({"text": "hi", "policy": "quickest"}, False),
            ({"text": "hi", "job": "no spaces"}, False),
        ],
    )
    def test_the_schema_of_a_request_agrees_with_the_node(
        self, peer: Peer, request_: dict[str, Any], valid: bool
    ) -> None:
        schema = json.loads(endpoints(peer, "info")[ECHO]["metadata"]["schema"])["request"]
        jsonschema.Draft202012Validator.check_schema(schema)
        assert jsonschema.Draft202012Validator(schema).is_valid(request_) is valid
        reply = peer.stream(ECHO, json=request_)[0] if request_.get("stream") else peer.request(ECHO, json=request_)
        assert ("Outbid-Error" not in reply["headers"]) is valid

    def test_the_schema_of_a_response_describes_the_reply(self, peer: Peer) -> None:
        schema = json.loads(endpoints(peer, "info")[ECHO]["metadata"]["schema"])["response"]
        body = peer.request(ECHO, text="hi")["body"]
        jsonschema.validate(body, schema)

    def test_statistics_count_requests_and_errors(self, peer: Peer) -> None:
        before = endpoints(peer)
        for n in range(5):
            peer.request(ECHO, text=f"{n}")
        for body in ("{", '{"text": 1}', '{"txt": "x"}'):
            peer.request(ECHO, text=body)
        peer.request("mesh.jobs.get", json={"job": "never-heard-of"})
        after = endpoints(peer)
        grown = {
            subject: tuple(after[subject][key] - before[subject][key] for key in ("num_requests", "num_errors"))
            for subject in after
        }
        assert {subject: count for subject, count in grown.items() if any(count)} == {
            ECHO: (8, 3),
            "mesh.jobs.get": (1, 1),
        }
        assert "did you mean `text`" in after[ECHO]["last_error"]
        assert after[ECHO]["processing_time"] > before[ECHO]["processing_time"]


@pytest.mark.usefixtures("alive")
class TestOneReply:
    def test_json(self, peer: Peer, node: NodeProcess) -> None:
        reply = peer.request(ECHO, json={"text": "grüße", "chunks": 2})
        assert reply["headers"] == {}
        assert reply["body"]["text"] == "grüße"
        assert (reply["body"]["node"], reply["body"]["name"], reply["body"]["attempt"]) == (node.local.node, "a", 1)
        assert reply["body"]["timings"]["total_s"] >= 0
        assert reply["body"]["job"]

    @pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8"])
    def test_json_by_content_type(self, peer: Peer, content_type: str) -> None:
        reply = peer.request(ECHO, json={"text": "x"}, headers={"Content-Type": content_type})
        assert reply["body"]["text"] == "x"

    @pytest.mark.parametrize("text", ["why is the sky blue?", "[1, 2]", '"quoted"', "{{ not a template }} }{"])
    def test_bare_text_is_the_text_field(self, peer: Peer, text: str) -> None:
        headers = {"Content-Type": "text/plain"} if text.startswith("{") else {}
        assert peer.request(ECHO, text=text, headers=headers)["body"]["text"] == text

    @pytest.mark.parametrize("content_type", ["application/msgpack", "application/x-msgpack"])
    def test_messagepack_by_content_type_is_mirrored(self, peer: Peer, content_type: str) -> None:
        reply = peer.request(ECHO, msgpack={"text": "pack", "chunks": 2}, headers={"Content-Type": content_type})
        assert reply["headers"] == {"Content-Type": "application/msgpack"}
        assert reply["body"]["text"] == "pack"

    def test_an_error_to_messagepack_is_messagepack(self, peer: Peer) -> None:
        reply = peer.request(ECHO, msgpack={"txt": "pack"})
        assert reply["headers"]["Content-Type"] == "application/msgpack"
        fails_with(reply, "invalid_request", "did you mean `text`")

    def test_several_megabytes_go_there_and_back(self, peer: Peer) -> None:
        size = 4 * 2**20
        assert len(peer.request(ECHO, fill=size)["body"]["text"]) == size

    @pytest.mark.parametrize("policy", ["fastest", "balanced", "green", "cheap", "private"])
    def test_every_goal_is_understood(self, peer: Peer, policy: str) -> None:
        job = peer.request(ECHO, json={"text": "x", "policy": policy})["body"]["job"]
        assert peer.request("mesh.jobs.get", json={"job": job})["body"]["policy"]["goal"] == policy

    def test_the_same_job_id_is_the_same_job(self, peer: Peer) -> None:
        first = peer.request(ECHO, json={"text": "one", "job": "chosen-1"})["body"]
        again = peer.request(ECHO, json={"text": "two", "job": "chosen-1"})["body"]
        assert again == first
        assert first["job"] == "chosen-1"

    def test_the_same_job_id_while_it_runs_is_the_same_job(self, peer: Peer) -> None:
        asked = {"text": "slow", "delay_s": 0.3, "job": "chosen-2"}
        both = [peer.begin("request", subject=ECHO, json=asked) for _ in range(2)]
        first, second = (future.result(10)["body"] for future in both)
        assert first == second
        listed = peer.request("mesh.jobs.list", json={"limit": 1000})["body"]["jobs"]
        assert [record["id"] for record in listed].count("chosen-2") == 1

    def test_two_hundred_at_once_are_all_answered(self, peer: Peer) -> None:
        replies = peer.call("flood", subject=ECHO, count=200, text="number {n}", timeout_ms=30_000)
        assert [reply["body"]["text"] for reply in replies] == [f"number {n}" for n in range(200)]
        assert len({reply["body"]["job"] for reply in replies}) == 200


@pytest.mark.usefixtures("alive")
class TestStream:
    def events(self, messages: list[dict[str, Any]]) -> list[str]:
        return [message["body"]["event"] for message in messages if message["size"]]

    def test_one_message_per_event_and_an_empty_last_one(self, peer: Peer) -> None:
        messages = peer.stream(ECHO, json={"text": "abcdef", "chunks": 6, "delay_s": 0.01, "stream": True})
        assert [message["size"] == 0 for message in messages] == [False] * (len(messages) - 1) + [True]
        bodies = [message["body"] for message in messages[:-1]]
        assert self.events(messages) == ["awarded", *["chunk"] * 6, "done"]
        chunks = bodies[1:-1]
        assert [chunk["seq"] for chunk in chunks] == list(range(6))
        assert "".join(chunk["data"]["text"] for chunk in chunks) == "abcdef"
        assert bodies[-1]["result"]["text"] == "abcdef"
        assert bodies[-1]["chunks"] == 6
        assert len({body["job"] for body in bodies}) == 1

    def test_a_thousand_chunks_keep_their_order(self, peer: Peer) -> None:
        text = "".join(f"{n:05}" for n in range(1000))
        messages = peer.stream(ECHO, json={"text": text, "chunks": 1000, "stream": True})
        chunks = [message["body"] for message in messages[:-1] if message["body"]["event"] == "chunk"]
        assert [chunk["seq"] for chunk in chunks] == list(range(1000))
        assert "".join(chunk["data"]["text"] for chunk in chunks) == text
        assert self.events(messages)[-1] == "done"

    def test_messagepack_stream(self, peer: Peer) -> None:
        messages = peer.stream(ECHO, msgpack={"text": "ab", "chunks": 2, "stream": True})
        assert self.events(messages) == ["awarded", "chunk", "chunk", "done"]
        assert messages[-1]["size"] == 0

    def test_request_many_of_the_library_ends_by_itself(self, peer: Peer) -> None:
        started = time.monotonic()
        messages = peer.call("sentinel", subject=ECHO, json={"text": "ab", "chunks": 2, "stream": True})
        assert self.events(messages)[-1] == "done"
        assert time.monotonic() - started < 5, "the empty message was not taken as the end"

    def test_an_error_after_the_start_is_followed_by_the_empty_message(self, peer: Peer) -> None:
        asked = {"text": "abc", "chunks": 3, "crash": "exception", "crash_after": 1, "stream": True}
        messages = peer.stream(ECHO, json=asked)
        assert messages[-1]["size"] == 0
        assert "Outbid-Error" in messages[-2]["headers"]
        assert self.events(messages[:-2])[:2] == ["awarded", "chunk"]
        assert "crashed as asked" in messages[-2]["body"]["message"]

    def test_events_of_a_job_that_was_cancelled(self, peer: Peer) -> None:
        asked = {"text": "abc", "chunks": 1000, "delay_s": 0.05, "stream": True, "job": "stopped-1"}
        running = peer.begin("stream", subject=ECHO, json=asked)
        until_running(peer, "stopped-1")
        peer.request("mesh.jobs.cancel", json={"job": "stopped-1"})
        messages = running.result(10)
        assert messages[-1]["size"] == 0
        fails_with(messages[-2], "cancelled")


@pytest.mark.usefixtures("alive")
class TestErrors:
    @pytest.mark.parametrize(
        ("given", "code", "words"),
        [
            pytest.param({"text": '{"text": "x"'}, "invalid_request", ["not valid application/json"], id="json"),
            pytest.param(
                {"base64": "/w==", "headers": {"Content-Type": "application/json"}},
                "invalid_request",
                ["not valid application/json"],
                id="not UTF-8",
            ),
            pytest.param(
                {"text": "[1]", "headers": {"Content-Type": "application/json"}},
                "invalid_request",
                ["must be a map"],
                id="not a map",
            ),
            pytest.param(
                {"base64": "wcHB", "headers": {"Content-Type": "application/msgpack"}},
                "invalid_request",
                ["not valid application/msgpack"],
                id="messagepack",
            ),
            pytest.param({"json": {"txet": "x"}}, "invalid_request", ["`txet`", "did you mean `text`"], id="field"),
            pytest.param({"json": {"strem": True, "text": ""}}, "invalid_request", ["`stream`"], id="envelope"),
            pytest.param({"json": {"text": 7}}, "invalid_request", ["str", "int", "$.text"], id="type"),
            pytest.param({"json": {"text": "x", "chunks": -1}}, "invalid_request", ["$.chunks"], id="range"),
            pytest.param({"json": {"text": "x", "stream": "yes"}}, "invalid_request", ["true or false"], id="stream"),
            pytest.param({"json": {"text": "x", "job": "a b"}}, "invalid_request", ["`job`", "A-Z"], id="job id"),
            pytest.param({"json": {"text": "x", "job": ""}}, "invalid_request", ["`job`"], id="empty job id"),
            pytest.param({"json": {"text": "x", "policy": "slowest"}}, "invalid_request", ["fastest"], id="goal"),
            pytest.param({"json": {"text": "x", "policy": {"gaol": 1}}}, "invalid_request", ["gaol"], id="policy"),
            pytest.param({"json": {"text": "x", "v": "2"}}, "invalid_request", ["`v`"], id="version"),
            pytest.param(
                {"text": "x", "headers": {"Content-Type": "application/xml"}},
                "invalid_request",
                ["application/xml", "application/json"],
                id="content type",
            ),
            pytest.param(
                {"json": {"text": "x", "model": "no-such"}}, "unknown_model", ["no-such", "test.echo"], id="model"
            ),
            pytest.param({"fill": 10 * 2**20}, "payload_too_large", ["10.0 MiB", "8 MiB"], id="10 MiB"),
            pytest.param(
                {"json": {"text": "x", "crash": "exception"}}, "attempts_exhausted", ["crashed as asked"], id="crash"
            ),
        ],
    )
    def test_what_is_wrong_with_a_request_is_said(
        self, peer: Peer, given: dict[str, Any], code: str, words: list[str]
    ) -> None:
        fails_with(peer.request(ECHO, **given), code, *words)

    def test_an_answer_that_the_bus_cannot_carry(self, peer: Peer) -> None:
        """Three MiB of a character that is six in JSON: the request fits, its answer does not."""
        size = 3 * 2**20
        reply = peer.request(ECHO, fill=size, **{"with": "\x01"})
        fails_with(reply, "payload_too_large", "18.0 MiB", "16 MiB")
        reply = peer.request(ECHO, msgpack={"text": "\x01" * size})
        assert len(reply["body"]["text"]) == size, "MessagePack needs no escapes"

    def test_a_newer_callers_unknown_field_is_let_pass(self, peer: Peer) -> None:
        assert peer.request(ECHO, json={"text": "x", "from_the_future": 1, "v": 2})["body"]["text"] == "x"

    def test_bare_text_where_there_is_no_text_field(self, peer: Peer) -> None:
        fails_with(peer.request("mesh.test.noop", text="hello"), "invalid_request", "JSON object", "test.noop")

    def test_an_unknown_capability_has_no_responders(self, peer: Peer) -> None:
        with pytest.raises(PeerError, match=r"(?i)no responders"):
            peer.request("mesh.soup.cook", text="leek")

    def test_line_breaks_in_what_is_quoted_do_not_break_the_header(self, peer: Peer) -> None:
        reply = peer.request(ECHO, json={"text": "x", "a\r\nOutbid-Error: forged\r\n\r\n": 1})
        fails_with(reply, "invalid_request")

    def test_letters_beyond_ascii_survive_in_the_body(self, peer: Peer) -> None:
        reply = peer.request(ECHO, json={"ünbekannt": 1})
        assert "ünbekannt" in reply["body"]["message"]


@pytest.mark.usefixtures("alive")
class TestListings:
    def test_nodes(self, peer: Peer, node: NodeProcess) -> None:
        (view,) = peer.request("mesh.nodes.list")["body"]["nodes"]
        assert view["here"] is True
        assert view["presence"]["node"] == node.local.node
        assert {offer["capability"] for offer in view["presence"]["offers"]} >= {"test.echo", "test.noop"}

    def test_models(self, peer: Peer) -> None:
        models = peer.request("mesh.models.list", json={})["body"].get("models", [])
        assert all(view["capability"] and view["model"] for view in models)

    def test_jobs(self, peer: Peer) -> None:
        done = peer.request(ECHO, json={"text": "x"})["body"]["job"]
        listed = peer.request("mesh.jobs.list", json={"limit": 3, "state": "done"})["body"]["jobs"]
        assert listed[0]["id"] == done
        assert len(listed) <= 3
        assert {record["state"] for record in listed} == {"done"}
        created = [record["created_ms"] for record in listed]
        assert created == sorted(created, reverse=True)

    def test_one_job_with_its_bid_sheet(self, peer: Peer, node: NodeProcess) -> None:
        done = peer.request(ECHO, json={"text": "secret words"})["body"]["job"]
        reply = peer.request("mesh.jobs.get", json={"job": done})
        record = reply["body"]
        assert (record["id"], record["state"], record["node"]) == (done, "done", node.local.node)
        assert record["sheets"][0]["winner"] == node.local.node
        assert record["attempts"][0]["attempt"] == 1
        assert "secret words" not in json.dumps(record)

    def test_messagepack(self, peer: Peer) -> None:
        for subject in ("mesh.nodes.list", "mesh.jobs.list", "mesh.models.list"):
            assert peer.request(subject, msgpack={})["headers"] == {"Content-Type": "application/msgpack"}

    @pytest.mark.parametrize(
        ("subject", "given", "code", "words"),
        [
            ("mesh.jobs.get", {"json": {"job": "nobody-knows"}}, "unknown_job", ["nobody-knows", "outbid jobs"]),
            ("mesh.jobs.cancel", {"json": {"job": "nobody-knows"}}, "unknown_job", ["nobody-knows"]),
            ("mesh.jobs.get", {"json": {}}, "invalid_request", ["`job`"]),
            ("mesh.jobs.get", {"json": {"job": 5}}, "invalid_request", ["$.job"]),
            ("mesh.jobs.get", {"text": "nobody-knows"}, "invalid_request", ["JSON object"]),
            ("mesh.jobs.list", {"json": {"state": "lost"}}, "invalid_request", ["$.state"]),
            ("mesh.jobs.list", {"text": "all"}, "invalid_request", ["JSON object"]),
            (
                "mesh.nodes.list",
                {"text": "", "headers": {"Content-Type": "image/png"}},
                "invalid_request",
                ["image/png"],
            ),
        ],
    )
    def test_wrong_questions(
        self, peer: Peer, subject: str, given: dict[str, Any], code: str, words: list[str]
    ) -> None:
        fails_with(peer.request(subject, **given), code, *words)


@pytest.mark.usefixtures("alive")
class TestCancel:
    def test_a_running_job_is_stopped(self, peer: Peer) -> None:
        asked = {"text": "x" * 1000, "chunks": 1000, "delay_s": 0.05, "job": "stopped-2"}
        running = peer.begin("request", subject=ECHO, json=asked)
        until_running(peer, "stopped-2")
        started = time.monotonic()
        record = peer.request("mesh.jobs.cancel", json={"job": "stopped-2"})["body"]
        assert time.monotonic() - started < 2
        assert record["state"] == "cancelled"
        fails_with(running.result(5), "cancelled")

    def test_a_job_that_has_ended_stays_as_it_is(self, peer: Peer) -> None:
        job = peer.request(ECHO, text="x")["body"]["job"]
        assert peer.request("mesh.jobs.cancel", json={"job": job})["body"]["state"] == "done"


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0rc1", "0.2.0.dev3", "1.0.0a2.dev1", "0.2.0.post1", "0.1.0+g12ab"])
def test_every_python_version_is_told_as_a_semantic_one(version: str) -> None:
    assert SEMVER.match(semantic(version))


CHAT = "mesh.llm.chat"
PROMPT = "Count from one to ten."


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    """A peer of a node that has the default model loaded."""
    install()
    with fleet(tmp_path_factory.mktemp("contract-chat")) as nodes:
        (alone,) = asyncio.run(nodes.start("alone", flags=()))
        with Peer(alone.local.url, alone.local.creds) as peer:
            models = peer.request("mesh.models.list")["body"]["models"]
            assert [view["model"] for view in models if view["default"]], alone.text()
            assert peer.request(CHAT, json={"prompt": PROMPT, "max_tokens": 4}, timeout_ms=60_000)["error"] is None
            yield peer
            assert peer.request(CHAT, json={"prompt": PROMPT, "max_tokens": 4})["body"]["text"]


@pytest.mark.model
class TestChat:
    def test_bare_text_is_a_prompt(self, chat: Peer) -> None:
        body = chat.request(CHAT, text="Say hello.", timeout_ms=60_000)["body"]
        assert body["text"].strip()
        assert body["finish_reason"] in ("stop", "length")
        assert body["usage"]["completion_tokens"] > 0
        assert body["name"] == "alone"

    def test_messages_in_messagepack(self, chat: Peer) -> None:
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say hello."}]
        reply = chat.request(CHAT, msgpack={"messages": messages, "max_tokens": 8})
        assert reply["headers"] == {"Content-Type": "application/msgpack"}
        assert reply["body"]["usage"]["completion_tokens"] <= 8

    def test_stream(self, chat: Peer) -> None:
        messages = chat.stream(CHAT, json={"prompt": PROMPT, "max_tokens": 24, "temperature": 0, "stream": True})
        assert messages[-1]["size"] == 0
        bodies = [message["body"] for message in messages[:-1]]
        assert [body["event"] for body in bodies if body["event"] != "chunk"] == ["awarded", "done"]
        chunks = [body for body in bodies if body["event"] == "chunk"]
        assert [chunk["seq"] for chunk in chunks] == list(range(len(chunks)))
        assert "".join(chunk["data"]["text"] for chunk in chunks) == bodies[-1]["result"]["text"]
        assert len(chunks) > 5

    def test_the_schema_of_a_chat_agrees_with_the_node(self, chat: Peer) -> None:
        metadata = endpoints(chat, "info")[CHAT]["metadata"]
        schema = json.loads(metadata["schema"])
        asked = {"prompt": PROMPT, "max_tokens": 4, "temperature": 0.2, "stop": ["."], "policy": "fastest"}
        jsonschema.validate(asked, schema["request"])
        jsonschema.validate(chat.request(CHAT, json=asked)["body"], schema["response"])
        assert not jsonschema.Draft202012Validator(schema["request"]).is_valid({"prompt": 5})

    def test_an_answer_held_to_a_schema(self, chat: Peer) -> None:
        wanted = {"type": "object", "properties": {"n": {"const": 7}}, "required": ["n"]}
        body = chat.request(CHAT, json={"prompt": "A number.", "json_schema": wanted, "max_tokens": 32})["body"]
        assert json.loads(body["text"]) == {"n": 7}

    @pytest.mark.parametrize(
        ("given", "code", "words"),
        [
            ({"json": {"prompt": "  "}}, "invalid_request", ["`prompt` is empty"]),
            ({"text": ""}, "invalid_request", ["`prompt` is empty"]),
            ({"json": {"promt": "x"}}, "invalid_request", ["did you mean `prompt`"]),
            ({"json": {"prompt": "x", "messages": []}}, "invalid_request", ["not both"]),
            ({"json": {"prompt": "x", "max_tokens": 0}}, "invalid_request", ["$.max_tokens"]),
            ({"json": {"prompt": "x", "model": "gpt-9"}}, "unknown_model", ["gpt-9", "smollm2-135m-instruct"]),
            ({"fill": 10 * 2**20}, "payload_too_large", ["10.0 MiB", "8 MiB"]),
            ({"text": "word " * 20_000}, "context_overflow", ["tokens"]),
        ],
    )
    def test_what_is_wrong_with_a_chat_is_said(
        self, chat: Peer, given: dict[str, Any], code: str, words: list[str]
    ) -> None:
        fails_with(chat.request(CHAT, **given), code, *words)

    def test_a_cancelled_chat_stops_at_once(self, chat: Peer) -> None:
        asked = {"prompt": "Write a very long story.", "max_tokens": 1500, "job": "story", "stream": True}
        running = chat.begin("stream", subject=CHAT, json=asked)
        until_running(chat, "story")
        started = time.monotonic()
        record = chat.request("mesh.jobs.cancel", json={"job": "story"})["body"]
        assert record["state"] == "cancelled"
        assert time.monotonic() - started < 3
        fails_with(running.result(5)[-2], "cancelled")


def until_running(peer: Peer, job: str) -> None:
    def running() -> bool:
        reply = peer.request("mesh.jobs.get", json={"job": job})
        return bool(reply["body"].get("state") == "running")

    asyncio.run(eventually(running, 5, f"job {job} did not start"))
