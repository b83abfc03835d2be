"""`--control`: its words, the recipe, what fits which model, and the command as a shell sees it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from sdcli.errors import InputError, InvalidRecipe, ModelError, ModelNotFound
from sdcli.files import canvas, infotext, metadata
from sdcli.files.canvas import InitialImage
from sdcli.models import located, registry
from sdcli.models.addons import controlnet
from sdcli.models.registry import ModelEntry
from sdcli.models.source import Source
from sdcli.planning import warnings
from sdcli.planning.command_line import command_of
from sdcli.recipe import parts
from sdcli.recipe.control import Control
from sdcli.recipe.recipe import Recipe
from tests import tiny
from tests.conftest import Run
from tests.test_light import HEAVY, modules_of
from tests.test_synthesize import with_config

FAST = ("--steps", "2", "--dtype", "float32", "--threads", "1")
MINIMAL = {"model": "m", "prompt": "a fox", "steps": 4, "guidance_scale": 5.0, "scheduler": "ddim"}
MINIMAL |= {"width": 64, "height": 64, "seed": 1}
SD15 = {"cross_attention_dim": 768, "block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2}


@pytest.fixture(scope="module")
def nets(tmp_path_factory) -> Path:
    """A folder with two ControlNets for sd15 and one for sdxl."""
    folder = tmp_path_factory.mktemp("nets")
    tiny.make_controlnet("sd15", folder / "edges")
    tiny.make_controlnet("sd15", folder / "depth", seed=2)
    tiny.make_controlnet("sdxl", folder / "large")
    return folder


@pytest.fixture
def here(nets: Path, tmp_path: Path) -> Path:
    """The directory that commands run in: the ControlNets, and two pictures."""
    for net in nets.iterdir():
        (tmp_path / net.name).symlink_to(net)
    for name, seed, size in (("a.png", 1, (64, 64)), ("wide.png", 2, (90, 64))):
        pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    return tmp_path


def chunk_in(path: Path) -> dict:
    with Image.open(path) as image:
        return json.loads(image.info["sdcli"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("canny=e.png", Control("canny", "e.png")),
        ("canny=e.png:0.8", Control("canny", "e.png", 0.8)),
        ("canny=canny:e.png:0.8", Control("canny", "e.png", 0.8, canny=(100, 200))),
        ("a=canny(50,150):e.png", Control("a", "e.png", canny=(50, 150))),
        ("a=./canny:e.png", Control("a", "./canny:e.png")),
        ("a=canny:0.5", Control("a", "canny", 0.5)),
        ("a=canny:0.5:0-0.5", Control("a", "canny", 0.5, 0, 0.5)),
        ("canny=e.png:.5:0-0.5", Control("canny", "e.png", 0.5, 0, 0.5)),
        ("own/er=a=b c:d.png:2", Control("own/er", "a=b c:d.png", 2)),
        ("./net=x:1:1", Control("./net", "x:1", 1)),
        ("seg", Control("seg")),
        ("seg:0.7:0.2-1", Control("seg", None, 0.7, 0.2, 1)),
    ],
)
def test_words_are_read(text, said):
    assert Control.parse(text) == said


@pytest.mark.parametrize(
    "text",
    [
        "",
        "=e.png",
        "canny=",
        "canny=e:11",
        "canny=e:1:0.5-0.5",
        "canny=e:1:0.6-0.5",
        "canny=e:1:0-1.5",
        "a=canny:",
        "a=canny(9,8):e",
    ],
)
def test_words_that_cannot_be_are_refused_by_name(text):
    with pytest.raises(InvalidRecipe) as refused:
        Control.parse(text)
    assert refused.value.field == "control"


@given(
    name=st.text(min_size=1).filter(lambda text: "=" not in text),
    image=st.none() | st.text(min_size=1),
    scale=st.floats(0, 10),
    start=st.floats(0, 0.5),
    end=st.floats(0.5, 1, exclude_min=True),
)
def test_words_read_back_are_the_same(name, image, scale, start, end):
    said = Control(name, image, scale, start, end)
    again = Control.parse(str(said))
    assert again == said
    assert str(again) == str(said)


def test_a_recipe_makes_the_round_trip():
    said = {"control": ["a=x.png:1.0", "b=y.png:0.5:0.1-0.9"], "control_sha256": ["0" * 64, "1" * 64]}
    made = Recipe.from_dict({**MINIMAL, **said})
    assert made.to_dict()["control"] == ["a=x.png", "b=y.png:0.5:0.1-0.9"]
    assert Recipe.from_dict(json.loads(json.dumps(made.to_dict()))) == made
    assert Recipe.from_dict({**MINIMAL, "control": "a=x.png"}) == Recipe.from_dict(
        {**MINIMAL, "control": ["a=x.png:1"]}
    )
    assert not set(Recipe.from_dict(MINIMAL).to_dict()) & set(parts.LAYOUT_KEYS)


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ({"control": 3}, "control"),
        ({"control": ["a=x", 3]}, "control"),
        ({"control": ["a"]}, "control"),
        ({"control": ["a=x"], "control_sha256": ["1", "2"]}, "control"),
        ({"snap": True}, "snap"),
        ({"snap": "yes", "segmentation_map": "m"}, "snap"),
        ({"segmentation_map": 3}, "segmentation_map"),
        ({"segmentation_map": "m", "image": "i"}, "segmentation_map"),
    ],
)
def test_what_a_recipe_cannot_say_of_layouts(said, field):
    with pytest.raises(InvalidRecipe) as refused:
        Recipe.from_dict({**MINIMAL, **said})
    assert refused.value.field == field


def test_a_picture_follows_another_says_how_and_can_be_made_again(run: Run, here: Path, sd15: Path):
    said = ("--control", "edges=wide.png:0.8:0-0.5", "--control", "./depth=a.png")
    done = run("generate", "a fox", *said, "-m", sd15, "-s", "3", "-o", "out.png", *FAST)
    assert done.status == 0, done.stderr
    assert done.lines == ["out.png"]
    notes = [line for line in done.stderr.splitlines() if line.startswith("note: ")]
    assert notes == [
        "note: wide.png is 90×64, and used at 88×64, without 2 pixels of its width",
        "note: a.png is 64×64, and used at 88×64, without 24 pixels of its height",
    ]
    chunk = chunk_in(here / "out.png")
    assert chunk["recipe"]["control"] == ["edges=wide.png:0.8:0-0.5", "./depth=a.png"]
    assert len(chunk["recipe"]["control_sha256"]) == 2
    assert [each["name"] for each in chunk["addons"]] == ["edges", "./depth"]
    digest = Source(here / "edges").sha256
    assert chunk["addons"][0] == {"kind": "controlnet", "name": "edges", "sha256": digest}
    assert run("replay", "--verify", "out.png").lines == ["out.png"]
    assert run("info", "out.png").lines[-1].endswith("--control edges=wide.png:0.8:0-0.5 --control ./depth=a.png")
    plain = run("generate", "a fox", "-m", sd15, "-s", "3", "-W", "88", "-H", "64", "-o", "plain.png", *FAST)
    assert plain.status == 0
    assert (here / "plain.png").read_bytes() != (here / "out.png").read_bytes()


def test_a_changed_controlnet_is_a_reason_why_a_replay_differs(run: Run, here: Path, sd15: Path):
    shutil.copytree(here / "edges", here / "net")
    done = run("generate", "x", "--control", "net=a.png", "-m", sd15, "-o", "out.png", "--json", *FAST)
    assert done.status == 0, done.stderr
    shutil.rmtree(here / "net")
    shutil.copytree(here / "depth", here / "net")
    again = run("replay", "--verify", "out.png")
    assert again.status == 9
    assert "hint: the ControlNet net is not what the picture was made with: sha256" in again.stderr


def test_images_are_redrawn_and_repainted_beside_a_controlnet(run: Run, here: Path, sd15: Path):
    Image.new("L", (64, 64), 255).save(here / "mask.png")
    for name, command in (("img2img", []), ("inpaint", ["--mask", "mask.png", "--padding", "0"])):
        options = (*command, "--control", "edges=a.png", "-m", sd15, "-o", f"{name}.png", *FAST)
        done = run(name, "a.png", "a fox", *options)
        assert done.status == 0, done.stderr
        assert chunk_in(here / f"{name}.png")["recipe"]["control"] == ["edges=a.png"]


def test_a_batch_has_jobs_with_and_without(run: Run, here: Path, sd15: Path):
    jobs = [{"prompt": "x", "seed": 1}, {"prompt": "x", "seed": 1, "control": "edges=a.png"}]
    jobs += [{"prompt": "x", "seed": 1, "control": ["edges=a.png", "depth=a.png:0.5"]}]
    jobs += [{"prompt": "x", "control": "large=a.png"}, {"prompt": "x", "control": "edges"}]
    (here / "jobs.jsonl").write_text("".join(json.dumps(job) + "\n" for job in jobs))
    done = run("batch", "jobs.jsonl", "-o", "out", "-m", sd15, *FAST)
    assert done.status == 7, done.stderr
    lines = {line["line"]: line for line in map(json.loads, done.lines)}
    assert [lines[number]["status"] for number in range(1, 6)] == ["done"] * 3 + ["failed"] * 2
    assert len({lines[number]["pixels_sha256"] for number in (1, 2, 3)}) == 3
    assert (lines[4]["field"], lines[5]["field"]) == ("control", "control")
    again = run("batch", "jobs.jsonl", "-o", "out", "-m", sd15, *FAST)
    assert sorted(json.loads(line)["status"] for line in again.lines) == ["cached"] * 3 + ["failed"] * 2
    varied = run(
        "batch", "-", "-o", "both", "-m", sd15, "--matrix", "control=edges=a.png,depth=a.png", *FAST, stdin=b"x"
    )
    assert (varied.status, len(varied.lines)) == (0, 2), varied.stderr


def test_a_plan_names_the_controlnets(run: Run, here: Path, sd15: Path):
    options = ("--control", "edges=a.png", "--control", "edges=wide.png", "-m", sd15)
    done = run("generate", "x", "--dry-run", "--json", *options)
    assert done.status == 0, done.stderr
    plan = json.loads(done.stdout)
    (beside,) = plan["addons"]
    assert (beside["kind"], beside["name"], beside["path"]) == ("controlnet", "edges", "edges")
    assert len(beside["sha256"]) == len(beside["files"][0]["sha256"]) == 64
    alone = json.loads(run("generate", "x", "--dry-run", "--json", "-m", sd15).stdout)
    assert plan["memory"]["weights"] > alone["memory"]["weights"]
    assert "addons" not in alone
    assert "controlnet edges:" in run("generate", "x", "--dry-run", *options).stdout.decode()


def test_refusals_have_two_lines_and_their_status(run: Run, here: Path, sd15: Path, tmp_path: Path):
    (here / "empty.png").write_bytes(b"")
    (here / "union").mkdir()
    (here / "union" / "config.json").write_text('{"_class_name": "ControlNetUnionModel"}')
    for status, said, control in (
        (2, "large does not fit this model: it is made for text with 80 features per token", "large=a.png"),
        (2, "has no image", "edges"),
        (2, "is not a ControlNet", f"{sd15}=a.png"),
        (2, "sd15 is not a ControlNet", "sd15=a.png"),
        (3, "no ControlNet 'cany-sd15'", "cany-sd15=a.png"),
        (3, "'canny-sd15' is not on this machine", "canny-sd15=a.png"),
        (3, "ControlNetUnionModel, which is not supported", "union=a.png"),
        (4, "cannot read none.png", "edges=none.png"),
        (4, "empty.png is empty", "edges=empty.png"),
    ):
        done = run("generate", "x", "-m", sd15, "--control", control)
        assert (done.status, done.stdout) == (status, b""), done.stderr
        error, hint = done.stderr.splitlines()
        assert error.startswith("error: ")
        assert said in error
        assert hint.startswith("hint: ")
    for model in (str(here / "edges"), "canny-sd15"):
        done = run("generate", "x", "-m", model)
        assert (done.status, "is a ControlNet, not a model" in done.stderr) == (2, True)


def test_refusals_load_no_torch(here: Path, sd15: Path):
    for status, control in ((2, "large=a.png"), (4, "edges=none.png")):
        arguments = ["generate", "x", "-m", str(sd15), "--control", control]
        assert modules_of(arguments, here, status) & HEAVY <= {"PIL", "numpy"}
    assert not modules_of(["generate", "x", "--control", "a=b:11"], here, 2) & HEAVY - {"PIL", "numpy"}


def test_what_a_model_takes_is_named(nets: Path, sd15: Path, monkeypatch):
    """A fit is told from the configs; a user learns which ControlNets there are for the model, or what they must be."""
    model, edges = located.locate(ModelEntry("m", folder=str(sd15))), str(nets / "edges")
    with pytest.raises(InvalidRecipe) as refused:
        controlnet.check_fit(edges, Source(nets / "edges"), with_config(model, SD15))
    assert "made for text with 32 features per token, and the model's is 768" in refused.value.message
    assert "SD 1.x, such as canny-sd15, depth-sd15, openpose-sd15, seg-sd15" in refused.value.hint
    controlnet.check_fit(edges, Source(nets / "edges"), model)
    for key, value in (("block_out_channels", [32, 64, 64]), ("layers_per_block", 1), ("addition_embed_type", "text")):
        changed = with_config(model, {**model.denoiser_config, key: value})
        with pytest.raises(InvalidRecipe) as refused:
            controlnet.check_fit(edges, Source(nets / "edges"), changed)
        assert f"{key} {value}" in refused.value.hint


def test_latents_and_pictures_must_be_alike(tmp_path: Path, sd15: Path):
    model = located.locate(ModelEntry("m", folder=str(sd15)))
    for name, settings in (
        ("wide", {"in_channels": 8}),
        ("grey", {"conditioning_channels": 1}),
        ("coarse", {"conditioning_embedding_out_channels": (8, 8, 16)}),
    ):
        tiny.make_controlnet("sd15", tmp_path / name, **settings)
        with pytest.raises(InvalidRecipe, match="it takes latents with") as refused:
            controlnet.check_fit(name, Source(tmp_path / name), model)
        assert "latents with 4 channels and images with 3 channels, 8 pixels per latent" in refused.value.hint


def test_a_name_of_the_user_s_own(run: Run, here: Path, sd15: Path):
    assert run("models", "add", "mine", "edges").status == 0
    listed = [json.loads(line) for line in run("models", "list", "--json").lines]
    assert listed[-1]["kind"] == "controlnet"
    assert {each["kind"] for each in listed} == {"model", "controlnet", "lora", "vae"}
    shown = json.loads(run("models", "show", "mine", "--json").stdout)
    assert (shown["kind"], shown["cross_attention_dim"]) == ("controlnet", 32)
    assert "defaults" not in shown
    done = run("generate", "x", "-m", sd15, "--control", "mine=a.png", "--dry-run")
    assert done.status == 0, done.stderr
    assert run("generate", "x", "-m", "mine").status == 2


def test_what_does_nothing_is_remarked(sd15: Path):
    model = located.locate(ModelEntry("m", folder=str(sd15)))

    def fields(control: str) -> list[str]:
        made = Recipe.from_dict({**MINIMAL, "control": control})
        return [each.field for each in warnings.find(model, made)]

    assert fields("a=x:0") == ["control"]
    assert fields("a=x:1:0.3-0.4") == ["control"]
    assert fields("a=x:1:0.25-0.5") == []
    assert fields("a=x") == []


def test_a1111_s_fields_name_the_controlnet():
    made = Recipe.from_dict({**MINIMAL, "control": ["own/canny=x.png:0.5:0-0.5", "b=y.png"]})
    fields = infotext.parse(metadata.parameters(made))
    assert fields["ControlNet 0"].startswith("Module: none, Model: canny, Weight: 0.5, ")
    assert "Guidance Start: 0, Guidance End: 0.5" in fields["ControlNet 0"]
    assert "Model: b, Weight: 1" in fields["ControlNet 1"]


def test_a_recipe_is_shown_as_its_command():
    plain = tiny.recipe_for(registry.find("kit"), {"prompt": "a fox", "model": "kit", "seed": 1})
    made = plain.replace(control=["canny=e.png:0.5", "depth=d d.png"])
    assert command_of(located.find("kit"), [made]) == (
        "sdcli generate 'a fox' -W 256 -H 256 -s 1 --control canny=e.png:0.5 --control 'depth=d d.png'"
    )


def test_a_changed_picture_is_refused(here: Path, sd15: Path):
    said = {"prompt": "x", "model": "m", "control": f"{here}/edges={here}/a.png", "control_sha256": ["0" * 64]}
    with pytest.raises(InputError, match="has changed since"):
        tiny.recipe_for(ModelEntry("m", folder=str(sd15)), said)


def test_only_controlnets_are_found(nets: Path, sd15: Path, tmp_path: Path):
    assert controlnet.find(str(nets / "edges")).folder == str(nets / "edges")
    with pytest.raises(ModelNotFound):
        controlnet.find(str(tmp_path / "nothing"))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"_class_name": "ControlNetXSAdapter"}')
    with pytest.raises(ModelError, match="ControlNetXSAdapter"):
        controlnet.find(str(tmp_path / "broken"))


def test_a_control_picture_lies_over_the_part_that_is_worked_on():
    picture = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8).repeat(3).reshape(8, 8, 3))
    mask = Image.new("L", (8, 8))
    mask.paste(255, (2, 3, 6, 7))
    given = InitialImage(Image.new("RGB", (8, 8)), mask, mask)
    assert canvas.guide(picture, given, 0, (4, 4)).tobytes() == picture.crop((2, 3, 6, 7)).tobytes()
    assert canvas.guide(picture, given, None, (8, 8)).tobytes() == picture.tobytes()
    assert canvas.guide(picture, None, None, (4, 8)).size == (4, 8)


def test_the_edges_of_an_image_are_drawn(run: Run, here: Path, sd15: Path):
    """As if their drawing, in the picture's size, was given."""
    cv2 = pytest.importorskip("cv2")
    square = Image.new("RGB", (96, 64), "navy")
    square.paste("gold", (30, 20, 60, 40))
    square.save(here / "photo.png")
    fitted = ImageOps.fit(square, (64, 64), Image.Resampling.LANCZOS)
    Image.fromarray(cv2.Canny(np.asarray(fitted), 50, 150)).save(here / "drawn.png")
    asked = ("generate", "x", "-m", sd15, "-W", "64", "-H", "64", "--steps", "2", "--seed", "1", "--control")
    found = []
    for image in ("canny(50,150):photo.png", "drawn.png", "photo.png"):
        done = run(*asked, f"edges={image}", "--json")
        assert done.status == 0, done.stderr
        found.append(json.loads(done.lines[0]))
    assert found[0]["pixels_sha256"] == found[1]["pixels_sha256"] != found[2]["pixels_sha256"]
    with Image.open(here / found[0]["path"]) as image:
        assert "Module: canny" in image.info["parameters"]
        assert "Threshold A: 50, Threshold B: 150" in image.info["parameters"]
        assert json.loads(image.info["sdcli"])["recipe"]["control"] == ["edges=canny(50,150):photo.png"]
    assert run("replay", "--verify", found[0]["path"]).status == 0


def test_without_the_library_edges_are_not_drawn(run: Run, here: Path, sd15: Path, monkeypatch):
    monkeypatch.setattr("sdcli.files.edges.find_spec", lambda name: None)
    done = run("generate", "x", "-m", sd15, "--control", "edges=canny:a.png", "-o", "out.png")
    assert (done.status, "pip install 'sdcli[canny]'" in done.stderr) == (2, True)
