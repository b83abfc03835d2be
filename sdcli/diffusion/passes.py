"""The passes in which a picture is made: runs of the loop, each from where the last one ended. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from sdcli.recipe.recipe import Recipe


@dataclass(frozen=True)
class Pass:
    """One run of the loop over a batch: `recipe` is what it samples, of its own size and number of steps.

    The first pass starts as its recipe says, and has no `strength` here. A later one starts from the latents of the
    pass before, resized to its size and noised up to what `strength`, 0 … 1, of its steps takes away again. The last
    pass has the size of the picture.
    """

    recipe: Recipe
    strength: float | None = None

    @property
    def steps(self) -> int:
        """The number of steps that it takes, by diffusers' counting (see `denoise.start_at`)."""
        steps = self.recipe.sampling.steps
        strength = self.recipe.initial.strength if self.strength is None else self.strength
        return steps if strength is None else min(int(steps * strength), steps)


def passes(recipe: Recipe) -> tuple[Pass, ...]:
    """The passes that make the picture of `recipe`, in order: one."""
    return (Pass(recipe),)
