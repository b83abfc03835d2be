import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdcli.training.parts import read_tokenizer
from sdcli.training.tokenizer import END, START, write_tokenizer

CAPTIONS = ["an arctic fox in the snow", "a fox", "the white owl at night", "a red fox on the beach"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(path, CAPTIONS)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder):
    return read_tokenizer(folder)


def test_words_of_the_captions_are_single_tokens(tokenizer):
    ids = tokenizer("Arctic  FOX").input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == [START, "arctic</w>", "fox</w>", END]


def test_a_prompt_is_padded_to_77_with_the_end_token(tokenizer):
    ids = tokenizer("a fox", padding="max_length").input_ids
    assert len(ids) == 77
    assert ids[4:] == [tokenizer.eos_token_id] * 73
    assert tokenizer.pad_token_id == tokenizer.eos_token_id


@given(text=st.text(max_size=60))
def test_any_text_can_be_tokenized_and_decoded(tokenizer, text):
    ids = tokenizer(text).input_ids
    assert tokenizer.eos_token_id not in ids[1:-1]  # which also stands for what is unknown
    if text.isascii() and text.isprintable():
        decoded = tokenizer.decode(ids, skip_special_tokens=True)
        assert "".join(decoded.split()) == "".join(text.lower().split())


def test_the_files_are_readable_by_older_versions(folder):
    vocab = json.loads((folder / "vocab.json").read_text())
    merges = (folder / "merges.txt").read_text().splitlines()
    assert sorted(vocab.values()) == list(range(len(vocab)))
    assert merges[0].startswith("#version")
    for merge in merges[1:]:
        left, right = merge.split(" ")
        assert {left, right, left + right} <= set(vocab)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings["model_max_length"] == 77
    assert json.loads((folder / "special_tokens_map.json").read_text())["bos_token"] == START


def test_the_same_captions_give_the_same_files(folder, tmp_path):
    write_tokenizer(tmp_path, CAPTIONS)
    for file in folder.iterdir():
        assert file.read_bytes() == (tmp_path / file.name).read_bytes()
