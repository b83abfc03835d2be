"""`sdcli explain` as a shell sees it, and the page that it writes."""

import html.parser
import re

import pytest
from PIL import Image

from sdcli.files import templates
from sdcli.making.explaining import chart, drawing, record, words
from sdcli.models import assemble, registry
from sdcli.models.weights import Weights
from sdcli.recipe.parts import Condition
from tests import tiny, tiny_flow
from tests.test_batch import sdcli  # noqa: F401  a fixture

FAST = ("--steps", "2", "--dtype", "float32", "--seed", "1", "-W", "64", "-H", "64")


class Page(html.parser.HTMLParser):
    """The elements of a page, and its text apart from scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text, self._inside = "", ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._inside = tag

    def handle_data(self, data):
        if self._inside not in ("script", "style"):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def ids(self) -> list[str]:
        return [attributes["id"] for _, attributes in self.elements if "id" in attributes]


@pytest.fixture
def explain(sdcli, sd15, tmp_path):  # noqa: F811
    """`explain("a fox", …)` is the page about a picture of a tiny model, written to page.html."""

    def run(*arguments, model=sd15):
        done = sdcli("explain", *arguments, "-m", model, *FAST, "-o", "page.html", "--force")
        assert done.status == 0, done.stderr
        assert done.lines == ["page.html"]
        return Page((tmp_path / "page.html").read_text(encoding="utf-8"))

    return run


def test_a_page_needs_nothing_else_and_is_accessible(explain, tmp_path):
    found = explain("a <b>fox</b> & {{words}}", "--another", "an </script> owl")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert set(re.findall(r"\{\{\w+\}\}", text)) == {"{{words}}"}  # which is the prompt's
    assert "<b>fox" not in text
    assert text.count("</script>") == 1
    sources = [attributes["src"] for tag, attributes in found.elements if "src" in attributes]
    assert sources
    assert all(re.match(r"data:image/(png|jpeg);base64,", str(source)) for source in sources)
    assert not [attributes for _, attributes in found.elements if "href" in attributes]
    assert "http" not in re.sub(r'http-equiv|"data:[^"]*"|url\(data:[^)]*\)', "", text)
    assert all("alt" in attributes for attributes in found.all("img"))
    labelled = {attributes["for"] for attributes in found.all("label")}
    assert {attributes["id"] for attributes in found.all("input")} == labelled == {"step", "strength"}
    assert found.all("html") == [{"lang": "en"}]
    assert len(set(found.ids())) == len(found.ids())
    headings = [tag for tag, _ in found.elements if tag in ("h1", "h2", "h3")]
    assert headings == ["h1"] + ["h2"] * 6
    assert "prefers-color-scheme: dark" in text


def test_a_page_tells_of_the_picture(explain, sdcli, tmp_path):  # noqa: F811
    found = explain("a fox")
    assert "64 × 64 pixels of 3 colours: 12,288 numbers" in found.text
    assert "8 × 8 places with 4 channels: 256 numbers, 48 times fewer" in found.text
    assert "1 of 2" in (tmp_path / "page.html").read_text(encoding="utf-8")
    for word in ("a", "fox"):
        assert [each for each in found.all("img") if each["alt"] == f"Where the network looked for “{word}”"]
    assert [each["alt"] for each in found.all("img")].count("without it, step 2") == 1
    command = re.search(r"sdcli generate .*", found.text)
    assert command is not None
    assert "a fox" in command[0]
    assert "--steps 2" in command[0]


def test_what_is_concatenated_for_inpainting(explain, tmp_path):
    model = tiny.make_folder("sd15", tmp_path / "inpainting", in_channels=9)
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    Image.linear_gradient("L").resize((64, 64)).save(tmp_path / "mask.png")
    found = explain("a fox", "--image", "red.png", "--mask", "mask.png", model=model)
    assert "concatenated" in found.ids()
    assert "The mask, 1 where the picture is repainted: one channel" in found.text
    assert "The image without that part, encoded: 4 channels" in found.text


def test_what_is_concatenated_for_a_segmentation_map(explain, tmp_path):
    from sdcli.files.palette import Class

    classes = [Class(0, "sky", (0, 0, 255)), Class(1, "grass", (0, 255, 0)), Class(2, "water", (255, 0, 0))]
    model = tiny.make_semantic_folder(tmp_path / "semantic", classes)
    picture = Image.new("RGB", (64, 64), "#0000ff")
    picture.paste("#00ff00", (0, 32, 64, 64))
    picture.save(tmp_path / "map.png")
    found = explain("a fox", "--map", "map.png", "--guidance-scale", "1", model=model)
    assert "this model has no prediction without the text" in found.text
    assert "one channel for each of 3 classes. Here are: sky, grass" in found.text


def test_models_whose_attention_is_not_seen_are_told(explain, tmp_path):
    found = explain("a fox", model=tiny_flow.make_folder("z-image", tmp_path / "model"))
    assert "There are no maps here: attention to words is not available for models of the kind z_image" in found.text


def test_a_class_has_no_words(sdcli, tmp_path):  # noqa: F811
    model = tiny.make_dit(tmp_path / "dit")
    done = sdcli("explain", "--label", "1", "-m", model, "--steps", "2", "--seed", "1", "-o", "page.html")
    assert done.status == 0, done.stderr
    assert "the condition of this model is a class" in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        ([], 2, "error: PROMPT or --label is missing"),
        (["a fox", "--mask", "mask.png"], 2, "error: --mask is given without --image"),
        (["a fox", "-o", "there.html"], 8, "error: there.html already exists"),
        (["a fox", "--steps", "0"], 2, "steps is 0"),
        (["a fox", "-m", "no-such"], 3, "error: no model 'no-such'"),
    ],
)
def test_errors_come_before_the_model_is_loaded(sdcli, tmp_path, monkeypatch, arguments, status, told):  # noqa: F811
    (tmp_path / "there.html").touch()
    monkeypatch.setattr(assemble, "load", None)
    done = sdcli("explain", *arguments)
    assert done.status == status
    assert told in done.stderr
    assert done.stdout == b""


def test_words_have_their_places_in_the_context(sd15):
    entry = registry.find(str(sd15))
    recipe = tiny.recipe_for(entry, {"prompt": "", "model": str(sd15), "seed": 1, "dtype": "float32", "threads": 1})
    model = assemble.load(Weights(registry.locate(entry)), recipe.replace(device="cpu"))
    found = words.of(model, Condition("a (fox:1.2) BREAK zq é"))
    assert [each.text for each in found] == ["a", "fox", "zq", "é"]
    assert found[0].places == (1,)
    assert found[1].places == tuple(range(2, 2 + len(found[1].tokens)))
    assert found[2].tokens == ("z", "q")
    assert found[2].places == (78, 79)


def test_a_template_is_filled_once():
    assert templates.fill("{{a}} {{b}} {{a}}", {"a": "{{b}}", "b": "2"}) == "{{b}} 2 {{b}}"


@pytest.mark.parametrize(("count", "most", "expected"), [(3, 8, [0, 1, 2]), (9, 3, [0, 4, 8]), (50, 2, [0, 49])])
def test_evaluations_are_chosen_evenly(count, most, expected):
    assert record.evenly(count, most) == expected


@pytest.mark.parametrize(
    ("value", "expected"), [(1000.0, "1000"), (0.314159, "0.314"), (1e4, "10⁴"), (1e-6, "10⁻⁶"), (2.5e-5, "2.5·10⁻⁵")]
)
def test_numbers_are_short(value, expected):
    assert chart.formatted(value) == expected


def test_colours_go_from_the_least_to_the_largest():
    import numpy as np

    drawn = drawing.heat(np.array([[0.0, 0.5], [0.5, 1.0]], np.float32), (64, 64))
    assert drawn.getpixel((0, 0)) == (0, 0, 4)
    assert drawn.getpixel((63, 63)) == (252, 255, 164)
