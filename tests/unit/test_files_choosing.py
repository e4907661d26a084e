"""What is taken of a repository, what a source may be called, who has what somebody asks for: pure parts of a pull."""

from __future__ import annotations

import json

import pytest

from outbid_contracts.errors import InvalidRequest
from outbid_contracts.files import PIECE_BYTES, Manifest, ManifestQuery, ModelPart
from outbid_node.files.choosing import choose
from outbid_node.files.finding import is_wanted
from outbid_node.files.pieces import Pieces, Stopped
from outbid_node.files.plan import Listed, Listing
from outbid_node.files.source import Hub, Web, parse

BASE = "unet/diffusion_pytorch_model"


def listing(*paths: str) -> Listing:
    index = json.dumps({"_class_name": "P", "unet": ["diffusers", "U"], "text": ["transformers", "T"]}).encode()
    files = [Listed(path=path, size=10) for path in ("model_index.json", *paths)]
    return Listing("hf:org/name", files, {"model_index.json": index})


def taken(*paths: str, variant: str = "") -> set[str]:
    return {it.path for it in choose(listing(*paths), variant=variant)[1]} - {"model_index.json"}


def test_of_sharded_weights_all_parts_and_their_index_come() -> None:
    shards = {f"{BASE}-0000{n}-of-00002.safetensors" for n in (1, 2)} | {f"{BASE}.safetensors.index.json"}
    half = {f"{BASE}.fp16-0000{n}-of-00002.safetensors" for n in (1, 2)} | {f"{BASE}.safetensors.index.fp16.json"}
    assert taken(*shards, *half, "text/tokenizer.json") == half | {"text/tokenizer.json"}
    assert taken(*shards, *half, variant="full") == shards


def test_a_variant_that_one_component_lacks_is_not_taken_for_the_others() -> None:
    files = (f"{BASE}.safetensors", f"{BASE}.fp16.safetensors", "text/model.safetensors")
    assert taken(*files) == {f"{BASE}.safetensors", "text/model.safetensors"}
    with pytest.raises(InvalidRequest, match="no variant fp16; it has: full"):
        taken(*files, variant="fp16")


def test_a_whole_file_is_taken_rather_than_its_parts_and_others_are_left() -> None:
    files = (f"{BASE}.safetensors", f"{BASE}-00001-of-00001.safetensors", f"{BASE}.non_ema.safetensors", f"{BASE}.onnx")
    assert taken(*files, "elsewhere/model.safetensors", "flux1.safetensors") == {f"{BASE}.safetensors"}


def test_all_parts_of_a_gguf_come_or_none() -> None:
    parts = [Listed(path=f"m-0000{n}-of-00003.gguf", size=1) for n in (1, 2, 3)]
    kind, files = choose(Listing("hf:org/name", parts))
    assert (kind, [it.path for it in files]) == ("gguf", [it.path for it in parts])
    with pytest.raises(InvalidRequest, match=r"missing: m-00002-of-00003\.gguf"):
        choose(Listing("hf:org/name", [parts[0], parts[2]]))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("hf:stabilityai/sd-turbo", "sd-turbo"),
        ("hf:org/name@v1.0:dir/Model-Q4_K_M-00001-of-00002.gguf", "model-q4_k_m"),
        ("https://host/a%20b/My%20Model.gguf?download=1", "my-model"),
        ("file:/tmp/…/Ünï.safetensors", "n"),
    ],
)
def test_a_model_is_called_as_the_last_part_of_its_source(text: str, name: str) -> None:
    source = parse(text)
    assert source.model_name == name
    assert not isinstance(source, Hub | Web) or str(source) == text


def test_a_branch_may_have_moved_on_but_a_revision_is_kept_to() -> None:
    files = (ModelPart(path="m.gguf", size=1, sha256="ab"),)
    have = Manifest(name="m", source="hf:org/name:m.gguf", kind="gguf", files=files, revision="c0ffee")
    wanted = {
        "hf:org/name:m.gguf": True,
        "hf:org/name@c0ffee:m.gguf": True,
        "hf:org/name@decade:m.gguf": False,
        "hf:org/name": False,
        "hf:org/other:m.gguf": False,
    }
    assert {source: is_wanted(have, ManifestQuery(source=source)) for source in wanted} == wanted
    assert is_wanted(have, ManifestQuery(source="https://host/m.gguf", sha256="ab"))
    assert not is_wanted(have, ManifestQuery(source="https://host/m.gguf", sha256="cd"))
    assert not is_wanted(have, ManifestQuery(source="hf:org/name:m.gguf", variant="fp16"))


def test_a_piece_is_given_to_one_source_until_that_one_gives_it_back() -> None:
    pieces = Pieces([PIECE_BYTES + 1, 0, 5])
    assert [it.length for it in pieces.all] == [PIECE_BYTES, 1, 5]
    first, second = (pieces.take(who, lambda piece: True, wait=False) for who in "ab")
    assert first is not None
    assert second is not None
    assert first.number != second.number
    pieces.give_back("a")
    again = pieces.take("b", lambda piece: True, wait=False)
    assert again == first
    assert pieces.begin_write(first)
    assert not pieces.begin_write(first)
    pieces.written(first, "b")
    assert not pieces.begin_write(first)
    assert pieces.bytes_here == first.length


def test_after_stop_nothing_is_given_out_or_written() -> None:
    pieces = Pieces([10])
    pieces.stop()
    with pytest.raises(Stopped):
        pieces.take("a", lambda piece: True)
    assert not pieces.begin_write(pieces.all[0])


def test_a_dropped_sources_pieces_are_wanted_again_but_not_those_that_were_checked() -> None:
    pieces = Pieces([4 * PIECE_BYTES])
    for piece, who in zip(pieces.all, "abab", strict=True):
        assert pieces.begin_write(piece)
        pieces.written(piece, who)
    pieces.refuse(pieces.all[1])
    assert [it.number for it in pieces.refuse_from("b", pieces.all[1])] == [3]
    assert [pieces.is_here(it) for it in pieces.all] == [True, False, True, False]
    assert pieces.bytes_here == 2 * PIECE_BYTES
