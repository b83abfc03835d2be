"""Models composed of parts: read, loaded, digested, listed and planned as the folder that holds the same files."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

from sdcli import config
from sdcli.diffusion import device, pipeline
from sdcli.errors import ModelCorrupt, ModelNotFound, UsageError
from sdcli.making.maker import LocalMaker, Task
from sdcli.making.picture import Picture
from sdcli.models import assemble, loading, registry, user_models
from sdcli.models.source import Source
from sdcli.models.weights import Weights
from sdcli.planning import dry_run
from sdcli.recipe.recipe import Recipe
from tests import original, tiny


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Path:
    """Another tiny SD 1.5, whose parts fit the first one's."""
    return tiny.make_folder("sd15", tmp_path_factory.mktemp("other") / "other", seed=1)


@pytest.fixture(scope="module")
def inpaint(tmp_path_factory) -> Path:
    """The folder of a U-Net alone, of 9 channels."""
    whole = tiny.make_folder("sd15", tmp_path_factory.mktemp("inpaint") / "whole", seed=2, in_channels=9)
    return Path(shutil.move(whole / "unet", whole.parent / "unet-inpaint"))


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / ".config"))
    folder = tmp_path / ".config" / "sdcli"
    folder.mkdir(parents=True)
    return folder


def load(source: Source):
    return loading.load(source, name="x", device=torch.device("cpu"), dtype=torch.float32)


def weights(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([each.flatten() for each in module.parameters()])


def composed(base: Path, **parts: Path) -> Source:
    return Source(base, parts=tuple(parts.items()))


def put_together(base: Path, where: Path, **parts: Path) -> Path:
    """The folder that a composed model stands for."""
    shutil.copytree(base, where)
    for part, folder in parts.items():
        shutil.rmtree(where / part)
        shutil.copytree(folder, where / part)
    return where


def test_each_part_comes_from_where_it_is_said_to_come_from(sd15, other):
    model = load(composed(sd15, vae=other / "vae"))
    own, others = load(Source(sd15)), load(Source(other))
    assert torch.equal(weights(model.vae), weights(others.vae))
    assert torch.equal(weights(model.network), weights(own.network))
    assert torch.equal(weights(model.text_encoders[0].model), weights(own.text_encoders[0].model))
    assert not torch.equal(weights(own.vae), weights(others.vae))


@pytest.mark.parametrize("part", ["scheduler", "text_encoder", "tokenizer", "unet", "vae"])
def test_the_digest_is_that_of_the_folder_put_together(sd15, other, tmp_path, part):
    source = composed(sd15, **{part: other / part})
    assert source.sha256 == Source(put_together(sd15, tmp_path / "whole", **{part: other / part})).sha256
    same_bytes = part in ("scheduler", "tokenizer")
    assert (source.sha256 == Source(sd15).sha256) == same_bytes


def test_the_digest_follows_the_files_in_use_and_no_others(sd15, other, tmp_path):
    base, vae = Path(shutil.copytree(sd15, tmp_path / "base")), Path(shutil.copytree(other / "vae", tmp_path / "vae"))
    source = composed(base, vae=vae)
    first = source.sha256
    (base / "vae" / "config.json").write_text("{}")
    assert composed(base, vae=vae).sha256 == first
    source.check_unchanged()
    (vae / "config.json").write_text((vae / "config.json").read_text() + "\n")
    assert composed(base, vae=vae).sha256 != first
    assert source.sha256 == first
    with pytest.raises(ModelCorrupt, match="have changed"):
        source.check_unchanged()


def test_the_digest_counts_what_lies_beside_a_part_s_weights(sd15, inpaint, tmp_path):
    unet = Path(shutil.copytree(inpaint, tmp_path / "unet"))
    first = composed(sd15, unet=unet).sha256
    (unet / "classes.json").write_text("[]")
    assert composed(sd15, unet=unet).sha256 != first


def test_a_single_file_takes_a_part_of_a_folder_s(sd15, other, tmp_path):
    file = original.write_single_file(sd15, tmp_path / "model.safetensors", "sd1")
    alone = Source(file, configs=sd15)
    source = Source(file, configs=sd15, parts=(("vae", other / "vae"),))
    model, own, others = load(source), load(Source(sd15)), load(Source(other))
    assert torch.equal(weights(model.vae), weights(others.vae))
    assert torch.equal(weights(model.network), weights(own.network))
    assert source.sha256 not in (alone.sha256, Source(other).sha256)
    plan = dry_run.find_parts(Weights(source))
    assert plan.files == [file, *(other / "vae").glob("*.safetensors")]
    assert plan.sizes == dry_run.find_parts(Weights(Source(sd15))).sizes


def test_the_class_is_the_part_s_own(sd15, tmp_path):
    small = AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4)
    small.save_pretrained(tmp_path / "taesd")
    assert isinstance(load(composed(sd15, vae=tmp_path / "taesd")).vae, AutoencoderTiny)


def test_facts_are_those_of_the_parts(sd15, inpaint):
    facts = registry.read_facts(composed(sd15, unet=inpaint))
    assert (facts.in_channels, facts.latent_space.channels, facts.native_size) == (9, 4, 64)
    assert load(composed(sd15, unet=inpaint)).concat_channels == 5


def test_parts_that_do_not_fit_are_an_error_that_names_them(sd15, tmp_path):
    xl = tiny.make_folder("sdxl", tmp_path / "xl")
    with pytest.raises(ModelCorrupt) as caught:
        load(composed(sd15, unet=xl / "unet"))
    assert "its text encoders give 32 features per token, its U-Net takes 80" in caught.value.message
    assert f"unet = {xl / 'unet'}" in caught.value.hint


@pytest.mark.parametrize("what", ["does not exist", "is a file"])
def test_a_part_that_is_not_there(sd15, tmp_path, what):
    missing = tmp_path / "vae-ft"
    part = "vae"
    if what == "is a file":
        missing.touch()
        part = "tokenizer"
    source = composed(sd15, **{part: missing})
    for read in (load, lambda each: each.sha256, registry.read_facts, lambda each: dry_run.find_parts(Weights(each))):
        with pytest.raises(ModelNotFound) as caught:
            read(source)
        assert f"{part} of {sd15.name} should be loaded from {missing}, which {what}" in caught.value.message


def test_a_user_s_file_composes(home, sd15, other, inpaint, run, tmp_path):
    shutil.copytree(sd15, home / "base")
    shutil.copytree(other / "vae", home / "vae-ft")
    text = f'[soft]\nfolder = "base"\n[soft.parts]\nvae = "vae-ft"\nunet = "{inpaint}"\n'
    (home / "models.toml").write_text(text)
    shown = json.loads(run("models", "show", "soft", "--json").stdout)
    assert shown["parts"] == {"vae": str(home / "vae-ft"), "unet": str(inpaint)}
    assert (shown["present"], shown["in_channels"]) == (True, 9)
    shutil.rmtree(home / "vae-ft")
    assert json.loads(run("models", "show", "soft", "--json").stdout)["present"] is False
    refused = run("generate", "a fox", "-m", "soft")
    assert (refused.status, str(home / "vae-ft") in refused.stderr) == (3, True)


def test_a_shipped_model_takes_a_user_s_part(home, tmp_path):
    (home / "config.toml").write_text('[models.kit]\nparts = { vae = "vae-ft" }\n')
    assert registry.find("kit").parts == {"vae": str(home / "vae-ft")}
    (home / "config.toml").write_text('[models.kit]\nfolder = "elsewhere"\n')
    assert registry.find("kit").parts == {}


@pytest.mark.parametrize(
    ("parts", "line", "message"),
    [
        ('parts = { vea = "x" }', 3, "unknown part 'soft.parts.vea'"),
        ('[soft.parts]\nvae = "x"\nunet = 3', 5, "unet is 3"),
        ('parts = "vae"', 3, "soft.parts is 'vae'"),
    ],
)
def test_parts_that_cannot_be_are_refused_with_their_line(home, parts, line, message):
    (home / "models.toml").write_text(f'[soft]\nfolder = "base"\n{parts}\n')
    with pytest.raises(UsageError) as caught:
        registry.entries()
    assert f"line {line}: {message}" in caught.value.message


def test_add_takes_parts(home, run, sd15, other):
    added = run("models", "add", "soft", sd15, "--part", f"vae={other / 'vae'}")
    assert (added.status, added.stderr) == (0, "")
    assert registry.find("soft").parts == {"vae": str(other / "vae")}
    assert run("models", "add", "soft", sd15, "--force").status == 0
    assert registry.find("soft").parts == {}


@pytest.mark.parametrize(
    ("parts", "error", "words"),
    [
        (["vae"], UsageError, "is not PART=PATH"),
        (["vea=x"], UsageError, "is not PART=PATH"),
        (["vae=x", "vae=y"], UsageError, "twice"),
        (["vae=nowhere"], ModelNotFound, "does not exist"),
        (["vae=."], ModelCorrupt, "config.json is missing"),
    ],
)
def test_add_refuses_parts_that_cannot_be(home, sd15, monkeypatch, tmp_path, parts, error, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=words):
        user_models.add("soft", str(sd15), parts)
    assert not config.models_path().exists()


def test_a_plan_names_the_files_in_use(home, run, sd15, other):
    user_models.add("soft", str(sd15), [f"vae={other / 'vae'}"])
    plan = json.loads(run("generate", "a fox", "-m", "soft", "--dry-run", "--json").stdout)
    named = {file["path"] for file in plan["model"]["files"]}
    assert {Path(name).parent for name in named} == {sd15 / "unet", sd15 / "text_encoder", other / "vae"}
    assert plan["model"]["parts"] == {"vae": str(other / "vae")}
    assert plan["model"]["digest"] == composed(sd15, vae=other / "vae").sha256


def test_cold_warm_and_batch_pictures_are_those_of_the_folder_put_together(home, run, sd15, other, tmp_path):
    parts = {"vae": other / "vae"}
    user_models.add("soft", str(sd15), [f"vae={other / 'vae'}"])
    recipe = tiny.recipe_for(
        registry.find("soft"),
        {"prompt": "a fox", "model": "soft", "steps": 1, "seed": 7, "dtype": "float32", "threads": 1},
    )
    expected = picture_of(Source(put_together(sd15, tmp_path / "whole", **parts)), recipe)
    assert expected != picture_of(Source(sd15), recipe)
    (warm,) = LocalMaker().make(Task(weights_of("soft"), [recipe]))
    assert warm.pixels_sha256 == expected
    jobs = [{"prompt": "a fox", "model": model} for model in ("soft", str(sd15), "soft")]
    options = ["--steps", 1, "--seed", 7, "--dtype", "float32", "--threads", 1, "-o", "out"]
    done = run("batch", "-", *options, stdin="\n".join(map(json.dumps, jobs)).encode())
    made = [json.loads(line) for line in done.lines]
    assert [line["pixels_sha256"] for line in made if line["model"] == "soft"] == [expected] * 2
    assert len({line["pixels_sha256"] for line in made}) == 2


def picture_of(source: Source, recipe: Recipe) -> str:
    resolved = device.resolve_execution(recipe)
    (result,) = pipeline.run(assemble.load(Weights(source), resolved), [resolved])
    return Picture.of(result, Weights(source)).pixels_sha256


def weights_of(name: str) -> Weights:
    return Weights(registry.locate(registry.find(name)))


def test_the_warm_process_sees_a_part_change(home, sd15, other, tmp_path):
    vae = Path(shutil.copytree(sd15 / "vae", tmp_path / "vae"))
    user_models.add("soft", str(sd15), [f"vae={vae}"])
    recipe = tiny.recipe_for(registry.find("soft"), {"prompt": "a fox", "model": "soft", "steps": 1, "seed": 7})
    maker = LocalMaker()
    (first,) = maker.make(Task(weights_of("soft"), [recipe]))
    shutil.rmtree(vae)
    shutil.copytree(other / "vae", vae)
    (second,) = maker.make(Task(weights_of("soft"), [recipe]))
    assert first.pixels_sha256 != second.pixels_sha256
