"""Pulling from the internet, played by a hub of the test: what comes, what is refused, what goes on after a fault."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from outbid_contracts.errors import ChecksumMismatch, InvalidRequest, NoSpace, OutbidError, PullFailed
from outbid_contracts.files import MANIFEST_FILE, PIECE_BYTES, PullEvent, PullRequest
from outbid_node.files import http, remote
from tests.hub_stand_in import Hub, hub
from tests.pulling import Node, gguf, part, safetensors

MIB = 1 << 20
INDEX = json.dumps({"_class_name": "P", "unet": ["diffusers", "U"], "vae": ["diffusers", "V"], "feature": [None, None]})


@pytest.fixture
def net(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub() as it:
        monkeypatch.setenv("HF_ENDPOINT", it.url)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(remote, "BACK_OFF_S", 0.01)
        yield it


def whole(node: Node, name: str) -> dict[str, bytes]:
    """The files of a pulled model by path; only what its manifest names, which must fit."""
    kept = node.store.find(name)
    assert kept is not None
    found = {it.path: (kept.folder / it.path).read_bytes() for it in kept.manifest.files}
    for it in kept.manifest.files:
        assert hashlib.sha256(found[it.path]).hexdigest() == it.sha256
    return found


async def test_a_file_of_a_repository_comes_with_its_licence_and_hash(net: Hub, tmp_path: Path) -> None:
    data = gguf(9 * MIB)
    net.add("org/tiny", {"q4/Tiny-Q4_K_M.gguf": data, "README.md": b"x"}, licence="apache-2.0")
    async with part(tmp_path) as node:
        events = await node.pull("hf:org/tiny:q4/Tiny-Q4_K_M.gguf")
        states = [event.state for event in events]
        assert sorted(set(states), key=states.index)[:2] == ["resolving", "found"]
        assert events[-1].state == "done"
        assert {event.licence for event in events if event.size} == {"apache-2.0"}
        assert whole(node, "tiny-q4_k_m") == {"Tiny-Q4_K_M.gguf": data}
        assert (await node.pull("hf:org/tiny:q4/Tiny-Q4_K_M.gguf"))[-1].state == "done"
    assert len([path for path in net.asked("hub") if path.startswith("/api")]) == 1


async def test_of_a_pipeline_only_what_it_needs_comes_in_one_variant(net: Hub, tmp_path: Path) -> None:
    files = {
        "model_index.json": INDEX.encode(),
        "unet/config.json": b"{}",
        "unet/diffusion_pytorch_model.safetensors": safetensors(4000),
        "unet/diffusion_pytorch_model.fp16.safetensors": safetensors(2000),
        "unet/diffusion_pytorch_model.bin": b"pickle",
        "vae/config.json": b"{}",
        "vae/diffusion_pytorch_model.safetensors": safetensors(400),
        "vae/diffusion_pytorch_model.fp16.safetensors": safetensors(200),
        "feature/config.json": b"{}",
        "pipeline.ckpt": b"pickle",
        "README.md": b"long",
    }
    net.add("org/draws", files)
    async with part(tmp_path) as node:
        await node.pull("hf:org/draws")
        await node.pull("hf:org/draws", variant="full", name="large")
        small = {"model_index.json", "unet/config.json", "vae/config.json"}
        fp16 = {f"{it}/diffusion_pytorch_model.fp16.safetensors" for it in ("unet", "vae")}
        full = {f"{it}/diffusion_pytorch_model.safetensors" for it in ("unet", "vae")}
        assert whole(node, "draws").keys() == small | fp16
        assert whole(node, "large").keys() == small | full
        with pytest.raises(InvalidRequest, match="no variant int8"):
            await node.pull("hf:org/draws", variant="int8", name="third")


async def test_a_repository_with_several_ggufs_is_answered_with_their_names_and_sizes(net: Hub, tmp_path: Path) -> None:
    net.add("org/many", {"m-Q4.gguf": gguf(MIB), "m-Q8.gguf": gguf(2 * MIB)})
    async with part(tmp_path) as node:
        with pytest.raises(InvalidRequest, match=r"hf:org/many:m-Q4.gguf  \(0.0 GiB\)\n.*m-Q8"):
            await node.pull("hf:org/many")


@pytest.mark.parametrize(
    ("files", "source", "reason"),
    [
        ({"a.ckpt": b"x"}, "hf:org/bad", "pickle"),
        ({"a.ckpt": b"x"}, "hf:org/bad:a.ckpt", "pickle"),
        ({"model_index.json": INDEX.encode(), "unet/model.bin": b"x"}, "hf:org/bad", "unet .* pickle"),
        ({"model_index.json": b"[1"}, "hf:org/bad", "cannot be read"),
        ({"notes.txt": b"x"}, "hf:org/bad", "is not a model"),
        ({"model.safetensors": b"x"}, "hf:org/bad", "GGUF version"),
        ({"a.gguf": b"<!DOCTYPE html>" + bytes(50)}, "hf:org/bad", "web page"),
        ({"a.safetensors": safetensors()[:-3]}, "hf:org/bad:a.safetensors", "damaged"),
        ({"a.safetensors": b"\xff" * 40}, "hf:org/bad:a.safetensors", "not a safetensors file"),
        ({}, "hf:org/none", "no model"),
        ({}, "hf:../etc", "does not name a repository"),
        ({}, "hf:org/bad:../../etc/passwd", "not the name of a file inside"),
        ({}, "file:relative", "whole path"),
        ({}, "ftp://x/y.gguf", "no source"),
        ({}, "http://example.org/m.gguf", "not encrypted"),
        ({}, "https://example.org/m.pt", "pickle"),
        ({}, "file:/nowhere/at/all.gguf", "cannot be read"),
    ],
)
async def test_what_is_no_model_is_refused_with_the_reason(
    net: Hub, tmp_path: Path, files: dict[str, bytes], source: str, reason: str
) -> None:
    net.add("org/bad", files)
    async with part(tmp_path) as node:
        with pytest.raises(OutbidError, match=reason):
            await node.pull(source)
        assert node.store.kept() == []


@pytest.mark.parametrize(
    "lie", [{"size": 1 << 50}, {"size": -5}, {"rfilename": "../../x.gguf"}, {"rfilename": "C:\\x.gguf"}]
)
async def test_a_list_that_cannot_be_true_is_not_believed(net: Hub, tmp_path: Path, lie: dict[str, object]) -> None:
    data = gguf(1000)
    entry = {"lfs": None, **lie}
    net.add("org/lies", {"m.gguf": data}, lie={"m.gguf": entry})
    async with part(tmp_path) as node:
        with pytest.raises(InvalidRequest):
            await node.pull("hf:org/lies")
    assert not [path for path in net.asked("files") if path.endswith(".gguf")]


async def test_a_busy_server_and_cut_connections_only_cost_time(net: Hub, tmp_path: Path) -> None:
    data = gguf(40 * MIB)
    net.add("org/tiny", {"m.gguf": data})
    net.faults.cut_after, net.faults.cuts = 5 * MIB, 4
    net.faults.refuse = [429, 503]
    async with part(tmp_path) as node:
        await node.pull("hf:org/tiny")
        assert whole(node, "tiny") == {"m.gguf": data}
    assert net.sent < 40 * MIB + 8 * 2 * PIECE_BYTES


async def test_a_server_without_ranges_sends_all_in_one_go(net: Hub, tmp_path: Path) -> None:
    data = gguf(80 * MIB)
    net.add("org/tiny", {"m.gguf": data})
    net.faults.ranges = False
    async with part(tmp_path) as node:
        events = await node.pull(f"{net.files_url}/org/tiny/resolve/main/m.gguf")
        assert events[-1].kind == "gguf"
        assert whole(node, "m") == {"m.gguf": data}


async def test_wrong_bytes_are_thrown_away(net: Hub, tmp_path: Path) -> None:
    data = gguf(9 * MIB)
    net.add("org/tiny", {"m.gguf": data})
    net.faults.wrong = True
    async with part(tmp_path) as node:
        with pytest.raises(ChecksumMismatch, match="thrown away"):
            await node.pull("hf:org/tiny")
        net.faults.wrong = False
        await node.pull("hf:org/tiny")
        assert whole(node, "tiny") == {"m.gguf": data}


async def test_a_promised_hash_is_kept_to(net: Hub, tmp_path: Path) -> None:
    data = gguf(2 * MIB)
    net.add("org/tiny", {"m.gguf": data})
    right, wrong = hashlib.sha256(data).hexdigest(), "0" * 64
    async with part(tmp_path) as node:
        with pytest.raises(ChecksumMismatch, match="nothing was fetched"):
            await node.pull("hf:org/tiny", sha256=wrong)
        url = f"{net.files_url}/org/tiny/resolve/main/m.gguf"
        with pytest.raises(ChecksumMismatch):
            await node.pull(url, sha256=wrong)
        await node.pull(url, sha256=right)
        assert whole(node, "m") == {"m.gguf": data}


async def test_the_token_goes_to_the_hub_and_to_nobody_else(
    net: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net.add("org/closed", {"m.gguf": gguf(1000)}, gated=True)
    async with part(tmp_path) as node:
        with pytest.raises(PullFailed, match=r"accept its conditions.*set HF_TOKEN"):
            await node.pull("hf:org/closed")
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        await node.pull("hf:org/closed")
    told = {who for who, _, headers in net.seen if headers.get("authorization") == "Bearer hf_secret"}
    assert told == {"hub"}
    assert "hf_secret" not in str([headers for who, _, headers in net.seen if who == "files"])


async def test_two_who_want_the_same_share_the_work(net: Hub, tmp_path: Path) -> None:
    data = gguf(20 * MIB)
    net.add("org/tiny", {"m.gguf": data})
    async with part(tmp_path) as node:
        both = await asyncio.gather(node.pull("hf:org/tiny"), node.pull("hf:org/tiny"))
        assert [events[-1].state for events in both] == ["done", "done"]
    assert net.sent == len(data)


async def test_what_was_broken_off_goes_on_where_it_was(net: Hub, tmp_path: Path) -> None:
    data = gguf(60 * MIB)
    net.add("org/tiny", {"m.gguf": data})
    net.faults.hold, net.faults.hold_after = threading.Event(), 40 * MIB
    async with part(tmp_path) as node:
        pulling = asyncio.create_task(node.pull("hf:org/tiny"))
        assert await asyncio.to_thread(net.holding.wait, 20)
        net.faults.cut_after, net.faults.cuts = 0, 1000
        closing = asyncio.create_task(node.pulls.stop())
        net.faults.hold.set()
        await closing
        with pytest.raises(OutbidError, match="pull again"):
            await pulling
    net.faults.hold, net.faults.cuts, before = None, 0, net.sent
    async with part(tmp_path) as node:
        await node.pull("hf:org/tiny")
        assert whole(node, "tiny") == {"m.gguf": data}
    assert net.sent - before < 30 * MIB


async def test_a_cancelled_pull_leaves_nothing(net: Hub, tmp_path: Path) -> None:
    net.add("org/tiny", {"m.gguf": gguf(20 * MIB)})
    net.faults.hold, net.faults.hold_after = threading.Event(), 5 * MIB
    async with part(tmp_path) as node:
        pulling = asyncio.create_task(node.pull("hf:org/tiny"))
        assert await asyncio.to_thread(net.holding.wait, 20)
        threading.Timer(0.2, net.faults.hold.set).start()
        await node.pulls.cancel(PullRequest(source="hf:org/tiny"))
        with pytest.raises(OutbidError, match="cancelled"):
            await pulling
        assert not list((node.store.folder / ".pulling").iterdir())
        with pytest.raises(InvalidRequest, match="not being pulled"):
            await node.pulls.cancel(PullRequest(source="hf:org/tiny"))


async def test_a_folder_without_its_manifest_is_no_model(net: Hub, tmp_path: Path) -> None:
    net.add("org/tiny", {"m.gguf": gguf(MIB)})
    async with part(tmp_path) as node:
        await node.pull("hf:org/tiny")
        kept = node.store.find("tiny")
        assert kept is not None
        (kept.folder / "m.gguf").write_bytes(b"GGUF")
        assert node.store.kept() == []
        (kept.folder / MANIFEST_FILE).unlink()
        assert node.store.find("tiny") is None


async def test_a_name_that_is_taken_is_refused_before_anything_comes(net: Hub, tmp_path: Path) -> None:
    net.add("org/one", {"m.gguf": gguf(MIB)})
    net.add("org/two", {"m.gguf": gguf(MIB)})
    async with part(tmp_path) as node:
        await node.pull("hf:org/one", name="mine")
        with pytest.raises(InvalidRequest, match="has a model mine already"):
            await node.pull("hf:org/two", name="mine")


async def test_a_local_folder_is_linked_not_copied(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "P", "unet": ["d", "U"]}))
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(safetensors(1000))
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    async with part(tmp_path / "node") as node:
        events = await node.pull(f"file:{folder}")
        assert (events[-1].kind, events[-1].name) == ("diffusers", "mine")
        assert whole(node, "mine").keys() == {"model_index.json", "unet/diffusion_pytorch_model.safetensors"}
        kept = node.store.folder / "mine" / "unet" / "diffusion_pytorch_model.safetensors"
        assert kept.samefile(folder / "unet" / "diffusion_pytorch_model.safetensors")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("needs root to mount a small tmpfs")
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160m", "tmpfs", str(place)], check=True)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


async def test_a_disk_without_room_is_seen_before_anything_comes(net: Hub, small_disk: Path) -> None:
    net.add("org/large", {"m.gguf": gguf(50 * MIB)})
    async with part(small_disk) as node:
        with pytest.raises(NoSpace, match=r"needs 50 MiB more .* but only 1[56]. MiB are"):
            await node.pull("hf:org/large")
    assert not net.asked("files")


async def test_a_disk_that_fills_up_meanwhile_costs_nothing_that_came(net: Hub, small_disk: Path) -> None:
    data = gguf(24 * MIB)
    net.add("org/tiny", {"m.gguf": data})
    net.faults.hold, net.faults.hold_after = threading.Event(), 8 * MIB
    async with part(small_disk) as node:
        pulling = asyncio.create_task(node.pull("hf:org/tiny"))
        assert await asyncio.to_thread(net.holding.wait, 20)
        filler = small_disk / "filler"
        subprocess.run(["dd", "if=/dev/zero", f"of={filler}", "bs=1M"], capture_output=True, check=False)
        net.faults.hold.set()
        with pytest.raises(NoSpace, match="kept for the next try"):
            await pulling
        filler.unlink()
        await node.pull("hf:org/tiny")
        assert whole(node, "tiny") == {"m.gguf": data}


async def test_the_events_say_how_far_it_is(net: Hub, tmp_path: Path) -> None:
    net.add("org/tiny", {"m.gguf": gguf(20 * MIB)})
    net.faults.hold, net.faults.hold_after = threading.Event(), 12 * MIB
    seen: list[PullEvent] = []
    async with part(tmp_path) as node:
        async for event in node.pulls.pull(PullRequest(source="hf:org/tiny")).events():
            seen.append(event)
            if event.state == "downloading" and event.done > 0:
                assert 0 < node.pulls.held()[0].percent < 100  # type: ignore[operator]
                net.faults.hold.set()
    middle = [event for event in seen if event.state == "downloading" and event.done]
    assert middle
    assert all(0 < event.done <= event.size and event.sources == ("internet",) for event in middle)
    assert http.hub_url() == net.url
