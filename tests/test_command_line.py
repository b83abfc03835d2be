"""A recipe as a command line: read back by the program itself, it is the same recipe."""

import shlex
import subprocess

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sdcli import cli
from sdcli.errors import InvalidRecipe
from sdcli.making import deliver
from sdcli.making.request import Request
from sdcli.models import located, registry
from sdcli.planning.command_line import command_of, quote
from sdcli.recipe import schedulers
from sdcli.recipe.recipe import Recipe
from tests import tiny

KIT = registry.find("kit")
PROMPTS = st.text(st.characters(exclude_categories=["C"]), max_size=30)


PLAIN = {
    "prompt": "fox",
    "negative_prompt": "",
    "seed": 0,
    "guidance_scale": 4.0,
    "steps": 20,
    "scheduler": "ddim",
    "threads": 0,
    "prompt_weights": True,
}


def recipe(**options) -> Recipe:
    return tiny.recipe_for(KIT, {"prompt": "an arctic fox", "model": "kit", "seed": 7, **options})


def read_back(command: str) -> list[Recipe]:
    """What `sdcli generate` would make of the command's words."""
    requests: list[Request] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deliver, "deliver", requests.append)
        words = shlex.split(command)
        assert words[:2] == ["sdcli", "generate"]
        assert cli.run(words[1:]) == 0
    return list(requests[0].recipes)


def test_only_what_is_not_the_default_is_said():
    assert command_of(located.locate(KIT), [recipe()]) == "sdcli generate 'an arctic fox' -s 7"
    said = command_of(
        located.locate(KIT),
        [recipe(steps=5, guidance_scale=7.0, negative_prompt="a cat", prompt_weights=False, width=128)],
    )
    assert said == (
        "sdcli generate 'an arctic fox' -N 'a cat' --no-prompt-weights --steps 5 --guidance-scale 7 -W 128 -s 7"
    )


def test_what_a_user_s_settings_would_change_is_said_too(tmp_path, monkeypatch):
    plain = recipe()
    monkeypatch.setenv("SDCLI_CONFIG", str(tmp_path / "config.toml"))
    (tmp_path / "config.toml").write_text('[defaults]\nmodel = "sd15"\nsteps = 40\n')
    changed = recipe()
    assert (plain.sampling.steps, changed.sampling.steps) == (12, 40)
    assert command_of(located.locate(KIT), [plain]) == "sdcli generate 'an arctic fox' -m kit --steps 12 -s 7"
    assert command_of(located.locate(KIT), [changed]) == "sdcli generate 'an arctic fox' -m kit --steps 40 -s 7"


@settings(deadline=None, max_examples=60)
@given(
    prompt=PROMPTS,
    negative_prompt=PROMPTS,
    seed=st.integers(0, 2**32 - 1),
    guidance_scale=st.floats(0, 100),
    steps=st.integers(1, 50),
    scheduler=st.sampled_from([name for name in schedulers.NAMES if schedulers.TABLE[name].zero_snr]),
    threads=st.integers(0, 8),
    prompt_weights=st.booleans(),
)
@example(**PLAIN | {"prompt": "--steps", "negative_prompt": "-x", "guidance_scale": 1e-7})
@example(**PLAIN | {"prompt": 'it\'s \\ "so" $HOME\nand `more`', "threads": 1})
def test_read_back_it_is_the_same_recipe(**options):
    try:
        made = recipe(**options)
    except InvalidRecipe:  # numbers of steps that the model refuses
        return
    if made.condition.prompt != "-":
        assert read_back(command_of(located.locate(KIT), [made])) == [made]


def test_a_batch_is_said_whole():
    batch = [recipe(seed=seed, batch_size=3) for seed in (7, 8, 9)]
    assert command_of(located.locate(KIT), batch) == "sdcli generate 'an arctic fox' --batch-size 3 -s 7 -n 3"
    assert read_back(command_of(located.locate(KIT), batch)) == batch


@pytest.mark.parametrize("word", ["", "fox\x1b]0;x\x07", "a'b\\c\x9b", "plain", "ü\ttab'", "two\nlines"])
def test_a_shell_reads_every_word_back(word):
    done = subprocess.run(["bash", "-c", f"printf %s {quote(word)}"], capture_output=True, check=True)
    assert done.stdout.decode() == word
    assert quote(word).replace("\n", "").isprintable()


def test_a_prompt_of_one_hyphen_comes_through_a_pipe():
    said = command_of(located.locate(KIT), [recipe(prompt="-")])
    assert said.startswith("printf %s - | sdcli generate - ")
