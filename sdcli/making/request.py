"""A command's request: pictures to make, and how to save them. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sdcli.files.inputs import Inputs
from sdcli.making.maker import Task
from sdcli.models.located import LocatedModel
from sdcli.models.weights import Weights
from sdcli.planning.warnings import RecipeWarning
from sdcli.recipe.recipe import Recipe

FULL = 2
"""The `json` of a request whose lines have the whole recipe; with 1, they do not."""


@dataclass(frozen=True)
class Request:
    """Pictures to make with one model, and how to save them."""

    model: LocatedModel
    weights: Weights
    inputs: Inputs
    recipes: Sequence[Recipe]
    output: str | None
    force: bool
    json: int
    quiet: bool
    strict: bool = False
    warnings: tuple[RecipeWarning, ...] = ()
    """Warnings that are known before a picture is made; errors if `strict`."""
    save_latents: str | None = None
    """The file, directory or template for latents; None does not save them."""

    @property
    def to_stdout(self) -> bool:
        """Whether the PNG is written to stdout."""
        return self.output == "-"

    def tasks(self) -> Iterator[Task]:
        """Yield the recipes in batches, in order."""
        size = self.recipes[0].execution.batch_size
        for start in range(0, len(self.recipes), size):
            chunk = self.recipes[start : start + size]
            yield Task(self.weights, [recipe.replace(batch_size=len(chunk)) for recipe in chunk], self.inputs)
