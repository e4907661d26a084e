"""llama.cpp through llama-cpp-python's ctypes functions: model, context, batch and samplers, without its Python layers.

Everything here that computes must be called from one thread: once a second thread has decoded, the speed halves for
good (each thread that enters OpenMP brings a pool of its own, and the pools spin against each other).
"""

from __future__ import annotations

import ctypes
import importlib
import json
import sys
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from outbid_capabilities.llm.engine import EngineOptions
from outbid_capabilities.llm.request import Sampling, invalid
from outbid_capabilities.runner_kit import RunError

L: Any = importlib.import_module("llama_cpp.llama_cpp")  # ctypes: untyped at heart

N_BATCH = 512
"""Most tokens of one step, and of one pass through the layers (n_ubatch)."""

RANDOM_SEED = 0xFFFF_FFFF
LOG_ERROR = 4

_said: deque[str] = deque(maxlen=5)


@L.llama_log_callback  # type: ignore[untyped-decorator]
def _on_log(level: int, text: bytes, user_data: Any) -> None:
    if level == LOG_ERROR:
        said = text.decode("utf-8", "replace").strip()
        _said.append(said)
        sys.stderr.write(said + "\n")


def gpu_supported() -> bool:
    return bool(L.llama_supports_gpu_offload())


class Model:
    """Weights and vocabulary. `use_extra_bufts` stays off: repacked weights crash on CPUs with AMX."""

    def __init__(self, options: EngineOptions) -> None:
        _said.clear()
        L.llama_log_set(_on_log, ctypes.c_void_p(0))
        L.llama_backend_init()
        params = L.llama_model_default_params()
        params.use_extra_bufts = False
        self.on_gpu = gpu_supported() and options.gpu_layers != 0
        params.n_gpu_layers = options.gpu_layers if self.on_gpu else 0
        self.handle = L.llama_model_load_from_file(options.path.encode(), params)
        if not self.handle:
            raise RunError(f"llama.cpp cannot load {options.path}: {'; '.join(_said) or 'no reason given'}")
        self.vocab = L.llama_model_get_vocab(self.handle)
        self.n_vocab: int = L.llama_vocab_n_tokens(self.vocab)
        self.context_trained: int = L.llama_model_n_ctx_train(self.handle)
        self._pieces: dict[int, bytes | None] = {}

    def tokenize(self, text: str) -> list[int]:
        """Tokens of a rendered prompt: special tokens are read as such, a beginning mark is not doubled."""
        data = text.encode()
        mark = self._begin_mark()
        special = bool(L.llama_vocab_get_add_bos(self.vocab)) and not (mark and data.startswith(mark))
        size = len(data) + 8
        tokens = (L.llama_token * size)()
        n = L.llama_tokenize(self.vocab, data, len(data), tokens, size, special, True)
        if n < 0:
            raise RunError(f"the prompt could not be split into tokens ({n})")
        return list(tokens[:n])

    def _begin_mark(self) -> bytes:
        token = L.llama_vocab_bos(self.vocab)
        return self.text_of(token) if token >= 0 else b""

    def text_of(self, token: int) -> bytes:
        """The text of a token, special ones included (`<|im_end|>`)."""
        return _piece(self.vocab, token, special=True)

    def piece(self, token: int) -> bytes | None:
        """The bytes a token adds to an answer; None if it is an end mark."""
        try:
            return self._pieces[token]
        except KeyError:
            end = L.llama_vocab_is_eog(self.vocab, token)
            piece = self._pieces[token] = None if end else _piece(self.vocab, token, special=False)
            return piece

    def end_tokens(self) -> list[int]:
        return [token for token in range(self.n_vocab) if L.llama_vocab_is_eog(self.vocab, token)]

    def chat_template(self) -> str | None:
        found = L.llama_model_chat_template(self.handle, None)
        return found.decode("utf-8", "replace") if found else None

    def special_texts(self) -> tuple[str, str]:
        """Texts of the begin and the end mark, for the chat template."""
        marks = (L.llama_vocab_bos(self.vocab), L.llama_vocab_eos(self.vocab))
        begin, end = (self.text_of(token).decode("utf-8", "replace") if token >= 0 else "" for token in marks)
        return begin, end

    def close(self) -> None:
        L.llama_model_free(self.handle)


def _piece(vocab: Any, token: int, *, special: bool) -> bytes:
    size = 64
    while True:
        buffer = ctypes.create_string_buffer(size)
        n = L.llama_token_to_piece(vocab, token, buffer, size, 0, special)
        if n >= 0:
            return buffer.raw[:n]
        size = -n


class Context:
    """The KV cache of all slots and the batch of the next step. `n_outputs_max` keeps the logits buffer small."""

    def __init__(self, model: Model, options: EngineOptions, *, unified: bool = False) -> None:
        params = L.llama_context_default_params()
        params.n_ctx = options.slots * options.context
        params.n_batch = params.n_ubatch = N_BATCH
        params.n_seq_max = params.n_outputs_max = options.slots
        params.n_threads = params.n_threads_batch = options.threads
        params.kv_unified = unified
        params.offload_kqv = params.op_offload = model.on_gpu
        params.no_perf = True
        self.handle = L.llama_init_from_model(model.handle, params)
        if not self.handle:
            raise RunError(f"no room for {params.n_ctx} tokens of context: {'; '.join(_said) or 'no reason given'}")
        self.memory = L.llama_get_memory(self.handle)
        self._batch = _Batch(N_BATCH)

    def clear(self) -> None:
        L.llama_memory_clear(self.memory, False)

    def keep_prefix(self, slot: int, size: int) -> int:
        """Forget all of a slot but its first `size` tokens; returns how many are left (0 where the model cannot)."""
        if L.llama_memory_seq_rm(self.memory, slot, size, -1):
            return size
        L.llama_memory_seq_rm(self.memory, slot, -1, -1)
        return 0

    def copy(self, source: int, target: int) -> None:
        """Let a slot know all that another one knows."""
        L.llama_memory_seq_rm(self.memory, target, -1, -1)
        L.llama_memory_seq_cp(self.memory, source, target, -1, -1)

    def push(self, slot: int, position: int, tokens: Sequence[int], *, output: bool) -> int:
        """Add tokens of a slot to the next step; with `output` the last one's logits are wanted. Returns its index."""
        return self._batch.push(slot, position, tokens, output)

    def decode(self) -> int:
        """Compute the step: 0 is well, 1 no room in the cache, 2 aborted, negative an error."""
        return int(L.llama_decode(self.handle, self._batch.ready()))

    def logits(self, index: int, n_vocab: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        row = L.llama_get_logits_ith(self.handle, index)
        return np.ctypeslib.as_array(row, shape=(n_vocab,))

    def close(self) -> None:
        L.llama_free(self.handle)


class _Batch:
    """llama_batch over numpy arrays: filling it costs little."""

    def __init__(self, size: int) -> None:
        self.n = 0
        self.token, self.pos, self.seq = (np.zeros(size, np.int32) for _ in range(3))
        self.output = np.zeros(size, np.int8)
        self._ones = np.ones(size, np.int32)
        entry = self.seq.ctypes.data
        self._pointers = (ctypes.POINTER(L.llama_seq_id) * size)(
            *(ctypes.cast(entry + 4 * n, ctypes.POINTER(L.llama_seq_id)) for n in range(size))
        )
        self._struct = L.llama_batch(
            0, _pointer(self.token), None, _pointer(self.pos), _pointer(self._ones), self._pointers, _int8(self.output)
        )

    def push(self, slot: int, position: int, tokens: Sequence[int], output: bool) -> int:
        begin, end = self.n, self.n + len(tokens)
        self.token[begin:end] = tokens
        self.pos[begin:end] = range(position, position + len(tokens))
        self.seq[begin:end] = slot
        self.output[begin:end] = 0
        self.output[end - 1] = output
        self.n = end
        return end - 1

    def ready(self) -> Any:
        self._struct.n_tokens, self.n = self.n, 0
        return self._struct


def _pointer(array: np.ndarray[Any, np.dtype[np.int32]]) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))


def _int8(array: np.ndarray[Any, np.dtype[np.int8]]) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_int8))


class Sampler:
    """A chain of llama.cpp samplers, and for JSON a grammar beside it.

    The grammar first only checks the token that the chain drew, which is cheap; only if it is not allowed, the whole
    vocabulary is filtered and the chain draws again (the way of llama.cpp's own server).
    """

    def __init__(self, model: Model, sampling: Sampling, grammar: str | None, seen: Sequence[int]) -> None:
        self._model = model
        self._grammar = _grammar(model, grammar) if grammar is not None else None
        self._chain = _chain(model, sampling)
        for token in seen[-sampling.repeat_last_n :] if sampling.repeat_penalty != 1.0 else ():
            L.llama_sampler_accept(self._chain, token)

    def sample(self, context: Context, index: int) -> int:
        if self._grammar is None:
            return int(L.llama_sampler_sample(self._chain, context.handle, index))
        logits = context.logits(index, self._model.n_vocab)
        token = self._draw(logits, filtered=False)
        if not self._allows(token):
            token = self._draw(logits, filtered=True)
            if not self._allows(token):  # accepting it would abort the process
                raise RunError("the grammar of `json_schema` allows no token here", retry=False)
        L.llama_sampler_accept(self._grammar, token)
        L.llama_sampler_accept(self._chain, token)
        return token

    def _draw(self, logits: np.ndarray[Any, np.dtype[np.float32]], *, filtered: bool) -> int:
        data = np.zeros(self._model.n_vocab, _TOKEN_DATA)
        data["id"], data["logit"] = _ids(self._model.n_vocab), logits
        candidates = _candidates(data)
        if filtered:
            L.llama_sampler_apply(self._grammar, ctypes.byref(candidates))
        L.llama_sampler_apply(self._chain, ctypes.byref(candidates))
        if candidates.selected < 0:
            raise RunError("no token could be drawn: the model's figures are not numbers")
        return int(candidates.data[candidates.selected].id)

    def _allows(self, token: int) -> bool:
        data = np.array([(token, 1.0, 0.0)], _TOKEN_DATA)
        candidates = _candidates(data)
        L.llama_sampler_apply(self._grammar, ctypes.byref(candidates))
        return bool(np.isfinite(data["logit"][0]))

    def close(self) -> None:
        L.llama_sampler_free(self._chain)
        if self._grammar is not None:
            L.llama_sampler_free(self._grammar)


_TOKEN_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
_all_ids: list[np.ndarray[Any, np.dtype[np.int32]]] = []


def _ids(n_vocab: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    if not _all_ids or len(_all_ids[0]) != n_vocab:
        _all_ids[:] = [np.arange(n_vocab, dtype=np.int32)]
    return _all_ids[0]


def _candidates(data: np.ndarray[Any, Any]) -> Any:
    pointer = data.ctypes.data_as(ctypes.POINTER(L.llama_token_data))
    return L.llama_token_data_array(data=pointer, size=len(data), selected=-1, sorted=False)


def _chain(model: Model, sampling: Sampling) -> Any:
    """Penalties, then the cuts, then the draw: the order of llama.cpp's server. Temperature 0 takes the likeliest."""
    params = L.llama_sampler_chain_default_params()
    params.no_perf = True
    chain = L.llama_sampler_chain_init(params)
    if sampling.repeat_penalty != 1.0:
        penalties = L.llama_sampler_init_penalties(
            model.n_vocab, sampling.repeat_last_n, sampling.repeat_penalty, 0.0, 0.0
        )
        L.llama_sampler_chain_add(chain, penalties)
    if sampling.temperature <= 0:
        L.llama_sampler_chain_add(chain, L.llama_sampler_init_greedy())
        return chain
    seed = RANDOM_SEED if sampling.seed is None else sampling.seed
    for sampler in (
        L.llama_sampler_init_top_k(sampling.top_k),
        L.llama_sampler_init_top_p(sampling.top_p, 1),
        L.llama_sampler_init_min_p(sampling.min_p, 1),
        L.llama_sampler_init_temp(sampling.temperature),
        L.llama_sampler_init_dist(seed),
    ):
        L.llama_sampler_chain_add(chain, sampler)
    return chain


def _grammar(model: Model, grammar: str) -> Any:
    sampler = L.llama_sampler_init_grammar(model.vocab, grammar.encode(), b"root")
    if not sampler:
        raise invalid(f"`json_schema` makes a grammar llama.cpp does not take: {'; '.join(_said) or 'no reason given'}")
    return sampler


def schema_grammar(schema: dict[str, Any]) -> str:
    """The GBNF grammar of a JSON Schema. Raises RunError(invalid_request)."""
    convert = importlib.import_module("llama_cpp.llama_grammar").json_schema_to_gbnf
    try:
        return str(convert(json.dumps(schema)))
    except Exception as error:
        raise invalid(f"`json_schema` is not a schema this engine knows: {error}") from error
