"""Makes a picture, and what is shown of how it came about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sdcli.making.explaining.words import Word
from sdcli.making.maker import LocalMaker, OnStep, Task
from sdcli.making.picture import Picture

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from sdcli.diffusion.model import LatentDiffusionModel
    from sdcli.diffusion.watching import Bound, Seen
    from sdcli.making.explaining.drawing import Numbers

_PIXELS = 4_000_000
"""About so many pixels of x̂_0 are decoded, which takes most of the time."""
_LEAST, _MOST, _GUIDED = 8, 30, 8
"""How many evaluations are shown, and for how many of them f with and without its condition."""


@dataclass(frozen=True)
class Guided:
    """x̂_0 with and without the condition, decoded, and where the two differ (h, w)."""

    conditional: Image
    unconditional: Image
    difference: Numbers


@dataclass(frozen=True)
class Frame:
    """One evaluation: its number from 1, x̂_0 and z_t decoded, and the channels of z_t (C, h, w)."""

    number: int
    timestep: float
    sigma: float
    clean: Image
    noisy: Image
    latents: Numbers
    guided: Guided | None = None


@dataclass(frozen=True)
class Concatenated:
    """What is concatenated with the latents: a title, and an image of it."""

    title: str
    image: Image


@dataclass(frozen=True)
class Explanation:
    """A picture, and how it came about.

    `total` is the number of evaluations. `maps` has the attention (h, w) to each of the `words`; `unseen` is why they
    are missing. `levels` are σ of all training timesteps. `other` is the picture of another text from the same noise.
    """

    picture: Picture
    total: int
    frames: Sequence[Frame]
    latents: tuple[int, int, int]
    words: Sequence[Word]
    maps: Sequence[Numbers]
    unseen: str | None
    levels: Sequence[float]
    sigmas: Sequence[tuple[float, float]]
    other: Picture
    concatenated: Sequence[Concatenated]


def explain(task: Task, other: Task, on_step: OnStep) -> Explanation:
    """Make the picture of `task` and that of `other`, and record how the first one came about.

    Raises what `LocalMaker.make` raises.
    """
    from sdcli.diffusion.estimate import levels
    from sdcli.diffusion.watching import Recorder

    maker, recorder = LocalMaker(), Recorder()
    (picture,) = maker.make(task, on_step, watch=recorder)
    bound, seen = recorder.bound, recorder.seen
    assert bound is not None
    frames = _frames(bound.model, seen, picture.recipe.execution.tiling)
    words, maps, unseen = _attention(bound, recorder.maps, picture)
    concatenated = _concatenated(bound, task, picture.recipe.execution.tiling)
    (another,) = maker.make(other)
    return Explanation(
        picture=picture,
        total=len(seen),
        frames=frames,
        latents=(int(seen[0].latents.shape[1]), int(seen[0].latents.shape[2]), int(seen[0].latents.shape[3])),
        words=words,
        maps=maps,
        unseen=unseen,
        levels=[float(each) for each in levels(bound.scheduler)],
        sigmas=[(each.timestep, each.sigma) for each in seen],
        other=another,
        concatenated=concatenated,
    )


def evenly(count: int, most: int) -> list[int]:
    """Return at most `most` of the indices below `count`, evenly, with the first and the last."""
    if count <= most:
        return list(range(count))
    return sorted({round(index * (count - 1) / (most - 1)) for index in range(most)})


def _frames(model: LatentDiffusionModel, seen: Sequence[Seen], way: str) -> list[Frame]:
    factor = model.vae_scale_factor**2
    pixels = seen[0].latents.shape[2] * seen[0].latents.shape[3] * factor
    chosen = evenly(len(seen), min(_MOST, max(_LEAST, _PIXELS // pixels)))
    with_guidance = {chosen[index] for index in evenly(len(chosen), _GUIDED)}
    frames = []
    for index in chosen:
        each, guided = seen[index], None
        if each.unconditional is not None and index in with_guidance:
            difference = (each.conditional - each.unconditional)[0].pow(2).mean(0).sqrt()
            pair = [_decode(model, one, way) for one in (each.conditional, each.unconditional)]
            guided = Guided(pair[0], pair[1], difference.numpy())
        clean, noisy = (_decode(model, one, way) for one in (each.prediction, each.latents))
        frames.append(Frame(index + 1, each.timestep, each.sigma, clean, noisy, each.latents[0].numpy(), guided))
    return frames


def _decode(model: LatentDiffusionModel, latents: Tensor, way: str) -> Image:
    """Decode latents to a small picture; what a picture may not have, such as a single colour, is shown too."""
    import torch

    from sdcli.diffusion import autoencode
    from sdcli.files import images
    from sdcli.making.explaining.drawing import small

    with torch.inference_mode():
        pixels = autoencode.decode(model, latents.to(model.device), way)
    return small(images.to_image(pixels[0].nan_to_num()))


def _attention(bound: Bound, maps: Any, picture: Picture) -> tuple[list[Word], list[Numbers], str | None]:
    """Return the words, the attention to each, and why there is none."""
    from sdcli.diffusion import attention
    from sdcli.making.explaining import words

    architecture = bound.model.architecture
    if picture.recipe.condition.label is not None:
        return [], [], "the condition of this model is a class, not a text with words"
    if not attention.can_be_seen(architecture):
        return [], [], f"attention to words is not available for models of the kind {architecture}"
    found = words.of(bound.model, picture.recipe.condition)
    mean = None if maps is None else maps.mean()
    if not found or mean is None:
        return [], [], "the prompt has no words" if not found else "the network has no attention to the text"
    found = [each for each in found if max(each.places) < len(mean)]
    return found, [mean[list(each.places)].mean(0).numpy() for each in found], None


def _concatenated(bound: Bound, task: Task, way: str) -> list[Concatenated]:
    """Return what the network gets besides z, for inpainting and synthesis."""
    from PIL import Image

    from sdcli.files import maps
    from sdcli.making.explaining import drawing

    given, model = bound.context.concat_latents, bound.model
    if given is None:
        return []
    recipe = task.recipes[0]
    size = recipe.width, recipe.height
    if model.classes:
        indices = maps.fit(task.inputs.maps[model.classes].indices, size)
        present = sorted({int(each) for each in indices.flatten()})
        names = ", ".join(each.name for each in model.classes if each.index in present)
        picture = drawing.small(maps.colours(indices, model.classes))
        row = drawing.channels(given[0, present].float().cpu().numpy() * 2 - 1, 1.0)
        title = f"The segmentation map, one channel for each of {len(model.classes)} classes. Here are: {names}"
        return [Concatenated(title, picture), Concatenated("The channels of these classes, at the latents' size", row)]
    mask = drawing.grey(given[0, 0].float().cpu().numpy() * 2 - 1, 1.0).resize(size, Image.Resampling.NEAREST)
    rest = given[:, 1:].float()
    return [
        Concatenated("The mask, 1 where the picture is repainted: one channel", drawing.small(mask)),
        Concatenated(
            f"The image without that part, encoded: {rest.shape[1]} channels, here decoded", _decode(model, rest, way)
        ),
        Concatenated("These channels", drawing.channels(rest[0].cpu().numpy())),
    ]
