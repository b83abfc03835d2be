"""From a recipe to a picture: encode the context, draw noise, denoise, decode.

Opens no files: the model is already loaded, and the files of the recipe are in `Inputs`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sdcli.diffusion import architectures, heap, refine, samplers, shortcuts, tiled
from sdcli.diffusion.context import Context, control, image_prompt
from sdcli.diffusion.denoise import Denoiser, Step, denoise
from sdcli.diffusion.device import memory_of
from sdcli.diffusion.estimate import Watched
from sdcli.diffusion.finish import RETRIED as RETRIED
from sdcli.diffusion.finish import Result, Sampled, finish
from sdcli.diffusion.guidance import Guidance, within
from sdcli.diffusion.model import LatentDiffusionModel
from sdcli.diffusion.offload import on_device
from sdcli.diffusion.passes import Pass, passes
from sdcli.diffusion.preview import preview
from sdcli.diffusion.spans import Tile
from sdcli.diffusion.start import continue_from, enlarged, start_of
from sdcli.diffusion.watching import Bound, Watch
from sdcli.files import canvas, edges, images, maps
from sdcli.files.inputs import NO_INPUTS, InputImage, Inputs
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
    start = start_of(model, recipe, scheduler, generators, inputs)
    if previous is not None:
        way = recipe.execution.tiling
        known = enlarged(model, previous, start.latents.shape[2:], one.upscaler, generators, way)
        start = continue_from(start, known, scheduler, generators, one.strength)
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
        heap.kept(),
        on_device(model, model.network, *(each.net for each in model.controlnets.values())),
        shortcuts.applied(model.network, model.facts, recipe.shortcuts, size) as bind,
    ):
        denoisers = [
            _bind(model, each, recipe, scheduler, len(seeds), _named(bind, place))
            for place, each in enumerate(contexts)
        ]
        denoiser = Watched(tiled.blended(denoisers, tiles), scheduler)
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
        heap.kept(),
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
