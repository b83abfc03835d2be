"""Groups of options of a picture; all are keys of a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from sdcli.commands import completion, options
from sdcli.recipe import schedulers, skip_layers
from sdcli.recipe.cache import METHODS as CACHES
from sdcli.recipe.parts import QUANTIZATIONS, UPSCALERS
from sdcli.recipe.recipe import MAX_SEED

Vae = Annotated[
    str | None,
    typer.Option(
        "--vae", metavar="NAME|PATH", rich_help_panel=options.PICTURE, show_default="the model's",
        autocompletion=completion.vae,
        help="Use another autoencoder: a name, such as taesd, which is tiny and much faster, or a file or folder. "
        "Short for --part vae=….",
    ),
]  # fmt: skip
GuidanceInterval = Annotated[
    str | None,
    typer.Option(
        "--guidance-interval", metavar="LOW-HIGH", rich_help_panel=options.SAMPLING, show_default="0-1",
        help="Guide only between these noise levels, from 0 (the picture) to 1 (pure noise), such as 0.1-0.8; "
        "steps outside take half as long.",
    ),
]  # fmt: skip
Cache = Annotated[
    str | None,
    typer.Option(
        "--cache", metavar="METHOD:VALUE", rich_help_panel=options.SAMPLING, show_default="off",
        autocompletion=completion.of(*CACHES),
        help="Reuse results of earlier steps, which is faster and changes the picture: deepcache:3 computes the "
        "whole U-Net in the first steps and then in every third; first-block:0.1 skips the blocks of a transformer "
        "if the first one changes less than this.",
    ),
]  # fmt: skip
TokenMerging = Annotated[
    float | None,
    typer.Option(
        "--token-merging", metavar="0…0.75", rich_help_panel=options.SAMPLING, show_default="off",
        help="Merge this share of similar tokens in self-attention of a U-Net, which is faster for large pictures "
        "and changes the picture.",
    ),
]  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """Options of the picture and of sampling; all are keys of a recipe, but for `vae`, which is short for `part`."""

    model: options.Model = None
    part: Annotated[
        list[str] | None,
        typer.Option(
            "--part", metavar="PART=PATH", rich_help_panel=options.PICTURE, show_default=False,
            autocompletion=completion.part,
            help="Load a part of the model from a file or folder, such as vae=ae.safetensors or "
            "text_encoder=qwen_3_4b.safetensors. Can be repeated.",
        ),
    ] = None  # fmt: skip
    vae: Vae = None
    quantize: Annotated[
        str | None,
        typer.Option(
            "--quantize", metavar="FORMAT", rich_help_panel=options.EXECUTION, show_default="none",
            autocompletion=completion.of("none", *QUANTIZATIONS),
            help=f"Quantise the network and language models on loading: {', '.join(QUANTIZATIONS)}; int8 is q8_0, and "
            "int4 q4_0. Less memory, and other pixels.",
        ),
    ] = None  # fmt: skip
    negative_prompt: Annotated[
        str | None,
        typer.Option(
            "--negative-prompt",
            "-N",
            metavar="TEXT",
            rich_help_panel=options.PICTURE,
            help="What the picture should not show.",
        ),
    ] = None
    prompt_2: Annotated[
        str | None,
        typer.Option(
            "--prompt-2", metavar="TEXT", rich_help_panel=options.PICTURE, show_default="PROMPT",
            help="The prompt for the second text encoder of SDXL, SD 3 or FLUX.1.",
        ),
    ] = None  # fmt: skip
    width: Annotated[
        int | None,
        typer.Option(
            "--width",
            "-W",
            metavar="PIXELS",
            rich_help_panel=options.PICTURE,
            help="Width of the picture.",
            show_default="the model's",
        ),
    ] = None
    height: Annotated[
        int | None,
        typer.Option(
            "--height",
            "-H",
            metavar="PIXELS",
            rich_help_panel=options.PICTURE,
            help="Height of the picture.",
            show_default="the model's",
        ),
    ] = None
    control: Annotated[
        list[str] | None,
        typer.Option(
            "--control", metavar="NAME=IMAGE", rich_help_panel=options.PICTURE, show_default=False,
            autocompletion=completion.control,
            help="Guide the picture by a ControlNet and IMAGE. IMAGE:0.8:0-0.5 sets the scale and the part of the "
            "steps, and canny:IMAGE uses the edges of IMAGE. Can be repeated.",
        ),
    ] = None  # fmt: skip
    lora: Annotated[
        list[str] | None,
        typer.Option(
            "--lora", metavar="NAME[:SCALE]", rich_help_panel=options.PICTURE, show_default=False,
            autocompletion=completion.lora_name,
            help="Merge a LoRA into the model: a name, a .safetensors file or OWNER/NAME. NAME:0.8,te=0.5 sets another "
            "scale for the text encoder. Can be repeated.",
        ),
    ] = None  # fmt: skip
    strict_lora: Annotated[
        bool | None,
        typer.Option(
            "--strict-lora/--no-strict-lora", rich_help_panel=options.PICTURE, show_default="on",
            help="Refuse LoRAs with tensors that do not fit the model.",
        ),
    ] = None  # fmt: skip
    embedding: Annotated[
        list[str] | None,
        typer.Option(
            "--embedding", metavar="NAME", rich_help_panel=options.PICTURE, show_default=False,
            autocompletion=completion.embedding_name,
            help="Use an embedding (textual inversion) where its name is in a prompt: a name or a .safetensors file. "
            "Can be repeated.",
        ),
    ] = None  # fmt: skip
    image_prompt: Annotated[
        list[str] | None,
        typer.Option(
            "--image-prompt", metavar="IMAGE[:SCALE]", rich_help_panel=options.PICTURE, show_default=False,
            help="Draw what IMAGE shows, besides the prompt, by an IP-Adapter. Can be repeated.",
        ),
    ] = None  # fmt: skip
    ip_adapter: Annotated[
        str | None,
        typer.Option(
            "--ip-adapter", metavar="NAME", rich_help_panel=options.PICTURE, show_default=False,
            autocompletion=completion.ip_adapter_name,
            help="The IP-Adapter for --image-prompt: a name, a .safetensors file, or a file in ip_adapter_dir.",
        ),
    ] = None  # fmt: skip
    image_encoder: Annotated[
        str | None,
        typer.Option(
            "--image-encoder", metavar="FOLDER", rich_help_panel=options.PICTURE,
            show_default="image_encoder near the IP-Adapter", help="The image encoder that the IP-Adapter needs.",
        ),
    ] = None  # fmt: skip
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            "-s",
            metavar="INTEGER",
            rich_help_panel=options.PICTURE,
            help=f"Seed of the noise, from 0 to {MAX_SEED}; -1 draws one.",
            show_default="random",
        ),
    ] = None
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps",
            metavar="N",
            rich_help_panel=options.SAMPLING,
            help="Number of denoising steps.",
            show_default="the model's",
        ),
    ] = None
    guidance_scale: Annotated[
        float | None,
        typer.Option(
            "--guidance-scale", "--cfg-scale", metavar="SCALE", rich_help_panel=options.SAMPLING,
            show_default="the model's",
            help="How closely to follow the prompt; 1 or less disables guidance.",
        ),
    ] = None  # fmt: skip
    true_cfg_scale: Annotated[
        float | None,
        typer.Option(
            "--true-cfg-scale", metavar="SCALE", rich_help_panel=options.SAMPLING, show_default="off",
            help="How far to stay away from the negative prompt, with FLUX.1 only; twice as slow.",
        ),
    ] = None  # fmt: skip
    skip_layer_guidance: Annotated[
        str | None,
        typer.Option(
            "--skip-layer-guidance", metavar=skip_layers.FORM, rich_help_panel=options.SAMPLING, show_default="off",
            help="Guide away from the prediction without these layers, between two fractions of the steps, with Stable "
            "Diffusion 3.5 only; the defaults are 2.8 and 0.01-0.2, and 7,8,9 suits the medium model.",
        ),
    ] = None  # fmt: skip
    shift: Annotated[
        float | None,
        typer.Option(
            "--shift", metavar="SHIFT", rich_help_panel=options.SAMPLING, show_default="the model's",
            help="How far to shift the noise levels of a model of flow matching towards noise.",
        ),
    ] = None  # fmt: skip
    guidance_rescale: Annotated[
        float | None,
        typer.Option(
            "--guidance-rescale",
            metavar="0…1",
            rich_help_panel=options.SAMPLING,
            help="Reduce the overexposure of high guidance scales.",
        ),
    ] = None
    guidance_interval: GuidanceInterval = None
    cache: Cache = None
    token_merging: TokenMerging = None
    scheduler: Annotated[
        str | None,
        typer.Option(
            "--scheduler", "--sampler", metavar="NAME", rich_help_panel=options.SAMPLING,
            autocompletion=completion.scheduler,
            help=f"One of {', '.join(schedulers.NAMES)}; or a name of A1111, such as 'DPM++ 2M Karras'.",
            show_default="the model's",
        ),
    ] = None  # fmt: skip
    sigmas: Annotated[
        str | None,
        typer.Option(
            "--sigmas", metavar="NAME", rich_help_panel=options.SAMPLING,
            autocompletion=completion.sigmas,
            help=f"Spacing of the noise levels: {', '.join(schedulers.SIGMAS)}.",
        ),
    ] = None  # fmt: skip
    eta: Annotated[
        float | None,
        typer.Option(
            "--eta",
            metavar="0…1",
            rich_help_panel=options.SAMPLING,
            help="Noise that DDIM adds in each step; 0 adds none.",
        ),
    ] = None
    tile: Annotated[
        int | None,
        typer.Option(
            "--tile", metavar="PIXELS", rich_help_panel=options.SAMPLING, show_default="off",
            help="Denoise a picture that is larger in overlapping tiles with sides of this length.",
        ),
    ] = None  # fmt: skip
    clip_skip: Annotated[
        int | None,
        typer.Option(
            "--clip-skip",
            metavar="N",
            rich_help_panel=options.SAMPLING,
            help="Layer of the text encoder to use, counted from the end; 1 is the last.",
        ),
    ] = None
    prompt_weights: Annotated[
        bool | None,
        typer.Option(
            "--prompt-weights/--no-prompt-weights", rich_help_panel=options.SAMPLING, show_default="on",
            help="Interpret (word:1.3), (word), [word] and BREAK in prompts.",
        ),
    ] = None  # fmt: skip


@dataclass(frozen=True)
class Hires:
    """Options of a second, larger pass; all are keys of a recipe."""

    hires: Annotated[
        str | None,
        typer.Option(
            "--hires", metavar="FACTOR|WxH", rich_help_panel=options.PICTURE, show_default=False,
            help="Enlarge the picture by this factor or to this size, and denoise it again in a second pass.",
        ),
    ] = None  # fmt: skip
    hires_upscaler: Annotated[
        str | None,
        typer.Option(
            "--hires-upscaler", metavar="NAME", rich_help_panel=options.PICTURE, show_default="latent",
            autocompletion=completion.hires_upscaler,
            help=f"How to enlarge it: {', '.join(UPSCALERS)}, or the name or .safetensors file of an upscaler.",
        ),
    ] = None  # fmt: skip
    hires_strength: Annotated[
        float | None,
        typer.Option(
            "--hires-strength", metavar="0…1", rich_help_panel=options.PICTURE, show_default="0.6",
            help="The share of the second pass's steps to run. A lower value changes less.",
        ),
    ] = None  # fmt: skip
    hires_steps: Annotated[
        int | None,
        typer.Option(
            "--hires-steps", metavar="N", rich_help_panel=options.PICTURE, show_default="as --steps",
            help="Number of steps of the second pass.",
        ),
    ] = None  # fmt: skip


@dataclass(frozen=True)
class Refiner:
    """Options of a refiner; both are keys of a recipe."""

    refiner: Annotated[
        str | None,
        typer.Option(
            "--refiner", metavar="MODEL", rich_help_panel=options.PICTURE, show_default=False,
            autocompletion=completion.model,
            help="Denoise the last steps with a refiner of SDXL, such as sdxl-refiner.",
        ),
    ] = None  # fmt: skip
    refiner_switch: Annotated[
        float | None,
        typer.Option(
            "--refiner-switch", metavar="0…1", rich_help_panel=options.PICTURE, show_default="0.8",
            help="The share of the noise levels that the model itself denoises.",
        ),
    ] = None  # fmt: skip


@dataclass(frozen=True)
class Edited(Picture):
    """Options of a picture that is made from an image; the result has the size of the image."""

    width: Annotated[
        int | None,
        typer.Option(
            "--width", "-W", metavar="PIXELS", rich_help_panel=options.PICTURE, show_default="near the image's",
            help="Width to work at; the result has the size of IMAGE.",
        ),
    ] = None  # fmt: skip
    height: Annotated[
        int | None,
        typer.Option(
            "--height",
            "-H",
            metavar="PIXELS",
            rich_help_panel=options.PICTURE,
            show_default="near the image's",
            help="Height to work at.",
        ),
    ] = None
