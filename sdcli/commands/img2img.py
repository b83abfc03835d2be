"""`sdcli img2img`: redraw an image from a prompt."""

from __future__ import annotations

from sdcli.commands import options, pictures


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
    """Redraw an image from a prompt.

    Noise is added to the image and removed again in the last steps of the schedule. --strength sets how many: a low
    value keeps the image, 1 ignores it.

        sdcli img2img sketch.png "a castle at dusk" --strength 0.6
    """
    asked = options.given(picture, execution, image=image, prompt=prompt, label=label, strength=strength)
    pictures.make(asked, output)
