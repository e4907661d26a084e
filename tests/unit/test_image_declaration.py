"""What the daemon learns of `image.*` without loading anything heavy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from outbid_capabilities.image import choice, models, sizing
from outbid_capabilities.image.declaration import ImageSettings, capabilities
from outbid_capabilities.image.engine import units
from outbid_contracts.capability import Machine, ModelFile
from outbid_contracts.images import AnimateParams, EditParams, ImageParams, params_of
from tests.unit.test_image_models import INDEX, pipeline

GENERATE, EDIT, ANIMATE = capabilities()
BUILT_IN = ModelFile(
    name="emoji",
    size_mib=17.0,
    info={
        "parameters": 8_600_000,
        "latent_factor": 4,
        "engine": "onnx",
        "defaults": {"width": 64, "height": 64, "steps": 8, "guidance": 4.0},
    },
)


@pytest.fixture
def both_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "lacking", lambda name: [])


def decoded(kind: type[Any], **params: Any) -> Any:
    """As it comes over the wire."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode({"prompt": "a cat"} | params), type=kind)


def test_reading_the_declaration_loads_no_engine_and_no_pictures() -> None:
    code = (
        "import sys; from outbid_capabilities.image import capabilities\n"
        "for one in capabilities(): one.missing({}); one.models({})\n"
        "bad = {'torch', 'diffusers', 'onnxruntime', 'numpy', 'PIL', 'zmq', 'msgpack'} & set(sys.modules)\n"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_child_needs_no_msgspec_and_no_contracts() -> None:
    pytest.importorskip("numpy")
    pytest.importorskip("PIL")
    code = (
        "import sys; import outbid_capabilities.image.runner;"
        "bad = {'msgspec', 'outbid_contracts', 'torch', 'onnxruntime'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_three_share_their_runner_and_their_settings() -> None:
    assert [one.name for one in capabilities()] == ["image.generate", "image.edit", "image.animate"]
    assert len({(one.runner, one.settings) for one in capabilities()}) == 1
    for one in capabilities():
        assert one.params is params_of(one.name)
        assert one.artifacts in one.result.__struct_fields__
        assert one.text_field in one.params.__struct_fields__
        assert set(one.inputs) <= set(one.params.__struct_fields__)


def test_settings_refuse_what_they_do_not_know() -> None:
    assert msgspec.convert({"slots": 2, "models": ["a"]}, ImageSettings).slots == 2
    for wrong in ({"slot": 2}, {"engine": "comfy"}, {"threads": 0}, {"dtype": "int8"}, {"device": "tpu"}):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(wrong, ImageSettings)


@pytest.mark.usefixtures("both_engines")
@pytest.mark.parametrize("engine", ["auto", "diffusers", "onnx"])
def test_the_packaged_model_draws_on_either_engine(engine: str) -> None:
    for one in capabilities():
        assert one.missing({"engine": engine}) is None
        (model,) = one.models({"engine": engine})
        assert (model.name, model.default) == ("emoji", True)
        assert model.info["engine"] == ("onnx" if engine == "onnx" else "diffusers")
        assert model.info["defaults"] == {"width": 64, "height": 64, "steps": 8, "guidance": 4.0}
        assert "unet/diffusion_pytorch_model.safetensors" in model.info["sha256"]


def test_the_packaged_model_is_all_that_the_small_engine_needs_memory_for() -> None:
    (model,) = GENERATE.models({"engine": "onnx"}) if choice.installed("onnx") else [None]
    if model is None:
        pytest.skip("onnxruntime is not installed")
    assert 100 < model.memory_mib < 250


def test_what_is_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "lacking", lambda name: list(choice.ENGINES[name]))
    for engine, extra in (("auto", "outbid[image]"), ("diffusers", "outbid[image]"), ("onnx", "outbid[image-lite]")):
        missing = GENERATE.missing({"engine": engine})
        assert missing is not None
        assert extra in missing
    assert "greenlet" in (GENERATE.missing({"engine": "diffusers"}) or "")


def test_auto_takes_the_small_engine_where_the_large_one_is_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(choice, "lacking", lambda name: ["torch"] if name == "diffusers" else [])
    (model,) = GENERATE.models({"models": [str(pipeline(tmp_path / "sd"))]})
    assert (model.name, model.info["engine"]) == ("emoji", "onnx")


@pytest.mark.usefixtures("both_engines")
def test_a_video_model_draws_no_pictures_and_the_node_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "PACKAGED", tmp_path / "gone")
    settings = {"models": [str(pipeline(tmp_path / "wan", index=INDEX | {"_class_name": "WanPipeline"}))]}
    assert [model.name for model in ANIMATE.models(settings)] == ["wan"]
    assert list(GENERATE.models(settings)) == []
    assert "none of its models can do this: wan" in (GENERATE.missing(settings) or "")
    assert "no usable model" in (GENERATE.missing({}) or "")
    assert "there is no such folder" in (GENERATE.missing({"models": ["/no/such"]}) or "")


# -- work and first guesses --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "params", "wanted"),
    [
        (ImageParams, {}, {"images": 1.0}),
        (ImageParams, {"n": 3, "steps": 10}, {"steps": 30.0}),
        (ImageParams, {"n": 2, "width": 1000, "height": 1000}, {"mpix": 2.0}),
        (ImageParams, {"width": 1000}, {"images": 1.0}),
        (ImageParams, {"n": 2, "steps": 5, "width": 1000, "height": 2000, "guidance": 0.5}, {"mpix_steps": 20.0}),
        (EditParams, {"image": b"x", "strength": 0.5, "steps": 10}, {"steps": 5.0}),
        (EditParams, {"image": b"x"}, {"images": 0.8}),
        (AnimateParams, {"frames": 24}, {"images": 24.0}),
        (AnimateParams, {"frames": 24, "steps": 2}, {"steps": 48.0}),
    ],
)
def test_work_is_counted_in_what_the_request_says(kind: Any, params: dict[str, Any], wanted: dict[str, float]) -> None:
    found = {one.params: one for one in capabilities()}[kind].work(decoded(kind, **{**params}))
    assert found == pytest.approx(wanted)


@pytest.mark.parametrize(
    "given", [{}, {"steps": 8}, {"width": 64, "height": 64}, {"steps": 8, "width": 64, "height": 64}]
)
def test_the_same_picture_is_promised_the_same_time_however_it_is_asked_for(given: dict[str, Any]) -> None:
    rates = GENERATE.prior(BUILT_IN, Machine(cpu_count=2)).rates
    ((unit, count),) = GENERATE.work(decoded(ImageParams, **given)).items()
    whole = units(8, 64, 64, 1)
    assert count * rates[unit] == pytest.approx(whole["images"] * rates["images"])
    assert set(rates) == set(whole)


def test_the_first_guess_is_of_the_right_size() -> None:
    """Measured: 0.16-0.23 s for eight steps of the built-in model on two cores; SD 1.5 some 10 s a step on two."""
    assert 0.02 < GENERATE.prior(BUILT_IN, Machine(cpu_count=2)).rates["images"] < 2.0
    sd15 = {"parameters": 1.07e9, "latent_factor": 8, "defaults": {"width": 512, "height": 512, "steps": 30}}
    slow = GENERATE.prior(ModelFile(name="sd", size_mib=2000.0, info=sd15), Machine(cpu_count=2))
    card = GENERATE.prior(ModelFile(name="sd", size_mib=2000.0, info=sd15 | {"device": "cuda"}), Machine(cpu_count=2))
    assert 5 < slow.rates["steps"] < 100
    assert 0.01 < card.rates["steps"] < 1
    assert GENERATE.prior(None, Machine()).rates["images"] > 0


def test_a_shared_processor_is_slower() -> None:
    whole, half = (GENERATE.prior(BUILT_IN, Machine(cpu_count=2, cpu_share=share)) for share in (1.0, 0.5))
    assert half.rates["images"] == pytest.approx(2 * whole.rates["images"])
    assert half.load_s == pytest.approx(2 * whole.load_s)


def test_the_estimate_of_memory_is_near_what_was_measured() -> None:
    """diffusers with SD 1.5 in half precision on a card: 2.6-3.5 GiB for a picture of 512x512."""
    info = {"parameters": 1.07e9, "dtype": "F16", "latent_factor": 8, "defaults": {"width": 512, "height": 512}}
    _, card_mib = sizing.memory({"size_mib": 2040.0, "info": info}, {"device": "cuda", "slots": 1}, "diffusers")
    assert 2600 < card_mib < 3600


# -- bad input, as the wire brings it ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [ImageParams, EditParams, AnimateParams])
@pytest.mark.parametrize(
    "wrong",
    [
        {"width": 65},
        {"height": 0},
        {"width": 8200},
        {"width": -8},
        {"steps": 0},
        {"steps": 1_000_000},
        {"steps": 2.5},
        {"guidance": float("nan")},
        {"guidance": float("inf")},
        {"guidance": -1.0},
        {"prompt": ""},
        {"prompt": " \n\t"},
        {"prompt": "x" * 100_000},
        {"negative_prompt": "x" * 100_000},
        {"prompt": 7},
        {"seed": -1},
        {"seed": 2**53},
        {"scheduler": "magic"},
        {"format": "bmp"},
        {"quality": 0},
        {"n": 1000, "frames": 100_000},
        {"strength": float("nan"), "fps": float("nan"), "n": 0},
        {"loras": [{"name": ""}]},
        {"loras": [{"name": "a", "weight": float("nan")}]},
        {"loras": [{"name": "a"}] * 9},
    ],
)
def test_bad_requests_are_refused_with_a_sentence(kind: Any, wrong: dict[str, Any]) -> None:
    given = {"image": b"x"} if kind is EditParams else {}
    with pytest.raises(msgspec.ValidationError) as failure:
        decoded(kind, **(given | wrong))
    assert 10 < len(str(failure.value)) < 300


@pytest.mark.parametrize(
    "wrong", [{}, {"image": b"x", "image_from": "a.1.1"}, {"image_from": "../x"}, {"image": b"x", "mask_from": "x"}]
)
def test_an_edit_needs_one_picture(wrong: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError, match=r"image|mask"):
        decoded(EditParams, **wrong)
