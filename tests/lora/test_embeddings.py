"""Embeddings give the latents of diffusers' `load_textual_inversion`; their names, tokens, records and refusals."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from sdcli.diffusion import pipeline
from sdcli.diffusion.context.chunks import chunks
from sdcli.models import addons
from sdcli.models.addons import embedding
from sdcli.models.source import Source
from sdcli.models.weights import Addon, Asked, Weights
from sdcli.recipe.recipe import Recipe
from tests import pairs, tiny
from tests.lora import files

FAST = ("-W", "64", "-H", "64", "--steps", "2", "--dtype", "float32", "--threads", "1", "--seed", "3")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {family: tiny.make_folder(family, tmp_path_factory.mktemp(family)) for family in ("sd15", "sdxl")}


def widths(folder: Path) -> list[int]:
    configs = sorted(folder.glob("text_encoder*/config.json"))
    return [json.loads(each.read_text())["hidden_size"] for each in configs]


def write(path: Path, folder: Path, count: int, *, seed: int = 1, name: str = "emb_params") -> Path:
    generator = torch.Generator().manual_seed(seed)
    names = [name] if len(widths(folder)) == 1 else ["clip_l", "clip_g"]
    made = {
        each: torch.randn((count, width), generator=generator)
        for each, width in zip(names, widths(folder), strict=True)
    }
    return files.write(path, made)


def ours(folder: Path, paths: list[Path], **options: str) -> Tensor:
    weights = Weights(Source(folder), tuple(Addon("embedding", Asked(path.stem), Source(path)) for path in paths))
    model = addons.attach(pairs.load(folder).model, weights)
    return pipeline.sample(model, [Recipe.from_dict({"model": "tiny", **pairs.DEFAULTS, **options})])


def theirs(folder: Path, paths: list[Path], **options: str) -> Tensor:
    made = pairs.load(folder)
    if len(widths(folder)) == 2:  # the configs of CLIP have another id, with which new words break the pooled embedding
        for module in made.pipe.text_encoder_2.modules():
            if hasattr(module, "eos_token_id"):
                module.eos_token_id = made.pipe.tokenizer_2.eos_token_id
    for path in paths:
        vectors = load_file(path)
        if len(vectors) == 1:
            made.pipe.load_textual_inversion(next(iter(vectors.values())), token=path.stem)
        else:
            made.pipe.load_textual_inversion(vectors["clip_l"], token=path.stem)
            made.pipe.load_textual_inversion(
                vectors["clip_g"], path.stem, made.pipe.tokenizer_2, made.pipe.text_encoder_2
            )
    return made.theirs(**options)


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_as_diffusers(folders, tmp_path, family):
    folder = folders[family]
    paths = [
        write(tmp_path / "inkstyle.safetensors", folder, 3),
        write(tmp_path / "badhands.safetensors", folder, 1, seed=2),
    ]
    options = {"prompt": "a fox, inkstyle, in the snow", "negative_prompt": "snow badhands"}
    found = ours(folder, paths, **options)
    torch.testing.assert_close(found, theirs(folder, paths, **options), atol=1e-4, rtol=0)
    assert (found - ours(folder, [], **options)).abs().max() > 0.01
    plain = ours(folder, paths)
    assert torch.equal(plain, ours(folder, []))


def test_vectors_count_as_tokens_and_stay_together(folders, tmp_path):
    folder = folders["sd15"]
    path = write(tmp_path / "ink-style.safetensors", folder, 40)
    added = Addon("embedding", Asked(str(path)), Source(path))
    tokenizer = embedding.with_words(pairs.load(folder).model.text_encoders[0].tokenizer, 900, [added])
    found = [
        [token for token, _ in chunk]
        for chunk in chunks(tokenizer, "fox " * 40 + "(INK-STYLE:1.2) embedding:ink-style")
    ]
    assert [len(chunk) for chunk in found] == [40, 40, 40]
    assert found[1] == found[2] == list(range(900, 940))
    assert [token for chunk in chunks(tokenizer, "ink-styles xink-style") for token, _ in chunk] == tokenizer.encode(
        "ink-styles xink-style"
    )
    assert not {900} & set(tokenizer.encode("ink-styles xink-style"))


def test_changing_embeddings_leaves_nothing_behind(folders, tmp_path):
    folder = folders["sd15"]
    source = Source(folder)
    model = pairs.load(folder).model
    table = model.text_encoders[0].model.get_input_embeddings()
    original = table.weight.clone()
    before = Weights(source)
    for count in (2, 5, 0):
        path = write(tmp_path / f"e{count}.safetensors", folder, max(count, 1))
        added = (Addon("embedding", Asked(path.stem), Source(path)),) if count else ()
        weights = Weights(source, added)
        model = addons.attach(model, weights, before)
        before = weights
        assert len(model.text_encoders[0].model.get_input_embeddings().weight) == len(original) + count
    assert torch.equal(model.text_encoders[0].model.get_input_embeddings().weight, original)
    assert not model.text_encoders[0].tokenizer.words


@pytest.fixture
def here(folders, tmp_path) -> Path:
    (tmp_path / "model").symlink_to(folders["sd15"])
    (tmp_path / "words").mkdir()
    write(tmp_path / "words/inkstyle.safetensors", folders["sd15"], 3)
    write(tmp_path / "words/large.safetensors", folders["sdxl"], 1)
    files.write(
        tmp_path / "words/nan.safetensors", {"emb_params": torch.full((1, widths(folders["sd15"])[0]), torch.nan)}
    )
    files.write(tmp_path / "words/many.safetensors", {name: torch.ones(1, 8) for name in "abc"})
    return tmp_path


def test_names_in_prompts_use_the_directory(run, here):
    named = {"SDCLI_EMBEDDING_DIR": str(here / "words")}
    words = ("generate", "a fox in inkstyle", "-m", "model", *FAST, "--json", "--force", "-o", "x.png")
    found = run(*words, env=named)
    plain, given = run(*words), run(*words, "--embedding", "words/inkstyle.safetensors")
    pixels = [json.loads(each.lines[0])["pixels_sha256"] for each in (found, plain, given)]
    assert pixels[0] == pixels[2] != pixels[1]
    with Image.open(here / "x.png") as image:
        text, chunk = image.info["parameters"], json.loads(image.info["sdcli"])
    assert "TI hashes:" in text
    assert chunk["recipe"]["embedding"] == ["words/inkstyle.safetensors"]
    assert [each["kind"] for each in chunk["addons"]] == ["embedding"]
    assert run("replay", "--verify", "x.png").status == 0
    plan = run(*words, "--dry-run", env=named)
    assert json.loads(plan.stdout)["tokens"]["prompt"] == 3 + 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("large", "the embedding large is made for"),
        ("nan", "not finite"),
        ("many", "is not an embedding"),
        ("nowhere", "no embedding 'nowhere'"),
        ("kit", "kit is a model, not an embedding"),
    ],
)
def test_refusals(run, here, name, message):
    named = {"SDCLI_EMBEDDING_DIR": str(here / "words")}
    done = run("generate", f"a fox {name}", "-m", "model", *FAST, "-o", "x.png", "--embedding", name, env=named)
    assert done.status == 3
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 2


def test_an_embedding_that_no_prompt_names(run, here):
    named = {"SDCLI_EMBEDDING_DIR": str(here / "words")}
    done = run("generate", "a fox", "-m", "model", *FAST, "-o", "x.png", "--embedding", "inkstyle", env=named)
    assert "embedding inkstyle has no effect: its name is in no prompt" in done.stderr
