import subprocess
import tarfile
import unicodedata
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdcli.errors import ExitStatus, InputError
from sdcli.training import sprites as drawing
from sdcli.training.places import CLASSES
from sdcli.training.sprites import TINTS, find_sprites, load_sprites, tint, write_archive
from sdcli.training.subjects import BY_NAME, SUBJECTS
from sdcli.training.world import FEW

SPRITES = Path(__file__).parent / "sprites"
FEW_SUBJECTS = [BY_NAME[name] for name in FEW.subjects]


def pixels_of(sprite):
    pixels = np.asarray(sprite).astype(float)
    return pixels[pixels[..., 3] > 200][:, :3]


def test_each_subject_has_a_sprite_in_each_of_its_tints(sprites):
    wanted = {(s.name, colour) for s in FEW_SUBJECTS for colour in TINTS if s.tinted or colour == "natural"}
    assert set(sprites) == wanted
    assert len(sprites) == len(wanted)
    assert ("astronaut", "natural") in wanted
    assert ("astronaut", "red") not in wanted


def test_the_whole_world_is_large_and_its_names_are_distinct():
    words = [word for subject in SUBJECTS for word in subject.words]
    assert len(words) == len(set(words))
    assert len({subject.code for subject in SUBJECTS}) == len(SUBJECTS) >= 200
    assert {subject.kind for subject in SUBJECTS} <= set(CLASSES)
    assert not any(subject.tinted for subject in SUBJECTS if subject.kind == "person")


@pytest.mark.parametrize(
    ("name", "said"),
    [("fox", "FOX FACE"), ("horse", "HORSE"), ("octopus", "OCTOPUS"), ("tractor", "TRACTOR"), ("cactus", "CACTUS"),
     ("pizza", "SLICE OF PIZZA"), ("castle", "EUROPEAN CASTLE"), ("t-rex", "T-REX"), ("llama", "LLAMA")],
)  # fmt: skip
def test_code_points_match_the_names(name, said):
    assert unicodedata.name(chr(int(BY_NAME[name].code.split("-")[0], 16))) == said


def test_the_table_has_the_shapes_of_sprites(sprites):
    for subject in FEW_SUBJECTS:
        width, height = sprites[subject.name, "natural"].size
        assert subject.tall == pytest.approx(height / width, abs=0.02)
        assert subject.width == pytest.approx(width / max(width, height), abs=0.02)
        assert subject.height == pytest.approx(height / max(width, height), abs=0.02)


def test_seats_and_tops_are_on_the_edge_of_the_sprite(sprites):
    """Above a seat or a top there is nothing; at it, the sprite."""
    for name, (x, y) in (("horse", BY_NAME["horse"].seat), ("car", BY_NAME["car"].top)):
        alpha = np.asarray(sprites[name, "natural"].getchannel("A")) > 128
        height, width = alpha.shape
        column = alpha[:, round(x * width)]
        assert np.flatnonzero(column)[0] / height == pytest.approx(y, abs=0.06)


@pytest.mark.parametrize("colour", TINTS)
def test_a_tint_keeps_the_shape(sprites, colour):
    for subject in FEW_SUBJECTS:
        if subject.tinted:
            natural, tinted = sprites[subject.name, "natural"], sprites[subject.name, colour]
            assert np.array_equal(np.asarray(natural.getchannel("A")), np.asarray(tinted.getchannel("A")))


def test_tints_of_grey_follow_their_ramps():
    grey = Image.new("RGBA", (3, 1), (128, 128, 128, 255))
    grey.putpixel((0, 0), (0, 0, 0, 255))
    grey.putpixel((2, 0), (255, 255, 255, 255))
    dark, _, light = (tint(grey, "red").getpixel((x, 0)) for x in range(3))
    assert dark == (*TINTS["red"][0], 255)
    assert light == (*TINTS["red"][-1], 255)


def test_a_tint_has_its_named_colour_and_eyes_stay_dark(sprites):
    for name in ("fox", "horse", "car"):
        if BY_NAME[name].own != "red":
            red, green, blue = np.median(pixels_of(sprites[name, "red"]), 0)
            assert red > 2 * max(green, blue)
        assert np.median(pixels_of(sprites[name, "white"]), 0).min() > 180
        assert np.median(pixels_of(sprites[name, "black"]), 0).max() < 90
        red, green, blue = np.median(pixels_of(sprites[name, "green"]), 0)
        assert green > 1.4 * max(red, blue)
    assert np.percentile(pixels_of(sprites["fox", "yellow"]).max(-1), 1) < 150


def test_accents_keep_their_colour(sprites):
    def blueish(pixels):
        return (pixels[:, 2] > pixels[:, 0] + 40).mean()

    assert blueish(pixels_of(sprites["car", "natural"])) > 0.1  # its windows
    assert blueish(pixels_of(sprites["car", "green"])) == pytest.approx(
        blueish(pixels_of(sprites["car", "natural"])), abs=0.05
    )


def test_a_sprite_that_faces_right_is_mirrored():
    left, right = Image.new("RGBA", (8, 4), (255, 0, 0, 255)), BytesIO()
    left.paste((0, 0, 255, 255), (4, 0, 8, 4))
    left.save(right, "WEBP", lossless=True)
    rocket, fox = BY_NAME["rocket"], BY_NAME["fox"]
    assert rocket.flip
    assert drawing.read_sprite(rocket, lambda code: right.getvalue()).getpixel((0, 0)) == (0, 0, 255, 255)
    assert drawing.read_sprite(fox, lambda code: right.getvalue()).getpixel((0, 0)) == (255, 0, 0, 255)


def test_folder_archive_and_package_have_the_same_sprites(tmp_path):
    write_archive(SPRITES, tmp_path / "few.zip", FEW_SUBJECTS)
    with tarfile.open(tmp_path / "package.tgz", "w:gz") as package:
        for file in SPRITES.glob("*.webp"):
            package.add(file, f"package/assets/{file.name}")
    wanted = load_sprites(SPRITES, FEW_SUBJECTS)
    assert list(wanted) == list(FEW.subjects)
    for source in ("few.zip", "package.tgz"):
        found = load_sprites(tmp_path / source, FEW_SUBJECTS)
        assert found.keys() == wanted.keys()
        assert all(np.array_equal(np.asarray(found[name]), np.asarray(wanted[name])) for name in wanted)


@pytest.mark.parametrize("content", [None, b"", b"no archive at all"])
def test_an_invalid_source_has_a_hint(tmp_path, content):
    file = tmp_path / "sprites.tgz"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_sprites(file)
    assert "npm pack @lobehub/fluent-emoji-3d@1.1.0" in caught.value.hint
    assert caught.value.exit_status == ExitStatus.INPUT


def test_a_source_without_a_subject_is_an_error():
    with pytest.raises(InputError, match=BY_NAME["cat"].code):
        load_sprites(SPRITES, [BY_NAME["cat"]])


def test_a_given_source_is_not_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", None)
    assert find_sprites(tmp_path / "mine.zip") == tmp_path / "mine.zip"


def fake_npm(folder, script):
    npm = folder / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text(f"#!/bin/sh\n{script}\n")
    npm.chmod(0o755)
    return str(npm.parent)


def test_npm_downloads_the_package_once(tmp_path, monkeypatch):
    script = f'[ "$*" = "pack @lobehub/fluent-emoji-3d@1.1.0" ] && echo sprites > {drawing.ARCHIVE}'
    monkeypatch.setenv("PATH", fake_npm(tmp_path, script) + ":/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = find_sprites()
    assert found.read_text() == "sprites\n"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_sprites() == found


@pytest.mark.parametrize("script", [None, "echo 'no such host' >&2; exit 1", "true"])
def test_a_missing_or_failing_npm_is_an_error_with_a_hint(tmp_path, monkeypatch, script):
    monkeypatch.setenv("PATH", str(tmp_path) if script is None else fake_npm(tmp_path, script))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(InputError) as caught:
        find_sprites()
    assert "--sprites" in caught.value.hint
    assert ("no such host" in caught.value.message) == (script is not None and "host" in script)
    assert not list((tmp_path / "cache").rglob("*.tgz"))
