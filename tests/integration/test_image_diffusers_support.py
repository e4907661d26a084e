"""What the tests of the diffusers engine share: a canvas that remembers, and tiny random pipelines of several kinds."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import outbid_capabilities.image as image_package
from outbid_capabilities.image.diffusers_engine import DiffusersEngine
from outbid_capabilities.image.engine import Engine, EngineOptions, Facts, Request
from outbid_capabilities.image.hub import Call

EMOJI = Path(image_package.__file__).parent / "emoji"

WAIT_S = 110.0

Pixels = Any


class Board:
    """A canvas that keeps all it is told. `at`: called with each step, in the engine's thread."""

    preview_due = True
    save_wanted = False

    def __init__(self, at: Callable[[Board, int], None] | None = None, **request: Any) -> None:
        fields: dict[str, Any] = {"kind": "generate", "prompt": "red apple", "preview_every": 0}
        self.request = Request(**fields | request)
        self.cancelled = False
        self.over = threading.Event()
        self.steps: list[tuple[int, int, float | None]] = []
        self.previews: list[tuple[int, Sequence[Pixels]]] = []
        self.saves: list[tuple[int, bytes]] = []
        self.pictures: Sequence[Pixels] = ()
        self.facts = Facts(steps=0, width=0, height=0, guidance=0, scheduler="", device="", dtype="")
        self.measured: Mapping[str, tuple[float, float]] = {}
        self.error: BaseException | None = None
        self.ends: list[str] = []
        self._at = at

    @property
    def checkpoint_due(self) -> bool:
        return False

    def stepped(self, step: int, steps: int, eta_s: float | None) -> None:
        self.steps.append((step, steps, eta_s))
        if self._at is not None:
            self._at(self, step)

    def preview(self, step: int, steps: int, pictures: Sequence[Pixels]) -> None:
        self.previews.append((step, pictures))

    def saved(self, step: int, steps: int, checkpoint: bytes) -> None:
        self.saves.append((step, checkpoint))

    def done(self, pictures: Sequence[Pixels], facts: Facts, measured: Mapping[str, tuple[float, float]]) -> None:
        self.pictures, self.facts, self.measured = pictures, facts, measured
        self._end("done")

    def failed(self, error: BaseException) -> None:
        self.error = error
        self._end("failed")

    def stopped(self) -> None:
        self._end("stopped")

    def _end(self, how: str) -> None:
        self.ends.append(how)
        self.over.set()


def draw(engine: Engine, *boards: Board) -> list[Board]:
    """All of them together; raises the first error."""
    for board in boards:
        engine.submit(board)
    for board in boards:
        assert board.over.wait(WAIT_S), "the engine says nothing"
        if board.error is not None:
            raise board.error
    return list(boards)


def one(engine: Engine, **request: Any) -> Board:
    return draw(engine, Board(**request))[0]


def apart(a: Pixels, b: Pixels) -> int:
    """The largest difference of two pictures, of 255."""
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b).max())


def tiny(kind: str, folder: Path) -> Path:
    """A random pipeline of that kind, as small as its class allows, written as a model folder."""
    import torch

    torch.manual_seed(0)
    builder: Callable[[], Any] = {"sdxl": _sdxl, "sd3": _sd3, "flux": _flux, "film": _film}[kind]
    builder().save_pretrained(folder, safe_serialization=True)
    (folder / "outbid.json").write_text(json.dumps({"width": 32, "height": 32, "steps": 6, "guidance": 3.0}))
    return folder


def load(folder: Path, **options: Any) -> DiffusersEngine:
    return DiffusersEngine(EngineOptions(path=str(folder), **{"threads": 1} | options), lambda fraction, note: None)


def batches(engine: DiffusersEngine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The list grows by the number of pictures in each forward pass."""
    seen: list[int] = []
    answer = engine.hub.answer

    def noted(batch: Sequence[Call]) -> list[Any]:
        seen.append(len(batch))
        return answer(batch)

    monkeypatch.setattr(engine.hub, "answer", noted)
    return seen


def _tokenizer() -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(EMOJI / "tokenizer")


def _clip(projection: int | None = None) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(_tokenizer()),
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=20,
        projection_dim=projection or 32,
        bos_token_id=4296,
        eos_token_id=4297,
        pad_token_id=4297,
    )
    return CLIPTextModelWithProjection(config) if projection else CLIPTextModel(config)


def _t5() -> Any:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(vocab_size=len(_tokenizer()), d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4)
    )


def _vae(channels: int) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=8,
        sample_size=32,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.06,
        scaling_factor=1.5,
    )


def _sdxl() -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

    unet = UNet2DConditionModel(
        block_out_channels=(16, 32),
        layers_per_block=1,
        sample_size=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 32,
        cross_attention_dim=64,
        norm_num_groups=8,
    )
    return StableDiffusionXLPipeline(
        vae=_vae(4),
        text_encoder=_clip(),
        text_encoder_2=_clip(32),
        tokenizer=_tokenizer(),
        tokenizer_2=_tokenizer(),
        unet=unet,
        scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear", timestep_spacing="leading"),
        add_watermarker=False,
    )


def _sd3() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=8,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=64,
        out_channels=8,
    )
    return StableDiffusion3Pipeline(
        vae=_vae(8),
        text_encoder=_clip(32),
        text_encoder_2=_clip(32),
        text_encoder_3=None,
        tokenizer=_tokenizer(),
        tokenizer_2=_tokenizer(),
        tokenizer_3=None,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def _flux() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )
    return FluxPipeline(
        vae=_vae(4),
        text_encoder=_clip(),
        text_encoder_2=_t5(),
        tokenizer=_tokenizer(),
        tokenizer_2=_tokenizer(),
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )


def _film() -> Any:
    from diffusers import DDIMScheduler, TextToVideoSDPipeline, UNet3DConditionModel

    unet = UNet3DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    return TextToVideoSDPipeline(
        vae=_vae(4), text_encoder=_clip(), tokenizer=_tokenizer(), unet=unet, scheduler=DDIMScheduler()
    )


def copy_of(model: Path, folder: Path) -> Path:
    return Path(shutil.copytree(model, folder))
