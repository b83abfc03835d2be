"""LoRAs in commands: options, tags, entries, batches, replays, the warm process, the API, and errors."""

import base64
import json
from io import BytesIO
from pathlib import Path

import openai
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load_file

from sdcli.errors import InvalidRecipe
from sdcli.making.maker import LocalMaker, Task
from sdcli.models import loading, located
from sdcli.models.digest import tensors_sha256
from sdcli.models.source import Source
from sdcli.planning import resolve
from sdcli.recipe.lora import Lora, extract
from tests import tiny
from tests.conftest import Run
from tests.lora import files
from tests.serving.conftest import serving

FAST = ("-W", "64", "-H", "64", "--steps", "2", "--dtype", "float32", "--threads", "1", "--seed", "3")


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory) -> Path:
    return tiny.make_folder("sdxl", tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(scope="module")
def loras(sd15, sdxl, tmp_path_factory) -> Path:
    """A directory with LoRAs: `a` and `b` for sd15, `xl` for SDXL, `empty`, and `nan`."""
    directory: Path = tmp_path_factory.mktemp("loras")
    for name, folder in (("a", sd15), ("b", sd15), ("xl", sdxl)):
        model = loading.load(Source(folder), name="tiny", device=torch.device("cpu"), dtype=torch.float32)
        made = files.changes(model, seed=ord(name[0]))
        files.write(directory / f"{name}.safetensors", files.kohya(made, model))
    tensors = {key: tensor * torch.nan for key, tensor in files.kohya(files.changes(model), model).items()}
    files.write(directory / "nan.safetensors", tensors)
    files.write(directory / "zero.safetensors", {})
    return directory


@pytest.fixture
def here(loras: Path, sd15: Path, tmp_path: Path) -> Path:
    for each in loras.iterdir():
        (tmp_path / each.name).symlink_to(each)
    (tmp_path / "model").symlink_to(sd15)
    return tmp_path


def pixels(line: str) -> str:
    return str(json.loads(line)["pixels_sha256"])


def made(run: Run, *words: str, **more: object) -> str:
    finished = run("generate", *words, "-m", "model", *FAST, "--json", "--force", "-o", "x.png", **more)
    assert finished.status == 0, finished.stderr
    return pixels(finished.lines[0])


names = st.from_regex(r"[a-z./ ]{1,12}", fullmatch=True)
scales = st.floats(-10, 10).map(lambda number: round(number, 4))


@given(st.builds(Lora, names, scales, scales))
def test_the_text_of_a_lora_is_parsed_to_the_same(lora):
    assert Lora.parse(str(lora)) == lora


@given(st.builds(Lora, st.from_regex(r"[a-z]{1,9}", fullmatch=True), scales, scales))
def test_the_tag_of_a_lora_is_parsed_to_the_same(lora):
    assert extract(f"a fox {lora.tag}, snow") == ("a fox , snow", [lora])


def test_scales_of_tags_as_automatic1111_reads_them():
    assert Lora.of_tag("x:0.5") == Lora("x", 0.5, 0.5)
    assert Lora.of_tag("x:0.5:0.8") == Lora("x", 0.8, 0.5)
    assert Lora.of_tag("x:te=0.5:unet=0.8") == Lora("x", 0.8, 0.5)
    assert Lora.of_tag("x") == Lora("x")
    for wrong in ("", "x:y", "x:1:1:1", "x:dyn=3", "x:nan", "x:99"):
        with pytest.raises(InvalidRecipe):
            Lora.of_tag(wrong)


def test_options_tags_and_jobs_make_the_same_picture(run, here):
    plain = made(run, "a red fox")
    one = made(run, "a red fox", "--lora", "a.safetensors:0.8")
    both = made(run, "a red fox", "--lora", "a.safetensors:0.8", "--lora", "b.safetensors:0.5,te=0")
    assert len({plain, one, both}) == 3
    named = {"SDCLI_LORA_DIR": str(here)}
    assert made(run, "a red fox <lora:a:0.8>", env=named) == one
    assert made(run, "a red fox <lora:a:0.8> <lora:b:0:0.5>", env=named) == both
    jobs = [
        {"prompt": "a red fox", "lora": ["a.safetensors:0.8", "b.safetensors:0.5,te=0"]},
        {"prompt": "a red fox"},
        {"prompt": "a red fox", "lora": "a.safetensors:0.8"},
    ]
    (here / "jobs.jsonl").write_text("".join(json.dumps(job) + "\n" for job in jobs))
    finished = run("batch", "jobs.jsonl", "-m", "model", *FAST, "-o", "out")
    assert [pixels(line) for line in finished.lines] == [both, plain, one]


def test_the_picture_names_its_loras_and_is_replayed(run, here):
    digest = made(run, "a red fox", "--lora", "a.safetensors:0.8", "--lora", "b.safetensors:0.5,te=0")
    info = json.loads(run("info", "x.png", "--json").stdout)
    assert info["recipe"]["lora"] == ["a.safetensors:0.8", "b.safetensors:0.5,te=0"]
    with Image.open(here / "x.png") as image:
        text, chunk = image.info["parameters"], json.loads(image.info["sdcli"])
    assert text.startswith("a red fox <lora:a:0.8> <lora:b:0:0.5>\n")
    assert "Lora hashes:" in text
    assert [each["name"] for each in chunk["addons"]] == ["a.safetensors", "b.safetensors"]
    replayed = run("replay", "x.png", "-o", "y.png", "--json")
    assert pixels(replayed.lines[0]) == digest
    assert run("replay", "--verify", "x.png").status == 0
    command = run("info", "x.png").stdout.decode().rpartition("command:")[2]
    assert "--lora a.safetensors:0.8 --lora b.safetensors:0.5,te=0" in command
    (here / "a.safetensors").unlink()
    (here / "a.safetensors").symlink_to(here / "b.safetensors")
    changed = run("replay", "x.png", "-o", "z.png")
    assert "the LoRA a.safetensors is not what the picture was made with" in changed.stderr
    (here / "a.safetensors").unlink()
    missing = run("replay", "x.png", "-o", "w.png")
    assert missing.status == 3
    assert "a.safetensors" in missing.stderr


def test_paths_below_the_home_are_recorded_without_it_and_found_elsewhere(run, here):
    weights = "-m", str(here / "model"), "--lora", f"{here}/a.safetensors:0.8"
    digest = pixels(run("generate", "a red fox", *weights, *FAST, "--json", "-o", "x.png").lines[0])
    png = (here / "x.png").read_bytes()
    assert str(here).encode() not in png
    info = json.loads(run("info", "x.png", "--json").stdout)
    assert (info["recipe"]["model"], info["recipe"]["lora"]) == ("~/model", ["~/a.safetensors:0.8"])
    assert [each["name"] for each in info["addons"]] == ["~/a.safetensors"]
    assert run("replay", "--verify", "x.png").status == 0
    far = here / "far"
    far.mkdir()
    (far / "x.png").write_bytes(png)
    (far / "model").symlink_to(here / "model")
    missing = run("replay", "x.png", "-o", "y.png", env={"HOME": "/nowhere"}, cwd=far)
    assert missing.status == 3
    assert "was made with the LoRA ~/a.safetensors, which is not on this machine" in missing.stderr
    assert f"put a.safetensors next to the picture; its sha256 is {info['addons'][0]['sha256']}" in missing.stderr
    (far / "loras").mkdir()
    (far / "loras" / "a.safetensors").symlink_to(here / "a.safetensors")
    for env in ({"SDCLI_LORA_DIR": str(far / "loras")}, {}):
        if not env:
            (far / "loras" / "a.safetensors").rename(far / "a.safetensors")
        found = run("replay", "x.png", "--json", "--force", "-o", "y.png", env={"HOME": "/nowhere", **env}, cwd=far)
        assert pixels(found.lines[0]) == digest
    (far / "a.safetensors").unlink()
    (far / "a.safetensors").symlink_to(here / "b.safetensors")
    changed = run("replay", "x.png", "--dry-run", env={"HOME": "/nowhere"}, cwd=far)
    assert "is not what the picture was made with" in changed.stderr


def test_entries_set_what_a_distilled_lora_needs(run, here):
    (here / "config.toml").write_text(
        f'[models.fast]\nkind = "lora"\nfolder = "{here}/a.safetensors"\ntrigger = "ink drawing, sketch"\n'
        '[models.fast.defaults]\nsteps = 1\nscheduler = "lcm"\nguidance_scale = 1.0\n'
    )
    plan = run("--config", "config.toml", "generate", "a fox", "--lora", "fast", "-m", "model", "--dry-run", "--json")
    planned = json.loads(plan.stdout)
    assert [planned["recipe"][key] for key in ("steps", "scheduler", "guidance_scale")] == [1, "lcm", 1.0]
    (warning,) = (each for each in planned["warnings"] if "trigger" in each)
    assert "no trigger word of the LoRA fast" in warning
    words = ("generate", "a sketch", "--lora", "fast", "-m", "model", "--steps", "4", "--dry-run", "--json")
    plan = run("--config", "config.toml", *words)
    assert json.loads(plan.stdout)["recipe"]["steps"] == 4
    assert not [each for each in json.loads(plan.stdout)["warnings"] if "trigger" in each]


REFUSED = {
    "another family": (["--lora", "xl.safetensors"], "xl.safetensors is made for"),
    "numbers that are not finite": (["--lora", "nan.safetensors"], "not finite"),
    "no tensors": (["--lora", "zero.safetensors"], "zero.safetensors is an empty file"),
    "a model": (["--lora", "kit"], "kit is a model, not a LoRA"),
    "the folder of a model": (["--lora", "./model"], "./model is a model, not a LoRA"),
    "no file": (["--lora", "nowhere.safetensors"], "no LoRA 'nowhere.safetensors'"),
    "the folder of nobody": (["--lora", "~nosuch/x.safetensors"], "no LoRA '~nosuch/x.safetensors'"),
    "a name that is too long": (["--lora", "x" * 5000], "no LoRA 'xxx"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(run, here, sdxl, name):
    options, message = REFUSED[name]
    if name == "numbers that are not finite":  # they are those of SDXL
        (here / "model").unlink()
        (here / "model").symlink_to(sdxl)
    finished = run("generate", "a fox", "-m", "model", *FAST, "-o", "x.png", *options)
    assert finished.status == 3
    assert message in finished.stderr
    assert len(finished.stderr.splitlines()) == 2
    assert not (here / "x.png").exists()


def test_a_lora_is_no_model(run, here):
    finished = run("generate", "a fox", "-m", "./a.safetensors", *FAST, "-o", "x.png")
    assert finished.status == 3
    assert len(finished.stderr.splitlines()) == 2
    assert "it is a LoRA, which is used with --lora" in finished.stderr


def test_changing_loras_does_not_load_the_model_again(sd15, loras, monkeypatch):
    calls = []
    load = loading.load
    monkeypatch.setattr(loading, "load", lambda *args, **more: calls.append(1) or load(*args, **more))
    maker, model = LocalMaker(keep=1), located.find(str(sd15))
    seen = []
    for chosen in ([], ["a:0.5"], ["a"], ["a", "b"], ["b"], [], ["a:0.5"]):
        monkeypatch.setenv("SDCLI_LORA_DIR", str(loras))
        options = {
            "model": str(sd15),
            "prompt": "a fox",
            "width": 64,
            "height": 64,
            "steps": 2,
            "seed": 1,
            "lora": chosen,
        }
        found = resolve.resolve(model, {**options, "dtype": "float32"}, user=False)
        (picture,) = maker.make(Task(found.weights, [found.recipe], found.inputs))
        seen.append(picture.pixels_sha256)
    assert len(calls) == 1
    assert len(set(seen)) == 5
    assert (seen[0], seen[1]) == (seen[5], seen[6])


def test_a_part_of_a_lora_is_used_if_that_is_wanted(run, here, loras):
    files.write(
        here / "more.safetensors", {**load_file(loras / "a.safetensors"), "else.lora_up.weight": torch.ones(2, 2)}
    )
    whole = made(run, "a fox", "--lora", "a.safetensors")
    refused = run("generate", "a fox", "-m", "model", *FAST, "-o", "x.png", "--force", "--lora", "more.safetensors")
    assert refused.status == 3
    assert "no place for 1 of" in refused.stderr
    finished = run(
        "generate", "a fox", "-m", "model", *FAST, "-o", "x.png", "--force", "--json", "--no-strict-lora",
        "--lora", "more.safetensors",
    )  # fmt: skip
    assert pixels(finished.lines[0]) == whole
    assert "is used in part" in finished.stderr


def test_the_warm_process_takes_loras_and_the_api_by_name_only(run, here, sd15, forked, tmp_path_factory):
    home = tmp_path_factory.mktemp("warm")
    (home / ".config/sdcli").mkdir(parents=True)
    (home / ".config/sdcli/config.toml").write_text(f'[defaults]\nlora_dir = "{here}"\n')
    with serving(home, forked, "-m", sd15) as warm:
        for words in (("--lora", "a.safetensors:0.5"), (), ("--lora", "b.safetensors")):
            assert made(run, "a fox", *words, env={"SDCLI_SOCKET": warm.socket}) == made(run, "a fox", *words)
        with openai.OpenAI(base_url=warm.url, api_key="x", max_retries=0, timeout=60) as client:

            def picture(prompt: str = "a fox", **more: object) -> bytes:
                options = {"steps": 2, "seed": 1, "dtype": "float32", **more}
                answer = client.images.generate(model=str(sd15), prompt=prompt, size="64x64", extra_body=options)
                return Image.open(BytesIO(base64.b64decode(answer.data[0].b64_json))).tobytes()

            assert picture(lora=["a:0.5"]) == picture("a fox <lora:a:0.5>") != picture()
            for path in (str(here / "a.safetensors"), "../a.safetensors"):
                with pytest.raises(openai.BadRequestError, match="no LoRA"):
                    picture(lora=[path])


def test_names_of_ones_own(run, here):
    assert run("models", "add", "ink", "a.safetensors").status == 0
    shown = json.loads(run("models", "show", "ink", "--json").stdout)
    assert (shown["kind"], shown["layers"]) == ("lora", 100)
    assert made(run, "a fox", "--lora", "ink:0.5") == made(run, "a fox", "--lora", "a.safetensors:0.5")
    assert "--lora ink" in run("generate", "a fox", "-m", "ink").stderr
    completed = run(
        env={"_SDCLI_COMPLETE": "complete_bash", "COMP_WORDS": "sdcli generate x -m model --lora in", "COMP_CWORD": "6"}
    )
    assert b"ink" in completed.stdout


def test_a_picture_of_automatic1111_is_replayed_with_its_loras(run, here, loras):
    text = (
        "a fox <lora:a:0.8>\nSteps: 2, Sampler: DDIM, CFG scale: 7, Seed: 3, Size: 64x64, RNG: CPU, "
        'Denoising strength: 0.5, Hires upscale: 1.5, Hires steps: 2, Hires upscaler: Lanczos, Lora hashes: "a: {}"'
    )
    named = {"SDCLI_LORA_DIR": str(loras)}
    for name, digest in (("same", tensors_sha256(loras / "a.safetensors")[:12]), ("other", "0123456789ab")):
        chunks = PngInfo()
        chunks.add_text("parameters", text.format(digest))
        Image.new("RGB", (96, 96)).save(here / f"{name}.png", pnginfo=chunks)
        done = run("replay", f"{name}.png", "-m", "model", "--json", "-o", f"r-{name}.png", env=named)
        assert done.status == 0, done.stderr
        assert ("is not the file with the hash" in done.stderr) == (name == "other")
        recipe = json.loads(run("info", f"r-{name}.png", "--json").stdout)["recipe"]
        assert (recipe["lora"], recipe["prompt"]) == (["a:0.8"], "a fox")
        assert [recipe[key] for key in ("hires", "hires_upscaler", "hires_strength", "hires_steps")] == [
            "96x96", "lanczos", 0.5, 4,
        ]  # fmt: skip
    missing = run("replay", "same.png", "-m", "model", "-o", "r.png")
    assert missing.status == 3
    assert "no LoRA 'a'" in missing.stderr
    assert "select the model" not in missing.stderr
