"""`sdcli img2img`: an image and a prompt become another image."""

from __future__ import annotations

from typing import Annotated

import typer

from sdcli import edits, options


def img2img(
    image: options.Image,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to draw; - reads it from stdin.")],
    strength: options.Strength = None,
    model: options.Model = None,
    negative_prompt: options.NegativePrompt = None,
    width: options.WorkingWidth = None,
    height: options.WorkingHeight = None,
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
    """Redraw an image after a prompt, and print the new one's path.

    The image is noised up to the level that --strength of the steps takes away again: low keeps it, 1 forgets it.

    sdcli img2img sketch.png "a castle at dusk" --strength 0.6
    """
    asked = {
        "prompt": prompt,
        "image": image,
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
        "strength": strength,
    }
    edits.deliver(
        asked,
        num_images=num_images,
        output=output,
        force=force,
        json=json,
        quiet=quiet,
        strict=strict,
        dry_run=dry_run,
    )
