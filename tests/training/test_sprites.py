from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdcli.errors import ExitStatus, InputError
from sdcli.training.places import CLASSES
from sdcli.training.sprites import BY_NAME, SUBJECTS, TINTS, load_sprites, matte, tint
from sdcli.training.world import KIT

KIT_SUBJECTS = [BY_NAME[name] for name in KIT.subjects]


def test_there_is_a_sprite_for_every_subject_in_every_tint(sprites):
    assert set(sprites) == {(subject.name, colour) for subject in KIT_SUBJECTS for colour in TINTS}
    assert len(sprites) == len(set(sprites))


def test_the_whole_world_is_large_and_its_names_are_distinct():
    words = [word for subject in SUBJECTS for word in (subject.name, *subject.synonyms)]
    assert len(words) == len(set(words))
    assert len({subject.glyph for subject in SUBJECTS}) == len(SUBJECTS) >= 80
    assert {subject.own for subject in SUBJECTS} <= {"", *TINTS}
    assert {subject.kind for subject in SUBJECTS} <= set(CLASSES)


@pytest.mark.parametrize("colour", TINTS)
def test_a_tint_leaves_the_shape_alone(sprites, colour):
    for subject in KIT_SUBJECTS:
        natural, tinted = sprites[subject.name, "natural"], sprites[subject.name, colour]
        assert np.array_equal(np.asarray(natural.getchannel("A")), np.asarray(tinted.getchannel("A")))


def test_tints_of_grey_follow_their_ramps():
    dark, light = (Image.new("RGBA", (1, 1), (v, v, v, 255)) for v in (0, 255))
    assert tint(dark, "red").getpixel((0, 0)) == (28, 4, 8, 255)
    assert tint(light, "red").getpixel((0, 0)) == (255, 214, 200, 255)
    assert tint(light, "white").getpixel((0, 0)) == (255, 255, 255, 255)


def test_a_white_tint_is_lighter_and_a_blue_one_bluer(sprites):
    def mean(name, colour):
        pixels = np.asarray(sprites[name, colour]).astype(float)
        return pixels[pixels[..., 3] > 200][:, :3].mean(0)

    for subject in KIT_SUBJECTS:
        assert mean(subject.name, "white").min() > 120
        red, _, blue = mean(subject.name, "blue")
        assert blue > red + 40


def test_a_matte_gives_back_what_was_put_on_black_and_white():
    original = Image.new("RGBA", (4, 1))
    for x, pixel in enumerate([(200, 100, 0, 255), (200, 100, 0, 128), (0, 0, 0, 0), (0, 0, 0, 255)]):
        original.putpixel((x, 0), pixel)
    grounds = (Image.new("RGBA", (4, 1), ground) for ground in ("black", "white"))
    found = matte(*(Image.alpha_composite(ground, original).convert("RGB") for ground in grounds))
    assert np.abs(np.asarray(found, dtype=int) - np.asarray(original, dtype=int)).max() <= 2


def test_a_missing_font_says_how_to_get_it():
    with pytest.raises(InputError) as caught:
        load_sprites(Path("/nowhere/no-such-font.ttf"))
    assert "fonts-noto-color-emoji" in caught.value.hint
    assert caught.value.exit_status == ExitStatus.INPUT


def test_a_folder_that_lacks_a_subject_is_refused(tmp_path):
    Image.new("RGBA", (8, 8)).save(tmp_path / "fox.png")
    with pytest.raises(InputError, match=r"cat\.png"):
        load_sprites(tmp_path)
