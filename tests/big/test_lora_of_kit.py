"""A LoRA of kit for a subject that it does not know, from 12 pictures: how often it is drawn, and what kit keeps.

Trains for minutes and makes 150 pictures, which a classifier reads that is trained here, on renderings only: it
knows nothing of kit or of the LoRA. Needs npm and the network, or the sprites in the user's cache.
"""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import sdcli
from sdcli.training import sprites, subjects, world
from sdcli.training.captions import PLACE_PHRASES
from sdcli.training.measure import spread, trial_of
from sdcli.training.places import PLACES, paint
from sdcli.training.subjects import Subject

NEW, CODE = "dodo", "1f9a4"
OWN = tuple(PLACES)[:12:2]
"""The places of the 12 pictures."""
OTHERS = tuple(place for place in PLACES if place not in OWN)
PROMPTS = (
    *("a penguin in the snow", "a fox in the desert", "a car in the city", "a castle on the beach"),
    *("a cat in a meadow", "a robot in the mountains", "a pizza", "an owl in the forest at night"),
)
SETTINGS = ("--sheet-every", "0", "--threads", "2")
SIDE, RENDERINGS, EPOCHS, BATCH = 48, 60, 8, 64


@pytest.fixture(scope="module")
def known() -> Iterator[world.Sprites]:
    """The sprites of the new subject, and of 50 that kit knows, in natural colours."""
    source = sprites.find_sprites()
    one = sprites.load_sprites(source, [Subject(NEW, CODE, 1.0, kind="animal")])[NEW]
    subjects.BY_NAME[NEW] = Subject(NEW, CODE, one.height / one.width, kind="animal", tinted=False)
    kept = [subjects.BY_NAME[name] for name, _, _ in kept_triples()]
    yield {(name, "natural"): each for name, each in ({NEW: one} | sprites.load_sprites(source, kept)).items()}
    del subjects.BY_NAME[NEW]


def kept_triples() -> list[world.Triple]:
    natural = [each for each in world.combinations(False) if each[1] == "natural"]
    return spread(natural, 50)


def rendered(sprites_: world.Sprites, names: Sequence[str], count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Renderings of each subject, and the index of its name."""
    rng, places = np.random.default_rng(seed), tuple(PLACES)
    views = {
        place: [paint(place, np.random.default_rng([seed, number]), world.SIZE, "day") for number in range(4)]
        for place in places
    }
    images, answers = [], []
    for index, name in list(enumerate(names)) * count:
        place = places[rng.integers(len(places))]
        scene = world.compose((name, "natural", place), rng)
        images.append(small(Image.fromarray(world.render(scene, sprites_, views[place][rng.integers(4)]).image)))
        answers.append(index)
    return torch.stack(images), torch.tensor(answers)


def small(picture: Image.Image) -> Tensor:
    pixels = np.asarray(picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float32)
    return torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)


def classifier(images: Tensor, answers: Tensor, count: int) -> nn.Module:
    torch.manual_seed(0)

    def block(width: int, out: int) -> list[nn.Module]:
        return [nn.Conv2d(width, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(), nn.MaxPool2d(2)]

    first = [nn.Conv2d(3, 32, 4, 2, 1), nn.BatchNorm2d(32), nn.ReLU()]
    last = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.3), nn.Linear(640, count)]
    net = nn.Sequential(*first, *block(32, 64), *block(64, 128), *block(128, 160), *last)
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.02)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=EPOCHS * (len(images) // BATCH))
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(images)).split(BATCH)[: len(images) // BATCH]:
            loss = F.cross_entropy(net(varied(images[chosen])), answers[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rates.step()
    return net.eval()


def varied(images: Tensor) -> Tensor:
    """Other contrasts and tints, moved, and half of the time as soft as the pictures of a small model."""
    images = images * (1 + 0.2 * torch.randn(len(images), 1, 1, 1)) + 0.15 * torch.randn(len(images), 3, 1, 1)
    if torch.rand(()) < 0.5:
        images = F.interpolate(F.avg_pool2d(images, 2), scale_factor=2, mode="bilinear")
    return torch.roll(images, torch.randint(-4, 5, (2,)).tolist(), (2, 3)) + 0.05 * torch.randn(images.shape)


def drawn(prompts: Sequence[str], seed: int, **options: str) -> Tensor:
    pictures = (sdcli.generate(prompt, seed=seed + index, **options) for index, prompt in enumerate(prompts))
    return torch.stack([small(Image.open(BytesIO(each.png))) for each in pictures])


@pytest.mark.slow
def test_a_new_subject_is_drawn_and_the_others_are_kept(known, tmp_path):
    folder, rng = tmp_path / NEW, np.random.default_rng(5)
    folder.mkdir()
    for index in range(12):
        place = OWN[index % len(OWN)]
        scene = world.compose((NEW, "natural", place), rng)
        Image.fromarray(world.render(scene, known).image).save(folder / f"{index:02}.png")
        (folder / f"{index:02}.txt").write_text(f"a {NEW} {PLACE_PHRASES[place][0]}\n")
    lora = tmp_path / f"{NEW}.safetensors"
    of_class = [word for prompt in PROMPTS for word in ("--class-prompt", prompt)]
    command = [sys.executable, "-m", "sdcli", "train", "lora", str(folder), "-o", str(lora), *SETTINGS, *of_class]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
    triples = kept_triples()
    names = [NEW, *dict.fromkeys(name for name, _, _ in triples)]
    net = classifier(*rendered(known, names, RENDERINGS, 1), len(names))
    unseen, right = rendered(known, names, 6, 2)
    places = [PLACE_PHRASES[OTHERS[index % len(OTHERS)]][0] for index in range(50)]
    new = drawn([f"a {NEW} {place}" for place in places], 1000, lora=str(lora))
    asked = torch.tensor([names.index(name) for name, _, _ in triples])
    prompts = [trial_of(each).prompt for each in triples]
    with torch.no_grad():
        itself = (net(unseen).argmax(1) == right).float().mean().item()
        found = (net(new).argmax(1) == 0).float().mean().item()
        before, after = (
            (net(drawn(prompts, 2000, **options)).argmax(1) == asked).float().mean().item()
            for options in ({}, {"lora": str(lora)})
        )
    print(f"\nclassifier {itself:.1%}, found {found:.1%}, kept {before:.1%} → {after:.1%}")
    assert found >= 0.8
    assert after >= before - 0.02
