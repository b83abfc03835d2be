"""Loads a tokenizer folder with the `tokenizers` library."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as BytePairs

from sdcli.diffusion.model import Tokenizer
from sdcli.errors import ModelCorrupt
from sdcli.files.json_files import read_bounded
from sdcli.models import families

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
# Words as OpenAI's CLIP splits them (github.com/openai/CLIP, clip/simple_tokenizer.py).
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def read_tokenizer(folder: Path, *, window: int, vocab_size: int) -> Tokenizer:
    """Load the CLIP tokenizer in `folder`, for an encoder that takes `window` ids below `vocab_size`.

    Reads vocab.json and merges.txt, or tokenizer.json. A family's folder has neither, and means the vocabulary of
    OpenAI's CLIP. Special tokens split the text wherever they occur, as in transformers: SD 2.x pads with "!", so each
    "!" in its prompts is that token.

    Raises ModelCorrupt for files that are missing, invalid, or do not fit the encoder.
    """
    vocab, merges = _read_vocabulary(folder)
    settings, special = _read_settings(folder)
    absent = [token for token in special.values() if token not in vocab]
    if absent or max(vocab.values()) >= vocab_size:
        what = f"{absent[0]!r} is not in its vocabulary" if absent else f"the text encoder has only {vocab_size} ids"
        raise ModelCorrupt(f"the tokenizer in {folder} does not fit: {what}", "download the model's folder again")
    longest = settings.get("model_max_length", window)
    return Tokenizer(
        byte_pairs=_byte_pairs(folder, vocab, merges, special),
        bos_id=vocab[special["bos"]],
        eos_id=vocab[special["eos"]],
        pad_id=vocab[special["pad"]],
        max_length=window if longest > window else int(longest),
    )


def write(folder: Path, target: Path) -> None:
    """Write the CLIP tokenizer of `folder` to the new folder `target`, in files that transformers 4 and 5 read.

    Includes the special tokens, the maximum length and the lower-casing that sdcli uses. Raises ModelCorrupt like
    `read_tokenizer`, and OSError.
    """
    vocab, merges = _read_vocabulary(folder)
    settings, special = _read_settings(folder)
    named = {f"{role}_token": token for role, token in special.items()}
    longest = settings.get("model_max_length", _WINDOW)
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": longest, "do_lower_case": True, **named}
    lines = ["#version: 0.2", *map(" ".join, merges)]  # readers skip the first line
    target.mkdir()
    (target / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name, value in (("vocab", vocab), ("special_tokens_map", named), ("tokenizer_config", config)):
        (target / f"{name}.json").write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


_WINDOW = 77
_SHORTEST = 3  # the two special tokens, and one of the prompt
_USUAL = {"bos": BOS, "eos": EOS, "unk": EOS, "pad": EOS}


def _read_settings(folder: Path) -> tuple[Mapping[str, Any], dict[str, str]]:
    """Return the settings in the folder's configs, and the special tokens by role."""
    settings = {**_optional(folder / "special_tokens_map.json"), **_optional(folder / "tokenizer_config.json")}
    longest = settings.get("model_max_length", _WINDOW)
    if type(longest) not in (int, float) or not longest >= _SHORTEST:
        raise _wrong(folder, f"model_max_length is {str(longest)[:40]}, and must be a number from {_SHORTEST}")
    return settings, {role: _content(folder, role, settings) for role in _USUAL}


def _byte_pairs(
    folder: Path, vocab: dict[str, int], merges: Sequence[tuple[str, str]], special: Mapping[str, str]
) -> BytePairs:
    try:
        model = models.BPE(vocab, list(merges), unk_token=special["unk"], end_of_word_suffix="</w>")
    except Exception as error:  # the library raises no narrower exception
        raise ModelCorrupt(
            f"the merges in {folder} cannot be used: {error}", "download the model's folder again"
        ) from error
    byte_pairs = BytePairs(model)
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    byte_pairs.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True)
    byte_pairs.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    byte_pairs.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in set(special.values())]
    )
    return byte_pairs


def _read_vocabulary(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    if (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        return _checked(folder, families.read_json(folder / "vocab.json"), _read_merges(folder / "merges.txt"))
    if (folder / "tokenizer.json").exists():
        model = families.read_json(folder / "tokenizer.json").get("model")
        model = model if isinstance(model, dict) else {}
        return _checked(folder, model.get("vocab"), model.get("merges"))
    if folder.is_relative_to(families.HERE):
        merges = _read_merges(families.CLIP_MERGES)
        return _vocabulary_of(merges), merges
    raise ModelCorrupt(
        f"{folder} has neither vocab.json and merges.txt nor tokenizer.json", "download the model's folder again"
    )


def _checked(folder: Path, vocab: Any, merges: Any) -> tuple[dict[str, int], list[tuple[str, str]]]:
    try:
        pairs = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in merges]
        sound = bool(vocab) and all(type(place) is int and place >= 0 for place in vocab.values())
        if sound and all(len(pair) == 2 and all(type(half) is str for half in pair) for pair in pairs):
            return vocab, pairs
    except (AttributeError, TypeError):
        pass
    raise ModelCorrupt(f"the vocabulary in {folder} is invalid", "download the model's folder again")


def _read_merges(path: Path) -> list[tuple[str, str]]:
    try:
        lines = read_bounded(path).decode().split("\n")
    except (OSError, ValueError) as error:
        raise ModelCorrupt(f"{path} cannot be read: {error}", "download the model's folder again") from error
    pairs = (tuple(line.split(" ")) for line in lines if line and not line.startswith("#version"))
    return list(pairs)  # type: ignore[arg-type]


def _vocabulary_of(merges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Return CLIP's vocabulary: all bytes, all bytes at the end of a word, all merges, and two special tokens."""
    letters = list(byte_letters().values())
    merged = ["".join(pair) for pair in merges]
    tokens = [*letters, *(letter + "</w>" for letter in letters), *merged, BOS, EOS]
    return {token: place for place, token in enumerate(tokens)}


def byte_letters() -> dict[int, str]:
    """Return GPT-2's printable characters for the 256 bytes, in the order of CLIP's vocabulary."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + place) for place, byte in enumerate(hidden)}


def _content(folder: Path, role: str, settings: Mapping[str, Any]) -> str:
    token = settings.get(f"{role}_token", _USUAL[role])
    content = token.get("content") if isinstance(token, dict) else token
    if not isinstance(content, str) or not content:
        raise _wrong(folder, f"{role}_token is not a token")
    return content


def _wrong(folder: Path, what: str) -> ModelCorrupt:
    return ModelCorrupt(f"the tokenizer in {folder} is invalid: {what}", "download the model's folder again")


def _optional(path: Path) -> Mapping[str, Any]:
    return families.read_json(path) if path.exists() else {}
