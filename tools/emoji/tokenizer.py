"""A small CLIP tokenizer: byte-level BPE over the captions, so any text can be encoded, unknown words in pieces."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data import Emoji

VOCABULARY = 4096
LENGTH = 20
"""Tokens of a prompt, with the two that begin and end it."""

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
PHRASES = (
    "an emoji of a",
    "a picture of an",
    "a photo of the",
    "icon of",
    "small",
    "cute",
    "drawing",
    "white background",
)
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def train(emoji: Sequence[Emoji], folder: Path) -> Any:
    """A transformers CLIPTokenizer, saved in `folder` too."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    bpe = Tokenizer(models.BPE(unk_token=END, end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=2,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        special_tokens=[],
        show_progress=False,
    )
    bpe.train_from_iterator(_texts(emoji), trainer)
    folder.mkdir(parents=True, exist_ok=True)
    _write(bpe, alphabet, folder)
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def _texts(emoji: Sequence[Emoji]) -> Iterator[str]:
    """Names weigh more than tags: a name is what is asked for."""
    for one in emoji:
        yield from [one.label] * 6 + [" ".join(one.tags)] * 2
    yield from PHRASES * 20


def _write(bpe: Any, alphabet: Sequence[str], folder: Path) -> None:
    """As CLIP's files: every sign also as the end of a word, then the two special tokens."""
    vocabulary = dict(sorted(bpe.get_vocab().items(), key=lambda item: item[1]))
    for token in [sign + "</w>" for sign in alphabet] + [BEGIN, END]:
        vocabulary.setdefault(token, len(vocabulary))
    merges = json.loads(bpe.to_str())["model"]["merges"]
    lines = [" ".join(pair) if isinstance(pair, list) else pair for pair in merges]
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), "utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(lines) + "\n", "utf-8")
    special = {"bos_token": BEGIN, "eos_token": END, "unk_token": END, "pad_token": END}
    config = special | {"tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
