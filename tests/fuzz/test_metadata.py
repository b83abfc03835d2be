"""Mutated metadata of sdcli and other tools: `info` reads what it can (0 or 4), and `replay` follows or refuses it."""

import json
import random
import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from tests import tiny
from tests.fuzz import bounded
from tests.fuzz.test_images import mutate as mutate_bytes
from tests.fuzz.test_models import VALUES, change

COUNT = 1000
PARAMETERS = """a fox (in snow:1.2), <lora:style:0.8>, [a:b:0.5] AND [c|d]
Negative prompt: blurry
Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 7, Size: 64x64, Model hash: 6ce0161689, \
Model: "v1, 5", Clip skip: 2, Denoising strength: 0.5, Hires upscale: 2, Hires steps: 3, Hires upscaler: Latent, \
Lora hashes: "style: 1234567890", TI hashes: "word: 123456789012", RNG: CPU, \
ControlNet 0: "Module: none, Model: canny, Weight: 1", Version: v1.10.1"""
INVOKEAI = {
    "app_version": "5.0.0", "generation_mode": "txt2img", "positive_prompt": "a fox", "negative_prompt": "(x)1.2",
    "width": 64, "height": 64, "seed": 7, "rand_device": "cpu", "cfg_scale": 7.5, "cfg_rescale_multiplier": 0,
    "steps": 10, "scheduler": "euler_a", "clip_skip": 0, "model": {"name": "kit", "hash": "sha256:" + "0" * 64},
    "loras": [{"model": {"name": "style"}, "weight": 0.5}], "controlnets": [], "vae": None,
}  # fmt: skip
COMFYUI = {
    "3": {"class_type": "KSampler", "inputs": {"seed": 7, "steps": 20, "cfg": 8.0, "positive": ["6", 0],
          "negative": ["7", 0], "latent_image": ["5", 0]}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a fox", "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": ["8", 0], "clip": ["4", 1]}},
}  # fmt: skip
NOVELAI = {"prompt": "a fox", "steps": 28, "height": 64, "width": 64, "scale": 5.0, "seed": 7, "sampler": "k_euler"}
CHUNKS = (b"eXIf", b"iCCP", b"tEXt", b"zTXt", b"iTXt", b"gAMA", b"cHRM", b"pHYs", b"tRNS", b"acTL", b"sRGB", b"PLTE")
WORDS = (
    *("\x1b[31m", "\u202e", "\x9b2J", "\n", "\r", ", ", ": ", '"', "{", "}", "[[[[", "((((", "AND", "<lora:", ">"),
    *(
        "Seed: ",
        "-1",
        "9" * 400,
        "1e999",
        "command: rm",
        "\nfile: /etc/passwd",
        "~nosuch/x",
        "../../x",
        "nan",
        "a" * 5000,
    ),
    *("Negative prompt:", "Size: 99999x99999", "Hires resize: 0x0", "Steps: 0", "Clip skip: 0", "[bold red]"),
)


def mutate_text(text: str, chance: random.Random) -> str:
    for _ in range(chance.choice((1, 2, 5))):
        place = chance.randrange(len(text) + 1)
        match chance.randrange(3):
            case 0:
                text = text[:place] + chance.choice(WORDS) + text[place:]
            case 1:
                text = text[:place] + text[place + chance.choice((1, 5, 40)) :]
            case _:
                text = text[:place] + chance.choice(WORDS) + text[place + chance.choice((1, 8)) :]
    return text


def mutate_json(content: object, chance: random.Random) -> str:
    copied = json.loads(json.dumps(content))
    change(copied, chance)
    if chance.random() < 0.2:
        copied = {**copied, chance.choice(("x", "\x1b[31m", "file", "image", "control")): chance.choice(VALUES)}
    text = json.dumps(copied)
    return mutate_text(text, chance) if chance.random() < 0.2 else text


def written(image: Image.Image, texts: dict[str, str], chance: random.Random) -> bytes:
    """The picture as a PNG with text chunks of any kind."""
    chunks = PngInfo()
    for key, text in texts.items():
        plain = text.encode(errors="replace").decode()
        if chance.random() < 0.3:
            chunks.add_itxt(key, plain, zip=chance.random() < 0.5)
        else:
            chunks.add_text(key, plain, zip=chance.random() < 0.3)
    target = BytesIO()
    image.save(target, "PNG", pnginfo=chunks)
    return target.getvalue()


def in_exif(image: Image.Image, text: str, chance: random.Random) -> bytes:
    """The picture as a JPEG or WebP with the text in its EXIF data."""
    beginning = chance.choice((b"UNICODE\0", b"ASCII\0\0\0", bytes(8), b"JIS\0\0\0\0\0", b""))
    encoding = chance.choice(("utf-16-be", "utf-16-le", "utf-16", "utf-8", "latin-1"))
    exif = Image.Exif()
    place = exif if chance.random() < 0.3 else exif.get_ifd(ExifTags.IFD.Exif)
    place[ExifTags.Base.UserComment] = beginning + text.encode(encoding, "replace")[:60_000]
    exif[ExifTags.Base.Orientation] = chance.choice((1, 3, 6, 8))
    target = BytesIO()
    image.save(target, chance.choice(("JPEG", "WEBP")), exif=exif)
    data = target.getvalue()
    return mutate_bytes(data[:2000], chance) + data[2000:] if chance.random() < 0.3 else data


def with_chunk(data: bytes, chance: random.Random) -> bytes:
    """The PNG with another chunk of random content, right checksum included, after its header."""
    kind, size = chance.choice(CHUNKS), chance.choice((0, 1, 4, 32, 500))
    body = mutate_bytes(bytes(chance.randrange(256) for _ in range(size)) or b"\0", chance)
    body = chance.choice((body, b"parameters\0" + body, b"MM\0*" + body, b"icc\0\0" + zlib.compress(body)))
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return data[:33] + chunk + data[33:]


def mutate(data: bytes, chance: random.Random) -> bytes:
    """A picture with the metadata of some tool, mutated; `data` is a picture of sdcli."""
    with Image.open(BytesIO(data)) as image:
        image.load()
        chunk, parameters = json.loads(image.info["sdcli"]), image.info["parameters"]
    match chance.randrange(8):
        case 0 | 1 | 2:
            return written(image, {"sdcli": mutate_json(chunk, chance), "parameters": parameters}, chance)
        case 3:
            return written(image, {"parameters": mutate_text(PARAMETERS, chance)}, chance)
        case 4:
            return in_exif(image, mutate_text(PARAMETERS, chance), chance)
        case 5:
            return written(image, {"invokeai_metadata": mutate_json(INVOKEAI, chance)}, chance)
        case 6:
            novelai = {"Software": "NovelAI", "Comment": mutate_json(NOVELAI, chance), "Description": "a \x1b fox"}
            return written(image, chance.choice(({"prompt": mutate_json(COMFYUI, chance)}, novelai)), chance)
        case _:
            return with_chunk(data, chance)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Path]:
    """A picture of a tiny model, and the model."""
    home = tmp_path_factory.mktemp("warm")
    model = tiny.make_folder("sd15", home / "model")
    words = ("-W", "64", "-H", "64", "--steps", "2", "--seed", "1")
    bounded.warm(
        home,
        ("generate", "a fox", "-m", model, *words, "-o", "a.png"),
        ("info", "a.png"),
        ("replay", "a.png", "--dry-run"),
    )
    return (home / "a.png").read_bytes(), model


@pytest.mark.slow
@bounded.blocks(COUNT)
def test_mutated_metadata(picture: tuple[bytes, Path], tmp_path: Path, seeds: range) -> None:
    data, model = picture

    def attempt(seed: int) -> Iterator[tuple[str, bounded.Run, list[str]]]:
        chance = random.Random(seed)
        (tmp_path / "a.png").write_bytes(mutate(data, chance))
        before = bounded.listed(tmp_path)
        chosen = ("-m", str(model)) if chance.random() < 0.7 else ()
        form = ("--json",) if chance.random() < 0.3 else ()
        for words in (("info", "a.png", *form), ("replay", "a.png", "--dry-run", *chosen, *form)):
            done = bounded.run(*words, home=tmp_path)
            yield " ".join(words), done, bounded.faults(done, bounded.UNREADABLE, tmp_path, before)

    bounded.check(seeds, attempt)
