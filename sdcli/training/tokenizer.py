"""Trains a tokenizer on captions: byte-level BPE, in the files of CLIPTokenizer.

Each byte is a token, within a word and at its end, so that any text can be tokenized.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

START, END = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"
MAX_LENGTH = 77
WORDS = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""  # CLIP's pre-tokenizer


def byte_tokens() -> list[str]:
    """Return a token for each byte within a word, and one for each byte at the end of a word."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return [*alphabet, *(byte + END_OF_WORD for byte in alphabet)]


def learn_merges(captions: Iterable[str], vocab_size: int) -> list[tuple[str, str]]:
    """Return the BPE merges for these captions, the most frequent first."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix=END_OF_WORD))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        end_of_word_suffix=END_OF_WORD,
        show_progress=False,
        special_tokens=byte_tokens(),  # their fixed order decides ties, which are random otherwise
    )
    tokenizer.train_from_iterator(captions, trainer)
    merges: list[tuple[str, str]] = [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    return merges


def write_tokenizer(folder: Path, captions: Iterable[str], vocab_size: int = 1024) -> None:
    """Train a tokenizer on captions and write its files.

    They are vocab.json, merges.txt, tokenizer_config.json and special_tokens_map.json.
    """
    merges = learn_merges(captions, vocab_size)
    tokens = [*byte_tokens(), *("".join(pair) for pair in merges)]
    vocab = {token: index for index, token in enumerate([*dict.fromkeys(tokens), START, END])}
    special = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": MAX_LENGTH,
        "do_lower_case": True,
        "add_prefix_space": False,
        **special,
    }
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name, content in (
        ("vocab.json", vocab),
        ("tokenizer_config.json", settings),
        ("special_tokens_map.json", special),
    ):
        text = json.dumps(content, ensure_ascii=False, indent=None if name == "vocab.json" else 2)
        (folder / name).write_text(text + "\n", encoding="utf-8")
