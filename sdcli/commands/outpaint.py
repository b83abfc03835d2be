"""`sdcli outpaint`: an image is continued beyond its borders."""

from __future__ import annotations

from typing import Annotated

import typer

from sdcli import edits, options
from sdcli.errors import UsageError


def outpaint(
    image: options.Image,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to draw; - reads it from stdin.")],
    left: Annotated[
        int, typer.Option("--left", metavar="PIXELS", rich_help_panel="The picture", help="New pixels on the left.")
    ] = 0,
    right: Annotated[
        int, typer.Option("--right", metavar="PIXELS", rich_help_panel="The picture", help="New pixels on the right.")
    ] = 0,
    top: Annotated[
        int, typer.Option("--top", metavar="PIXELS", rich_help_panel="The picture", help="New pixels at the top.")
    ] = 0,
    bottom: Annotated[
        int, typer.Option("--bottom", metavar="PIXELS", rich_help_panel="The picture", help="New pixels at the bottom.")
    ] = 0,
    strength: options.Strength = None,
    mask_blur: options.MaskBlur = None,
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
    """Continue an image beyond its borders after a prompt, and print the new one's path.

    sdcli outpaint fox.png "arctic fox in the snow" --left 128 --right 128
    """
    if not any((left, right, top, bottom)):
        raise UsageError("outpaint adds nothing", "say how many pixels with --left, --right, --top or --bottom")
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
        "left": left,
        "right": right,
        "top": top,
        "bottom": bottom,
        "strength": strength,
        "mask_blur": mask_blur,
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
