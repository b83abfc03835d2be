"""Measure the shortcuts of docs/speed.md with kit: python docs/shortcuts.py FOLDER [PICTURES] [STEPS] [MODEL] [JUDGE]

Each picture is made in all ways in turns, with the same prompt and seed, and compared with the exact one. The numbers
of each picture are one line of FOLDER/numbers.jsonl, and its pictures are FOLDER/PICTURE-WAY.png; those that are there
already are not made again. Prints a table: the median of the processor time, also relative to the exact one, the means
of PSNR and SSIM, the lowest SSIM, and, with a JUDGE (the file judge.pt of `sdcli train kit`), the shares of pictures
with the right subject, and with all answers right.
"""

import json
import sys
import time
from collections.abc import Sequence
from itertools import chain, islice
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import uniform_filter

from sdcli.diffusion import device, pipeline
from sdcli.models import assemble, located
from sdcli.training import judge as judging
from sdcli.training.measure import Trial, resolved_of, text_trials
from sdcli.training.pool import to_tensor
from sdcli.training.world import KIT

WAYS = (
    {},
    {"guidance_interval": "0.1-0.8"},
    {"guidance_interval": "0.2-1"},
    {"cache": "deepcache:2"},
    {"cache": "deepcache:3"},
    {"cache": "deepcache:4"},
    {"token_merging": 0.5},
    {"cache": "deepcache:3", "token_merging": 0.5},
    {"cache": "deepcache:4", "token_merging": 0.5},
    {"cache": "deepcache:4", "token_merging": 0.5, "guidance_interval": "0.2-1"},
)


def psnr(picture: np.ndarray, other: np.ndarray) -> float:
    """The peak signal-to-noise ratio of two 8-bit pictures in dB; 99 if they are equal."""
    error = np.mean((picture.astype(float) - other) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else 99.0


def ssim(picture: np.ndarray, other: np.ndarray, side: int = 7) -> float:
    """The structural similarity of two 8-bit RGB pictures, by Wang et al. 2004 in windows of side × side pixels.

    Equal to scikit-image's `structural_similarity(…, channel_axis=2)`.
    """
    x, y = picture.astype(float), other.astype(float)
    window = (side, side, 1)
    mean_x, mean_y = uniform_filter(x, window), uniform_filter(y, window)
    unbiased = side**2 / (side**2 - 1)
    variance_x = unbiased * (uniform_filter(x * x, window) - mean_x**2)
    variance_y = unbiased * (uniform_filter(y * y, window) - mean_y**2)
    covariance = unbiased * (uniform_filter(x * y, window) - mean_x * mean_y)
    small, smaller = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    above = (2 * mean_x * mean_y + small) * (2 * covariance + smaller)
    found = above / ((mean_x**2 + mean_y**2 + small) * (variance_x + variance_y + smaller))
    edge = side // 2
    return float(found[edge:-edge, edge:-edge].mean())


def main(folder: Path, pictures: int, steps: int, model: str, judge: Path | None) -> None:
    """Make the pictures that `folder` does not have, and print the table."""
    folder.mkdir(exist_ok=True)
    file = folder / "numbers.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    results = [json.loads(line) for line in lines[:pictures]]
    found = located.find(model)
    trials = list(islice(chain.from_iterable(text_trials(KIT, pictures, 0).values()), pictures))
    first = resolved_of(found, model, {"steps": steps}, trials[0], 0)
    loaded = assemble.load(first.weights, device.resolve_execution(first.recipe))
    for seed in range(len(results), pictures):
        exact, taken = None, []
        for number, way in enumerate(WAYS):
            recipe = resolved_of(found, model, {"steps": steps, **way}, trials[seed], seed).recipe
            started = time.process_time()
            made = pipeline.run(loaded, [recipe])[0].image
            seconds, picture = time.process_time() - started, np.asarray(made)
            made.save(folder / f"{seed:03}-{number}.png")
            exact = picture if exact is None else exact
            taken.append((seconds, psnr(exact, picture), ssim(exact, picture)))
        results.append(taken)
        with file.open("a", encoding="utf-8") as kept:
            kept.write(json.dumps(taken) + "\n")
    show(results)
    if judge is not None:
        show_answers(folder, trials[: len(results)], judge)


def show(results: Sequence[Sequence[Sequence[float]]]) -> None:
    """Print the table of pictures, each with the seconds, PSNR and SSIM of each way."""
    print(f"{len(results)} pictures")
    numbers = np.array(results)
    exact = np.median(numbers[:, 0, 0])
    for way, (seconds, decibels, likeness) in zip(WAYS, numbers.transpose(1, 2, 0), strict=True):
        cells = (np.median(seconds), np.median(seconds) / exact, decibels.mean(), likeness.mean(), likeness.min())
        print(json.dumps(way), *(f"{cell:.3f}" for cell in cells), sep="\t")


def show_answers(folder: Path, trials: Sequence[Trial], file: Path) -> None:
    """Print what a judge finds in the pictures of each way."""
    judge, _ = judging.load(file)
    for number, way in enumerate(WAYS):
        made = [np.asarray(Image.open(folder / f"{seed:03}-{number}.png")) for seed in range(len(trials))]
        shares = judging.accuracy(judge, to_tensor(np.stack(made)), [trial.answers for trial in trials])
        print(json.dumps(way), *(f"{key} {shares[key]:.3f}" for key in ("subject", "all")), sep="\t")


if __name__ == "__main__":
    defaults = ("results", "100", "20", "kit", "")
    name, pictures, steps, model, judge = [*sys.argv[1:], *defaults[len(sys.argv) - 1 :]]
    main(Path(name), int(pictures), int(steps), model, Path(judge) if judge else None)
