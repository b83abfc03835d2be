"""`sdcli encode` and `sdcli decode`: run the autoencoder alone, from x to z(x) and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated

import typer

from sdcli.commands import autoencoder, groups, options
from sdcli.diffusion.tiling import NOTES
from sdcli.files.reading import is_stream_name
from sdcli.making.maker import way_to_decode

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from sdcli.diffusion.model import LatentDiffusionModel
    from sdcli.files.latent_files import LatentFile
    from sdcli.models.registry import ModelFacts
    from sdcli.recipe.recipe import Recipe
    from sdcli.recipe.warning import RecipeWarning


@dataclass(frozen=True)
class Latents(autoencoder.Output):
    """Options of the latents file."""

    path: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="FILE", rich_help_panel=options.OUTPUT,
            help="The file to write, or - for stdout.",
            show_default="IMAGE's name with .safetensors, in this directory",
        ),
    ] = None  # fmt: skip


@dataclass(frozen=True)
class Decoded(autoencoder.Output):
    """Options of the decoded picture."""

    path: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="FILE.png", rich_help_panel=options.OUTPUT,
            help="The file to write, or - for stdout.", show_default="LATENTS' name with .png, in this directory",
        ),
    ] = None  # fmt: skip


@groups.expand
def encode(
    image: Annotated[
        str, typer.Argument(metavar="IMAGE", help="The image to encode: PNG, JPEG, WebP and others; - reads stdin.")
    ],
    *,
    model: options.Model = None,
    output: Latents,
    machine: options.Machine,
) -> None:
    """Encode an image to latents with the autoencoder.

    Writes a .safetensors file and prints its path. Its tensor `latents` has the shape (1, C, h, w) in float32 and the
    scale that the U-Net takes: the encoder's mean times scaling_factor.

        sdcli encode photo.png -o z.safetensors
        sdcli decode z.safetensors -o decoded.png
    """

    def read(facts: ModelFacts) -> tuple[Picture, Sequence[RecipeWarning]]:
        from sdcli.files import pictures
        from sdcli.files.reading import Files

        found = pictures.open_picture(image, None, Files())
        pictures.check_whole(found.picture, facts.latent_space.vae_scale_factor, image)
        return found.picture, found.warnings

    def make(loaded: LatentDiffusionModel, digest: str, recipe: Recipe, picture: Picture) -> autoencoder.Made:
        from sdcli.diffusion import autoencode
        from sdcli.files import latent_files

        z = autoencode.encode_picture(loaded, picture)
        scaling = loaded.latent_space.scaling_factor
        data = latent_files.file_of(z, digest, model=loaded.name, scaling_factor=scaling)
        return autoencoder.Made(data, picture.size, tuple(z.shape))

    path = output.path or f"{_stem(image)}.safetensors"
    work = autoencoder.Work(read, make)
    autoencoder.run(work, groups.given(machine, model=model), replace(output, path=path))


@groups.expand
def decode(
    latents: Annotated[
        str,
        typer.Argument(metavar="LATENTS", help="A file written by `sdcli encode` or --save-latents; - reads stdin."),
    ],
    *,
    model: options.Model = None,
    output: Decoded,
    machine: options.Decoding,
) -> None:
    """Decode latents to a PNG with the autoencoder.

    sdcli decode z.safetensors -o decoded.png
    """

    def read(facts: ModelFacts) -> tuple[LatentFile, Sequence[RecipeWarning]]:
        from sdcli.files import latent_files

        return latent_files.read(latents, facts.latent_space.channels, facts.latent_space.scaling_factor), ()

    def make(loaded: LatentDiffusionModel, digest: str, recipe: Recipe, found: LatentFile) -> autoencoder.Made:
        from io import BytesIO

        from sdcli.diffusion import autoencode

        asked, factor = recipe.execution.tiling, loaded.vae_scale_factor
        height, width = (side * factor for side in found.latents.shape[2:])
        planned = way_to_decode(loaded, recipe.replace(width=width, height=height))
        picture, way = autoencode.decode_picture(loaded, found.latents, planned)
        buffer = BytesIO()
        picture.save(buffer, "PNG")
        warnings = () if way == asked or recipe.execution.memory == "low" else (NOTES[way],)
        return autoencoder.Made(buffer.getvalue(), picture.size, found.latents.shape, warnings)

    path = output.path or f"{_stem(latents)}.png"
    work = autoencoder.Work(read, make)
    autoencoder.run(work, groups.given(machine, model=model), replace(output, path=path))


def _stem(path: str) -> str:
    return "stdin" if is_stream_name(path) else PurePath(path).stem
