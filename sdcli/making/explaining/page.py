"""The page about a picture: page.html with what was recorded. It needs no other file, and loads nothing."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING

from sdcli import __version__
from sdcli.files import templates
from sdcli.making.explaining import chart, drawing
from sdcli.making.explaining.record import Explanation, Frame

if TYPE_CHECKING:
    from PIL.Image import Image

_TEMPLATE = "page.html"


def page(explained: Explanation, command: str) -> str:
    """Return the page; `command` makes the same picture."""
    picture, frames = explained.picture, explained.frames
    recipe, image = picture.recipe, drawing.small(picture.image)
    told = [_told(frame, explained.total) for frame in frames]
    cleans = [drawing.jpeg(frame.clean) for frame in frames]
    noisies = [drawing.jpeg(frame.noisy, 70) for frame in frames]
    channels = [drawing.png(drawing.channels(frame.latents)) for frame in frames]
    # text is escaped, and so has no braces that could be taken for another name of the template
    values = {
        "title": f"How “{_text(recipe.condition.words)}” was made",
        "words": _text(recipe.condition.words),
        "picture": drawing.jpeg(image, 90),
        "width": str(image.width),
        "height": str(image.height),
        "ratio": f"{image.width} / {image.height}",
        "total": str(explained.total),
        "facts": _facts(explained),
        "command": _text(command),
        "shown": str(len(frames)),
        "told": told[-1],
        "last_clean": cleans[-1],
        "last_noisy": noisies[-1],
        "last_channels": channels[-1],
        "cleans": _items(explained, cleans, "x̂₀"),
        "noisies": _items(explained, noisies, "z"),
        "channels": "".join(f'<li><img src="{each}" alt=""></li>' for each in channels),
        "numbers": _numbers(explained),
        "count": str(explained.latents[0]),
        "attention": _attention(explained, image),
        "guidance": _guidance(explained),
        "charts": _charts(explained),
        "seed": str(recipe.seed),
        "other": drawing.jpeg(drawing.small(explained.other.image), 90),
        "other_words": _text(explained.other.recipe.condition.words) or "(no text)",
        "concatenated": _concatenated(explained),
        "version": __version__,
        "told_all": templates.script_json([
            {"text": text, "evaluation": frame.number} for text, frame in zip(told, frames, strict=True)
        ]),
    }  # fmt: skip
    return templates.fill(files("sdcli.making.explaining").joinpath(_TEMPLATE).read_text(encoding="utf-8"), values)


def _text(text: str) -> str:
    return escape(" ".join(text.split()))


def _told(frame: Frame, total: int) -> str:
    sigma, ratio = (chart.formatted(each) for each in (frame.sigma, frame.sigma**-2))
    return f"{frame.number} of {total}: t = {frame.timestep:.0f}, σ = {sigma}, SNR = {ratio}"


def _items(explained: Explanation, urls: list[str], name: str) -> str:
    return "".join(
        f'<li><img src="{url}" alt="{name} at step {frame.number}">{frame.number}</li>'
        for url, frame in zip(urls, explained.frames, strict=True)
    )


def _facts(explained: Explanation) -> str:
    recipe = explained.picture.recipe
    sampling = recipe.sampling
    rows = {
        "model": recipe.model,
        "size": f"{recipe.width}×{recipe.height}",
        "steps": f"{sampling.steps}, {sampling.scheduler}",
        "guidance": f"{sampling.guidance_scale:g}",
        "seed": str(recipe.seed),
    }
    if recipe.condition.negative_prompt:
        rows["negative prompt"] = recipe.condition.negative_prompt
    return "".join(f'<tr><th scope="row">{name}</th><td>{_text(value)}</td></tr>' for name, value in rows.items())


def _numbers(explained: Explanation) -> str:
    recipe, (channels, height, width) = explained.picture.recipe, explained.latents
    pixels, latents = recipe.width * recipe.height * 3, channels * height * width
    return (
        f"The picture has {recipe.width} × {recipe.height} pixels of 3 colours: {pixels:,} numbers. Its latents have "
        f"{width} × {height} places with {channels} channels: {latents:,} numbers, {pixels / latents:g} times fewer. "
        "<i>f</i> only sees these, and the decoder returns to pixels once, at the end."
    )


def _attention(explained: Explanation, image: Image) -> str:
    if explained.unseen is not None:
        return f"<p>There are no maps here: {_text(explained.unseen)}.</p>"
    cards = "".join(
        f'<figure><div class="look"><img src="{drawing.png(drawing.heat(numbers, image.size))}" '
        f'alt="Where the network looked for “{_text(word.text)}”"></div><figcaption><strong>{_text(word.text)}</strong>'
        f"{_tokens(word.tokens, word.places)}</figcaption></figure>"
        for word, numbers in zip(explained.words, explained.maps, strict=True)
    )
    return (
        "<p>At each step, each place of the latents looks at the tokens of the text (cross-attention). Maps show "
        "the attention to the tokens of each word, averaged over all heads, layers and steps. Each map has its own "
        'scale: <span>least<span class="scale"></span>most</span>.</p>'
        '<div class="control"><label for="strength">Colours over the picture</label>'
        '<input id="strength" type="range" min="0" max="100" value="65"></div>'
        f'<div class="words">{cards}</div>'
    )


def _tokens(tokens: tuple[str, ...], places: tuple[int, ...]) -> str:
    if len(tokens) == 1:
        return f" – token {places[0]}"
    return f" – tokens {places[0]} to {places[-1]}: {_text(' · '.join(tokens))}"


def _guidance(explained: Explanation) -> str:
    frames = [(frame, frame.guided) for frame in explained.frames if frame.guided is not None]
    scale = explained.picture.recipe.sampling.guidance_scale
    if not frames:
        return (
            f"<p>The guidance scale is {scale:g}, with which this model has no prediction without the text: each step "
            "is one evaluation.</p>"
        )
    rows: dict[str, Callable[[int], str]] = {
        "with the text": lambda index: drawing.jpeg(frames[index][1].conditional),
        "without it": lambda index: drawing.jpeg(frames[index][1].unconditional),
        "where they differ": lambda index: drawing.png(
            drawing.heat(frames[index][1].difference, frames[index][1].conditional.size)
        ),
    }
    head = "".join(f'<th scope="col">step {frame.number}</th>' for frame, _ in frames)
    body = "".join(
        f'<tr><th scope="row">{name}</th>'
        + "".join(
            f'<td><img src="{draw(index)}" alt="{name}, step {each.number}"></td>'
            for index, (each, _) in enumerate(frames)
        )
        + "</tr>"
        for name, draw in rows.items()
    )
    told = explained.picture.recipe.condition.negative_prompt
    what = f"with the negative prompt “{_text(told)}”" if told else "without the text"
    return (
        f"<p>Each step predicts twice: with the text, and {what}. The step then goes further than the first, "
        f"away from the second: guidance multiplies their difference by {scale:g}. Here is x̂₀ by each of the two, and "
        "where they differ, each with its own scale.</p>"
        f'<div class="wide" tabindex="0" role="region" aria-label="Predictions with and without the text">'
        f'<table class="guided"><thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _charts(explained: Explanation) -> str:
    of_sigma = chart.chart(explained.levels, explained.sigmas, lambda sigma: sigma, "σ")
    of_ratio = chart.chart(explained.levels, explained.sigmas, lambda sigma: sigma**-2, "SNR")
    return of_sigma + of_ratio


def _concatenated(explained: Explanation) -> str:
    if not explained.concatenated:
        return ""
    figures = ""
    for each in explained.concatenated:
        kind = "pixels" if "channels" in each.title else "picture"
        figures += f'<figure><img class="{kind}" src="{drawing.png(each.image)}" alt="{_text(each.title)}">'
        figures += f"<figcaption>{_text(each.title)}</figcaption></figure>"
    return (
        '<h2 id="concatenated">What was concatenated</h2><p>The text reaches <i>f</i> by cross-attention. This part of '
        "the context is given in another way: as further channels next to those of z, the same at every step.</p>"
        f'<div class="pair">{figures}</div>'
    )
