"""Groups of options: what stands in one place is what every command offers."""

from dataclasses import dataclass, fields
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from sdcli.cli import app
from sdcli.commands import options
from sdcli.recipe import recipe

# what files say of themselves
NO_OPTIONS = {f"{key}_sha256" for key in ("image", "mask", "init_latents", "segmentation", "control")}


@dataclass(frozen=True)
class Animal:
    kind: Annotated[str, typer.Option("--kind")]
    legs: Annotated[int | None, typer.Option("--legs", min=0)] = None


def parameters_of(*commands: str) -> set[str]:
    root = typer.main.get_command(app)
    return {each.name for name in commands for each in root.commands[name].params}  # type: ignore[attr-defined]


def test_every_key_of_a_recipe_can_be_said_to_some_command():
    said = parameters_of("generate", "img2img", "inpaint", "outpaint", "synthesize")
    assert set(recipe.keys()) - NO_OPTIONS <= said


@pytest.mark.parametrize("group", [options.Picture, options.Edited, options.Machine, options.Execution])
def test_a_group_of_recipe_keys_holds_nothing_else(group):
    assert {each.name for each in fields(group)} <= set(recipe.keys())


def test_an_image_s_command_has_all_that_generate_has_but_another_start():
    others = {"init_latents", *recipe.HIRES_KEYS}
    shared = parameters_of("img2img") & parameters_of("inpaint") & parameters_of("outpaint")
    assert parameters_of("generate") - others <= shared


def test_a_group_becomes_options_and_the_options_a_group():
    told = []

    @options.expand
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
    assert options.given(told[1][2], name="y") == {"kind": "owl", "name": "y"}
