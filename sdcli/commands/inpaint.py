"""`sdcli inpaint`: a part of an image is repainted after a prompt."""

from __future__ import annotations

from typing import Annotated

import typer

from sdcli import edits, options


def inpaint(
    image: options.Image,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to draw; - reads it from stdin.")],
    mask: Annotated[
        str,
        typer.Option(
            "--mask",
            metavar="MASK",
            rich_help_panel="The picture",
            help="A picture whose white is repainted; alpha: where the image itself is transparent.",
        ),
    ],
    invert_mask: Annotated[
        bool | None,
        typer.Option("--invert-mask", rich_help_panel="The picture", help="Repaint the mask's black, not its white."),
    ] = None,
    fit_mask: Annotated[
        bool | None,
        typer.Option("--fit-mask", rich_help_panel="The picture", help="Stretch a mask of another size."),
    ] = None,
    padding: Annotated[
        int | None,
        typer.Option(
            "--padding",
            metavar="PIXELS",
            rich_help_panel="The picture",
            show_default="the whole image",
            help="Work on the masked area alone and so many pixels around it, at the model's own resolution.",
        ),
    ] = None,
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
    """Repaint the white part of a mask after a prompt, and print the new image's path.

    Pixels that the mask, softened by --mask-blur, leaves black come back bit for bit.

    sdcli inpaint photo.png "a red door" --mask door.png
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
        "mask_image": mask,
        "invert_mask": invert_mask,
        "fit_mask": fit_mask,
        "padding": padding,
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
