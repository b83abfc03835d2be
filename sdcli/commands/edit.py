"""`sdcli edit`: change images as an instruction says."""

from __future__ import annotations

from typing import Annotated

import typer

from sdcli.commands import groups, options, picture_options, pictures
from sdcli.errors import UsageError

Arguments = Annotated[
    list[str],
    typer.Argument(
        metavar="IMAGE... PROMPT", help="The images to use, in order, and what to do with them.", show_default=False
    ),
]


@groups.expand
def edit(
    arguments: Arguments,
    *,
    picture: picture_options.Picture,
    output: options.Output,
    execution: options.Execution,
) -> None:
    """Edit an image, or combine several, as a prompt says.

    For models that take images as references: FLUX.2 [klein], FLUX.1 [Kontext] and Qwen-Image-Edit. The picture has the
    size of the first image, unless -W or -H is given.

        sdcli edit photo.png "make it night" -m flux2-klein
        sdcli edit cat.png hat.png "the cat wears the hat" -m flux2-klein
    """
    *images, prompt = arguments
    if not images:
        raise UsageError("there is no image to edit", 'give at least one before the prompt: sdcli edit IMAGE "PROMPT"')
    pictures.make(groups.given(picture, execution, reference=images, prompt=prompt), output)
