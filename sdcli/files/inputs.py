"""Reads every file that a recipe names once, before a model is loaded. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from sdcli.errors import InputError
from sdcli.files.palette import Class
from sdcli.files.reading import Files
from sdcli.recipe.parts import ImagePrompts, Initial, Layout, References
from sdcli.recipe.paths import ALPHA
from sdcli.recipe.warning import RecipeWarning

if TYPE_CHECKING:
    from PIL import Image

    from sdcli.files.canvas import InitialImage
    from sdcli.files.latent_files import LatentFile
    from sdcli.files.maps import SegmentationMap

Palette = tuple[Class, ...]


@dataclass(frozen=True)
class InputImage:
    """An image for a ControlNet or a reference, upright 8-bit RGB or RGBA, and the sha256 of its file."""

    picture: Image.Image
    sha256: str


@dataclass(frozen=True)
class Inputs:
    """The image, mask, maps, control images, reference images, image prompts and latents of a recipe.

    `maps` has the segmentation map for each of its readers, by their classes. `controls`, `references` and `prompts`
    are in the order of the recipe. `warnings` are about what was skipped or converted in their files, and `streams` has
    the content of those that cannot be read again.
    """

    image: InitialImage | None = None
    latents: LatentFile | None = None
    maps: Mapping[Palette, SegmentationMap] = field(default_factory=dict)
    controls: tuple[InputImage, ...] = ()
    references: tuple[InputImage, ...] = ()
    prompts: tuple[InputImage, ...] = ()
    warnings: tuple[RecipeWarning, ...] = ()
    streams: Mapping[str, bytes] = field(default_factory=dict)

    def check_complete(self, initial: Initial, layout: Layout, references: References, prompts: ImagePrompts) -> None:
        """Raise ValueError if the recipe names inputs that are missing, which is a bug of the caller."""
        named = sum(each.image is not None for each in layout.controls)
        missing = {
            "an image": initial.image is not None and self.image is None,
            "latents": initial.init_latents is not None and self.latents is None,
            "a segmentation map": layout.segmentation_map is not None and not self.maps,
            f"{named} control images": named != len(self.controls),
            f"{len(prompts.image_prompt)} image prompts": len(prompts.image_prompt) != len(self.prompts),
            f"{len(references.reference)} references": len(references.reference) != len(self.references),
        }
        for what, is_missing in missing.items():
            if is_missing:
                raise ValueError(f"the recipe names {what}, and the inputs have none")


NO_INPUTS = Inputs()
NO_REFERENCES = References()
NO_PROMPTS = ImagePrompts()


def read(
    initial: Initial,
    layout: Layout,
    references: References = NO_REFERENCES,
    prompts: ImagePrompts = NO_PROMPTS,
    *,
    palettes: Sequence[Palette] = (),
    latent_channels: int,
    scaling_factor: float,
    files: Files | None = None,
    given: InitialImage | None = None,
) -> Inputs:
    """Read and decode the files of `initial`, `layout`, `references` and `prompts`; `files` reads them.

    `palettes` are the classes of each reader of the segmentation map. `given` replaces the image and its mask, for
    files that are not on this machine. Latents must have `latent_channels` and `scaling_factor`.

    Raises InputError for files that are unreadable, damaged, too large or different from the recorded ones, and what
    `canvas.prepare` raises.
    """
    files = files or Files()
    latents = None
    if initial.init_latents is not None:
        from sdcli.files import latent_files

        recorded = initial.init_latents_sha256
        latents = latent_files.read(initial.init_latents, latent_channels, scaling_factor, recorded, files)
    if any(each.canny is not None for each in layout.controls):
        from sdcli.files import edges

        edges.check()
    paths = [each.image for each in layout.controls if each.image is not None]
    controls, of_controls = _read_images("control", paths, layout.control_sha256, files)
    shown, of_shown = _read_images("reference", references.reference, references.reference_sha256, files)
    asked = [each.image for each in prompts.prompts]
    of_prompts, about_prompts = _read_images("image_prompt", asked, prompts.image_prompt_sha256, files)
    image = given or (None if initial.image is None else _read_image(initial, files))
    of_image = () if image is None else image.warnings
    found, of_maps = _read_maps(layout, palettes, files)
    warnings = (*of_controls, *of_shown, *about_prompts, *of_image, *of_maps)
    return Inputs(image, latents, found, controls, shown, of_prompts, warnings, files.streams)


def _read_images(
    key: str, paths: Sequence[str], digests: Sequence[str | None], files: Files
) -> tuple[tuple[InputImage, ...], tuple[RecipeWarning, ...]]:
    """Return the images of a key and the warnings about their files."""
    if not paths:
        return (), ()
    from sdcli.files import pictures

    opened = [
        pictures.open_picture(path, sha256, files, field=key)
        for path, sha256 in zip(paths, digests or (None,) * len(paths), strict=True)
    ]
    images = tuple(InputImage(each.picture, each.sha256) for each in opened)
    return images, tuple(warning for each in opened for warning in each.warnings)


def _read_image(initial: Initial, files: Files) -> InitialImage:
    from PIL import ImageChops

    from sdcli.files import canvas, masks, pictures

    assert initial.image is not None
    opened = pictures.open_picture(initial.image, initial.image_sha256, files)
    image, warnings = opened.picture, opened.warnings
    mask, mask_sha256 = None, None
    if initial.mask_image not in (None, ALPHA):
        path = str(initial.mask_image)
        found = pictures.open_picture(path, initial.mask_sha256, files, field="mask_image")
        mask, mask_sha256 = masks.of_picture(found.picture, path), found.sha256
        hole = None if initial.invert_mask else masks.of_hole(found.picture)
        warnings += (*found.warnings, *filter(None, [hole]))
    elif initial.mask_image == ALPHA:
        hint = "give a mask: --mask MASK.png"
        if image.mode != "RGBA":
            raise InputError(f"{initial.image} has no alpha channel for the mask", hint)
        if image.getchannel("A").getextrema()[0] == 255:
            raise InputError(f"{initial.image} is opaque everywhere, so --mask alpha has nothing to repaint", hint)
        mask = ImageChops.invert(image.getchannel("A"))
    prepared = canvas.prepare(image, mask, initial, opened.sha256, mask_sha256)
    return replace(prepared, warnings=(*warnings, *prepared.warnings))


def _read_maps(
    layout: Layout, palettes: Sequence[Palette], files: Files
) -> tuple[dict[Palette, SegmentationMap], tuple[RecipeWarning, ...]]:
    if layout.segmentation_map is None:
        return {}, ()
    from sdcli.files import maps

    picture = maps.open_map(layout.segmentation_map, layout.segmentation_sha256, files)
    return {classes: maps.classify(picture, classes, snap=layout.snap) for classes in palettes}, picture.warnings
