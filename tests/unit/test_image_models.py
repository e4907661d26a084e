"""Which folders are image models, and which are refused without loading anything of them."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from outbid_capabilities.image import choice, models, weights
from outbid_capabilities.image.models import find_loras, find_models

UNET = {"sample_size": 64, "_class_name": "UNet2DConditionModel"}
VAE = {"block_out_channels": [128, 256, 512, 512], "_class_name": "AutoencoderKL"}
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.35.0",
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "safety_checker": [None, None],
    "requires_safety_checker": False,
}
SHAPES: dict[str, Sequence[int]] = {"a.weight": (16, 8), "a.bias": (16,)}


@pytest.fixture(autouse=True)
def nothing_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine with both engines, without the packaged model and with an empty cache."""
    monkeypatch.setattr(models, "PACKAGED", tmp_path / "no such folder")
    monkeypatch.setattr(choice, "lacking", lambda name: [])
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


def tensors(shapes: Mapping[str, Sequence[int]] = SHAPES, dtype: str = "F16", **entries: Any) -> bytes:
    """A safetensors file. `entries` are put into the header as they are."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * weights.NUMBER_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header | entries).encode()
    return struct.pack("<Q", len(text)) + text + bytes(end)


def pipeline(folder: Path, files: Mapping[str, Any] = MappingProxyType({}), index: Mapping[str, Any] = INDEX) -> Path:
    """A folder as diffusers writes it. `files` (bytes or text) replace what is there; empty text leaves one out."""
    found: dict[str, bytes | str] = {
        "model_index.json": json.dumps(index),
        "unet/config.json": json.dumps(UNET),
        "unet/diffusion_pytorch_model.safetensors": tensors(),
        "vae/config.json": json.dumps(VAE),
        "vae/diffusion_pytorch_model.safetensors": tensors(),
        "text_encoder/model.safetensors": tensors(),
        "tokenizer/vocab.json": "{}",
        "scheduler/scheduler_config.json": "{}",
    }
    for name, content in (found | dict(files)).items():
        if content != "":
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def one(*paths: Path | str, **settings: Any) -> dict[str, Any]:
    usable, broken = find_models({"models": [str(path) for path in paths]} | settings)
    assert not broken
    (model,) = usable
    return model


def refusal(path: Path | str) -> str:
    usable, broken = find_models({"models": [str(path)]})
    assert not usable
    (reason,) = broken.values()
    return reason


# -- what is a model ---------------------------------------------------------------------------------------------------


def test_a_pipeline_folder_tells_what_it_is(tmp_path: Path) -> None:
    card = "---\nlicense: creativeml-openrail-m\ntags:\n- art\n---\n# A model\nlicense: none\n"
    model = one(pipeline(tmp_path / "My-Model", {"README.md": card}))
    info = model["info"]
    assert (model["name"], model["default"]) == ("my-model", True)
    assert model["size_mib"] == pytest.approx(3 * len(tensors()) / 2**20)
    assert info["pipeline"] == "StableDiffusionPipeline"
    assert info["kinds"] == ["generate", "edit", "animate"]
    assert info["defaults"] == {"width": 512, "height": 512, "steps": 30, "guidance": 5.0}
    assert (info["licence"], info["dtype"], info["parameters"]) == ("creativeml-openrail-m", "F16", 3 * 144)
    assert info["engine"] == "diffusers"


def test_its_own_file_has_the_last_word_on_defaults(tmp_path: Path) -> None:
    ours = {
        "name": "Tiny",
        "width": 64,
        "height": 96,
        "steps": 4,
        "guidance": 0.0,
        "kinds": ["generate"],
        "licence": "MIT",
    }
    model = one(pipeline(tmp_path / "x", {"outbid.json": json.dumps(ours)}))
    assert model["name"] == "tiny"
    assert model["info"]["defaults"] == {"width": 64, "height": 96, "steps": 4, "guidance": 0.0}
    assert (model["info"]["kinds"], model["info"]["licence"]) == (["generate"], "MIT")


@pytest.mark.parametrize(
    "ours",
    [
        '{"steps": "many"}',
        '{"width": 0}',
        "[]",
        "{",
        '{"guidance": [1]}',
        '{"guidance": NaN}',
        '{"sha256": ["a"]}',
        '{"steps": 1e999}',
    ],
)
def test_a_file_of_defaults_that_makes_no_sense_costs_that_model_only(tmp_path: Path, ours: str) -> None:
    pipeline(tmp_path / "bad", {"outbid.json": ours})
    pipeline(tmp_path / "good")
    usable, broken = find_models({"models": [str(tmp_path)]})
    assert [model["name"] for model in usable] == ["good"]
    assert list(broken) == [str(tmp_path / "bad")]


@pytest.mark.parametrize(
    ("kind", "kinds"),
    [
        ("FluxPipeline", ["generate", "edit", "animate"]),
        ("PixArtSigmaPipeline", ["generate", "animate"]),
        ("WanPipeline", ["animate"]),
        ("TextToVideoSDPipeline", ["animate"]),
        ("StableDiffusionXLImg2ImgPipeline", ["edit"]),
    ],
)
def test_what_it_can_do_follows_from_its_class(tmp_path: Path, kind: str, kinds: list[str]) -> None:
    assert one(pipeline(tmp_path / "m", index=INDEX | {"_class_name": kind}))["info"]["kinds"] == kinds


def test_a_distilled_model_takes_few_steps_without_guidance(tmp_path: Path) -> None:
    defaults = one(pipeline(tmp_path / "sd-turbo"))["info"]["defaults"]
    assert (defaults["steps"], defaults["guidance"]) == (4, 0.0)


def test_a_cached_repository_has_the_name_of_its_hub_id(tmp_path: Path) -> None:
    cached = tmp_path / "hub" / "models--stabilityai--sd-turbo"
    for revision in ("aaa", "bbb", "ccc"):
        pipeline(cached / "snapshots" / revision)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("bbb")
    by_id, by_folder, by_cache = one("stabilityai/sd-turbo"), one(cached), one(tmp_path / "hub")
    assert by_id["path"] == by_folder["path"] == by_cache["path"] == str(cached / "snapshots" / "bbb")
    assert by_id["name"] == "sd-turbo"


def test_a_cached_repository_may_be_of_links(tmp_path: Path) -> None:
    blob = tmp_path / "hub" / "models--a--b" / "blobs" / "1234"
    blob.parent.mkdir(parents=True)
    blob.write_bytes(tensors())
    snapshot = pipeline(tmp_path / "hub" / "models--a--b" / "snapshots" / "r")
    weight = snapshot / "unet" / "diffusion_pytorch_model.safetensors"
    weight.unlink()
    weight.symlink_to(os.path.relpath(blob, weight.parent))
    assert one("a/b")["size_mib"] > 0


def test_named_models_come_first_then_pulled_ones_as_they_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the default is the same after another model was pulled."""
    monkeypatch.setattr(models, "PACKAGED", pipeline(tmp_path / "packaged"))
    pulled = []
    for name in ("old", "new"):
        files = {
            "outbid-model.json": json.dumps({"name": f"{name}-pulled"}),
            "outbid.json": json.dumps({"name": "ours"}),
        }
        pulled.append(str(pipeline(tmp_path / name, files)))
    settings = {"models": [str(pipeline(tmp_path / "named"))], "pulled": (*pulled, str(tmp_path / "gone"))}
    usable, _ = find_models(settings)
    assert [model["name"] for model in usable] == ["named", "old-pulled", "new-pulled", "packaged"]
    assert [model["default"] for model in usable] == [True, False, False, False]


def test_two_models_of_one_name_keep_apart(tmp_path: Path) -> None:
    folders = [pipeline(tmp_path / where / "tiny") for where in ("a", "b")]
    usable, _ = find_models({"models": [str(folder) for folder in folders]})
    assert [model["name"] for model in usable] == ["tiny", "tiny-2"]


def test_of_two_variants_the_plain_one_counts(tmp_path: Path) -> None:
    half = {"unet/diffusion_pytorch_model.fp16.safetensors": tensors()}
    whole = {"unet/diffusion_pytorch_model.safetensors": tensors(dtype="F32")}
    both = one(pipeline(tmp_path / "both", half | whole))
    assert both["info"]["parameters"] == 3 * 144
    only = one(pipeline(tmp_path / "only", half | {"unet/diffusion_pytorch_model.safetensors": ""}))
    assert only["info"]["parameters"] == 3 * 144


def test_memory_grows_with_the_numbers_computed_with_and_with_slots(tmp_path: Path) -> None:
    big = {"unet/diffusion_pytorch_model.safetensors": tensors({"w": (4096, 1024)})}
    folder = pipeline(tmp_path / "big", big)
    half, whole = (one(folder, device="cpu", dtype=dtype, slots=1) for dtype in ("float16", "float32"))
    assert whole["memory_mib"] - half["memory_mib"] > 8.0
    assert one(folder, device="cpu", slots=8)["memory_mib"] > whole["memory_mib"]
    card = one(folder, device="cuda")
    assert card["gpu_memory_mib"] > 500
    assert one(folder, device="cpu")["gpu_memory_mib"] == 0


def test_onnx_alone_runs_only_what_ships_graphs(tmp_path: Path) -> None:
    plain = pipeline(tmp_path / "plain")
    ours = {"outbid.json": json.dumps({"name": "lite"}), "onnx/unet.onnx": b"graph"}
    lite = pipeline(tmp_path / "lite", ours)
    usable, broken = find_models({"models": [str(plain), str(lite)], "engine": "onnx"})
    assert [model["name"] for model in usable] == ["lite"]
    assert "needs the engine diffusers" in broken[str(plain)]
    assert one(lite)["info"]["engine"] == "diffusers"


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "model.ckpt", "weights.pt", "weights.pth"])
def test_a_model_in_pickles_is_refused_and_never_opened(tmp_path: Path, name: str) -> None:
    files = {"unet/diffusion_pytorch_model.safetensors": "", f"unet/{name}": b"\x80\x04cos\nsystem\n"}
    reason = refusal(pipeline(tmp_path / "m", files))
    assert f"unet/{name} is a pickle" in reason
    assert "safetensors" in reason


@pytest.mark.parametrize("name", ["model.ckpt", "model.safetensors"])
def test_a_single_file_is_refused_with_what_to_name_instead(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(tensors())
    reason = refusal(tmp_path / name)
    assert ("pickle" in reason) == name.endswith("ckpt")
    assert "folder of a diffusers pipeline" in reason


def test_a_broken_model_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken = pipeline(tmp_path / "m", {"vae/diffusion_pytorch_model.safetensors": tensors()[:-1]})
    for _ in range(3):
        find_models({"models": [str(broken)]})
    assert caplog.text.count("is left out: diffusion_pytorch_model.safetensors is truncated") == 1


def test_truncated_weights_say_how_much_is_there(tmp_path: Path) -> None:
    whole = tensors()
    for size in (len(whole) - 1, len(whole) // 2, 20, 5, 0):
        reason = refusal(pipeline(tmp_path / f"m{size}", {"vae/diffusion_pytorch_model.safetensors": whole[:size]}))
        assert "truncated" in reason
        assert f"{size} " in reason
    assert f"of {len(whole)} bytes" in refusal(
        pipeline(tmp_path / "m", {"vae/diffusion_pytorch_model.safetensors": whole[:-1]})
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (tensors() + b"\0", "1 bytes too many"),
        (struct.pack("<Q", 2**62) + b"{}", "not a safetensors file"),
        (struct.pack("<Q", 99) + b"x" * 99, "no JSON map"),
        (struct.pack("<Q", 2) + b"[]", "no JSON map"),
        (struct.pack("<Q", 100_000) + b"[" * 100_000, "no JSON map"),
        (struct.pack("<Q", 2) + b"{}", "no tensors"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n", "Git LFS"),
        (tensors(x={"dtype": "F16", "shape": [2], "data_offsets": [0, 99]}), "makes no sense"),
        (tensors(x={"dtype": "F16", "shape": [-2], "data_offsets": [4, 0]}), "makes no sense"),
        (tensors(x={"dtype": "Q9", "shape": [2], "data_offsets": [0, 4]}), "makes no sense"),
        (tensors(x=7), "makes no sense"),
        (tensors(x={"dtype": "F16", "shape": [1e999], "data_offsets": [0, 4]}), "makes no sense"),
    ],
)
def test_weights_that_are_not_what_they_claim_are_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    assert reason in refusal(pipeline(tmp_path / "m", {"unet/diffusion_pytorch_model.safetensors": content}))


def test_all_parts_of_split_weights_must_be_there(tmp_path: Path) -> None:
    parts = [f"diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    index = json.dumps({"weight_map": {"a": parts[0], "b": parts[1]}})
    files: dict[str, Any] = {f"unet/{part}": tensors() for part in parts}
    files |= {
        "unet/diffusion_pytorch_model.safetensors.index.json": index,
        "unet/diffusion_pytorch_model.safetensors": "",
    }
    folder = pipeline(tmp_path / "m", files)
    assert one(folder)["info"]["parameters"] == 4 * 144
    (folder / "unet" / parts[1]).unlink()
    assert f"parts are missing: {parts[1]}" in refusal(folder)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"_class_name": ["my_code", "MyPipeline"]}, "code of models is never run"),
        ({"_class_name": "os.system"}, "does not name a pipeline"),
        ({"_class_name": 7}, "does not name a pipeline"),
        ({"_class_name": "AudioLDMPipeline"}, "does not draw"),
        ({"_class_name": "StableDiffusionUpscalePipeline"}, "does not draw"),
        ({"unet": ["my_unet", "MyUNet"]}, "code of models is never run"),
        ({"../../secret": ["diffusers", "UNet2DModel"]}, "has a component with the name"),
        ({"transformer": ["diffusers", "FluxTransformer2DModel"]}, "its folder transformer is missing"),
    ],
)
def test_a_pipeline_that_is_not_plain_diffusers_is_refused(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    assert reason in refusal(pipeline(tmp_path / "m", {"my_unet.py": "import os"}, INDEX | change))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', "\0\1\2", "[" * 100_000])
def test_an_index_that_is_no_map_is_refused(tmp_path: Path, text: str) -> None:
    (pipeline(tmp_path / "m") / "model_index.json").write_text(text)
    assert "not a JSON map" in refusal(tmp_path / "m")


def test_weights_that_are_not_there_are_missed(tmp_path: Path) -> None:
    files = {"unet/diffusion_pytorch_model.safetensors": "", "unet/config.json": "{}"}
    assert "no weights (*.safetensors) in its folder unet" in refusal(pipeline(tmp_path / "m", files))


@pytest.mark.parametrize(
    ("named", "reason"), [("org/name", "`outbid pull hf:org/name`"), ("/no/such/folder", "no such folder")]
)
def test_what_is_not_here_says_how_to_get_it(named: str, reason: str) -> None:
    assert reason in refusal(named)


def test_an_empty_folder_says_what_is_missing(tmp_path: Path) -> None:
    assert "no diffusers pipeline in it" in refusal(tmp_path)


# -- LoRAs -------------------------------------------------------------------------------------------------------------


def test_loras_go_by_file_name_and_broken_ones_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "sketch.safetensors").write_bytes(tensors())
    (tmp_path / "torn.safetensors").write_bytes(tensors()[:-3])
    (tmp_path / "old.ckpt").write_bytes(b"pickle")
    found = find_loras({"loras": [str(tmp_path), str(tmp_path / "gone")]})
    assert found == {"sketch": str(tmp_path / "deep" / "sketch.safetensors")}
    assert "torn.safetensors is left out" in caplog.text


def test_a_pulled_lora_goes_by_the_name_it_was_given(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights.safetensors").write_bytes(tensors())
    (tmp_path / "one" / "outbid-model.json").write_text(json.dumps({"name": "sketch", "kind": "file"}))
    (tmp_path / "two" / "outbid-model.json").write_text("{")
    pulled = (str(tmp_path / "one"), str(tmp_path / "two"), str(pipeline(tmp_path / "model")))
    assert find_loras({"pulled": pulled}) == {
        "sketch": str(tmp_path / "one" / "weights.safetensors"),
        "weights": str(tmp_path / "two" / "weights.safetensors"),
    }
