"""The passes of a picture: runs of the loop, each starting from the result of the one before. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from sdcli.recipe.recipe import Recipe


@dataclass(frozen=True)
class Pass:
    """One run of the loop over a batch; `recipe` has its size and number of steps.

    The first pass starts like its recipe, and has no `strength` here. A later pass starts from the latents of the pass
    before, resized to its size by `upscaler` and with noise for `strength`, 0 … 1, of its steps. The last pass has the
    size of the picture.
    """

    recipe: Recipe
    strength: float | None = None
    upscaler: str = "latent"

    @property
    def steps(self) -> int:
        """The number of steps, counted like diffusers (see `denoise.start_at`)."""
        steps = self.recipe.sampling.steps
        strength = self.recipe.initial.strength if self.strength is None else self.strength
        return steps if strength is None else min(int(steps * strength), steps)


def passes(recipe: Recipe) -> tuple[Pass, ...]:
    """Return the passes of `recipe` in order: one, and a larger one with `hires`."""
    hires = recipe.hires
    if hires.hires is None:
        return (Pass(recipe),)
    width, height = recipe.size
    one = {key: value for key, value in recipe.to_dict().items() if not key.startswith("hires")}
    larger = {**one, "width": width, "height": height, "steps": hires.hires_steps or recipe.sampling.steps}
    return (
        Pass(Recipe.from_dict(one)),
        Pass(Recipe.from_dict(larger), hires.hires_strength, hires.hires_upscaler),
    )
