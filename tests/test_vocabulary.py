"""A model whose folder lists the words it knows: prompts are checked against them, and `models show` lists them."""

import json
import shutil
import string
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from sdcli.errors import ExitStatus, InvalidRecipe, ModelCorrupt
from sdcli.models import registry, vocabulary
from sdcli.models.hub import files
from sdcli.models.located import LocatedModel
from sdcli.models.registry import ModelEntry
from sdcli.models.source import Source
from sdcli.models.vocabulary import FILE, Vocabulary
from sdcli.planning import warnings
from sdcli.recipe.recipe import Recipe
from sdcli.training.vocabulary_file import vocabulary_of

CONTENT = {
    "groups": {
        "subjects": {
            "fox": [], "cat": ["kitten"], "astronaut": ["spaceman"], "griffin": [], "polar bear": ["ice bear"],
            "t-rex": ["trex", "tyrannosaurus rex"], "hot dog": [],
        },
        "colours": ["red", "light blue"],
        "places": {"snow": ["in the snow", "in winter"]},
    },
    "plurals": ["foxes", "cats", "kittens", "polar bears", "t-rexes", "wolves"],
    "other_words": ["a", "an", "the", "in", "with", "two", "winter"],
}  # fmt: skip
KNOWN = Vocabulary(
    {
        "subjects": {
            "fox": (), "cat": ("kitten",), "astronaut": ("spaceman",), "griffin": (), "polar bear": ("ice bear",),
            "t-rex": ("trex", "tyrannosaurus rex"), "hot dog": (),
        },
        "colours": {"red": (), "light blue": ()},
        "places": {"snow": ("in the snow", "in winter")},
    },
    tuple(CONTENT["plurals"]),
    tuple(CONTENT["other_words"]),
)  # fmt: skip


@pytest.fixture
def folder(sd15: Path, tmp_path: Path) -> Path:
    """A tiny model that says what it knows, called "kitlike"."""
    made = tmp_path / "kitlike"
    shutil.copytree(sd15, made)
    (made / FILE).write_text(json.dumps(CONTENT))
    return made


def facts_with(known: Vocabulary | None, folder: Path):
    return replace(registry.read_facts(Source(folder)), vocabulary=known)


def warnings_of(folder: Path, prompt: str, known: Vocabulary | None = KNOWN, **options) -> list[str]:
    flat = {"model": "kit", "prompt": prompt, "steps": 2, "guidance_scale": 7.0, "scheduler": "ddim", "seed": 1}
    recipe = Recipe.from_dict({**flat, "width": 64, "height": 64, **options})
    found = warnings.find(LocatedModel(ModelEntry(name="kit"), Source(folder), facts_with(known, folder)), recipe)
    return [each.message for each in found if "does not know" in each.message]


@pytest.mark.parametrize(
    ("text", "unknown"),
    [
        ("a red fox in the snow", ()),
        ("A Red FOX", ()),
        ("two polar bears, two foxes", ()),
        ("a t-rex with T-Rexes and a t rex", ("and",)),
        ("a polar cat", ("polar",)),
        ("a hot cat", ("hot",)),
        ("a hot dog", ()),
        ("a hot-dog", ()),
        ("the fox's kitten’s cat", ()),
        ("a gryphon, a Gryphon, a roc", ("gryphon", "roc")),
        ("狐狸 in the snow", ("狐狸",)),
        ("", ()),
        (" ... !?", ()),
    ],
)
def test_words_are_known_by_the_phrase_they_are_in(text, unknown):
    assert KNOWN.unknown(text) == unknown


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("astronomer", "astronaut"),
        ("kiten", "kitten"),
        ("Grifin", "griffin"),
        ("foxs", "foxes"),
        ("cap", None),
        ("wit", None),
        ("box", None),
        ("gird", None),
        ("kietten", "kitten"),  # the second letter differs
        ("arctonaut", "astronaut"),
        ("without", None),
        ("werewolves", "wolves"),
        ("", None),
    ],
)
def test_the_nearest_word_begins_alike_and_is_no_article(word, near):
    assert KNOWN.nearest(word) == near


@given(st.text())
def test_any_text_can_be_checked(text):
    unknown = KNOWN.unknown(text)
    assert set(unknown) <= set(vocabulary.words_of(text))
    assert len({each.casefold() for each in unknown}) == len(unknown)
    for word in unknown:
        KNOWN.nearest(word)


@given(st.lists(st.text(string.ascii_letters, min_size=1), min_size=1))
def test_what_is_listed_is_known(words):
    known = Vocabulary({"all": dict.fromkeys(words, ())})
    assert known.unknown(" ".join(words)) == ()


def test_a_file_is_read_as_it_was_written(tmp_path):
    assert vocabulary.read(tmp_path) is None
    vocabulary.write(tmp_path, KNOWN)
    assert vocabulary.read(tmp_path) == KNOWN
    (tmp_path / FILE).write_text(json.dumps(CONTENT))
    assert vocabulary.read(tmp_path) == KNOWN
    assert vocabulary.read(tmp_path / FILE) is None  # a single file has no folder to carry one


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{", "Expecting"),
        ("\xff", "codec|Expecting"),
        ("[" * 100_000, "nested too deeply|Expecting"),
        ([], "object of \"groups\""),
        ({}, "object of \"groups\""),
        ({"groups": []}, "object of \"groups\""),
        ({"groups": {}}, "lists no words"),
        ({"groups": {"animals": "fox"}}, "the group 'animals' must be a list of strings"),
        ({"groups": {"animals": {"fox": "vixen"}}}, "synonyms of 'fox' must be a list of strings"),
        ({"groups": {"animals": [1]}}, "list of strings"),
        ({"groups": {"animals": ["fox"]}, "plurals": {"fox": "foxes"}}, '"plurals" must be a list'),
        ({"groups": {"animals": ["fox"]}, "plural": []}, "unknown key 'plural'"),
        ({"groups": {"animals": ["fox", " "]}}, "' ' is not a phrase"),
        ({"groups": {"animals": ["x" * 101]}}, "is not a phrase of 1 to 100"),
        ({"groups": {"animals": [f"x{n}" for n in range(20_001)]}}, "20,001 phrases"),
        ({"groups": {"animals": ["fox" * 2**19]}}, "larger than 1,048,576 bytes"),
    ],
)  # fmt: skip
def test_a_malformed_file_is_a_corrupt_model(content, why, tmp_path):
    data = content.encode("latin-1") if isinstance(content, str) else json.dumps(content).encode()
    (tmp_path / FILE).write_bytes(data)
    with pytest.raises(ModelCorrupt, match=why) as raised:
        vocabulary.read(tmp_path)
    assert str(tmp_path / FILE) in raised.value.message
    assert "remove it" in raised.value.hint


def test_a_warning_names_all_unknown_words_of_a_prompt(sd15):
    assert warnings_of(sd15, "a fox") == []
    assert warnings_of(sd15, "an astronomer") == ["kit does not know 'astronomer'; did you mean 'astronaut'?"]
    assert warnings_of(sd15, "a roc") == ["kit does not know 'roc'"]
    assert warnings_of(sd15, "a roc, a hippogriff and a yeti") == [
        "kit does not know 'roc', 'hippogriff', 'and' and 'yeti'"
    ]
    (message,) = warnings_of(sd15, "a roc with an astronomer and a foxx")
    assert message.startswith("kit does not know 'roc', 'astronomer', 'and' and 'foxx'; did you mean ")
    assert message.endswith("did you mean 'astronaut' for 'astronomer' and 'fox' for 'foxx'?")


def test_words_that_a_lora_was_trained_with_are_known(sd15, tmp_path):
    path, tensors = tmp_path / "roc.safetensors", {"lora_unet_x.lora_down.weight": torch.zeros(1, 1)}
    frequency = json.dumps({"roc": {"a Roc in the snow": 3, "feathers": 1}})
    for metadata, unknown in (
        ({"ss_tag_frequency": frequency}, []),
        ({"ss_tag_frequency": "[1]"}, ["roc"]),
        ({}, ["roc"]),
    ):
        save_file(tensors, path, metadata)
        expected = [f"kit does not know {each!r}" for each in unknown]
        assert warnings_of(sd15, "a roc with a fox", lora=[str(path)]) == expected
    save_file(tensors, path, {"ss_tag_frequency": frequency})
    assert warnings_of(sd15, "a roc, a hippogriff", lora=[str(path)]) == ["kit does not know 'hippogriff'"]


def test_weights_and_breaks_are_no_words(sd15):
    prompt = r"(red fox:1.35) BREAK [polar] bear with ((a cat)) \(in the snow\)"
    assert warnings_of(sd15, prompt) == []
    assert warnings_of(sd15, prompt, prompt_weights=False) == ["kit does not know '1', '35' and 'BREAK'"]


def test_a_negative_prompt_is_checked_where_it_has_an_effect(sd15):
    assert warnings_of(sd15, "a fox", negative_prompt="blurry cat") == ["kit does not know 'blurry' in negative_prompt"]
    assert warnings_of(sd15, "a fox", negative_prompt="blurry cat", guidance_scale=1.0) == []
    assert len(warnings_of(sd15, "a roc", negative_prompt="blurry cat")) == 2


def test_a_model_that_lists_no_words_knows_all(sd15):
    assert registry.read_facts(Source(sd15)).vocabulary is None
    assert warnings_of(sd15, "a roc", known=None) == []


def test_a_hint_says_where_the_words_are_listed(sd15):
    recipe = Recipe.from_dict(
        {"model": "my models/kit", "prompt": "a roc", "steps": 2, "guidance_scale": 1.0, "scheduler": "ddim", "seed": 1}
        | {"width": 64, "height": 64}
    )
    model = LocatedModel(ModelEntry(name="kit"), Source(sd15), facts_with(KNOWN, sd15))
    with pytest.raises(InvalidRecipe) as raised:
        warnings.raise_first(warnings.find(model, recipe))
    assert raised.value.field == "prompt"
    assert "sdcli models show 'my models/kit'" in raised.value.hint


def test_generate_warns_and_strict_refuses(run, folder):
    message = "kitlike does not know 'gryphon' and 'astronomer'; did you mean 'astronaut' for 'astronomer'?"
    options = ("generate", "a gryphon with an astronomer", "-m", folder, "--steps", "1")
    plan = run(*options, "--dry-run", "--json")
    assert plan.status == ExitStatus.OK
    assert plan.stderr.splitlines() == [f"warning: {message}"]
    assert json.loads(plan.stdout)["warnings"] == [message]
    made = run(*options, "--json")
    assert json.loads(made.stdout)["warnings"] == [message]
    refused = run(*options, "--strict")
    assert refused.status == ExitStatus.USAGE
    assert refused.stderr.splitlines()[0] == f"error: {message}"
    assert refused.stdout == b""


def test_each_job_of_a_batch_has_its_own_warning(run, folder):
    jobs = b'{"prompt": "a fox"}\n{"prompt": "a roc"}\n'
    plan = json.loads(run("batch", "-", "-m", folder, "--dry-run", "--json", stdin=jobs).stdout)
    assert [job["warnings"] for job in plan["jobs"]] == [[], ["kitlike does not know 'roc'"]]


def test_show_lists_the_groups(run, folder, sd15):
    shown = run("models", "show", folder, env={"COLUMNS": "40"})
    assert shown.status == 0
    assert all(len(line) <= 40 for line in shown.lines[shown.lines.index("subjects") :])
    assert "  fox, cat (kitten), astronaut" in shown.lines
    assert shown.lines[-2:] == ["places", "  snow (in the snow, in winter)"]
    data = json.loads(run("models", "show", folder, "--json").stdout)
    assert data["vocabulary"]["groups"]["subjects"]["cat"] == ["kitten"]
    assert data["vocabulary"]["plurals"] == CONTENT["plurals"]
    assert "vocabulary" not in json.loads(run("models", "show", sd15, "--json").stdout)


def test_a_malformed_file_stops_with_the_status_of_a_model(run, folder):
    (folder / FILE).write_text("{}")
    done = run("generate", "a fox", "-m", folder, "--dry-run")
    assert done.status == ExitStatus.MODEL
    assert done.stderr.startswith("error: ")
    assert "\nhint: correct the file, or remove it" in done.stderr


def test_the_file_goes_where_its_model_goes(run, folder, tmp_path):
    done = run("models", "export", folder, tmp_path / "copy")
    assert done.status == 0
    assert vocabulary.read(tmp_path / "copy") == KNOWN
    paths = [str(each.relative_to(folder)) for each in folder.rglob("*") if each.is_file()]
    assert FILE in files.needed(paths)


def test_the_file_of_a_model_is_made_of_the_words_of_its_captions():
    said = {
        "subjects": {"cat": ["cat", "kitten"], "hot dog": ["hot dog"], "sheep": ["sheep"]},
        "places": {"snow": ["in the snow", "in a snowy landscape"]},
        "colours": ["red"],
        "relations": {"row": ["left of", ", and"], "on": ["on top of"]},
        "other": {"styles": ["a photo of ", ", 3d render"]},
    }
    made = vocabulary_of(said, lambda noun: noun if noun == "sheep" else f"{noun}s")
    assert made.groups == {
        "subjects": {"cat": ("kitten",), "hot dog": (), "sheep": ()},
        "places": {"snow": ("in the snow", "in a snowy landscape")},
        "colours": {"red": ()},
        "relations": {"left of": (), "and": (), "on top of": ()},
        "other": {"a photo of": (), "3d render": ()},
    }
    assert made.plurals == ("cats", "kittens", "hot dogs")
    assert {"a", "the", "in", "snowy", "landscape", "left", "photo", "3d"} <= set(made.other_words)
    assert made.unknown("a photo of kittens on top of a hot dog and sheep, 3d render") == ()
    assert made.unknown("a row of hot cats, without styles") == ("row", "hot", "without", "styles")
