"""Make the pictures of README.md and docs/kit.md again with the commands shown there: python docs/pictures.py

Seeds are the numbers of the pictures in their sheet; none is left out.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image, ImageDraw
from safetensors.numpy import load_file

from sdcli.training.captions import caption
from sdcli.training.world import KIT, scenes

DOCS = Path(__file__).parent
SIDE = 160
PROMPTS = (
    "arctic fox", "an astronaut riding a horse on the beach", "a green t-rex in the city at night", "a pizza",
    "three penguins next to a castle", "a cat on a car", "a wizard in the forest at night", "a giraffe in the desert",
    "a red dragon in the mountains", "a purple octopus under water", "a sailboat at sunset", "two owls at night",
    "a cow left of a barn", "a blue elephant on a pink background", "a dog on a couch", "a rocket in space",
    "a firefighter in the city", "a flamingo in a meadow", "a princess riding a unicorn", "a robot in the living room",
    "a burger on a yellow background", "a snowman in the snow at night", "a train in the mountains",
    "a koala and a panda in the forest",
)  # fmt: skip


def lines_of(*words: str, folder: Path) -> list[str]:
    """Run a command of sdcli in a folder; what it says on stdout."""
    done = subprocess.run([sys.executable, "-m", "sdcli", *words], cwd=folder, check=True, stdout=subprocess.PIPE)
    return done.stdout.decode().splitlines()


def sdcli(*words: str, folder: Path) -> list[Path]:
    """Run a command of sdcli in a folder; the files it wrote."""
    return [folder / line for line in lines_of(*words, folder=folder)]


def generated(prompts: Sequence[str], folder: Path, first: int = 1) -> list[Image.Image]:
    """Pictures of prompts, with consecutive seeds, through one batch."""
    jobs = [json.dumps({"prompt": prompt, "seed": seed}) + "\n" for seed, prompt in enumerate(prompts, first)]
    (folder / "jobs.jsonl").write_text("".join(jobs))
    said = map(json.loads, lines_of("batch", "jobs.jsonl", "-o", "pictures", folder=folder))
    files = {entry["seed"]: entry["path"] for entry in said}
    return [Image.open(folder / files[seed]) for seed in range(first, first + len(prompts))]


def sheet(pictures: Sequence[Image.Image | None], columns: int) -> Image.Image:
    """The pictures row by row; nothing where there is None."""
    whole = Image.new("RGB", (columns * SIDE, -(-len(pictures) // columns) * SIDE), "white")
    for index, picture in enumerate(pictures):
        if picture is not None:
            small = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            whole.paste(small, (index % columns * SIDE, index // columns * SIDE))
    return whole


def steps(folder: Path) -> Image.Image:
    """The same noise in 1, 2, 4, 8 and 20 steps."""
    drawn = [
        sdcli("generate", "arctic fox", "--seed", "7", "--steps", str(count), "-o", f"fox-{count}.png", folder=folder)
        for count in (1, 2, 4, 8, 20)
    ]
    return sheet([Image.open(files[0]) for files in drawn], 5)


def latents(folder: Path) -> Image.Image:
    """A picture, the eight channels of its latents, and the picture decoded from them."""
    sdcli("generate", "a red fox in the forest", "--seed", "4", "-o", "fox.png", folder=folder)
    sdcli("encode", "fox.png", "-o", "fox.safetensors", folder=folder)
    sdcli("decode", "fox.safetensors", "-o", "again.png", folder=folder)
    (z,) = next(iter(load_file(folder / "fox.safetensors").values())).astype(np.float32)
    grey = [
        Image.fromarray(((channel - channel.min()) / np.ptp(channel) * 255).astype(np.uint8)).resize(
            (SIDE, SIDE), Image.Resampling.NEAREST
        )
        for channel in z
    ]
    return sheet([Image.open(folder / "fox.png"), *grey, Image.open(folder / "again.png")], 5)


def areas() -> Image.Image:
    """The map of README.md."""
    colours = {"sky": "#87ceeb", "sun": "#ffd700", "water": "#1e64c8", "sand": "#edc982", "animal": "#ff6900"}
    drawn = Image.new("RGB", (256, 256), colours["sky"])
    draw = ImageDraw.Draw(drawn)
    draw.ellipse((190, 20, 228, 58), fill=colours["sun"])
    draw.rectangle((0, 140, 256, 256), fill=colours["water"])
    draw.polygon([(0, 210), (256, 185), (256, 256), (0, 256)], fill=colours["sand"])
    ears = [(50, 232), (44, 140), (66, 108), (84, 134), (128, 134), (146, 108), (168, 140), (162, 232)]
    draw.polygon(ears, fill=colours["animal"])
    return drawn


def contexts(folder: Path) -> Image.Image:
    """Three texts; a masked image and three texts; a map and three seeds."""
    rows: list[Image.Image | None] = []
    for number, subject in enumerate(("a purple cat", "a castle", "two owls")):
        words = ("generate", f"{subject} at night", "--seed", "7", "-o", f"night{number}.png")
        rows.append(Image.open(sdcli(*words, folder=folder)[0]))
    rows.append(None)
    sdcli("generate", "a dog on the beach", "--seed", "5", "-o", "dog.png", folder=folder)
    mask = Image.new("L", (256, 256))
    mask.paste(255, (16, 50, 240, 246))
    mask.save(folder / "hole.png")
    hidden = Image.open(folder / "dog.png").convert("RGB")
    hidden.paste((128, 128, 128), (0, 0), mask)
    rows.append(hidden)
    for number, subject in enumerate(("a purple rabbit", "a car", "a castle")):
        words = ("inpaint", "dog.png", f"{subject} on the beach", "--mask", "hole.png", "-m", "kit-inpaint")
        rows.append(Image.open(sdcli(*words, "--seed", "2", "-o", f"beach{number}.png", folder=folder)[0]))
    areas().save(folder / "areas.png")
    rows.append(areas())
    words = ("synthesize", "areas.png", "a cat on the beach", "--seed", "1", "-n", "3", "-o", "map-{index}.png")
    rows += [Image.open(file) for file in sdcli(*words, folder=folder)]
    return sheet(rows, 4)


def main() -> None:
    """Draw them all."""
    rng = np.random.default_rng(64)
    others = [caption(scene, rng) for scene in islice(scenes(64, KIT, held_out=True), 64)]
    with TemporaryDirectory() as name:
        folder = Path(name)
        sheet(generated(PROMPTS, folder), 8).save(DOCS / "kit.png", optimize=True)
        steps(folder).save(DOCS / "steps.png", optimize=True)
        latents(folder).save(DOCS / "latents.png", optimize=True)
        contexts(folder).save(DOCS / "contexts.png", optimize=True)
        sheet(generated(others, folder, first=101), 8).save(DOCS / "kit-64.jpg", quality=85)
    lines = [f"{number}. {prompt}" for number, prompt in enumerate(others, 1)]
    (DOCS / "kit-64.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
