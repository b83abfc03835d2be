import json
import os
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from sd_parsers import ParserManager

from sdcli import __version__
from sdcli.errors import ExitStatus, InputError
from sdcli.files import infotext, metadata, reading
from sdcli.files.images import pixels_sha256
from sdcli.files.metadata import parameters, png_bytes, read
from sdcli.recipe import schedulers
from sdcli.recipe.recipe import Recipe

BASE = {
    "model": "kit",
    "prompt": "an arctic fox, (red:1.3)",
    "negative_prompt": "owl, blurry",
    "clip_skip": 2,
    "steps": 20,
    "guidance_scale": 7.0,
    "scheduler": "dpm++-2m",
    "sigmas": "karras",
    "width": 64,
    "height": 128,
    "seed": 4294967295,
}
IMAGE = Image.frombytes("RGB", (4, 3), bytes(range(36)))


def recipe(**changes) -> Recipe:
    return Recipe.from_dict(BASE | changes)


def save(directory: Path, data: bytes, name: str = "fox.png") -> Path:
    path = directory / name
    path.write_bytes(data)
    return path


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunks(*chunks: bytes, before: bytes = b"IDAT") -> bytes:
    """A small PNG with `chunks` put before its first chunk of kind `before`."""
    data = png_bytes(IMAGE, recipe())
    plain = [data[:8]]
    position = 8
    while position < len(data):
        (length,) = struct.unpack(">I", data[position : position + 4])
        kind, end = data[position + 4 : position + 8], position + 12 + length
        if kind == before:
            plain += chunks
            chunks = ()
        if kind not in (b"tEXt", b"iTXt"):
            plain.append(data[position:end])
        position = end
    return b"".join(plain)


# Ours


def test_parameters_are_written_as_a1111_does():
    assert parameters(recipe()) == (
        "an arctic fox, (red:1.3)\n"
        "Negative prompt: owl, blurry\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 4294967295, Size: 64x128, "
        f"Model: kit, Clip skip: 2, RNG: CPU, Version: sdcli {__version__}"
    )


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"negative_prompt": ""}, "an arctic fox, (red:1.3)\nSteps: 20"),
        ({"prompt": "", "negative_prompt": ""}, "Steps: 20, Sampler"),
        ({"guidance_scale": 7.5}, "CFG scale: 7.5, "),
        ({"guidance_scale": 1}, "CFG scale: 1, "),
        ({"clip_skip": 1}, "Model: kit, RNG: CPU"),
        ({"scheduler": "euler-a", "sigmas": "default"}, "Sampler: Euler a, CFG scale"),
        ({"sigmas": "default"}, "Sampler: DPM++ 2M, Schedule type: Uniform, CFG scale"),
        ({"scheduler": "ddim", "sigmas": "default", "eta": 0.5}, "Eta DDIM: 0.5"),
        ({"model": "/models/a, b: c.safetensors"}, 'Model: "a, b: c", '),
        ({"model": "stabilityai/sd-turbo"}, "Model: sd-turbo, "),
    ],
)
def test_what_goes_into_the_line(changes, line):
    assert line in parameters(recipe(**changes))


@pytest.mark.parametrize("name", schedulers.NAMES)
def test_every_sampler_comes_back_by_its_a1111_name(name):
    sigmas = schedulers.TABLE[name].sigmas
    for each in sigmas:
        fields = infotext.parse(parameters(recipe(scheduler=name, sigmas=each)))
        assert schedulers.from_a1111(fields["Sampler"], fields.get("Schedule type", "")) == (name, each)


@pytest.mark.parametrize("prompt", ["an arctic fox, (red:1.3)", "two\nlines", "полярная лиса 北极狐 🦊"])
def test_a_third_party_reads_our_file(tmp_path, prompt):
    path = save(tmp_path, png_bytes(IMAGE, recipe(prompt=prompt)))
    found = ParserManager().parse(path)
    (sampler,) = found.samplers
    assert [each.value for each in sampler.prompts] == [prompt]
    assert [each.value for each in sampler.negative_prompts] == ["owl, blurry"]
    assert sampler.name == "DPM++ 2M"
    assert sampler.model.name == "kit"
    assert sampler.parameters == {"scheduler": "Karras", "cfg_scale": "7", "seed": "4294967295", "steps": "20"}
    assert found.metadata["Size"] == "64x128"


def test_latin_prompts_take_a_text_chunk_and_others_an_international_one():
    assert b"tEXtparameters\0caf\xe9\n" in png_bytes(IMAGE, recipe(prompt="café"))
    assert b"iTXtparameters\0\0\0\0\0" + "狐\n".encode() in png_bytes(IMAGE, recipe(prompt="狐"))


def test_pixels_are_kept_and_vouched_for(tmp_path):
    path = save(tmp_path, png_bytes(IMAGE, recipe()))
    with Image.open(path) as image:
        assert image.tobytes() == IMAGE.tobytes()
    info = read(path)
    assert (info.format, info.width, info.height, info.writer, info.intact) == ("PNG", 4, 3, "sdcli", True)
    assert info.pixels_sha256 == pixels_sha256(IMAGE)
    assert info.software["sdcli"] == __version__
    assert set(info.software) == {"sdcli", "torch", "diffusers", "transformers"}
    assert "unknown" not in info.software.values()


def test_pixels_painted_over_are_noticed(tmp_path):
    path = save(tmp_path, png_bytes(IMAGE, recipe()))
    with Image.open(path) as image:
        chunks = PngImagePlugin.PngInfo()
        for key, text in image.info.items():
            chunks.add_text(key, text)
        image.putpixel((1, 1), (0, 0, 0))
        image.save(path, pnginfo=chunks)
    assert read(path).intact is False


def test_extra_stands_beside_the_recipe(tmp_path):
    path = save(tmp_path, png_bytes(IMAGE, recipe(), extra={"inputs": {"mask.png": "ab12"}, "recipe": "no"}))
    with Image.open(path) as image:
        said = json.loads(image.info["sdcli"])
    assert said["inputs"] == {"mask.png": "ab12"}
    assert said["recipe"] == recipe().to_dict()


def test_only_json_goes_into_the_chunk():
    with pytest.raises(ValueError, match="JSON"):
        png_bytes(IMAGE, recipe(), extra={"seconds": float("nan")})


def test_the_same_recipe_and_pixels_give_the_same_bytes():
    code = (
        "import sys, hashlib; from tests.test_metadata import *;"
        "sys.stdout.write(hashlib.sha256(png_bytes(IMAGE, recipe())).hexdigest())"
    )
    root = str(Path(__file__).parent.parent)
    digests = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root,
            env=os.environ | {"PYTHONHASHSEED": seed, "TZ": zone, "PYTHONPATH": root},
        ).stdout
        for seed, zone in (("1", "UTC"), ("2", "Asia/Tokyo"))
    }  # fmt: skip
    assert len(digests) == 1


texts = st.text(max_size=60) | st.text(alphabet='a,:"\\\n\r\0{}() é狐Negative prompt', max_size=60)
recipes = st.builds(
    lambda sampler, **values: recipe(**values, scheduler=sampler[0], sigmas=sampler[1]),
    sampler=st.sampled_from([(name, each) for name, row in schedulers.TABLE.items() for each in row.sigmas]),
    prompt=texts,
    negative_prompt=texts,
    model=st.text(min_size=1, max_size=30),
    clip_skip=st.integers(1, 12),
    prompt_weights=st.booleans(),
    steps=st.integers(1, 1000),
    guidance_scale=st.floats(0, 100),
    guidance_rescale=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
    threads=st.integers(0, 1024),
)


@given(recipes)
@example(recipe(prompt="a\nNegative prompt: b", negative_prompt="c\nSteps: 1, Sampler: x, CFG scale: 2"))
@example(recipe(prompt="\x1b\0", negative_prompt="\r\n", model='a:"b", {c}'))
def test_any_recipe_comes_back_exactly(tmp_path_factory, made):
    info = read(save(tmp_path_factory.mktemp("any"), png_bytes(IMAGE, made)))
    assert info.writer == "sdcli"
    assert Recipe.from_dict(info.recipe) == made
    assert info.intact
    assert info.fields["Seed"] == str(made.seed)
    assert info.fields["Steps"] == str(made.sampling.steps)
    assert float(info.fields["CFG scale"]) == made.sampling.guidance_scale


plain_lines = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zs", "Zl", "Zp"]), min_size=1, max_size=20)
plain_texts = st.lists(plain_lines, min_size=1, max_size=3).map("\n".join).filter(lambda text: "Negative" not in text)


@given(plain_texts, plain_texts)
def test_prompts_come_back_from_a1111s_text(prompt, negative_prompt):
    fields = infotext.parse(parameters(recipe(prompt=prompt, negative_prompt=negative_prompt)))
    assert (fields["Prompt"], fields["Negative prompt"]) == (prompt, negative_prompt)


def test_what_a_png_text_cannot_hold_is_replaced_in_the_text_only(tmp_path):
    info = read(save(tmp_path, png_bytes(IMAGE, recipe(prompt="a\0bc"))))
    assert info.fields["Prompt"] == "a\ufffdbc"
    assert info.recipe["prompt"] == "a\0bc"


# Theirs: the format of AUTOMATIC1111's web UI, by hand

OLD = """\
a lighthouse at dusk, ((stormy)), [fog], by an old master
waves: high, spray, 35mm
Negative prompt: lowres, text,
watermark: any
Steps: 28, Sampler: DPM++ 2M Karras, CFG scale: 6.5, Seed: 965400086, Size: 512x768, \
Model hash: 45dee52b, Model: v1-5"""

NEW = """\
castle <lora:old-stone:0.8>
Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 512x512, Model hash: 6ce0161689, \
Model: v1-5-pruned-emaonly, Denoising strength: 0.7, Clip skip: 2, Hires prompt: "castle, \\"old\\": walls\\nmoss", \
Hires upscale: 2, Lora hashes: "old-stone: 0a1b2c3d4e5f, new: 6a7b", Version: v1.9.4"""

HASHES = """\
fox
Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 3, Size: 64x64, \
Hashes: {"model": "6ce0", "lora:a": "1f2e"}, Version: x"""


def test_old_files():
    fields = infotext.parse(OLD)
    assert fields["Prompt"] == ("a lighthouse at dusk, ((stormy)), [fog], by an old master\nwaves: high, spray, 35mm")
    assert fields["Negative prompt"] == "lowres, text,\nwatermark: any"
    assert fields["Sampler"] == "DPM++ 2M Karras"
    assert fields["CFG scale"] == "6.5"
    assert fields["Model"] == "v1-5"
    assert list(fields)[2:] == ["Steps", "Sampler", "CFG scale", "Seed", "Size", "Model hash", "Model"]


def test_quoted_values_with_commas_colons_quotes_and_line_breaks():
    fields = infotext.parse(NEW)
    assert fields["Hires prompt"] == 'castle, "old": walls\nmoss'
    assert fields["Lora hashes"] == "old-stone: 0a1b2c3d4e5f, new: 6a7b"
    assert fields["Version"] == "v1.9.4"
    assert fields["Negative prompt"] == ""


def test_a_json_object_as_a_value():
    fields = infotext.parse(HASHES)
    assert json.loads(fields["Hashes"]) == {"model": "6ce0", "lora:a": "1f2e"}
    assert fields["Version"] == "x"


CIVITAI = """\
a fox
Negative prompt: blurry
Steps: 4, Sampler: Euler a, CFG scale: 7, Seed: 123, Size: 256x256, \
Civitai resources: [{"modelName": "Big: XL", "versionName": "LCM, Steps: 8, CFG scale: 1.5, Seed: 77, v2"}], \
Civitai metadata: {"a": {"b": "}, Seed: 1"}}, Seed: 9"""


def test_brackets_are_whole_values_and_the_first_of_a_key_counts():
    fields = infotext.parse(CIVITAI)
    assert (fields["Steps"], fields["CFG scale"], fields["Seed"]) == ("4", "7", "123")
    assert json.loads(fields["Civitai resources"])[0]["modelName"] == "Big: XL"
    assert json.loads(fields["Civitai metadata"]) == {"a": {"b": "}, Seed: 1"}}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "fox\nSteps: 4, Seed: 5, CFG scale: 7\nTime taken: 3 sec.",
            {"Prompt": "fox", "Seed": "5", "Time taken": "3 sec."},
        ),
        ("fox\nSteps: 4, Seed: 5, CFG scale: 7\n\nsaved by a tool", {"Prompt": "fox", "CFG scale": "7"}),
        (
            'fox\nSteps: 4, Seed: 5, Note: "two\nlines, Seed: 9", Size: 8x8',
            {"Note": "two\nlines, Seed: 9", "Size": "8x8"},
        ),
        ("fox\nSteps: 4, Seed: 5, XY: [a, b], Size: 8x8", {"XY": "[a", "Size": "8x8"}),
        ("a: b, c: d, e: f\nSteps: 4, Seed: 5, Size: 8x8", {"Prompt": "a: b, c: d, e: f", "Seed": "5"}),
        ("fox\nSeed: 5, Steps: 4, Size: 8x8", {"Prompt": "fox", "Steps": "4"}),
    ],
)
def test_fields_as_wide_as_they_are_written(text, expected):
    fields = infotext.parse(text)
    assert {key: fields[key] for key in expected} == expected


def comfyui(**changes: Any) -> dict[str, Any]:
    """A graph in ComfyUI's own form."""
    sampler = {"seed": 123, "steps": 4, "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0]}
    return {
        "3": {"class_type": "KSampler", "inputs": sampler | changes},
        "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 768, "batch_size": 1}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a fox", "clip": ["4", 1]}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["4", 1]}},
    }


PLAIN = {"Prompt": "a fox", "Negative prompt": "blurry", "Seed": "123", "Size": "512x768"}
NOVELAI = {"prompt": "a fox", "uc": "blurry", "seed": 123, "width": 512, "height": 768, "steps": 28}


@pytest.mark.parametrize(
    ("texts", "tool", "fields"),
    [
        ({"prompt": json.dumps(comfyui()), "workflow": "{}"}, "ComfyUI", PLAIN),
        ({"prompt": json.dumps(comfyui(positive=[6]))}, "ComfyUI", {k: v for k, v in PLAIN.items() if k != "Prompt"}),
        ({"prompt": json.dumps({**comfyui(), "9": comfyui()["3"]})}, "ComfyUI", {}),
        ({"prompt": json.dumps({"3": {"class_type": "KSampler", "inputs": [1]}})}, "ComfyUI", {}),
        ({"workflow": '{"nodes": []}'}, "ComfyUI", {}),
        ({"Software": "NovelAI", "Comment": json.dumps(NOVELAI)}, "NovelAI", PLAIN),
        ({"Software": "NovelAI", "Description": "a fox", "Comment": "[1]"}, "NovelAI", {"Prompt": "a fox"}),
        ({"sd-metadata": "{}", "Dream": '"a fox" -S 123'}, "InvokeAI before 3.0", {}),
        ({"prompt": "a fox"}, "other", {}),
        ({"prompt": json.dumps({"a": 1})}, "other", {}),
    ],
)
def test_other_tools_are_named(tmp_path, texts, tool, fields):
    chunks = PngImagePlugin.PngInfo()
    for key, value in texts.items():
        chunks.add_text(key, value)
    IMAGE.save(tmp_path / "a.png", pnginfo=chunks)
    found = read(tmp_path / "a.png")
    assert (found.writer, found.fields) == (tool, fields)


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("just a prompt", "just a prompt"),
        ("style: oil, mood: calm", "style: oil, mood: calm"),
        ("", ""),
        ("Steps: 20, Sampler: Euler, Seed: 1", ""),
        ("windows\r\nSteps: 20, Sampler: Euler, Seed: 1", "windows"),
    ],
)
def test_texts_without_some_parts(text, prompt):
    fields = infotext.parse(text)
    assert fields["Prompt"] == prompt
    assert ("Steps" in fields) == ("Steps: 20" in text)


@pytest.mark.parametrize(
    "line",
    ["ab:{," * 200_000, 'ab:"\\",' * 140_000, "a" * 1_000_000, " " * 1_000_000 + "x", "ab: " * 250_000, '"' * 10**6],
)
def test_hostile_texts_take_no_more_than_moments(line):
    started = time.process_time()
    infotext.parse("fox\n" + line)
    assert time.process_time() - started < 20  # it takes a second or two; without the bounds in the pattern, minutes


@given(st.text(alphabet='ab,:"\\{}\n ', max_size=80) | st.text(max_size=80))
def test_any_text_is_parsed(text):
    assert all(isinstance(value, str) for value in infotext.parse(text).values())


def exif_comment(comment: bytes) -> bytes:
    """EXIF with nothing but a UserComment, big-endian, laid out by hand."""
    first = struct.pack(">HHHIII", 1, 0x8769, 4, 1, 26, 0)
    second = struct.pack(">HHHIII", 1, 0x9286, 7, len(comment), 44, 0)
    return b"Exif\0\0" + b"MM\0*" + struct.pack(">I", 8) + first + second + comment


@pytest.mark.parametrize("name", ["fox.jpg", "fox.webp", "fox.png"])
@pytest.mark.parametrize(
    "comment",
    [
        b"UNICODE\0" + ("狐, é\n" + OLD).encode("utf-16-be"),
        b"UNICODE\0" + ("狐, é\n" + OLD).encode("utf-16-le"),
        bytes(8) + ("狐, é\n" + OLD).encode(),
        ("狐, é\n" + OLD).encode(),
        b"UNICODE\0" + ("狐, é\n" + OLD).encode("utf-16"),
        b"UNICODE\0\xfe\xff" + ("狐, é\n" + OLD).encode("utf-16-be"),
        b"UNICODE\0" + ("狐, é\n" + OLD).encode(),
        bytes(8) + b"\xef\xbb\xbf" + ("狐, é\n" + OLD).encode(),
    ],
)
def test_exif_user_comments(tmp_path, name, comment):
    IMAGE.save(tmp_path / name, exif=exif_comment(comment))
    info = read(tmp_path / name)
    assert info.writer == "A1111"
    assert info.parameters == "狐, é\n" + OLD
    assert info.fields["Seed"] == "965400086"
    assert info.recipe is None
    assert info.intact is None


def test_a_user_comment_in_the_main_directory(tmp_path):
    exif = Image.Exif()
    exif[0x9286] = b"UNICODE\0" + OLD.encode("utf-16-be")
    IMAGE.save(tmp_path / "fox.jpg", exif=exif)
    assert read(tmp_path / "fox.jpg").fields["Seed"] == "965400086"


@pytest.mark.parametrize("text", ["a fox", "狐"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-16-le", "utf-8"])
def test_short_user_comments(encoding, text):
    if (encoding, text) != ("utf-16-le", "狐"):  # which is as good as big-endian
        assert infotext.user_comment(b"UNICODE\0" + text.encode(encoding)) == text


def test_a_third_party_agrees_on_a_jpeg(tmp_path):
    IMAGE.save(tmp_path / "fox.jpg", exif=exif_comment(b"UNICODE\0" + OLD.encode("utf-16-be")))
    (sampler,) = ParserManager().parse(tmp_path / "fox.jpg").samplers
    info = read(tmp_path / "fox.jpg")
    assert [each.value for each in sampler.prompts] == [info.fields["Prompt"]]
    assert sampler.parameters["seed"] == info.fields["Seed"]


@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
def test_text_before_and_after_the_pixels(tmp_path, before):
    path = save(tmp_path, with_chunks(chunk(b"tEXt", b"parameters\0" + NEW.encode("latin-1")), before=before))
    assert read(path).fields["Model"] == "v1-5-pruned-emaonly"


def test_compressed_text(tmp_path):
    path = save(tmp_path, with_chunks(chunk(b"zTXt", b"parameters\0\0" + zlib.compress(NEW.encode("latin-1")))))
    assert read(path).parameters == NEW


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.gif", "a.bmp", "a.tiff"])
def test_pictures_that_say_nothing(tmp_path, name):
    IMAGE.save(tmp_path / name)
    info = read(tmp_path / name)
    assert (info.width, info.height, info.writer, info.recipe, info.parameters) == (4, 3, "other", None, None)


# Not readable


def refused(path: Path | str) -> InputError:
    with pytest.raises(InputError) as caught:
        read(path)
    assert caught.value.exit_status == ExitStatus.INPUT
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("data", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"\xff\xd8\xff\xe0"])
def test_what_is_no_picture(tmp_path, data):
    refused(save(tmp_path, data))


@pytest.mark.parametrize("path", ["missing.png", "missing/fox.png", ".", "x" * 300, "a\0b"])
def test_what_cannot_be_opened(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    assert path in refused(path).message


@pytest.mark.parametrize("name", ["fox.png", "fox.jpg", "fox.webp"])
def test_truncated_files(tmp_path, name):
    Image.effect_noise((40, 40), 50).convert("RGB").save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    for length in range(1, len(whole) - 4, max(1, len(whole) // 40)):
        refused(save(tmp_path, whole[:length], name))


def test_any_flipped_bit_of_ours_is_found(tmp_path):
    data = png_bytes(IMAGE, recipe())
    for position in range(0, len(data) - len(chunk(b"IEND", b"")), 3):  # nothing hangs on the end mark
        flipped = data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :]
        path = save(tmp_path, flipped)
        try:
            assert len(read(path).skipped) == 1
        except InputError as error:
            assert "damaged" in error.message or "not a picture" in error.message  # noqa: PT017  either end is right


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '"recipe"',
        "{}",
        '{"recipe": [], "software": {}}',
        '{"recipe": {"steps": NaN}, "software": {}}',
        '{"recipe": {"steps": 1e999}, "software": {}}',
        "[" * 100_000,
        '{"recipe": {"seed": ' + "1" * 5000 + '}, "software": {}}',
    ],
)
def test_a_damaged_sdcli_chunk(tmp_path, text):
    path = save(tmp_path, with_chunks(chunk(b"tEXt", b"sdcli\0" + text.encode())))
    assert "sdcli chunk" in refused(path).message


@pytest.mark.parametrize("key", ["parameters", "sdcli"])
def test_huge_texts(tmp_path, key):
    huge = b"x" * (metadata.MAX_TEXT_CHARACTERS + 1)
    bomb = zlib.compress(bytes(200_000_000), 9)
    for each in (chunk(b"tEXt", key.encode() + b"\0" + huge), chunk(b"zTXt", key.encode() + b"\0\0" + bomb)):
        found = read(save(tmp_path, with_chunks(each)))
        assert (found.writer, found.recipe, found.parameters) == ("other", None, None)
        assert len(found.skipped) == 1
        assert f"{key!r} is too long, and was skipped" in found.skipped[0]


def test_decompression_bombs(tmp_path):
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    assert "too many pixels" in refused(save(tmp_path, bomb)).message


def test_endless_files(monkeypatch):
    monkeypatch.setattr(reading, "MAX_FILE_BYTES", 1000)
    assert "larger than" in refused("/dev/zero").message


@given(st.data())
def test_files_damaged_anyhow_are_read_or_refused(tmp_path_factory, data):
    whole = bytearray(png_bytes(IMAGE, recipe()))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(whole)))
        whole[start : start + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    path = save(tmp_path_factory.mktemp("damaged"), bytes(whole))
    try:
        read(path)
    except InputError as error:
        assert "fox.png" in error.message  # noqa: PT017  either end is right
