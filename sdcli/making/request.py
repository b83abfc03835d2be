"""What a command asks for: pictures to make, and where and how they are saved. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sdcli.files.inputs import Inputs
from sdcli.making.maker import Task
from sdcli.models.located import LocatedModel
from sdcli.models.weights import Weights
from sdcli.planning.warnings import RecipeWarning
from sdcli.recipe.recipe import Recipe


@dataclass(frozen=True)
class Request:
    """Pictures to make with one model, and where and how to save them."""

    model: LocatedModel
    weights: Weights
    inputs: Inputs
    recipes: Sequence[Recipe]
    output: str | None
    force: bool
    json: bool
    quiet: bool
    strict: bool = False
    warnings: tuple[RecipeWarning, ...] = ()
    """What is known before a picture is made; an error at once where `strict`."""
    save_latents: str | None = None
    """Where the pictures' latents go, a file, directory or template; None keeps none."""

    @property
    def to_stdout(self) -> bool:
        """Whether the PNG itself is the result."""
        return self.output == "-"

    def tasks(self) -> Iterator[Task]:
        """The recipes in calls of as many as their batch size says, in order."""
        size = self.recipes[0].execution.batch_size
        for start in range(0, len(self.recipes), size):
            chunk = self.recipes[start : start + size]
            yield Task(self.weights, [recipe.replace(batch_size=len(chunk)) for recipe in chunk], self.inputs)
