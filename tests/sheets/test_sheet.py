"""`sdcli sheet` as a shell sees it: a PNG, a page, and what cannot be read."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from sdcli.files.metadata import png_bytes
from sdcli.making.sheets import drawing
from sdcli.making.sheets.fonts import OWN, Lettering
from tests.browser import SIZES, chromium, shown
from tests.test_metadata import NEW, recipe

COLOURS = {1: (200, 30, 30), 2: (30, 200, 30), 3: (30, 30, 200)}


def picture(path: Path, seed: int = 1, **keys) -> Path:
    image = Image.new("RGB", (96, 64), COLOURS[seed])
    path.write_bytes(png_bytes(image, recipe(model="kit", seed=seed, sigmas="default", **keys)))
    return path


@pytest.fixture
def pictures(tmp_path):
    """Six pictures in out/: three seeds of two prompts."""
    folder = tmp_path / "out"
    folder.mkdir()
    for prompt in ("a fox", "ein Fuß </script> ☃"):
        for seed in COLOURS:
            picture(folder / f"{len(prompt)}-{seed}.png", seed, prompt=prompt)
    return folder


def colours(sheet: Image.Image) -> list[tuple[int, ...]]:
    """The colours of pictures in the order in which they are, row by row."""
    pixels, found = sheet.load(), []
    for top in range(0, sheet.height, 5):
        for left in range(0, sheet.width, 5):
            near = [place for place, each in found if abs(place[0] - left) < 96 and abs(place[1] - top) < 64]
            if pixels[left, top] in COLOURS.values() and not near:
                found.append(((left, top), pixels[left, top]))
    return [colour for _, colour in found]


def test_a_grid_of_prompts_and_seeds(run, pictures, tmp_path):
    done = run("sheet", "out", "-o", "grid.png", "--html", "--json")
    assert done.status == 0, done.stderr
    axes = {"files": ["grid.png", "grid.html"], "pictures": 6, "axes": ["prompt", "seed"], "failed": 0}
    assert json.loads(done.stdout) == axes
    with Image.open(tmp_path / "grid.png") as sheet:
        assert colours(sheet) == [*COLOURS.values()] * 2
    page = (tmp_path / "grid.html").read_text()
    assert "</script> ☃" not in page
    assert not re.search(r"https?://", page.replace("http-equiv", ""))

    again = run("sheet", "out", "-o", "grid.png")
    assert (again.status, again.stderr.splitlines()[0]) == (8, "error: grid.png already exists")
    inside = run("sheet", ".", "--files-from", "-", "--force", "-o", "grid.png", stdin=b"out/5-1.png\n\nout/5-2.png\n")
    assert (inside.status, inside.lines) == (0, ["grid.png"])  # the sheet in this directory is no picture of it
    with Image.open(tmp_path / "grid.png") as sheet:
        assert colours(sheet) == [COLOURS[1], COLOURS[2]]


def test_pictures_of_other_tools_and_none_at_all(run, tmp_path):
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", NEW.replace("Seed: ", "Seed: 1"))
    Image.new("RGB", (64, 64), COLOURS[1]).save(tmp_path / "a.png", pnginfo=chunks)
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", NEW)
    Image.new("RGBA", (64, 64), (*COLOURS[2], 255)).save(tmp_path / "b.png", pnginfo=chunks)
    done = run("sheet", "a.png", "b.png", "--json")
    assert json.loads(done.stdout)["axes"] == ["seed"]

    Image.new("L", (64, 30), 3).save(tmp_path / "plain.webp")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    mixed = run("sheet", "plain.webp", "broken.png", "missing.png", "a.png", "-o", "-")
    assert mixed.status == 4
    assert [line[:6] for line in mixed.stderr.splitlines()] == ["error:", "hint: "] * 2
    assert mixed.stdout.startswith(b"\x89PNG")
    only = run("sheet", "missing.png", "-o", "none.png")
    assert (only.status, only.stdout, (tmp_path / "none.png").exists()) == (4, b"", False)


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ([], 2, "PICTURES is missing"),
        (["-"], 2, "- is not a picture of a sheet"),
        (["out", "-o", "x.jpg"], 2, "'x.jpg' is neither .png nor .html"),
        (["out", "-o", "-", "--html"], 2, "needs a file"),
        (["out", "-o", "-", "--json"], 2, "both write to stdout"),
        (["out", "-o", "no/x.png"], 8, "cannot write no"),
        (["out", "--font", "out/5-1.png"], 4, "cannot use the font out/5-1.png"),
        (["--files-from", "nothing"], 4, "cannot read nothing"),
        (["empty"], 4, "there are no pictures"),
    ],
)
def test_errors(run, pictures, tmp_path, arguments, status, words):
    (tmp_path / "empty").mkdir()
    done = run("sheet", *arguments)
    assert (done.status, done.stdout) == (status, b"")
    assert words in done.stderr.splitlines()[0]
    assert done.stderr.splitlines()[1].startswith("hint: ")


def test_characters_that_no_font_has_are_a_warning(run, tmp_path):
    for seed, prompt in enumerate(("лиса Ελλάδα ½", "狐"), start=1):
        picture(tmp_path / f"{seed}.png", seed, prompt=prompt)
    done = run("sheet", "1.png", "2.png")
    assert done.stderr == "warning: no font has 狐; give one that has them with --font, or write a page with --html\n"


def test_text_is_broken_into_lines_that_fit():
    letters = Lettering((), 14)
    lines = letters.lines("a very long prompt of many words without an end " * 3, 120, 3)
    assert len(lines) == 3
    assert lines[-1].endswith("…")
    assert all(letters.width(line) <= 121 for line in lines)
    assert letters.lines("unbreakable" * 9, 60, 2)[0] == "unbreaka"[: len(letters.lines("unbreakable" * 9, 60, 2)[0])]
    assert Lettering([str(OWN)], 14).width("fox") == letters.width("fox")


def test_many_pictures_are_smaller_and_too_many_need_a_page():
    assert drawing.side_for(9, 256) == 256
    assert drawing.side_for(10_000, 256) < 80
    with pytest.raises(drawing.UsageError, match="too many for one PNG"):
        drawing.side_for(100_000, 256)


def test_the_page_in_a_browser(run, pictures, tmp_path):
    assert run("sheet", "out", "-o", "grid.html").status == 0
    url = (tmp_path / "grid.html").as_uri()
    with chromium() as browser:
        for size in SIZES:
            with shown(browser, url, size, "dark" if size == "phone" else "light") as page:
                _use(page, size)


def _use(page, size):
    loaded = "[...document.querySelectorAll('.picture img')].filter(image => image.naturalWidth).length"
    page.wait_for_function(f"{loaded} >= 2")
    assert page.locator("th[scope=col]").all_inner_texts() == ["seed 1", "seed 2", "seed 3"]
    assert page.locator("th[scope=row]").all_inner_texts() == ["a fox", "ein Fuß </script> ☃"]
    page.select_option("select[aria-label='Filter by seed']", "=2")
    page.wait_for_function(f"{loaded} >= 2")
    assert page.inner_text("#count") == "2 of 6"
    page.fill("#words", "fuß")
    assert page.locator("#all .picture").count() == 1
    page.locator("#all .picture").press("Enter")
    assert page.inner_text("#zoom-title") == "19-2.png"
    assert page.inner_text("#command").startswith("sdcli generate 'ein Fuß </script> ☃'")
    page.keyboard.press("Escape")
    page.click("#view-grid")
    page.locator(".block .picture").nth(0).focus()
    page.keyboard.press("c")
    page.locator(".block .picture").nth(1).focus()
    page.keyboard.press("c")
    page.click("#compare")
    page.locator("#slider").press("ArrowRight")
    assert page.inner_text("#pair-values tr:nth-child(2)").split() == ["seed", "1", "2"]
    assert "50.5%" in page.evaluate("document.getElementById('image-a').style.clipPath").replace("49.5%", "50.5%")
