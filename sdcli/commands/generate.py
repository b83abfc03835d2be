"""`sdcli generate`: a prompt becomes a picture."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from sdcli import config, delivery, options, registry, remarks
from sdcli.errors import InputError
from sdcli.recipe import Recipe


def generate(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to draw; - reads it from stdin.")],
    model: options.Model = None,
    negative_prompt: options.NegativePrompt = None,
    width: options.Width = None,
    height: options.Height = None,
    seed: options.Seed = None,
    num_images: options.NumImages = 1,
    steps: options.Steps = None,
    guidance_scale: options.GuidanceScale = None,
    guidance_rescale: options.GuidanceRescale = None,
    scheduler: options.Scheduler = None,
    sigmas: options.Sigmas = None,
    eta: options.Eta = None,
    clip_skip: options.ClipSkip = None,
    prompt_weights: options.PromptWeights = None,
    output: options.Output = None,
    force: options.Force = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    strict: options.Strict = False,
    dry_run: options.DryRun = False,
    debug: options.Debug = False,
    device: options.Device = None,
    dtype: options.Dtype = None,
    threads: options.Threads = None,
    batch_size: options.BatchSize = None,
) -> None:
    """Turn a prompt into a PNG, and print its path.

    sdcli generate "arctic fox"

    sdcli generate "a red owl at night" -n 4 -o owls/

    sdcli generate "arctic fox" -m sd15 --scheduler euler-a --seed 7
    """
    model = config.model(model)
    entry = registry.find(model)
    asked = options.given(
        {
            "prompt": _read_prompt(prompt),
            "negative_prompt": negative_prompt,
            "model": model,
            "width": width,
            "height": height,
            "seed": seed,
            "steps": steps,
            "guidance_scale": guidance_scale,
            "guidance_rescale": guidance_rescale,
            "scheduler": scheduler,
            "sigmas": sigmas,
            "eta": eta,
            "clip_skip": clip_skip,
            "prompt_weights": prompt_weights,
            "device": device,
            "dtype": dtype,
            "threads": threads,
            "batch_size": batch_size,
        }
    )
    recipe = registry.resolve_recipe(entry, asked)
    order = delivery.Order(
        entry=entry,
        recipes=_series(recipe, num_images),
        output=config.output(output),
        force=force,
        json=json,
        quiet=quiet,
        strict=strict,
        remarks=remarks.of(entry, registry.facts_of(entry), recipe, count=num_images),
    )
    if dry_run:
        delivery.forecast(order)
    else:
        delivery.deliver(order)


def _series(first: Recipe, count: int) -> tuple[Recipe, ...]:
    """Recipes of consecutive seeds, each what `--seed` alone would give."""
    return tuple(first.replace(seed=first.seed + index) for index in range(count))


def _read_prompt(prompt: str) -> str:
    if prompt != "-":
        return prompt
    try:
        return sys.stdin.buffer.read().decode("utf-8").rstrip("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"the prompt on stdin is not text: {error}", "give it as UTF-8") from error
