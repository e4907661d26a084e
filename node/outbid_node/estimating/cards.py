"""How fast a graphics card reads its memory, by its name: what bounds the writing of a language model on it.

Figures as the makers publish them, in GB/s; of cards with several versions the slower. A card that is not listed is
judged by how much memory it has, because makers pair the two.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from outbid_contracts.messages import Gpu

GIB_S = 1e9 / 2**30

BY_NAME = {
    "b200": 8000, "h200": 4800, "h100": 2000, "h100 80gb hbm3": 3350, "a100": 1555, "l40s": 864, "l40": 864, "l4": 300,
    "a10": 600, "t4": 320, "v100": 900, "p100": 732, "a6000": 768, "a5000": 768, "a4000": 448,
    "rtx 5090": 1792, "rtx 5080": 960, "rtx 5070": 672, "rtx 5070 ti": 896, "rtx 5060": 448,
    "rtx 4090": 1008, "rtx 4080": 717, "rtx 4070": 504, "rtx 4060": 272,
    "rtx 3090": 936, "rtx 3080": 760, "rtx 3070": 448, "rtx 3060": 360,
    "rtx 2080": 448, "rtx 2080 ti": 616, "rtx 2070": 448, "rtx 2060": 336,
    "gtx 1660": 192, "gtx 1080": 320, "gtx 1080 ti": 484, "gtx 1070": 256, "gtx 1060": 192,
    "rx 7900 xtx": 960, "rx 7900": 800, "rx 7800": 624, "rx 6900": 512, "rx 6800": 512, "rx 6700": 384, "rx 6600": 224,
    "m1": 68, "m1 pro": 200, "m1 max": 400, "m1 ultra": 800, "m2": 100, "m2 pro": 200, "m2 max": 400, "m2 ultra": 800,
    "m3": 100, "m3 pro": 150, "m3 max": 300, "m3 ultra": 800, "m4": 120, "m4 pro": 273, "m4 max": 410,
}  # fmt: skip

BY_MEMORY_MIB = ((4_500, 128), (8_500, 256), (12_500, 360), (16_500, 450), (24_600, 800), (50_000, 850))
LARGEST = 1800


def bandwidth_gib_s(gpus: Sequence[Gpu]) -> float:
    """Of the card with the most memory; 0 without one."""
    gpu = max(gpus, key=lambda gpu: gpu.memory_mib or 0, default=None)
    if gpu is None:
        return 0.0
    name = f" {re.sub(r'[^a-z0-9]+', ' ', gpu.name.lower())} "
    listed = [key for key in BY_NAME if f" {key} " in name]
    if listed:
        return BY_NAME[max(listed, key=len)] * GIB_S
    memory_mib = gpu.memory_mib or 0
    return next((speed for limit, speed in BY_MEMORY_MIB if memory_mib <= limit), LARGEST) * GIB_S
