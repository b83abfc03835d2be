"""`sdcli img2img`: an image and a prompt become another image."""

from __future__ import annotations

from sdcli.commands import options, orders


@options.expand
def img2img(
    image: options.Image,
    prompt: options.Prompt = None,
    *,
    label: options.Label = None,
    strength: options.Strength = None,
    picture: options.Edited,
    output: options.Output,
    execution: options.Execution,
) -> None:
    """Redraw an image after a prompt, and print the new one's path.

    The image is noised up to the level that --strength of the steps takes away again: low keeps it, 1 forgets it.

    sdcli img2img sketch.png "a castle at dusk" --strength 0.6
    """
    asked = options.given(picture, execution, image=image, prompt=prompt, label=label, strength=strength)
    orders.carry_out(asked, output)
