"""A warning about a recipe or the files that it names. Imports nothing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RecipeWarning:
    """A warning with a hint, and the flat key of the recipe that it is about."""

    message: str
    hint: str
    field: str
