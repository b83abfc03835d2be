"""Groups of options: what stands in one place is what every command offers."""

import json
from dataclasses import dataclass, fields
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from sdcli.cli import application
from sdcli.commands import groups, options, picture_options
from sdcli.recipe import parts, recipe

# what files say of themselves
NO_OPTIONS = {f"{key}_sha256" for key in ("image", "mask", "init_latents", "segmentation", "control")}
NO_OPTIONS |= {"reference_sha256", "image_prompt_sha256"}
NO_OPTIONS |= {"reference", "match_reference"}  # arguments of edit, and whether it has a size


@dataclass(frozen=True)
class Animal:
    kind: Annotated[str, typer.Option("--kind")]
    legs: Annotated[int | None, typer.Option("--legs", min=0)] = None


def parameters_of(*commands: str) -> set[str]:
    root = typer.main.get_command(application())
    return {each.name for name in commands for each in root.commands[name].params}  # type: ignore[attr-defined]


def test_every_key_of_a_recipe_can_be_said_to_some_command():
    said = parameters_of("generate", "img2img", "inpaint", "outpaint", "synthesize")
    assert set(recipe.keys()) - NO_OPTIONS <= said


@pytest.mark.parametrize("group", [picture_options.Picture, picture_options.Edited, options.Machine, options.Execution])
def test_a_group_of_recipe_keys_holds_nothing_else(group):
    assert {each.name for each in fields(group)} - {"vae"} <= set(recipe.keys())  # which is short for a part


def test_an_image_s_command_has_all_that_generate_has_but_another_start():
    others = {"init_latents", *parts.HIRES_KEYS, *parts.REFINER_KEYS}  # which cannot hold a known part
    shared = parameters_of("img2img") & parameters_of("inpaint") & parameters_of("outpaint")
    assert parameters_of("generate") - others <= shared


def test_a_group_becomes_options_and_the_options_a_group():
    told = []

    @groups.expand
    def draw(name: Annotated[str, typer.Argument()], *, loud: bool = False, animal: Animal) -> None:
        """Draw."""
        told.append((name, loud, animal))

    own = typer.Typer()
    own.command()(draw)
    assert CliRunner().invoke(own, ["x", "--loud", "--kind", "fox", "--legs", "4"]).exit_code == 0
    assert CliRunner().invoke(own, ["y", "--kind", "owl"]).exit_code == 0
    assert told == [("x", True, Animal("fox", 4)), ("y", False, Animal("owl"))]
    assert CliRunner().invoke(own, ["z"]).exit_code == 2
    assert CliRunner().invoke(own, ["z", "--kind", "fox", "--legs", "-1"]).exit_code == 2
    assert groups.given(told[1][2], name="y") == {"kind": "owl", "name": "y"}


@pytest.mark.parametrize(
    ("words", "error", "hint"),
    [
        (["txt2img", "x"], "no command 'txt2img'", "use sdcli generate"),
        (["genrate", "x"], "no command 'genrate'", "did you mean 'generate'?"),
        (["models", "download", "sd15"], "no command 'download'", "use sdcli models pull"),
        (["models", "pul"], "no command 'pul'", "did you mean 'pull'?"),
        (["generate", "x", "--steps", "many"], "--steps is 'many'", "must be a whole number"),
        (["generate", "x", "--cfg-scale=a"], "--guidance-scale is 'a'", "must be a number"),
        (["generate", "x", "-n", "0"], "--num-images is '0'", "must be at least 1"),
        (["generate", "x", "-n1.5"], "--num-images is '1.5'", "must be a whole number"),
        (["serve", "--port", "99999"], "--port is '99999'", "must be from 0 to 65535"),
        (["generate", "-fox in snow"], "no option '-f'", "sdcli generate -- PROMPT"),
        (["generate", "x", "--sed", "1"], "no option '--sed'", "--seed"),
        (["generate", "x", "-H"], "-H has no value", "sdcli generate --help"),
        (["img2img"], "IMAGE is missing", "sdcli img2img --help"),
        (["generate", "a", "b", "c"], "unexpected arguments: b c", "quote a prompt"),
        (["encode", "a", "b"], "unexpected arguments: b", "sdcli encode --help"),
        (["list"], "no command 'list'", "sdcli models list"),
        (["generate", "a", "fox"], "unexpected arguments: fox", "quote a prompt"),
        (["generate", "x", "--device", "gpu"], "unknown device 'gpu'", "use cuda"),
        (["generate", "x", "--dtype", "fp16"], "unknown dtype 'fp16'", "use float16"),
        (["img2img", "a red fox", "fox.png"], "fox.png is a file", "IMAGE first"),
        (["generate", "x", "-p", "y"], "given twice", "--prompt"),
        (["generate", "x", "--size", "64x64", "-W", "64"], "given twice", "--size"),
        (["generate", "x", "--size", "big"], "size is 'big'", "512x768"),
    ],
)
def test_what_people_write_in_other_tools_is_understood_or_explained(run, tmp_path, words, error, hint):
    (tmp_path / "fox.png").write_bytes(b"")
    done = run(*words)
    first, second = done.stderr.splitlines()
    assert (done.status, done.stdout) == (2, b"")
    assert error in first
    assert hint in second


@pytest.mark.parametrize(
    ("name", "scheduler", "sigmas"),
    [
        ("DPM++ 2M Karras", "dpm++-2m", "karras"),
        ("Euler a", "euler-a", "default"),
        ("dpmpp_2m", "dpm++-2m", "default"),
        ("euler_ancestral", "euler-a", "default"),
    ],
)
def test_options_of_other_tools_make_the_same_recipe(run, name, scheduler, sigmas):
    words = ["-p", "a fox", "--size", "128x256", "--sampler", name, "--dry-run", "--json"]
    first = json.loads(run("generate", *words, "--seed", "-1", env={"SDCLI_SEED": "5"}).stdout)["recipe"]
    assert (first["prompt"], first["width"], first["height"]) == ("a fox", 128, 256)
    assert (first["scheduler"], first["sigmas"]) == (scheduler, sigmas)
    assert first["seed"] is None
