"""Fit the linear map of previews to a model's own pictures: python -m sdcli.training.preview MODEL

Prints the factors and the bias for sdcli/diffusion/preview.py, and their error.
"""

import sys
from collections.abc import Iterator, Sequence
from itertools import chain, islice

import torch
from torch import Tensor

from sdcli.diffusion import autoencode, device, pipeline
from sdcli.diffusion.model import LatentDiffusionModel
from sdcli.diffusion.preview import LinearMap, fit
from sdcli.models import assemble, located
from sdcli.recipe.recipe import Recipe
from sdcli.training.measure import resolved_of, text_trials
from sdcli.training.world import KIT

PICTURES = 64


def own_pictures(model: LatentDiffusionModel, recipes: Sequence[Recipe]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the latents (1, C, h, w) and the pixels (1, 3, H, W) of each recipe's picture."""
    for recipe in recipes:
        latents = pipeline.sample(model, [recipe])
        yield latents, autoencode.decode(model, latents).clamp(-1, 1)


def fit_model(name: str, pictures: int = PICTURES) -> tuple[LinearMap, float]:
    """Return the map of a model of the world's scenes, and the root mean square of its error, pixels in −1 … 1."""
    found = located.find(name)
    trials = islice(chain.from_iterable(text_trials(KIT, pictures, 0).values()), pictures)
    planned = [resolved_of(found, name, {}, trial, seed) for seed, trial in enumerate(trials)]
    loaded = assemble.load(planned[0].weights, device.resolve_execution(planned[0].recipe))
    latents, pixels = map(torch.cat, zip(*own_pictures(loaded, [each.recipe for each in planned]), strict=True))
    return fit(latents, pixels)


def main(arguments: Sequence[str] = sys.argv[1:]) -> None:
    """Print the map of the model named in `arguments`, kit by default."""
    found, error = fit_model(arguments[0] if arguments else "kit")
    for row in (*found.factors, found.bias):
        print("(" + ", ".join(f"{value:.4f}" for value in row) + "),")
    print(f"root mean square error {error:.3f}, of pixels in −1 … 1", file=sys.stderr)


if __name__ == "__main__":
    main()
