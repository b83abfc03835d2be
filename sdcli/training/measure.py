"""Measures how often a model's pictures show what was asked for, according to the judge, at fixed seeds.

Pictures are generated like those of `sdcli generate`, with the model's defaults unless options change them.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

from sdcli.diffusion import device, pipeline
from sdcli.diffusion.model import LatentDiffusionModel
from sdcli.errors import UsageError
from sdcli.files import canvas
from sdcli.files.canvas import InitialImage
from sdcli.models import assemble, located
from sdcli.models.located import LocatedModel
from sdcli.models.registry import ModelFacts
from sdcli.planning import resolve
from sdcli.planning.resolve import Resolved
from sdcli.recipe.parts import Initial
from sdcli.recipe.recipe import Recipe
from sdcli.training.autoencoder import measure_psnr, to_tensor
from sdcli.training.captions import COUNT_WORDS, PLACE_PHRASES, article, plural
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
from sdcli.training.places import CLASSES
from sdcli.training.stream import stacked
from sdcli.training.world import (
    KIT,
    SIZE,
    Scene,
    Sprites,
    Triple,
    Vocabulary,
    combinations,
    exists,
    is_held_out,
    render,
    scenes,
)

ARCTIC_PROMPTS = ("arctic fox", "an arctic fox", "an arctic fox in the snow")

Shown = Callable[[str, int, int], None]
"""A callback after each picture: the kind of trials, their number, and how many pictures are done."""


@dataclass(frozen=True)
class Trial:
    """A prompt and the answers that its picture should have.

    `asked` are recipe keys besides prompt and seed; `given` is the input image; `segmentation`, uint8 (256, 256), is
    the map that the picture should follow.
    """

    prompt: str
    answers: Answers
    asked: Mapping[str, Any] = field(default_factory=dict)
    given: InitialImage | None = None
    segmentation: np.ndarray | None = None


Item = TypeVar("Item")
Draw = Callable[[Trial, int], np.ndarray]
"""Generates the picture of a trial for a seed, uint8 (h, w, 3)."""


@dataclass(frozen=True)
class Counts:
    """The number of pictures of each kind of trial, and of scenes for the autoencoder."""

    seen: int = 500
    held_out: int = 200
    masks: int = 100
    maps: int = 100
    scenes: int = 64


def noun_of(subject: str, colour: str) -> str:
    """Return the noun phrase of a subject with its colour."""
    return article(subject if colour == "natural" else f"{colour} {subject}")


def trial_of(triple: Triple) -> Trial:
    """Return the trial with the simplest caption of a combination."""
    subject, colour, place = triple
    return Trial(f"{noun_of(subject, colour)} {PLACE_PHRASES[place][0]}", Answers(subject, colour, place))


def trial_of_two(left: Triple, right: Triple, *, turned: bool = False) -> Trial:
    """Return a trial with one subject left of another, in the place of the first.

    `turned` words the caption as "right of", with the subjects swapped.
    """
    (one, colour, place), (other, second, _) = left, right
    nouns = noun_of(one, colour), noun_of(other, second)
    words = f"{nouns[1]} right of {nouns[0]}" if turned else f"{nouns[0]} left of {nouns[1]}"
    return Trial(f"{words} {PLACE_PHRASES[place][0]}", Answers(place=place, left=one, right=other))


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """Return `count` evenly spaced items; if there are fewer, they repeat."""
    return [items[index * len(items) // count if count <= len(items) else index % len(items)] for index in range(count)]


RELATED = {"on": "{upper} on {lower}", "riding": "{upper} riding {lower}"}


def trial_of_stack(scene: Scene) -> Trial:
    """Return the trial with the simplest caption of a scene with one subject on another or riding it."""
    upper, lower = sorted(scene.placements, key=lambda placement: placement.y)
    nouns = {"upper": noun_of(upper.subject, upper.colour), "lower": noun_of(lower.subject, lower.colour)}
    words = RELATED[scene.relation].format(**nouns)
    return Trial(f"{words} {PLACE_PHRASES[scene.place][0]}", replace(answers_of(scene), time=None))


def trial_of_count(scene: Scene) -> Trial:
    """Return the trial with the simplest caption of a scene of several equal subjects."""
    first, count = scene.placements[0], len(scene.placements)
    noun = first.subject if first.colour == "natural" else f"{first.colour} {first.subject}"
    words = f"{COUNT_WORDS[count][0]} {plural(noun)} {PLACE_PHRASES[scene.place][0]}"
    return Trial(words, replace(answers_of(scene), time=None))


def related_trials(vocabulary: Vocabulary, count: int) -> dict[str, list[Trial]]:
    """Return up to `count` trials for each relation: one subject on another, riding, several alike.

    All combinations were seen in training.
    """
    kinds = {"on": trial_of_stack, "riding": trial_of_stack, "counts": trial_of_count}
    found = {}
    for number, (kind, trial) in enumerate(kinds.items()):
        none: dict[str, Any] = dict.fromkeys(
            ("arctic", "pairs", "on", "riding", "counts", "next", "threes", "background", "mixed"), 0.0
        )
        only = replace(vocabulary, **{**none, "other_time": 0.0, kind: 1.0})
        relation = "count" if kind == "counts" else kind
        drawn = itertools.islice(scenes(31_415 + number, only), 4 * count)
        found[kind] = [trial(scene) for scene in drawn if scene.relation == relation][:count]
    return found


def text_trials(vocabulary: Vocabulary, seen: int, held_out: int) -> dict[str, list[Trial]]:
    """Return the trials of a text-to-image model, by kind.

    They are combinations seen and held out, two subjects side by side, one on or riding another, several alike, single
    subjects without a place, and the arctic fox. There are nearly `seen` / 5 of two subjects, half of them with the
    right one named first, and `seen` / 10 of each other relation.
    """
    kept = combinations(False, vocabulary)
    some = spread(kept, seen // 5)
    others = [some[index] for index in np.random.default_rng(97_531).permutation(len(some))]
    pairs = [
        trial_of_two(one, (subject, colour, one[2]), turned=index % 2 == 1)
        for index, (one, (subject, colour, _)) in enumerate(zip(some, others, strict=True))
        if one[0] != subject and exists(subject, colour, one[2]) and not is_held_out(subject, colour, one[2])
    ]
    alone = [
        Trial(article(name), Answers(name, "natural")) for name in spread(vocabulary.subjects, min(seen // 5, 100))
    ]
    white_fox = Answers("fox", "white", "snow")
    kinds = {
        "seen": [trial_of(triple) for triple in spread(kept, seen)],
        "held_out": [trial_of(triple) for triple in spread(combinations(True, vocabulary), held_out)],
        "two_subjects": pairs,
        **related_trials(vocabulary, seen // 10),
        "subject_alone": alone,
        "arctic_fox": [Trial(ARCTIC_PROMPTS[index % len(ARCTIC_PROMPTS)], white_fox) for index in range(12)],
    }
    return {kind: trials for kind, trials in kinds.items() if trials}


def resolved_of(model: LocatedModel, name: str, options: Mapping[str, Any], trial: Trial, seed: int) -> Resolved:
    """Return the recipe of a trial's picture, for this machine, with its inputs.

    `options` are further recipe keys.
    """
    keys = {"model": name, **options, "prompt": trial.prompt, "seed": seed, **trial.asked}
    wanted = resolve.resolve(model, keys, user=False, given=trial.given)
    return replace(wanted, recipe=device.resolve_execution(wanted.recipe))


def drawer(loaded: LatentDiffusionModel, model: LocatedModel, name: str, options: Mapping[str, Any]) -> Draw:
    """Return a function that generates the pictures of trials with a loaded model."""

    def draw(trial: Trial, seed: int) -> np.ndarray:
        resolved = resolved_of(model, name, options, trial, seed)
        result = pipeline.run(loaded, [resolved.recipe], inputs=resolved.inputs)[0]
        return np.asarray(result.image)

    return draw


def drawn(draw: Draw, trials: Sequence[Trial], shown: Callable[[int], None] = lambda count: None) -> list[np.ndarray]:
    """Generate the pictures of trials; picture i has seed i. `shown` is called with the number of pictures done."""
    pictures = []
    for seed, trial in enumerate(trials):
        pictures.append(draw(trial, seed))
        shown(seed + 1)
    return pictures


def judge_itself(
    judge: Judge, segmenter: Segmenter, sprites: Sprites, vocabulary: Vocabulary = KIT, count: int = 768
) -> dict[str, float]:
    """Return the judge's accuracy on unseen renderings, and the segmenter's mean IoU on the first 128 of them."""
    drawn = list(itertools.islice(scenes(987_654_321, vocabulary, held_out=True), count))
    renderings = [render(scene, sprites) for scene in drawn]
    table = accuracy(judge, to_images(renderings), [answers_of(scene) for scene in drawn])
    some = renderings[:128]
    given = shrink_maps(stacked([rendering.segmentation for rendering in some]))
    return {"pictures": count, **table, "mean_iou": mean_iou(read_maps(judge, segmenter, to_images(some)), given)[0]}


def inpaint_trials(sprites: Sprites, vocabulary: Vocabulary, count: int) -> Iterator[Trial]:
    """Yield scenes of one subject with a mask over it, and a prompt for another subject in the same place."""
    rng = np.random.default_rng(24_680)
    wanted = spread(combinations(False, vocabulary), 4 * count)
    source = (scene for scene in scenes(13_579, vocabulary) if scene.place in vocabulary.places)
    for _ in range(count):
        scene = next(s for s in source if len(s.placements) == 1 and s.time == "day" and not s.placements[0].size)
        for known in (wanted, combinations(False, vocabulary)):  # with few combinations, none may be in this place
            options = [each for each in known if each[2] == scene.place and each[0] != scene.placements[0].subject]
            if options:
                break
        triple = options[rng.integers(len(options))]
        rendering = render(scene, sprites)
        mask = Image.new("L", (SIZE, SIZE))
        rows, columns = (np.flatnonzero(rendering.masks[0].any(axis)) for axis in (1, 0))
        left, top, right, bottom = (int(edge) for edge in (columns[0], rows[0], columns[-1], rows[-1]))
        mask.paste(255, (left - 14, top - 14, right + 15, bottom + 15))
        given = canvas.prepare(Image.fromarray(rendering.image), mask, Initial(image="scene", mask_image="mask"))
        asked = {"image": "scene", "mask_image": "mask"}
        yield Trial(trial_of(triple).prompt, Answers(triple[0], triple[1]), asked, given)


def map_trials(sprites: Sprites, vocabulary: Vocabulary, count: int, folder: Path) -> Iterator[tuple[str, Trial]]:
    """Yield trials with the maps of scenes of one subject, and their kind; writes the maps to `folder`.

    There are `count` in places of the world ("maps"), and `count` in mixed places ("mixed_maps"), whose prompts name
    only the subject.
    """
    for number, (kind, mixed) in enumerate({"maps": 0.0, "mixed_maps": 1.0}.items()):
        drawn = scenes(112_233 + number, replace(vocabulary, mixed=mixed, background=0.0))
        source = (scene for scene in drawn if len(scene.placements) == 1 and scene.time == "day")
        for index, scene in enumerate(itertools.islice(source, count)):
            file = folder / f"{kind}-{index}.png"
            indices = render(scene, sprites).segmentation
            Image.fromarray(indices).save(file)
            only = scene.placements[0]
            noun = noun_of(only.subject, only.colour)
            prompt = noun if mixed else f"{noun} {PLACE_PHRASES[scene.place][0]}"
            answers = replace(answers_of(scene), count=None, time=None, place=None if mixed else scene.place)
            yield kind, Trial(prompt, answers, {"segmentation_map": str(file)}, None, indices)


def check(model: str, options: Mapping[str, Any]) -> None:
    """Raise the errors that `measure` would raise for the model, the classes of its maps, or the options."""
    found = located.find(model)
    facts = found.facts
    settled = resolve.settings(found.entry, {"prompt": "", "seed": 0, **options, "model": model}, facts, user=False)
    Recipe.from_dict({key: each.value for key, each in settled.items()})
    if facts.classes and tuple((each.name, each.color) for each in facts.classes) != tuple(CLASSES.items()):
        raise UsageError(f"{model} has classes of maps that are not the world's", "use a model trained on the world")


@contextmanager
def trials_of(
    facts: ModelFacts, sprites: Sprites, vocabulary: Vocabulary, counts: Counts
) -> Iterator[dict[str, list[Trial]]]:
    """Yield the trials for a model, by kind. The input channels of its U-Net determine the kinds."""
    if facts.in_channels == facts.latent_space.channels:
        yield text_trials(vocabulary, counts.seen, counts.held_out)
    elif not facts.classes:
        yield {"masks": list(inpaint_trials(sprites, vocabulary, counts.masks))}
    else:
        with TemporaryDirectory() as folder:
            kinds: dict[str, list[Trial]] = {}
            for kind, trial in map_trials(sprites, vocabulary, counts.maps, Path(folder)):
                kinds.setdefault(kind, []).append(trial)
            yield kinds


def measure(
    model: str,
    judge: Judge,
    segmenter: Segmenter,
    sprites: Sprites,
    *,
    vocabulary: Vocabulary = KIT,
    counts: Counts = Counts(),
    options: Mapping[str, Any] = MappingProxyType({}),
    shown: Shown = lambda kind, total, done: None,
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a model's table: the shares of correct answers, and seconds per picture, for each kind.

    For maps, `mean_iou` compares the given maps with those that the segmenter predicts from the pictures. For a
    text-to-image model, the last row has the `psnr` in dB of its autoencoder on unseen scenes.
    """
    found = located.find(model)
    with trials_of(found.facts, sprites, vocabulary, counts) as kinds:
        first = next(iter(kinds.values()))[0]
        resolved = resolved_of(found, model, options, first, 0)
        loaded = assemble.load(resolved.weights, resolved.recipe)
        draw = drawer(loaded, found, model, options)
        for kind, trials in kinds.items():
            began = time.monotonic()
            pictures = drawn(draw, trials, partial(shown, kind, len(trials)))
            seconds = (time.monotonic() - began) / len(trials)
            yield {"trials": kind, **judged(judge, segmenter, trials, pictures), "seconds": round(seconds, 2)}
    if "seen" in kinds:
        unseen = to_images(
            [render(scene, sprites) for scene in itertools.islice(scenes(556_677, vocabulary), counts.scenes)]
        )
        yield {"trials": "autoencoder", "pictures": len(unseen), "psnr": round(measure_psnr(loaded.vae, unseen), 2)}


def judged(
    judge: Judge, segmenter: Segmenter, trials: Sequence[Trial], pictures: Sequence[np.ndarray]
) -> dict[str, float]:
    """Return the number of pictures, the judge's shares and, for trials with maps, `mean_iou`."""
    found = {"pictures": len(trials), **accuracy(judge, to_tensor(pictures), [trial.answers for trial in trials])}
    maps = [trial.segmentation for trial in trials if trial.segmentation is not None]
    return found | ({"mean_iou": compare_maps(judge, segmenter, pictures, maps)[0]} if maps else {})


@torch.no_grad()
def compare_maps(
    judge: Judge, segmenter: Segmenter, pictures: Sequence[np.ndarray], maps: Sequence[np.ndarray]
) -> tuple[float, dict[str, float]]:
    """Return the mean IoU between maps, uint8 (256, 256), and those predicted from their pictures."""
    return mean_iou(read_maps(judge, segmenter, to_tensor(pictures)), shrink_maps(stacked(maps)))
