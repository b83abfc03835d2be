import json
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from sdcli.errors import ModelCorrupt
from sdcli.models import families
from sdcli.models.tokenizer import read_tokenizer
from tests import tiny

CLIP_SIZE = 49_408


@pytest.fixture(scope="module")
def clip():
    """CLIP's own vocabulary, as the families have it."""
    return read_tokenizer(families.config_folder("sd15") / "tokenizer", window=77, vocab_size=CLIP_SIZE)


@pytest.fixture
def folder(tmp_path):
    tiny.write_tokenizer(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


TINY_SIZE = len(tiny.vocabulary())


def read(folder, vocab_size=TINY_SIZE):
    return read_tokenizer(folder, window=77, vocab_size=vocab_size)


def test_clip_ids_known_from_openai(clip):
    assert clip.encode("a photo of a cat") == [320, 1125, 539, 320, 2368]
    assert (clip.bos_id, clip.eos_id, clip.pad_id, clip.max_length) == (49_406, 49_407, 49_407, 77)
    assert clip.byte_pairs.get_vocab_size() == CLIP_SIZE


@pytest.mark.parametrize(
    ("family", "pads"),
    [("sd15", [49_407]), ("sd21-v", [0]), ("sd-turbo", [0]), ("sdxl", [49_407, 0])],
)
def test_families_pad_as_they_were_trained(family, pads):
    folders = sorted(families.config_folder(family).glob("tokenizer*"))
    assert [read(folder, CLIP_SIZE).pad_id for folder in folders] == pads


texts = st.text(max_size=60) | st.lists(
    st.sampled_from(["the arctic fox", "!", "!!", "<|endoftext|>", "it's", " ", "\n", "É", "4200", "snow,", "ﬁ", "🦊"])
).map("".join)


@pytest.mark.parametrize("pad_token", ["!", tiny.EOS])
def test_ids_are_those_of_transformers(tmp_path_factory, pad_token):
    folder = tmp_path_factory.mktemp("ids") / "tokenizer"
    tiny.write_tokenizer(folder, pad_token)
    ours, theirs = read(folder), CLIPTokenizer.from_pretrained(folder)
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (
        theirs.bos_token_id,
        theirs.eos_token_id,
        theirs.pad_token_id,
    )

    @settings(deadline=None, derandomize=True)
    @given(texts)
    def same(text):
        assert ours.encode(text) == theirs(text, add_special_tokens=False).input_ids

    same()


def test_tokenizer_json_alone_serves(folder, tmp_path):
    """What transformers 5 saves has neither vocab.json nor merges.txt."""
    CLIPTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "vocab.json").exists()
    ours, original = read(tmp_path / "saved"), read(folder)
    assert ours.encode("the arctic fox in snow") == original.encode("the arctic fox in snow")
    assert (ours.pad_id, ours.max_length) == (original.pad_id, 77)


def test_special_tokens_may_be_objects(folder):
    special = {"pad_token": {"content": "!", "lstrip": False}, "eos_token": {"content": tiny.EOS}}
    tiny.write_json(folder / "special_tokens_map.json", special)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    tiny.write_json(folder / "tokenizer_config.json", {**settings, **special})
    assert read(folder).pad_id == 0


def test_the_window_is_no_longer_than_the_encoder(folder):
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    tiny.write_json(folder / "tokenizer_config.json", {**settings, "model_max_length": 10**30})
    assert read(folder).max_length == 77


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("vocab.json", "{"),
        ("vocab.json", "[]"),
        ("vocab.json", "{}"),
        ("vocab.json", '{"a": "b"}'),
        ("merges.txt", "#version: 0.2\na b c\n"),
        ("merges.txt", "#version: 0.2\nno such\n"),
        ("tokenizer_config.json", '{"pad_token": "[PAD]"}'),
        ("tokenizer_config.json", "3"),
    ],
)
def test_broken_tokenizers_are_corrupt(folder, name, content):
    (folder / name).write_text(content)
    with pytest.raises(ModelCorrupt, match="tokenizer") as caught:
        read(folder)
    assert caught.value.hint


def test_ids_beyond_the_encoder_are_corrupt(folder):
    with pytest.raises(ModelCorrupt, match="only 300 ids"):
        read(folder, vocab_size=300)


def test_an_empty_folder_is_corrupt_and_no_clip(folder):
    shutil.rmtree(folder)
    with pytest.raises(ModelCorrupt, match=r"vocab\.json"):
        read(folder)
