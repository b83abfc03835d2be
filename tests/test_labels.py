"""Class labels: how they are found, what recipes and jobs say of them, and `--label` as a shell sees it."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file

from sdcli.errors import InvalidRecipe, ModelNotFound
from sdcli.files import infotext, metadata, names
from sdcli.models import families, labels, registry
from sdcli.models.registry import ModelEntry
from sdcli.models.source import Source
from sdcli.recipe.labels import Labels
from sdcli.recipe.recipe import Recipe
from tests import tiny
from tests.conftest import Run
from tests.test_light import HEAVY, modules_of

FAST = ("--steps", "2", "--seed", "7", "--dtype", "float32")
MINIMAL = {"model": "m", "steps": 20, "guidance_scale": 5.0, "scheduler": "ddim", "width": 64, "height": 64, "seed": 1}


@pytest.fixture(scope="session")
def dit(tmp_path_factory) -> Path:
    return tiny.make_dit(tmp_path_factory.mktemp("classes") / "dit")


@pytest.fixture(scope="session")
def ldm(tmp_path_factory) -> Path:
    return tiny.make_ldm(tmp_path_factory.mktemp("classes") / "ldm")


@pytest.fixture(scope="module")
def imagenet() -> Labels:
    found = labels.read(Source(families.config_folder("ldm-imagenet")))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("label", "index"),
    [
        ("Arctic fox", 279),
        ("arctic fox", 279),
        ("  ARCTIC  FOX ", 279),
        ("arctic-fox", 279),
        ("arctic_fox", 279),
        ("white fox", 279),
        ("Alopex lagopus", 279),
        ("Arctic fox, white fox, Alopex lagopus", 279),
        ("279", 279),
        ("0", 0),
        ("999", 999),
        ("tench", 0),
        ("toilet tissue", 999),
        ("black-and-tan coonhound", 165),
        ("black and tan coonhound", 165),
        ("maillot, tank suit", 639),
    ],
)
def test_a_class_is_found_by_each_of_its_names_and_by_its_number(imagenet, label, index):
    assert imagenet.find(label) == index


@pytest.mark.parametrize(
    ("label", "message", "hint"),
    [
        ("fox", "no class 'fox'", "277 (red fox), 278 (kit fox), 279 (Arctic fox), 280 (grey fox)"),
        ("artic fox", "no class 'artic fox'", "279 (Arctic fox)"),
        ("crane", "2 classes have the name 'crane'", "134 (crane) or 517 (crane)"),
        ("panda", "2 classes have the name 'panda'", "387 (lesser panda) or 388 (giant panda)"),
        ("1000", "no class 1000", "0 to 999"),
        ("-1", "no class '-1'", "0 to 999"),
        ("", "no class ''", "0 to 999"),
        ("zzzzqqqq", "no class 'zzzzqqqq'", "sdcli models labels"),
    ],
)
def test_what_is_no_single_class_is_refused_with_those_close_to_it(imagenet, label, message, hint):
    with pytest.raises(InvalidRecipe) as caught:
        imagenet.find(label)
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert caught.value.field == "label"


def test_the_name_of_a_class_leads_back_to_it(imagenet):
    assert len(imagenet.names) == 1000
    assert all(imagenet.names)
    assert all(imagenet.find(imagenet.name(index)) == index for index in range(1000))
    assert [imagenet.name(index) for index in (279, 517, 388)] == ["Arctic fox", "517", "giant panda"]


def test_latents_of_a_class_start_a_picture_of_their_size(run: Run, dit: Path, ldm: Path, tmp_path: Path):
    """Whatever multiples the model makes: a DiT's patches are of 2×2 latents."""
    for model, shape in ((dit, (1, 4, 8, 8)), (ldm, (1, 3, 16, 16))):
        save_file({"latents": torch.randn(shape)}, tmp_path / "z.safetensors")
        said = {"label": "279", "model": "m", "init_latents": str(tmp_path / "z.safetensors")}
        made = tiny.recipe_for(ModelEntry("m", folder=str(model)), said)
        assert (made.width, made.height) == (64, 64)
    save_file({"latents": torch.randn((1, 4, 8, 8))}, tmp_path / "z.safetensors")
    done = run("generate", "--label", "279", "-m", dit, "--init-latents", "z.safetensors", "--json", *FAST)
    assert done.status == 0, done.stderr
    line = json.loads(done.stdout)
    assert (line["width"], line["height"], line["warnings"]) == (64, 64, [])


def test_what_a_transformer_takes_is_said(run: Run, dit: Path, ldm: Path, tmp_path: Path):
    Image.new("RGB", (64, 64)).save(tmp_path / "x.png")
    tiny.make_controlnet("sd15", tmp_path / "net")
    for said, hint, arguments in (
        (
            "this model does not support ControlNets",
            "such as sd15",
            ["generate", "--label", "fox", "--control", "net=x.png"],
        ),
        ("takes a class label, not a segmentation map", "use -m kit-semantic", ["synthesize", "x.png"]),
    ):
        done = run(*arguments, "-m", dit)
        assert (done.status, done.stdout) == (2, b"")
        assert said in done.stderr.splitlines()[0]
        assert done.stderr.splitlines()[1].endswith(hint)
    assert "takes a class label, not a segmentation map" in run("synthesize", "x.png", "-m", ldm).stderr


NAMES = st.text(st.characters(categories=["L", "Nd", "Zs", "Pd"]), max_size=8).map(str.strip).filter(bool)


@given(st.lists(st.lists(NAMES, max_size=3).map(tuple), min_size=1, max_size=6).map(tuple), NAMES)
def test_any_names_are_found_or_refused(names, label):
    """And a class's own name, whatever others are called, is its class's."""
    made = Labels(names)
    for index in range(len(names)):
        name = made.name(index)
        if not (name.isascii() and name.isdecimal()):
            assert made.find(name) == index
    holders = [index for index, each in enumerate(names) if label in each]
    try:
        found = made.find(label)
    except InvalidRecipe as error:
        assert len(holders) != 1 or error.field == "label"  # noqa: PT017 - whether it is raised depends on the names
    else:
        assert not holders or holders == [found] or label.isdecimal()


def test_a_recipe_of_a_label_says_nothing_of_prompts():
    recipe = Recipe.from_dict({**MINIMAL, "label": "Arctic fox"})
    assert (recipe.condition.prompt, recipe.condition.words) == ("", "Arctic fox")
    flat = recipe.to_dict()
    assert flat["label"] == "Arctic fox"
    assert not {"prompt", "negative_prompt", "clip_skip", "prompt_weights"} & flat.keys()
    assert Recipe.from_dict(json.loads(json.dumps(flat))) == recipe
    assert recipe.replace(seed=2).condition == recipe.condition
    assert Recipe.from_dict({**MINIMAL, "label": "x", "clip_skip": 2}).to_dict()["clip_skip"] == 2
    assert "label" not in Recipe.from_dict({**MINIMAL, "prompt": "a fox"}).to_dict()


def test_a_text_and_a_label_are_not_said_at_once():
    with pytest.raises(InvalidRecipe, match="there is a prompt and a label"):
        Recipe.from_dict({**MINIMAL, "prompt": "a fox", "label": "279"})
    with pytest.raises(InvalidRecipe, match="prompt is missing"):
        Recipe.from_dict(MINIMAL)


def test_pictures_are_named_after_their_label():
    recipe = Recipe.from_dict({**MINIMAL, "label": "Arctic fox", "seed": 7})
    assert names.default_name(recipe, ".png") == "arctic-fox-7.png"
    assert names.fill("{prompt}-{index}.png", recipe, 2) == "arctic-fox-2.png"


def test_the_a1111_chunk_has_a_label_and_no_prompt():
    said = infotext.parse(metadata.parameters(Recipe.from_dict({**MINIMAL, "label": "drake, wild"})))
    assert (said["Prompt"], said["Class label"], said["Steps"]) == ("", "drake, wild", "20")


@pytest.mark.parametrize("make", [tiny.make_dit, tiny.make_ldm])
def test_what_a_model_takes_is_read_from_its_configs(make, tmp_path, sd15):
    """Whatever its folder is called."""
    entry = ModelEntry("sd15", folder=str(make(tmp_path / "sd15")))
    recipe = tiny.recipe_for(entry, {"model": "m", "label": "279"})
    assert (recipe.condition.label, recipe.width, recipe.height) == ("Arctic fox", 64, 64)
    with pytest.raises(InvalidRecipe, match="takes a class label, not a text") as caught:
        tiny.recipe_for(entry, {"model": "m", "prompt": "a fox"})
    assert "--label 'Arctic fox'" in caught.value.hint
    with pytest.raises(InvalidRecipe, match="takes a text, not a label"):
        tiny.recipe_for(ModelEntry("ldm-imagenet", folder=str(sd15)), {"model": "m", "label": "279"})


def test_a_transformer_makes_squares_of_whole_patches(dit):
    entry = ModelEntry("dit", folder=str(dit))
    said = {"model": "m", "label": "279"}
    with pytest.raises(InvalidRecipe, match="only makes squares") as caught:
        tiny.recipe_for(entry, {**said, "width": 128})
    assert "64×64 and 128×128" in caught.value.hint
    with pytest.raises(InvalidRecipe, match="multiples of 16 pixels"):
        tiny.recipe_for(entry, {**said, "width": 72, "height": 72})
    assert tiny.recipe_for(entry, {**said, "width": 128, "height": 128}).width == 128


def recipe_in(path: Path) -> dict[str, object]:
    with Image.open(path) as picture:
        assert isinstance(picture, PngImagePlugin.PngImageFile)
        said: dict[str, object] = json.loads(picture.text["sdcli"])["recipe"]
    return said


@pytest.mark.parametrize("model", ["dit", "ldm"])
def test_a_label_becomes_a_picture_that_can_be_replayed(run: Run, model, request, tmp_path: Path):
    folder = request.getfixturevalue(model)
    done = run("generate", "--label", "ARCTIC fox", "-m", folder, *FAST)
    assert (done.status, done.lines) == (0, ["arctic-fox-7.png"]), done.stderr
    assert "warning" not in done.stderr
    said = recipe_in(tmp_path / "arctic-fox-7.png")
    assert said["label"] == "Arctic fox"
    assert "prompt" not in said
    again = run("replay", "arctic-fox-7.png", "--verify")
    assert again.status == 0, again.stderr
    info = run("info", "arctic-fox-7.png")
    assert "label:" in info.stdout.decode()
    command = next(line for line in info.lines if line.startswith("command:")).partition(":")[2].strip()
    assert command.startswith("sdcli generate --label 'Arctic fox'")
    assert "negative_prompt" not in info.stdout.decode()


def test_a_user_s_negative_prompt_is_no_bar_to_the_command_of_a_label(run: Run, dit: Path, tmp_path: Path):
    assert run("generate", "--label", "279", "-m", dit, "-o", "fox.png", *FAST).status == 0
    told = run("info", "fox.png", "--json", env={"SDCLI_NEGATIVE_PROMPT": "blurry"})
    assert json.loads(told.stdout)["command"].startswith("sdcli generate --label 'Arctic fox'"), told.stderr


def test_a_picture_is_redrawn_as_a_class(run: Run, ldm: Path, tmp_path: Path):
    Image.effect_noise((90, 70), 80).convert("RGB").save(tmp_path / "photo.png")
    Image.new("L", (90, 70), "white").save(tmp_path / "mask.png")
    done = run("img2img", "photo.png", "--label", "279", "-m", ldm, "-o", "a.png", "--strength", "1", *FAST)
    assert done.status == 0, done.stderr
    done = run("inpaint", "photo.png", "--label", "279", "--mask", "mask.png", "-m", ldm, "-o", "b.png", *FAST)
    assert done.status == 0, done.stderr
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (90, 70)


def test_a_transformer_redraws_a_picture_at_a_square_size(run: Run, dit: Path, tmp_path: Path):
    Image.effect_noise((90, 70), 80).convert("RGB").save(tmp_path / "photo.png")
    done = run("img2img", "photo.png", "--label", "279", "-m", dit, "-o", "a.png", "--strength", "1", *FAST)
    assert done.status == 0, done.stderr
    assert "working size 64×64, result 90×70" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate"], "PROMPT or --label is missing"),
        (["generate", "--label", "279"], "this model takes a text, not a label"),
        (["generate", "a fox", "-m", "DIT"], "this model takes a class label, not a text"),
        (["generate", "a fox", "--label", "279", "-m", "DIT"], "there is a prompt and a label"),
        (["generate", "--label", "fox", "-m", "DIT"], "this model has no class 'fox'"),
        (["generate", "--label", "crane", "-m", "DIT"], "2 classes have the name 'crane'"),
        (["models", "labels", "kit"], "kit takes a text, not a class label"),
    ],
)
def test_refusals_are_two_lines_and_load_nothing_heavy(run: Run, dit: Path, tmp_path: Path, arguments, message):
    said = [str(dit) if each == "DIT" else each for each in arguments]
    done = run(*said)
    assert (done.status, done.stdout) == (2, b"")
    error, hint = done.stderr.splitlines()
    assert error == f"error: {message}"
    assert hint.startswith("hint: ")
    assert not modules_of(said, tmp_path, 2) & HEAVY


def test_what_says_more_of_prompts_has_no_effect(run: Run, dit: Path):
    done = run("generate", "--label", "279", "-N", "blurry", "-m", dit, "--dry-run")
    assert "warning: negative_prompt has no effect: this model takes a class label" in done.stderr
    assert run("generate", "--label", "279", "-N", "blurry", "-m", dit, "--dry-run", "--strict").status == 2


@pytest.mark.parametrize("model", ["dit", "ldm"])
def test_a_plan_says_the_label_and_no_tokens(run: Run, model, request):
    folder = request.getfixturevalue(model)
    done = run("generate", "--label", "279", "-m", folder, "--dry-run", "--json")
    assert done.status == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["recipe"]["label"], said["tokens"]) == ("Arctic fox", None)
    assert said["memory"]["weights"] > 0
    assert len(said["model"]["files"]) == (2 if model == "dit" else 3)
    done = run("generate", "--label", "279", "-m", folder, "--dry-run")
    assert "Arctic fox" in done.stdout.decode()
    assert "tokens" not in done.stdout.decode()


def test_jobs_of_labels_their_wildcards_and_their_names(run: Run, dit: Path, tmp_path: Path):
    jobs = [{"label": "{red fox|kit fox}", "seed": 1}, {"label": "279"}, {"label": "fox"}, {"prompt": "a fox"}, {}]
    (tmp_path / "jobs.jsonl").write_text("".join(json.dumps(each) + "\n" for each in jobs))
    done = run("batch", "jobs.jsonl", "-o", "out", "-m", dit, "--steps", "2")
    assert done.status == 7
    lines = sorted(map(json.loads, done.lines), key=lambda line: line["line"])
    assert [line["status"] for line in lines] == ["done", "done", "failed", "failed", "failed"]
    assert recipe_in(tmp_path / lines[0]["path"])["label"] in ("red fox", "kit fox")
    assert Path(lines[1]["path"]).name.startswith("arctic-fox-")
    assert [line["field"] for line in lines[2:]] == ["label", "prompt", "prompt"]
    again = run("batch", "jobs.jsonl", "-o", "out", "-m", dit, "--steps", "2")
    assert sorted(json.loads(line)["status"] for line in again.lines) == ["cached"] * 2 + ["failed"] * 3


def test_jobs_in_csv_may_be_headed_label(run: Run, dit: Path, tmp_path: Path):
    (tmp_path / "jobs.csv").write_text('label,seed\n"Arctic fox, white fox, Alopex lagopus",1\n281,2\n')
    done = run("batch", "jobs.csv", "-o", "out", "-m", dit, "--steps", "2")
    assert done.status == 0, done.stderr
    made = [recipe_in(tmp_path / json.loads(line)["path"])["label"] for line in done.lines]
    assert made == ["Arctic fox", "tabby"]


def test_the_classes_are_listed(run: Run, dit: Path):
    """Of a shipped entry even where the model itself is not here."""
    lines = run("models", "labels", "ldm-imagenet").lines
    assert len(lines) == 1000
    assert lines[279] == "279   Arctic fox, white fox, Alopex lagopus"
    told = [json.loads(line) for line in run("models", "labels", dit, "--json").lines]
    assert told[279] == {"index": 279, "names": ["Arctic fox", "white fox", "Alopex lagopus"]}
    shown = json.loads(run("models", "show", dit, "--json").stdout)
    assert (shown["takes"], shown["labels"]) == ("label", 1000)


def test_a_model_of_no_repository_is_named_by_the_user(run: Run, ldm: Path):
    done = run("generate", "--label", "279", "-m", "ldm-imagenet", *FAST)
    assert done.status == 3
    assert "sdcli models add ldm-imagenet FILE" in done.stderr
    assert run("models", "pull", "ldm-imagenet").status == 2
    assert run("models", "add", "ldm-imagenet", ldm).status == 0
    planned = run("generate", "--label", "279", "-m", "ldm-imagenet", "--dry-run", "--json")
    assert planned.status == 0, planned.stderr
    said = json.loads(planned.stdout)["recipe"]
    assert (said["scheduler"], said["guidance_scale"]) == ("ddim", 3.0)
    assert run("models", "rm", "ldm-imagenet", "--yes").status == 0
    assert run("generate", "--label", "279", "-m", "ldm-imagenet", *FAST).status == 3


def test_labels_of_an_absent_repository_are_not_known(monkeypatch, tmp_path):
    with pytest.raises(ModelNotFound, match="is not on this machine"):
        registry.labels_of(ModelEntry("nobody/nothing", repo="nobody/nothing"))
