"""How pictures differ and why they may: numbers against numpy's, reasons one by one."""

import hashlib
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdcli import __version__
from sdcli.errors import InputError, InvalidRecipe, ModelNotFound
from sdcli.files.metadata import png_bytes, read
from sdcli.models import located
from sdcli.models.located import LocatedModel
from sdcli.models.registry import ModelEntry
from sdcli.models.source import Source
from sdcli.models.weights import Weights
from sdcli.planning import difference, replay
from sdcli.recipe.recipe import Recipe
from tests.test_foreign import A1111

BASE = {
    "model": "kit", "prompt": "fox", "steps": 2, "guidance_scale": 4.0, "scheduler": "ddim", "width": 256,
    "height": 256, "seed": 7, "device": "cpu", "dtype": "float32", "threads": 1,
}  # fmt: skip
RECIPE = Recipe.from_dict(BASE)
KIT = located.find("kit").source.sha256
IMAGE = Image.new("RGB", (4, 4), (10, 20, 30))


@pytest.fixture
def picture(tmp_path):
    """`picture(recipe={…}, software={…}, …)` is a PNG whose sdcli chunk has these changes."""

    def write(name="fox.png", image=IMAGE, **changes):
        png = tmp_path / name
        png.write_bytes(png_bytes(IMAGE, RECIPE, extra={"model_digest": KIT}))
        with Image.open(png) as written:
            said = json.loads(written.info["sdcli"])
        for key, value in changes.items():
            said[key] = said.get(key, {}) | value if isinstance(value, dict) else value
        chunks = PngInfo()
        chunks.add_text("sdcli", json.dumps(said))
        image.save(png, pnginfo=chunks)
        return str(png)

    return write


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 9), st.integers(0, 6))
def test_the_numbers_are_numpys(seed, width, height, changes):
    random = np.random.default_rng(seed)
    before = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    after = before.copy()
    for _ in range(changes):
        after[random.integers(height), random.integers(width), random.integers(3)] = random.integers(256)
    found = difference.between(Image.fromarray(before), Image.fromarray(after))
    apart = before.astype(int) - after.astype(int)
    if not apart.any():
        assert found is None
        return
    assert found is not None
    assert (found.pixels, found.total) == (apart.any(axis=2).sum(), width * height)
    assert found.max == np.abs(apart).max()
    assert math.isclose(found.psnr, 10 * np.log10(255**2 / (apart**2).mean()))


def test_pictures_of_two_sizes_differ_all_over():
    assert difference.between(IMAGE, IMAGE.resize((4, 5))) == difference.Difference(20, 20, 255, 0.0)


def test_a_source_is_the_recipe(picture):
    source = replay.read_recorded(picture())
    assert (source.recipe, source.warnings) == (RECIPE, ())


def test_unknown_keys_are_remarked_on_and_left_out(picture):
    source = replay.read_recorded(picture(recipe={"cleverness": 9}, provenance="unknown"))
    assert source.recipe == RECIPE
    assert [each.field for each in source.warnings] == ["cleverness", "provenance"]


def test_a_batch_is_known_by_its_seeds(picture):
    batch = {"seeds": [6, 7, 8], "index": 1}
    source = replay.read_recorded(picture(recipe={"batch_size": 3}, batch=batch))
    assert [recipe.seed for recipe in source.recipes] == [6, 7, 8]
    assert source.recipe == RECIPE.replace(batch_size=3)
    assert source.warnings == ()


@pytest.mark.parametrize(
    "batch", [None, {"seeds": [6, 7], "index": 0}, {"seeds": [7], "index": 1}, {"seeds": "7", "index": 0}, {"index": 0}]
)
def test_a_batch_whose_seeds_are_not_known_is_replayed_alone_and_that_is_said(picture, batch):
    source = replay.read_recorded(picture(recipe={"batch_size": 3}, batch=batch))
    assert source.recipes == [RECIPE]
    assert [each.field for each in source.warnings] == ["batch_size"]


def test_options_overrule_what_is_recorded(picture):
    assert replay.read_recorded(picture(), dtype="bfloat16").recipe == RECIPE.replace(dtype="bfloat16")


def test_a_model_is_looked_for_beside_the_picture(picture, sd15, tmp_path):
    (tmp_path / "tiny").symlink_to(sd15)
    source = replay.read_recorded(picture(recipe={"model": "tiny", "width": 64, "height": 64}))
    assert source.recipe.model == str(tmp_path / "tiny")


def test_refusals(picture, tmp_path):
    with pytest.raises(ModelNotFound) as raised:
        replay.read_recorded(picture(recipe={"model": "gone"}))
    assert "-m" in raised.value.hint
    with pytest.raises(InvalidRecipe):
        replay.read_recorded(picture(recipe={"steps": 0}))
    IMAGE.save(tmp_path / "plain.png")
    with pytest.raises(InputError, match="has no"):
        replay.read_recorded(str(tmp_path / "plain.png"))


def reasons(path: str, pixels: str = "0" * 64, **changes) -> list[str]:
    return replay.reasons(replay.read_recorded(path), RECIPE.replace(**changes), pixels)


def test_nothing_that_is_recorded_differs(picture):
    assert len(reasons(picture())) == 1
    assert "another processor" in reasons(picture())[0]


def test_each_reason_is_told(picture):
    path = picture(
        software={"sdcli": "0.0", "torch": "1.0", "unheard-of": "5"}, recipe={"device": "cuda"}, model_digest="a" * 64
    )
    told = reasons(path, dtype="bfloat16", threads=4)
    assert told == [
        "device: cuda then, cpu now",
        "dtype: float32 then, bfloat16 now",
        "threads: 1 then, 4 now",
        f"the model is not what the picture was made with: sha256 {'a' * 12}… then, {KIT[:12]}… now",
        f"sdcli: 0.0 then, {__version__} now",
        *[reason for reason in told if reason.startswith("torch: 1.0 then")],
    ]
    assert len(told) == 6


def test_another_file_under_the_name_in_a_picture_of_a1111_is_said(tmp_path):
    file = tmp_path / "dream.safetensors"
    file.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    model = LocatedModel(ModelEntry(name="dream", folder=str(file)), Source(file), located.find("kit").facts)

    def said(model_hash):
        chunks = PngInfo()
        chunks.add_text("parameters", A1111.replace("6ce0161689", model_hash))
        IMAGE.save(tmp_path / "theirs.png", pnginfo=chunks)
        found = read(tmp_path / "theirs.png")
        origin = replay.Recorded(
            "theirs.png", found, model, Weights(model.source), [RECIPE.replace(model="dream")], 0, ()
        )
        told = [each.message for each in replay.other_weights(origin)]
        assert set(told) <= set(replay.reasons(origin, RECIPE, "0" * 64))
        return told

    assert said(digest[:10]) == said(digest) == []
    assert said("6ce01616") == []  # eight digits are of another sum
    assert said("6ce0161689") == [f"Model hash: 6ce0161689 is not that of dream, {digest[:12]}…"]


def test_a_file_changed_afterwards_is_told_from_one_that_comes_out_otherwise(picture):
    changed = IMAGE.copy()
    changed.putpixel((1, 1), (0, 0, 0))
    path = picture(image=changed)
    written = replay.read_recorded(path).found.chunk["pixels_sha256"]
    assert reasons(path, pixels=written) == [
        "the file was changed later: the replay has the pixels that were written originally"
    ]
    assert reasons(path)[0] == "the file's pixels were changed"
