"""How good a model is: what a judge makes of its pictures, at fixed seeds, without picking.

The pictures are made by sdcli's own way from recipe to picture, at the model's defaults unless a recipe's keys say
otherwise, so that what is judged is what any user gets.
"""

import itertools
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sdcli import inputs, pipeline, registry
from sdcli.inputs import Inputs
from sdcli.model import LatentDiffusionModel
from sdcli.recipe import Initial, Recipe
from sdcli.training.autoencoder import to_tensor
from sdcli.training.captions import PLACE_PHRASES, article
from sdcli.training.judge import (
    Answers,
    Judge,
    Segmenter,
    accuracy,
    answers_of,
    mean_iou,
    read_maps,
    shrink_maps,
    to_images,
)
from sdcli.training.world import KIT, SIZE, Sprites, Triple, Vocabulary, combinations, exists, render, scenes

ARCTIC_PROMPTS = ("arctic fox", "an arctic fox", "an arctic fox in the snow")

Draw = Callable[[Mapping[str, Any], Inputs | None], np.ndarray]
"""One picture, uint8 (h, w, 3), of the flat keys of a recipe and the image it starts from."""


@dataclass(frozen=True)
class Trial:
    """A prompt, and what its picture is to show."""

    prompt: str
    answers: Answers


def noun_of(subject: str, colour: str) -> str:
    """A subject in plain words."""
    return article(subject if colour == "natural" else f"{colour} {subject}")


def trial_of(triple: Triple) -> Trial:
    """The plainest caption of a combination."""
    subject, colour, place = triple
    return Trial(f"{noun_of(subject, colour)} {PLACE_PHRASES[place][0]}", Answers(subject, colour, place))


def trial_of_two(left: Triple, right: Triple) -> Trial:
    """One subject left of another, in the place of the first."""
    (one, colour, place), (other, second, _) = left, right
    words = f"{noun_of(one, colour)} left of {noun_of(other, second)} {PLACE_PHRASES[place][0]}"
    return Trial(words, Answers(place=place, left=one, right=other))


def spread(triples: Sequence[Triple], count: int) -> list[Triple]:
    """`count` of the triples, evenly spaced; all of them over again where there are fewer."""
    return [
        triples[index * len(triples) // count if count <= len(triples) else index % len(triples)]
        for index in range(count)
    ]


def text_trials(vocabulary: Vocabulary, seen: int, held_out: int) -> dict[str, list[Trial]]:
    """What a text-to-image model is asked: combinations seen and held out, two subjects, subjects alone, the arctic
    fox. There are `seen` / 5 of two subjects.
    """
    kept = combinations(False, vocabulary)
    pairs = [
        trial_of_two(one, other)
        for one, other in zip(spread(kept, seen // 5), reversed(spread(kept, seen // 5 + 1)), strict=False)
        if one[0] != other[0] and exists(other[0], other[1], one[2])
    ]
    alone = [Trial(article(name), Answers(name, "natural")) for name in vocabulary.subjects]
    white_fox = Answers("fox", "white", "snow")
    return {
        "seen": [trial_of(triple) for triple in spread(kept, seen)],
        "held_out": [trial_of(triple) for triple in spread(combinations(True, vocabulary), held_out)],
        "two_subjects": pairs,
        "subject_alone": alone,
        "arctic_fox": [Trial(ARCTIC_PROMPTS[index % len(ARCTIC_PROMPTS)], white_fox) for index in range(12)],
    }


def drawer(model: str, options: Mapping[str, Any]) -> Draw:
    """What draws with a model, by name or path; `options` are flat recipe keys beside each trial's own."""
    entry = registry.find(model)
    loaded: LatentDiffusionModel | None = None

    def draw(asked: Mapping[str, Any], given: Inputs | None) -> np.ndarray:
        nonlocal loaded
        wanted = registry.resolve_recipe(entry, {"model": model, **options, **asked}, user=False, given=given)
        recipe: Recipe = pipeline.resolve_execution(wanted)
        if loaded is None:
            loaded = pipeline.load(registry.locate(entry), recipe)
        return np.asarray(pipeline.run(loaded, [recipe], given=given)[0].image)

    return draw


def judged(
    judge: Judge, draw: Draw, trials: Sequence[Trial], shown: Callable[[int], None] = lambda count: None
) -> dict[str, float]:
    """What the judge makes of the pictures of these trials; picture i has seed i. `shown` hears of each picture."""
    pictures = []
    for seed, trial in enumerate(trials):
        pictures.append(draw({"prompt": trial.prompt, "seed": seed}, None))
        shown(seed + 1)
    return accuracy(judge, to_tensor(pictures), [trial.answers for trial in trials])


def judge_itself(
    judge: Judge, segmenter: Segmenter, sprites: Sprites, vocabulary: Vocabulary = KIT, count: int = 768
) -> dict[str, float]:
    """The judge's accuracy on renderings it has not seen, and the segmenter's mean IoU on the first 128 of them."""
    drawn = list(itertools.islice(scenes(987_654_321, vocabulary, held_out=True), count))
    renderings = [render(scene, sprites) for scene in drawn]
    table = accuracy(judge, to_images(renderings), [answers_of(scene) for scene in drawn])
    some = renderings[:128]
    given = shrink_maps(np.stack([rendering.segmentation for rendering in some]))
    return {**table, "mean_iou": mean_iou(read_maps(segmenter, to_images(some)), given)[0]}


def inpaint_trials(sprites: Sprites, vocabulary: Vocabulary, count: int) -> Iterable[tuple[str, Answers, Inputs]]:
    """Scenes of one subject, a mask over it, and a prompt for another subject there in the same place."""
    rng = np.random.default_rng(24_680)
    wanted = spread(combinations(False, vocabulary), 4 * count)
    source = (scene for scene in scenes(13_579, vocabulary) if scene.place in vocabulary.places)
    for _ in range(count):
        scene = next(s for s in source if len(s.placements) == 1 and s.time == "day" and not s.placements[0].size)
        options = [triple for triple in wanted if triple[2] == scene.place and triple[0] != scene.placements[0].subject]
        triple = options[rng.integers(len(options))]
        rendering = render(scene, sprites)
        mask = Image.new("L", (SIZE, SIZE))
        rows, columns = (np.flatnonzero(rendering.masks[0].any(axis)) for axis in (1, 0))
        left, top, right, bottom = (int(edge) for edge in (columns[0], rows[0], columns[-1], rows[-1]))
        mask.paste(255, (left - 14, top - 14, right + 15, bottom + 15))
        given = inputs.prepare(Image.fromarray(rendering.image), mask, Initial(image="scene", mask_image="mask"))
        trial = trial_of(triple)
        yield trial.prompt, Answers(triple[0], triple[1]), given


def measure_text(
    draw: Draw,
    judge: Judge,
    *,
    vocabulary: Vocabulary = KIT,
    seen: int = 500,
    held_out: int = 200,
    shown: Callable[[int], None] = lambda count: None,
) -> dict[str, dict[str, float]]:
    """The table of a text-to-image model."""
    kinds = text_trials(vocabulary, seen, held_out)
    return {kind: {"pictures": len(trials), **judged(judge, draw, trials, shown)} for kind, trials in kinds.items()}


def measure_inpaint(
    draw: Draw, judge: Judge, sprites: Sprites, *, vocabulary: Vocabulary = KIT, count: int = 200
) -> dict[str, float]:
    """How often the asked subject, and its colour, appear in the mask of an inpainting model's pictures."""
    pictures, answers = [], []
    for seed, (prompt, answer, given) in enumerate(inpaint_trials(sprites, vocabulary, count)):
        asked = {"prompt": prompt, "seed": seed, "image": "scene", "mask_image": "mask"}
        pictures.append(draw(asked, given))
        answers.append(answer)
    return {"pictures": count, **accuracy(judge, to_tensor(pictures), answers)}


def measure_semantic(
    draw: Draw, judge: Judge, segmenter: Segmenter, sprites: Sprites, *, vocabulary: Vocabulary = KIT, count: int = 100
) -> dict[str, float]:
    """How well the pictures of a model for segmentation maps follow their maps, and their prompts.

    The maps are those of scenes of one subject; `mean_iou` is between them and what the segmenter reads back.
    """
    source = (scene for scene in scenes(112_233, vocabulary) if len(scene.placements) == 1 and scene.time == "day")
    drawn = list(itertools.islice((scene for scene in source if scene.place in vocabulary.places), count))
    given, pictures = [render(scene, sprites).segmentation for scene in drawn], []
    with tempfile.TemporaryDirectory() as folder:
        for seed, (scene, indices) in enumerate(zip(drawn, given, strict=True)):
            file = Path(folder) / f"{seed}.png"
            Image.fromarray(indices).save(file)
            only = scene.placements[0]
            prompt = trial_of((only.subject, only.colour, scene.place)).prompt
            pictures.append(draw({"prompt": prompt, "seed": seed, "segmentation_map": str(file)}, None))
    mean, _ = compare_maps(segmenter, pictures, given)
    shares = accuracy(judge, to_tensor(pictures), [answers_of(scene) for scene in drawn])
    return {"pictures": count, "mean_iou": mean, **shares}


@torch.no_grad()
def compare_maps(
    segmenter: Segmenter, pictures: Sequence[np.ndarray], maps: Sequence[np.ndarray]
) -> tuple[float, dict[str, float]]:
    """Mean IoU between the maps, uint8 (256, 256), that pictures were made of and those read back from them."""
    return mean_iou(read_maps(segmenter, to_tensor(list(pictures))), shrink_maps(np.stack(maps)))
