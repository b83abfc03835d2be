"""From a recipe to a picture: encode the context, draw noise, denoise, decode.

Opens no files: the model is already loaded, and the files of the recipe are in `Inputs`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sdcli.diffusion import architectures, autoencode, refine, samplers, shortcuts, tiled, upscale
from sdcli.diffusion.context import Context, control, image_prompt, masked_image, segmentation
from sdcli.diffusion.denoise import Denoiser, Step, denoise, start_at
from sdcli.diffusion.device import memory_of
from sdcli.diffusion.estimate import Watched
from sdcli.diffusion.finish import RETRIED as RETRIED
from sdcli.diffusion.finish import Result, Sampled, finish
from sdcli.diffusion.guidance import Guidance, within
from sdcli.diffusion.model import LatentDiffusionModel
from sdcli.diffusion.noise import add_noise, draw_noise, initial_latents
from sdcli.diffusion.offload import on_device
from sdcli.diffusion.passes import Pass, passes
from sdcli.diffusion.preview import preview
from sdcli.diffusion.spans import Tile
from sdcli.diffusion.watching import Bound, Watch
from sdcli.files import canvas, edges, images, maps
from sdcli.files.inputs import NO_INPUTS, InputImage, Inputs
from sdcli.recipe import checks
from sdcli.recipe.interval import Interval
from sdcli.recipe.recipe import Recipe


@torch.inference_mode()
def run(
    model: LatentDiffusionModel,
    recipes: Sequence[Recipe],
    on_step: Callable[[Step], None] = lambda step: None,
    *,
    inputs: Inputs = NO_INPUTS,
    contexts: Sequence[Context] | None = None,
    tiling: str | None = None,
    watch: Watch | None = None,
) -> list[Result]:
    """Make the pictures of `recipes`, which only differ in their seeds, in one batch.

    `inputs` are the files of the recipes; without an image or latents they start from pure noise. `contexts` are those
    of the first recipe, which are encoded here if they are not given. `tiling` replaces that of the recipes. `watch`
    sees what the loop does. Raises OutOfMemory, ValueError if `inputs` are incomplete, and what `finish` raises.
    """
    started = time.perf_counter()
    with memory_of(recipes[0]):
        if contexts is None:
            contexts = encode_conditions(model, recipes[0], inputs)
        latents = sample(model, recipes, on_step, inputs=inputs, contexts=contexts, watch=watch)
    notes = tuple(dict.fromkeys(note for context in contexts for note in context.notes))
    sampled = Sampled(latents, notes, time.perf_counter() - started)
    return finish(model, recipes, sampled, inputs=inputs, tiling=tiling)


def sample(
    model: LatentDiffusionModel,
    recipes: Sequence[Recipe],
    on_step: Callable[[Step], None] = lambda step: None,
    *,
    inputs: Inputs = NO_INPUTS,
    contexts: Sequence[Context] | None = None,
    watch: Watch | None = None,
) -> Tensor:
    """Sample f(f(…f(N, T)…), 1): the latents (B, C, h, w), float32, of a batch of recipes that differ in their
    seeds.

    Uses the passes of the first recipe, and its `contexts`, which are encoded here if they are not given. `on_step`
    counts the steps of all passes together.
    """
    first = recipes[0]
    inputs.check_complete(first.initial, first.layout, first.references, first.image_prompts)
    seeds = [each.seed for each in recipes]
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    planned = passes(recipes[0])
    if contexts is None:
        contexts = encode_conditions(model, recipes[0], inputs)
    total, done = sum(each.steps for each in planned), 0
    latents: Tensor | None = None
    for each, context in zip(planned, contexts, strict=True):

        def count(step: Step, before: int = done) -> None:
            on_step(replace(step, index=before + step.index, total=total))

        latents = _sample_pass(model, each, seeds, context, latents, generators, count, inputs=inputs, watch=watch)
        done += each.steps
    assert latents is not None
    return latents


def _sample_pass(
    model: LatentDiffusionModel,
    one: Pass,
    seeds: Sequence[int],
    context: Context,
    previous: Tensor | None,
    generators: Sequence[torch.Generator],
    on_step: Callable[[Step], None],
    *,
    inputs: Inputs,
    watch: Watch | None,
) -> Tensor:
    """Run the loop for one pass and return the latents (B, C, h, w); `previous` are those of the pass before."""
    recipe, architecture = one.recipe, architectures.load(model.architecture)
    sampling = recipe.sampling
    scheduler = samplers.make(
        sampling.scheduler, sampling.sigmas, model.scheduler_config, noise_seeds=seeds, shift=recipe.flow.shift
    )
    architecture.set_timesteps(scheduler, sampling.steps, model.latent_space.shape(*recipe.seen_at_once))
    start = _start(model, recipe, scheduler, generators, inputs)
    if previous is not None:
        way = recipe.execution.tiling
        known = _enlarged(model, previous, start.latents.shape[2:], one.upscaler, generators, way)
        start = _continue_from(start, known, scheduler, generators, one.strength)
    scales = [each.scale for each in recipe.image_prompts.prompts]
    image_embeds, negative_image_embeds = image_prompt.encode(model, _opaque(inputs.prompts), scales)
    context = replace(
        context,
        concat_latents=start.concat_latents,
        reference_latents=_reference_latents(model, inputs),
        image_embeds=image_embeds,
        negative_image_embeds=negative_image_embeds,
    )
    readings, tiles = _readings(model, recipe, inputs), tiled.tiles_of(recipe, model.latent_space)
    contexts = [_in_tile(model, context, readings, each) for each in tiles]
    size = [side.end - side.start for side in tiles[0]]
    stop, begin = None, 0
    if model.refiner is not None:
        stop, begin = refine.split(scheduler, start.timesteps, recipe.refiner.refiner_switch)
    with (
        on_device(model, model.network, *(each.net for each in model.controlnets.values())),
        shortcuts.applied(model.network, model.facts, recipe.shortcuts, size) as bind,
    ):
        denoisers = [
            _bind(model, each, recipe, scheduler, len(seeds), _named(bind, place))
            for place, each in enumerate(contexts)
        ]
        denoiser = Watched(tiled.blended(denoisers, tiles), scheduler, model.scheduler_config)
        bound = Bound(model, contexts[0], Guidance.of(recipe), scheduler, bind)

        def with_preview(step: Step) -> None:
            on_step(replace(step, preview=lambda: preview(denoiser.estimate()[0], model.latent_space)))

        latents = denoise(
            denoiser if watch is None else watch(denoiser, bound),
            scheduler,
            start.latents,
            timesteps=start.timesteps,
            stop=stop,
            eta=sampling.eta,
            generators=generators,
            constrain=start.constrain,
            on_step=with_preview,
        )
    if model.refiner is None:
        return latents
    assert context.refined is not None
    return _refined(model.refiner, one, seeds, context.refined, latents, begin, generators, on_step)


def _in_tile(model: LatentDiffusionModel, context: Context, readings: Sequence[control.Reading], tile: Tile) -> Context:
    """Return the context of a tile: the parts of concatenated channels and control images that belong to it."""
    concatenated, factor = context.concat_latents, model.vae_scale_factor
    seen = [replace(each, pixels=tiled.crop(each.pixels, tile, factor)) for each in readings]
    return replace(
        context,
        concat_latents=None if concatenated is None else tiled.crop(concatenated, tile),
        residuals=control.encode(seen) if seen else None,
    )


def _named(bind: shortcuts.Bind, place: int) -> shortcuts.Bind:
    """Return `bind` for the tile of this number, whose denoisers have names of their own."""
    return lambda name, bind_network: bind(f"{name} {place}", bind_network)


def _refined(
    refiner: LatentDiffusionModel,
    one: Pass,
    seeds: Sequence[int],
    context: Context,
    latents: Tensor,
    begin: int,
    generators: Sequence[torch.Generator],
    on_step: Callable[[Step], None],
) -> Tensor:
    """Denoise latents of the base model from the timestep `begin` on with the refiner."""
    recipe, sampling = one.recipe, one.recipe.sampling
    scheduler = samplers.make(sampling.scheduler, sampling.sigmas, refiner.scheduler_config, noise_seeds=seeds)
    scheduler.set_timesteps(sampling.steps)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)

    def count(step: Step) -> None:
        on_step(replace(step, index=one.steps - step.total + step.index))

    with (
        on_device(refiner, refiner.network),
        shortcuts.applied(refiner.network, refiner.facts, recipe.shortcuts, latents.shape[2:]) as bind,
    ):
        return denoise(
            _bind(refiner, context, recipe, scheduler, len(seeds), bind),
            scheduler,
            latents,
            timesteps=scheduler.timesteps[begin:],
            eta=sampling.eta,
            generators=generators,
            on_step=count,
        )


def _bind(
    model: LatentDiffusionModel, context: Context, recipe: Recipe, scheduler: Any, batch: int, bind: shortcuts.Bind
) -> Denoiser:
    """Return f(z, t) for `batch` pictures, with guidance only in the interval of the recipe if it has one."""
    architecture, guidance = architectures.load(model.architecture), Guidance.of(recipe)
    guided = bind("guided", lambda network: architecture.bind(network, context, guidance, batch))
    if recipe.sampling.guidance_interval is None or not context.has_unconditional:
        return guided
    plain = bind("plain", lambda network: architecture.bind(network, context.conditional, guidance, batch))
    interval = Interval.parse(recipe.sampling.guidance_interval)
    return within(interval, guided, plain, scheduler.config.num_train_timesteps)


@torch.inference_mode()
def encode_conditions(model: LatentDiffusionModel, recipe: Recipe, inputs: Inputs = NO_INPUTS) -> list[Context]:
    """Encode y, a class label or a text, depending on the model: one context for each pass of `recipe`."""
    return [encode_condition(model, each.recipe, inputs) for each in passes(recipe)]


def encode_condition(model: LatentDiffusionModel, recipe: Recipe, inputs: Inputs = NO_INPUTS) -> Context:
    """Encode y: a class label or a text, depending on the model; for a refiner too."""
    context = _encoded(model, recipe, inputs)
    return context if model.refiner is None else replace(context, refined=_encoded(model.refiner, recipe, inputs))


def _encoded(model: LatentDiffusionModel, recipe: Recipe, inputs: Inputs) -> Context:
    architecture, size = architectures.load(model.architecture), recipe.seen_at_once
    encoders: list[Any] = [*(each.model for each in model.text_encoders), *filter(None, [model.class_embedder])]
    with on_device(model, *encoders):
        return architecture.encode(model, recipe.condition, size, Guidance.of(recipe), _references(inputs))


def encoded_by(recipe: Recipe) -> Hashable:
    """Return what the contexts of `recipe` depend on, apart from the model."""
    planned = [each.recipe for each in passes(recipe)]
    of_texts = tuple((each.condition, each.seen_at_once, Guidance.of(each)) for each in planned)
    return of_texts, recipe.references.reference_sha256, recipe.refiner.refiner


@dataclass(frozen=True)
class _Start:
    """The start of the loop: latents, the remaining timesteps, and known parts of the picture."""

    latents: Tensor
    timesteps: Tensor
    concat_latents: Tensor | None = None
    constrain: Callable[[Tensor, Tensor | None], Tensor] = lambda latents, timestep: latents


def _start(
    model: LatentDiffusionModel,
    recipe: Recipe,
    scheduler: Any,
    generators: Sequence[torch.Generator],
    inputs: Inputs,
) -> _Start:
    """Start from pure noise, or from z(x) of an image or a file with noise for `strength` of the steps.

    The generators are used in diffusers' order: the image's latents, noise, the masked image's latents.
    """
    given = inputs.image
    masked = given is not None and given.mask is not None
    mapped = recipe.layout.segmentation_map is not None
    in_channels = model.latent_channels + model.concat_channels
    checks.check_channels(in_channels, model.latent_channels, len(model.classes), masked=masked, mapped=mapped)
    shape = model.latent_space.shape(recipe.width, recipe.height)
    if given is None and inputs.latents is None:
        latents = initial_latents(generators, shape, scheduler, model.device)
        return _Start(latents, scheduler.timesteps, _map_channels(model, recipe, inputs))
    strength = 1.0 if recipe.initial.strength is None else recipe.initial.strength
    timesteps = start_at(scheduler, strength)
    if given is None:
        assert inputs.latents is not None
        known = torch.from_numpy(inputs.latents.latents).to(model.device).expand(len(generators), -1, -1, -1)
        noise = draw_noise(generators, shape).to(model.device)
        return _Start(add_noise(scheduler, known, noise, timesteps[:1]), timesteps)
    size, padding = (recipe.width, recipe.height), recipe.initial.padding
    pixels = images.to_pixels(_enlarged_image(model, recipe, given) or canvas.working(given, padding, size))
    from_noise = masked and strength == 1
    image_latents = None
    if not (from_noise and model.concat_channels):
        in_tiles = recipe.enlarging.tile is not None
        image_latents = masked_image.encode_image(model, pixels, generators, tiled=in_tiles)
    noise = draw_noise(generators, shape).to(model.device)
    if from_noise:
        latents = noise * scheduler.init_noise_sigma
    else:
        assert image_latents is not None
        latents = add_noise(scheduler, image_latents, noise, timesteps[:1])
    if not masked:
        return _Start(latents, timesteps)
    mask = images.to_pixels(canvas.working_mask(given, padding, size, model.vae_scale_factor))
    if model.concat_channels:
        return _Start(latents, timesteps, masked_image.encode(model, pixels, mask, generators))
    assert image_latents is not None
    draw_noise(generators, shape)  # diffusers encodes the masked image here too, for stochastic steps to come
    on_grid = masked_image.mask_latents(model, mask)
    return _Start(latents, timesteps, None, masked_image.hold_known(scheduler, image_latents, noise, on_grid))


def _enlarged_image(model: LatentDiffusionModel, recipe: Recipe, given: canvas.InitialImage) -> Image.Image | None:
    """Return the image, enlarged and extended to the working size, or None if it is not enlarged."""
    enlarging = recipe.enlarging
    if enlarging.enlarge is None:
        return None
    by = None if enlarging.network is None else model.upscalers[enlarging.network]
    target = enlarging.target(*given.image.size)
    larger = upscale.picture_to_size(by, canvas.fitted(canvas.opaque(given.image), target), target)
    left = recipe.width - target[0], recipe.height - target[1]
    return canvas.extend(larger, (0, 0, *left))[0] if any(left) else larger


def _enlarged(
    model: LatentDiffusionModel,
    latents: Tensor,
    size: Sequence[int],
    upscaler: str,
    generators: Sequence[torch.Generator],
    way: str,
) -> Tensor:
    """Resize latents (B, C, h, w) to `size` (h, w): bilinearly, or decoded, enlarged, and encoded again.

    `way` is that of a recipe's `tiling`.
    """
    if latents.shape[2:] == size:
        return latents
    if upscaler == "latent":
        return torch.nn.functional.interpolate(latents, tuple(size), mode="bilinear")
    pixels, _ = autoencode.decode_finite(model, latents, way)
    height, width = (side * model.vae_scale_factor for side in size)
    by = None if upscaler == "lanczos" else model.upscalers[upscaler]
    pictures = [upscale.picture_to_size(by, images.to_image(each), (width, height)) for each in pixels]
    encoded = [
        masked_image.encode_image(model, images.to_pixels(picture), [generator])
        for picture, generator in zip(pictures, generators, strict=True)
    ]
    return torch.cat(encoded)


def _continue_from(
    start: _Start, known: Tensor, scheduler: Any, generators: Sequence[torch.Generator], strength: float | None
) -> _Start:
    """Replace the latents of `start` by `known`, those of the pass before in its size, with new noise."""
    noise = draw_noise(generators, known.shape[1:]).to(known.device)
    timesteps = start_at(scheduler, 1.0 if strength is None else strength)
    return replace(start, latents=add_noise(scheduler, known, noise, timesteps[:1]), timesteps=timesteps)


def _map_channels(model: LatentDiffusionModel, recipe: Recipe, inputs: Inputs) -> Tensor | None:
    """Return the channels of a segmentation map, if the U-Net takes them."""
    if not model.classes:
        return None
    indices = maps.fit(inputs.maps[model.classes].indices, (recipe.width, recipe.height))
    channels = segmentation.encode(torch.from_numpy(indices)[None], len(model.classes), model.vae_scale_factor)
    return channels.to(model.device)


def _reference_latents(model: LatentDiffusionModel, inputs: Inputs) -> tuple[Tensor, ...]:
    """Return the latents (1, C, h, w) of each reference image."""
    architecture = architectures.load(model.architecture)
    return tuple(architecture.reference_latents(model, each) for each in _references(inputs))


def _references(inputs: Inputs) -> list[Image.Image]:
    return _opaque(inputs.references)


def _opaque(pictures: Sequence[InputImage]) -> list[Image.Image]:
    return [canvas.opaque(each.picture) for each in pictures]


def _readings(model: LatentDiffusionModel, recipe: Recipe, inputs: Inputs) -> list[control.Reading]:
    """Return the recipe's ControlNets with their images."""
    size = recipe.width, recipe.height
    control_images = iter(inputs.controls)
    readings = []
    for each in recipe.layout.controls:
        beside = model.controlnets[each.name]
        if each.image is None:
            picture = maps.colours(maps.fit(inputs.maps[beside.classes].indices, size), beside.classes)
        else:
            picture = canvas.guide(next(control_images).picture, inputs.image, recipe.initial.padding, size)
            picture = picture if each.canny is None else edges.canny(picture, *each.canny)
        pixels = images.to_unit(picture).to(model.device)
        readings.append(control.Reading(beside.net, pixels, each))
    return readings
