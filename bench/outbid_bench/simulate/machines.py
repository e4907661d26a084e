"""Kinds of machines: how fast they work, what they draw, what they cost.

Tokens are those of a language model of 3 billion parameters in 4-bit weights (2 GB, read once per token); pictures are
of SDXL's size (1024x1024); texts are passages of 100 words for a small embedding model.
Each number is an assumption, of the size that public benchmarks report; none was measured here:

- Generation is bound by memory bandwidth: bandwidth / 2 GB is its ceiling. Pi 5 17 GB/s, N100 38, laptop 120
  (LPDDR5x), mini PC 83 (DDR5-5200, two channels), RTX 4070 504, RTX 3060 360, M2 Max 400, H100 3350. llama.cpp reaches
  60 to 90 % of it (llama-bench tables in its discussions 4167 for Apple and 15013 for CUDA); an H100 is bound by
  launch overhead for so small a model.
- Prompts are bound by arithmetic: the same tables, 30 (Pi 5) to 15,000 tokens/s (H100).
- SDXL: seconds per step from published it/s at 1024x1024, half precision (4090 about 8, 4070 about 4, 3060 1.7, M2 Max
  0.7, H100 12); on CPUs 10 s and more.
- `crowding`: eight streams of one CPU engine gave 1.6 to 2.2 times the tokens of one (measured; docs/benchmarks.md),
  which is 0.4 to 0.6; graphics cards batch almost for free (vLLM and llama.cpp report 5x and more at 8).
- Watts at the wall, idle and working: reviews of the machines; H100 by its 700 W limit.
- Rent: 2.50 dollars an hour for an H100, billed while it works. Electricity 0.30 dollars per kWh.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from outbid_contracts.policy import Zone

CHAT, IMAGE, EMBED = "llm.chat", "image.generate", "text.embed"


@dataclass(frozen=True, slots=True)
class Engine:
    """How a machine does one kind of work. `rates`: seconds per unit of work for a job that runs alone; k jobs at once
    each run 1 + crowding * (k - 1) times as long.
    """

    rates: Mapping[str, float]
    slots: int = 1
    crowding: float = 0.0
    load_s: float = 0.0
    fixed_s: float = 0.0

    def alone_s(self, work: Mapping[str, float]) -> float:
        return self.fixed_s + sum(count * self.rates[unit] for unit, count in work.items())

    @property
    def most_at_once(self) -> float:
        """Jobs' worth of work done per second of a job alone, with the best number of jobs at once."""
        return max(k / (1 + self.crowding * (k - 1)) for k in range(1, self.slots + 1))


@dataclass(frozen=True, slots=True)
class Machine:
    """`battery_wh` of one that may be on battery; its charge counts only then."""

    kind: str
    engines: Mapping[str, Engine]
    idle_w: float
    busy_w: float
    usd_per_h: float = 0.0
    zone: Zone = "lan"
    battery_wh: float = 0.0

    @property
    def extra_w(self) -> float:
        return self.busy_w - self.idle_w


def _chat(tokens_s: float, prompt_s: float, slots: int, crowding: float, load_s: float) -> Engine:
    rates = {"prompt_tokens": 1 / prompt_s, "new_tokens": 1 / tokens_s}
    return Engine(rates, slots=slots, crowding=crowding, load_s=load_s, fixed_s=0.05)


def _image(step_s: float, load_s: float) -> Engine:
    return Engine({"steps": step_s, "images": 2 * step_s}, load_s=load_s, fixed_s=0.1)


def _embed(texts_s: float, load_s: float) -> Engine:
    return Engine({"texts": 1 / texts_s}, slots=2, crowding=0.8, load_s=load_s, fixed_s=0.005)


PI = Machine("Pi 5", {CHAT: _chat(7, 30, 2, 0.7, 20), EMBED: _embed(25, 3)}, idle_w=3, busy_w=8)
NAS = Machine("NAS (N100)", {CHAT: _chat(10, 45, 2, 0.6, 12), EMBED: _embed(60, 2)}, idle_w=20, busy_w=32)
MINI = Machine(
    "mini PC (Ryzen 7)",
    {CHAT: _chat(22, 160, 4, 0.5, 4), EMBED: _embed(250, 1), IMAGE: _image(14, 15)},
    idle_w=12,
    busy_w=60,
)
LAPTOP = Machine(
    "laptop (Ryzen AI)",
    {CHAT: _chat(30, 350, 4, 0.5, 3), EMBED: _embed(400, 1), IMAGE: _image(6, 12)},
    idle_w=8,
    busy_w=40,
    battery_wh=70,
)
MAC = Machine(
    "M2 Max",
    {CHAT: _chat(85, 900, 4, 0.3, 2), EMBED: _embed(1200, 1), IMAGE: _image(1.4, 8)},
    idle_w=10,
    busy_w=75,
)
GAMING = Machine(
    "gaming PC (RTX 4070)",
    {CHAT: _chat(130, 5000, 4, 0.12, 3), EMBED: _embed(3000, 1), IMAGE: _image(0.25, 8)},
    idle_w=70,
    busy_w=270,
)
WORKSTATION = Machine(
    "workstation (RTX 3060)",
    {CHAT: _chat(95, 2800, 4, 0.15, 4), EMBED: _embed(2000, 1), IMAGE: _image(0.6, 10)},
    idle_w=60,
    busy_w=230,
)
H100 = Machine(
    "rented H100",
    {CHAT: _chat(300, 15_000, 16, 0.04, 5), EMBED: _embed(10_000, 1), IMAGE: _image(0.085, 10)},
    idle_w=100,
    busy_w=700,
    usd_per_h=2.5,
    zone="cloud",
)

USD_PER_KWH = 0.30
