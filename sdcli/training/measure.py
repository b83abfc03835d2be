"""How good a model is: what a judge makes of its pictures, at fixed seeds, without picking."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from diffusers import StableDiffusionPipeline

from sdcli.training.autoencoder import to_tensor
from sdcli.training.captions import PLACE_PHRASES, article
from sdcli.training.judge import Judge, Triple, accuracy, renderings
from sdcli.training.sampling import Sampling, generate, load_pipeline
from sdcli.training.sprites import SUBJECTS
from sdcli.training.world import Sprites, combinations

ARCTIC_PROMPTS = ("arctic fox", "an arctic fox", "an arctic fox in the snow")


def judge_itself(judge: Judge, sprites: Sprites, seed: int = 12345, copies: int = 2) -> dict[str, float]:
    """The judge's accuracy on renderings it has not seen, `copies` of each combination."""
    triples = (combinations(held_out=False) + combinations(held_out=True)) * copies
    return accuracy(judge, renderings(sprites, triples, np.random.default_rng(seed)), triples)


def prompt_of(triple: Triple) -> str:
    """The plainest caption of a combination."""
    subject, colour, place = triple
    noun = subject if colour == "natural" else f"{colour} {subject}"
    return f"{article(noun)} {PLACE_PHRASES[place][0]}"


def spread(triples: Sequence[Triple], count: int) -> list[Triple]:
    """`count` of the triples, evenly spaced; all of them over again where there are fewer."""
    return [
        triples[index * len(triples) // count if count <= len(triples) else index % len(triples)]
        for index in range(count)
    ]


def measure(
    pipeline: StableDiffusionPipeline, judge: Judge, sampling: Sampling, count: int
) -> dict[str, dict[str, float]]:
    """Accuracy over `count` pictures of seen and of held out combinations, of subjects alone, and of arctic foxes."""
    subjects: list[Triple] = [(s.name, "natural", "snow") for s in SUBJECTS]
    arctic: list[Triple] = [("fox", "white", "snow")] * 12
    seen = spread(combinations(held_out=False), count)
    unseen = spread(combinations(held_out=True), count)
    kinds = {
        "seen": (seen, [prompt_of(triple) for triple in seen]),
        "held_out": (unseen, [prompt_of(triple) for triple in unseen]),
        "subject_alone": (subjects, [article(name) for name, _, _ in subjects]),
        "arctic_fox": (arctic, [ARCTIC_PROMPTS[index % len(ARCTIC_PROMPTS)] for index in range(len(arctic))]),
    }
    table = {}
    for kind, (triples, prompts) in kinds.items():
        pictures = generate(pipeline, prompts, range(len(prompts)), sampling)
        table[kind] = accuracy(judge, to_tensor(list(pictures)), triples)
    for unasked in ("place", "all"):
        del table["subject_alone"][unasked]
    return table


def measure_folder(folder: Path, judge: Judge, sampling: Sampling, count: int) -> dict[str, object]:
    """`measure` of a diffusers folder, with the settings it was sampled with."""
    pipeline = load_pipeline(folder)
    return {"sampling": vars(sampling), "accuracy": measure(pipeline, judge, sampling, count)}
