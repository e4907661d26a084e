"""A mesh that nobody has: any number of machines and jobs, always the same ones, for what is looked at rather than
asked. What it says comes through the same feed as that of a real mesh.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Sequence
from random import Random
from types import TracebackType
from typing import Any

from outbid import LiveEvent, Mesh
from outbid.connection import Connection
from outbid_contracts.admin import Sleeper
from outbid_contracts.errors import NodeUnreachable
from outbid_contracts.ids import JobId, NodeId
from outbid_contracts.live import LogLevel, LogLine
from outbid_contracts.messages import AttemptRecord, Gpu, JobRecord, JobState, Offer, Presence, Resources
from outbid_contracts.policy import Policy
from outbid_contracts.requests import JobsReply, ModelList, ModelView, NodeList, NodeView

NOON_MS = 1_795_348_800_000
"""When it is there: 22 November 2026, 12:00 UTC."""

NAMES = ("gaming-pc", "laptop", "nas", "pi", "studio", "workstation")


def presence(number: int, seq: int = 1) -> Presence:
    """A machine of one of six kinds, at one second of its life."""
    kind = number % len(NAMES)
    name = NAMES[kind] if number < len(NAMES) else f"{NAMES[kind]}-{number // len(NAMES) + 1}"
    wave = 0.5 + 0.5 * math.sin(seq / 7 + number)
    running = (2, 1, 0, 0, 1, 3)[kind]
    return Presence(
        node=NodeId(f"n{number:07}"),
        name=name,
        version="0.1.0",
        boot="b",
        seq=seq,
        state="draining" if kind == 4 else "up",
        host=f"{name}.local",
        zone="here" if number == 0 else "lan",
        always_on=kind in (2, 3),
        keeps_artifacts=kind == 2,
        offers=_offers(kind, running),
        in_use="someone is at the keyboard (12 s ago): one slot is kept free" if kind == 1 else "",
        trouble=("the ledger's disk has 212 MiB left; free some",) if kind == 2 else (),
        resources=_resources(kind, wave),
        running=running,
        waiting=(1, 0, 0, 0, 0, 2)[kind],
    )


def _resources(kind: int, wave: float) -> Resources:
    gpus: Sequence[Gpu] = ()
    if kind in (0, 5):
        gpus = (
            Gpu(
                name="NVIDIA GeForce RTX 4090",
                vendor="nvidia",
                memory_mib=24_564,
                memory_free_mib=6_300 + int(2000 * wave),
                busy_percent=100 * (0.6 + 0.4 * wave),
                temperature_c=66 + 10 * wave,
                power_w=240 + 120 * wave,
            ),
        )
    elif kind == 4:
        gpus = (Gpu(name="Apple M3 Max", vendor="apple", unified=True, memory_mib=65_536, busy_percent=80 * wave),)
    return Resources(
        cpu_count=(24, 8, 4, 4, 16, 64)[kind],
        cpu_percent=100 * (0.15 + 0.3 * wave) * (1.8 if kind == 3 else 1),
        memory_mib=(65_536, 16_384, 8_192, 8_192, 65_536, 262_144)[kind],
        memory_free_mib=(41_000, 5_000, 900, 6_100, 30_000, 190_000)[kind],
        storage_mib=(1_900_000, 500_000, 16_000_000, 60_000, 1_000_000, 4_000_000)[kind],
        storage_free_mib=(812_000, 91_000, 212, 31_000, 430_000, 2_100_000)[kind],
        gpu=gpus[0].name if gpus else None,
        gpus=tuple(gpus),
        battery_percent=71 - 5 * wave if kind == 1 else None,
        on_battery=True if kind == 1 else None,
        battery_left_s=9_400 if kind == 1 else None,
        temperatures_c={"coretemp": 51 + 12 * wave, "nvme": 44.0} if kind != 3 else {"cpu_thermal": 61 + 9 * wave},
        power_w=(190 + 210 * wave, 14 + 9 * wave, 21 + 2 * wave, 5 + 2 * wave, 48.0, 310 + 340 * wave)[kind],
        power_source="nvml and rapl" if kind in (0, 5) else "battery" if kind == 1 else "declared",
    )


def _offers(kind: int, running: int) -> tuple[Offer, ...]:
    models = (
        ("qwen3-8b", "sdxl-turbo"),
        ("smollm2-135m",),
        (),
        ("smollm2-135m",),
        ("gemma3-27b", "whisper-tiny"),
        ("qwen3-32b", "flux-dev", "minilm"),
    )[kind]
    words = {"sdxl": "image.generate", "flux": "image.generate", "whis": "audio.transcribe", "mini": "text.embed"}
    return tuple(
        Offer(
            capability=words.get(model[:4], "llm.chat"),
            model=model,
            warm=at == 0 or kind == 5,
            pinned=at == 0 and kind == 5,
            slots=4 if at == 0 else 1,
            free=max(0, 4 - running) if at == 0 else 1,
            load_s=6.5,
            fixed_s=0.1,
            rates={"tokens": 0.012},
            size_mib=5_000.0,
            rests_on=f"{140 * (kind + 1)} jobs of the last 30 days",
        )
        for at, model in enumerate(models)
    )


def job(number: int, machines: int) -> JobRecord:
    random = Random(number)
    ended: tuple[JobState, ...] = ("done",) * 12 + ("failed", "cancelled")
    state: JobState = "waiting" if number < 4 else "running" if number < 10 else random.choice(ended)
    node = None if state == "waiting" else NodeId(f"n{random.randrange(machines):07}")
    created_ms = NOON_MS - 1000 * (number * 7 + 3)
    took_s = random.uniform(0.3, 40)
    capability, model = random.choice(
        (("llm.chat", "qwen3-8b"), ("llm.chat", "smollm2-135m"), ("image.generate", "sdxl-turbo"), ("text.embed", None))
    )
    attempt = () if node is None else (AttemptRecord(attempt=1, node=node, started_ms=created_ms + 20),)
    return JobRecord(
        id=JobId(f"01k{number:07}"),
        owner=NodeId(f"n{random.randrange(machines):07}"),
        capability=capability,
        model=model,
        policy=Policy(),
        state=state,
        created_ms=created_ms,
        ended_ms=None if state in ("waiting", "running") else created_ms + int(1000 * took_s),
        node=node,
        attempts=attempt,
        promised_s=took_s * random.uniform(0.8, 1.3),
        took_s=None if state in ("waiting", "running") else took_s,
        durable=number % 3 == 0,
        submitter=random.choice(("ada", "ben", "cleo")),
        reason="every able node is busy" if state == "waiting" else "",
    )


LOG_TEXTS: tuple[tuple[LogLevel, str, str], ...] = (
    ("info", "job_awarded", "won the auction of 01k0000007 for llm.chat: 1.2 s, 41 J"),
    ("info", "job_settled", "done in 1.31 s (promised 1.20 s)"),
    ("debug", "presence_sent", "seq 4821"),
    ("warning", "runner_slow", "the first token took 2.4 s; the model was read from a cold disk"),
    ("info", "model_loaded", "qwen3-8b is in memory after 6.4 s, 5.1 GiB"),
    (
        "error",
        "attempt_lost",
        "studio did not answer for 3 s: its attempt of 01k0000003 is void, the job goes on elsewhere",
    ),
)


def log_line(number: int, machines: int = 6) -> LogLine:
    level, action, text = LOG_TEXTS[number % len(LOG_TEXTS)]
    about = presence(number * 5 % machines)
    return LogLine(
        node=about.node, name=about.name, time_ms=NOON_MS + 730 * number, level=level, action=action, text=text
    )


class Nowhere(Connection):
    """Nobody takes orders there."""

    async def request(self, subject: str, message: Any, type: Any, *, timeout_s: float | None) -> Any:
        raise NodeUnreachable("this machine is imagined; it takes no orders")


class ImaginedMesh(Mesh):
    """`seconds` of heartbeats, lines and jobs at once; then, if `alive`, a heartbeat of each machine every second."""

    def __init__(
        self, machines: int = 6, jobs: int = 40, logs: int = 60, seconds: int = 60, alive: bool = False
    ) -> None:
        super().__init__("nats://imagined:4222")
        self.machines = machines
        self.records = [job(number, machines) for number in range(jobs)]
        self.logs = logs
        self.seconds = seconds
        self.alive = alive
        self.told = asyncio.Event()
        """All that happened at once was read."""

    async def __aenter__(self) -> ImaginedMesh:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass

    async def connected(self) -> Connection:
        return Nowhere("nats://imagined:4222")

    async def node_list(self) -> NodeList:
        await self.told.wait()
        views = [
            NodeView(presence=presence(number, self.seconds), rtt_ms=0.4 + number / 3, here=number == 0)
            for number in range(self.machines)
        ]
        away = (Sleeper(node=NodeId("n9999999"), name="old-tower", last_seen_ms=NOON_MS - 11_000_000, wakeable=True),)
        return NodeList(nodes=tuple(views), away=away)

    async def jobs(self, *, limit: int = 50, state: JobState | None = None) -> JobsReply:
        return JobsReply(jobs=tuple(self.records[:limit]))

    async def job(self, id: str) -> JobRecord:
        return next(record for record in self.records if record.id == id)

    async def model_list(self) -> ModelList:
        views = [
            ModelView(
                model=offer.model or "",
                capability=offer.capability,
                node=one.node,
                name=one.name,
                warm=offer.warm,
                default=at == 0,
                slots=offer.slots,
                free=offer.free,
                size_mib=offer.size_mib,
                pinned=offer.pinned,
            )
            for one in map(presence, range(self.machines))
            for at, offer in enumerate(one.offers)
        ]
        return ModelList(models=tuple(views))

    async def live(self, **asked: Any) -> AsyncGenerator[LiveEvent, None]:
        for seq in range(self.seconds):
            for number in range(self.machines):
                yield presence(number, seq)
        for number in range(self.logs):
            yield log_line(number, self.machines)
        self.told.set()
        seq = self.seconds
        while True:
            await asyncio.sleep(1)
            seq += 1
            for number in range(self.machines if self.alive else 0):
                yield presence(number, seq)
