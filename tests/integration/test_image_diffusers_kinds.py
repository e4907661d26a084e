"""The diffusers engine with other kinds of pipelines than the packaged one, tiny and random."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("diffusers")
torch = pytest.importorskip("torch")

from outbid_capabilities.image.hub import names_of  # noqa: E402 - it needs torch
from outbid_capabilities.image.pipelines import choose_device, choose_dtype, variant_of  # noqa: E402
from outbid_capabilities.runner_kit import RunError  # noqa: E402
from tests.integration.test_image_diffusers_support import (  # noqa: E402
    EMOJI,
    Board,
    apart,
    batches,
    copy_of,
    draw,
    load,
    one,
    tiny,
)

pytestmark = pytest.mark.model

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize("kind", ["sd3", "flux", "film"])
def test_any_pipeline_is_batched_and_resumed_without_changing_a_picture(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(tiny(kind, tmp_path / kind))
    request: dict[str, Any] = {"kind": "animate", "frames": 4} if kind == "film" else {}
    try:
        alone = [
            one(engine, prompt=prompt, seeds=(7,), checkpoint_every=3, **request) for prompt in ("cat", "red apple")
        ]
        resumed = one(engine, prompt="cat", seeds=(7,), checkpoint=alone[0].saves[0][1], **request)
        assert resumed.facts.resumed_at == 3
        assert all(map(np.array_equal, resumed.pictures, alone[0].pictures))
        assert len(resumed.pictures) == (4 if kind == "film" else 1)
        seen = batches(engine, monkeypatch)
        together = draw(engine, *[Board(prompt=prompt, seeds=(7,), **request) for prompt in ("cat", "red apple")])
        assert set(seen[1:-1]) == {2}
        for a, b in zip(alone, together, strict=True):
            assert all(apart(x, y) <= 2 for x, y in zip(a.pictures, b.pictures, strict=True))
        if kind != "film":
            shown = one(engine, preview_every=3, seeds=(7,)).previews
            assert [picture.shape[2] for _, pictures in shown for picture in pictures] == [3]
            assert len(one(engine, kind="animate", frames=3, prompt_to="cat").pictures) == 3
            edited = one(engine, kind="edit", image=alone[0].pictures[0], strength=0.5)
            assert edited.steps[-1][1] == 3
        else:
            with pytest.raises(RunError, match=r"image\.animate"):
                one(engine)
    finally:
        engine.close()


# -- short of memory ---------------------------------------------------------------------------------------------------


def short_above(rows: int, forward: Callable[..., Any]) -> Callable[..., Any]:
    """The real model, on a machine where no more rows fit."""

    @functools.wraps(forward)
    def limited(sample: Any, *args: Any, **kwargs: Any) -> Any:
        if sample.shape[0] > rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has 1 GiB free.")
        return forward(sample, *args, **kwargs)

    return limited


def test_out_of_memory_in_mid_job_makes_smaller_batches_and_equal_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(tiny("sdxl", tmp_path / "sdxl"))
    unet = engine.model.base.unet
    plain = one(engine, seeds=(1, 2, 3))

    def shrink(board: Board, step: int) -> None:
        if step == 2:
            monkeypatch.setattr(unet, "forward", short_above(1, unet.forward))

    try:
        board = draw(engine, Board(shrink, seeds=(1, 2, 3)))[0]
        assert names_of(unet)[0] == "sample"
        assert all(apart(a, b) <= 2 for a, b in zip(plain.pictures, board.pictures, strict=True))
        assert [step for step, _, _ in board.steps] == [1, 2, 3, 4, 5, 6], "no step was taken twice"
        assert any("batches of 1 instead of 3" in note for note in board.facts.notes)
    finally:
        engine.close()


def test_larger_pictures_run_in_smaller_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load(tiny("sdxl", tmp_path / "sdxl"), memory_mib=20)
    try:
        seen = batches(engine, monkeypatch)
        one(engine, seeds=(1, 2, 3, 4))
        small = max(seen)
        seen.clear()
        one(engine, seeds=(1, 2, 3, 4), width=64, height=64)
        assert max(seen) < small
        assert engine.model.rows(4096, 4096) == 1
    finally:
        engine.close()


def test_out_of_memory_while_decoding_goes_on_from_the_last_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(tiny("sdxl", tmp_path / "sdxl"))
    vae = engine.model.base.vae
    plain = one(engine, seeds=(1,))
    decode = vae.decode

    def limited(*args: Any, **kwargs: Any) -> Any:
        if not vae.use_tiling:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory")
        return decode(*args, **kwargs)

    monkeypatch.setattr(vae, "decode", limited)
    try:
        board = one(engine, seeds=(1,))
        assert [step for step, _, _ in board.steps] == [1, 2, 3, 4, 5, 6], "no step was taken twice"
        assert np.array_equal(plain.pictures[0], board.pictures[0])
        assert any("decoded in tiles" in note for note in board.facts.notes)
    finally:
        engine.close()


def test_a_job_that_does_not_fit_at_all_says_how_much_it_needs_and_the_next_one_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(tiny("sdxl", tmp_path / "sdxl"))
    unet = engine.model.base.unet
    try:
        with monkeypatch.context() as patch:
            patch.setattr(unet, "forward", short_above(0, unet.forward))
            with pytest.raises(RunError, match="32 x 32 needs 2560 MiB more") as caught:
                one(engine)
        assert (caught.value.code, caught.value.retry) == ("out_of_memory", True)
        assert one(engine).ends == ["done"]
    finally:
        engine.close()


def test_a_job_that_fails_takes_no_other_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load(tiny("sdxl", tmp_path / "sdxl"))
    plain = one(engine, seeds=(2,))

    def burst(board: Board, step: int) -> None:
        if step == 2:
            raise ZeroDivisionError("on purpose")

    try:
        bad, good = Board(burst, seeds=(1, 5)), Board(seeds=(2,))
        engine.submit(bad)
        draw(engine, good)
        assert bad.ends == ["failed"]
        assert isinstance(bad.error, ZeroDivisionError)
        assert apart(plain.pictures[0], good.pictures[0]) <= 2
    finally:
        engine.close()


def test_closing_ends_every_job_once(tmp_path: Path) -> None:
    engine = load(tiny("sdxl", tmp_path / "sdxl"))
    boards = [Board(steps=1000) for _ in range(2)]
    began = Board(lambda board, step: None, steps=1000)
    for board in (*boards, began):
        engine.submit(board)
    engine.close()
    assert all(len(board.ends) == 1 for board in (*boards, began))


# -- models that are none ----------------------------------------------------------------------------------------------


def truncate(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def pickle(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n")


def lose_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def lose_settings(folder: Path) -> None:
    (folder / "scheduler" / "scheduler_config.json").unlink()


def misfit(folder: Path) -> None:
    config = folder / "unet" / "config.json"
    config.write_text(config.read_text().replace('"in_channels": 4', '"in_channels": 5'))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (truncate, "truncated"),
        (pickle, "is a pickle"),
        (lose_weights, "no weights"),
        (lose_settings, "scheduler"),
        (misfit, "conv_in"),
    ],
)
def test_a_folder_that_is_no_whole_model_is_refused_in_a_sentence(
    spoil: Callable[[Path], None], words: str, tmp_path: Path
) -> None:
    folder = copy_of(EMOJI, tmp_path / "model")
    spoil(folder)
    with pytest.raises(RunError, match=words) as caught:
        load(folder)
    assert caught.value.code == "runner_unavailable"


def test_a_device_or_precision_that_is_not_there_is_refused() -> None:
    with pytest.raises(RunError, match="no device 'cuda:7'"):
        choose_device("cuda:7")
    with pytest.raises(RunError, match="int4"):
        choose_dtype("int4", torch.device("cpu"), "F16")


def test_a_processor_computes_in_float32_unless_asked_for_bfloat16() -> None:
    cpu = torch.device("cpu")
    assert choose_dtype("auto", cpu, "F16") is torch.float32
    assert choose_dtype("float16", cpu, "F16") is torch.float32
    assert choose_dtype("bfloat16", cpu, "F16") is torch.bfloat16
    assert choose_dtype("auto", torch.device("mps"), "BF16") is torch.bfloat16
    assert choose_dtype("auto", torch.device("cuda"), "F32") is torch.float16


def test_a_folder_with_half_precision_files_only_is_loaded_as_that_variant(tmp_path: Path) -> None:
    folder = copy_of(EMOJI, tmp_path / "model")
    assert variant_of(folder) is None
    for path in folder.glob("*/*.safetensors"):
        path.rename(path.with_name(path.name.replace(".safetensors", ".fp16.safetensors")))
    assert variant_of(folder) == "fp16"
    load(folder).close()
