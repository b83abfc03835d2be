"""`--image-prompt`: IP-Adapters against diffusers' pipelines, the recipe, and the command."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from sdcli.diffusion import pipeline
from sdcli.errors import InvalidRecipe
from sdcli.files.inputs import InputImage, Inputs
from sdcli.models import addons
from sdcli.models.loading import ip_adapter as loading
from sdcli.models.source import Source
from sdcli.models.weights import Addon, Asked, Weights
from sdcli.recipe.image_prompt import ImagePrompt
from sdcli.recipe.recipe import Recipe
from tests import pairs
from tests.serving.conftest import serving
from tests.serving.test_openai import call, form

PIPELINES = {"sd15": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}
FAST = ("--steps", "2", "--seed", "1", "-W", "64", "-H", "64")


def make_encoder(folder: Path, seed: int = 0) -> Path:
    """A tiny vision tower: 32 features of patches, 24 of the image."""
    torch.manual_seed(seed)
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=37, projection_dim=24, num_attention_heads=4, num_hidden_layers=3,
        image_size=32, patch_size=8,
    )  # fmt: skip
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    return folder


def make_adapter(path: Path, unet: Any, kind: str, seed: int = 0) -> Path:
    """An IP-Adapter in the layout of h94/IP-Adapter, with random weights."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.3

    width = unet.config.cross_attention_dim
    tensors = {}
    if kind == "base":
        tensors |= {"proj.weight": random(4 * width, 24), "proj.bias": random(4 * width)}
        tensors |= {"norm.weight": 1 + random(width), "norm.bias": random(width)}
    elif kind == "full-face":
        tensors |= {"proj.0.weight": random(32, 32), "proj.0.bias": random(32)}
        tensors |= {"proj.2.weight": random(width, 32), "proj.2.bias": random(width)}
        tensors |= {"proj.3.weight": 1 + random(width), "proj.3.bias": random(width)}
    else:  # plus, and plus-face, which has the same layout
        tensors |= {"latents": random(1, 5, 48), "proj_in.weight": random(48, 32), "proj_in.bias": random(48)}
        tensors |= {"proj_out.weight": random(width, 48), "proj_out.bias": random(width)}
        tensors |= {"norm_out.weight": 1 + random(width), "norm_out.bias": random(width)}
        for layer in range(4):
            tensors |= {f"layers.{layer}.0.norm{i}.{end}": random(48) for i in (1, 2) for end in ("weight", "bias")}
            tensors |= {
                f"layers.{layer}.0.to_q.weight": random(64, 48),
                f"layers.{layer}.0.to_kv.weight": random(128, 48),
            }
            tensors |= {f"layers.{layer}.0.to_out.weight": random(48, 64)}
            tensors |= {f"layers.{layer}.1.0.{end}": random(48) for end in ("weight", "bias")}
            tensors |= {f"layers.{layer}.1.1.weight": random(192, 48), f"layers.{layer}.1.3.weight": random(48, 192)}
    found = {f"image_proj.{name}": each for name, each in tensors.items()}
    attentions = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    for place, name in enumerate(attentions):
        keys = unet.get_submodule(name.removesuffix(".processor")).to_k
        for each in ("k", "v"):
            found[f"ip_adapter.{2 * place + 1}.to_{each}_ip.weight"] = random(keys.out_features, width)
    save_file(found, path)
    return path


@pytest.fixture(scope="module")
def made(pair, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """`made(family, kind)` is the file of an IP-Adapter, beside its image encoder."""
    folder = tmp_path_factory.mktemp("models")
    make_encoder(folder / "image_encoder")

    def make(family: str, kind: str) -> Path:
        path = folder / f"ip-adapter-{kind}_{family}.safetensors"
        return path if path.exists() else make_adapter(path, pair(family).model.network, kind)

    return make


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 52, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("family", "kind", "scales"),
    [
        *((family, kind, [0.7]) for family in ("sd15", "sdxl") for kind in ("base", "plus-face")),
        ("sd15", "full-face", [0.7]),
        ("sd15", "plus", [1.0, 0.4]),
    ],
)
def test_latents_are_those_of_diffusers(pair, made, family, kind, scales):
    path, both = made(family, kind), pair(family)
    images = [picture(seed) for seed in range(len(scales))]
    encoder = CLIPVisionModelWithProjection.from_pretrained(path.parent / "image_encoder").eval()
    processor = loading._processor(32)
    reference = both.pipe
    reference.register_modules(image_encoder=encoder, feature_extractor=processor)
    reference.load_ip_adapter(
        [str(path.parent)] * len(scales), subfolder="", weight_name=[path.name] * len(scales),
        image_encoder_folder=None, low_cpu_mem_usage=False,
    )  # fmt: skip
    reference.set_ip_adapter_scale(list(scales))
    try:
        wanted = both.theirs(more={"ip_adapter_image": images})
    finally:
        reference.unload_ip_adapter()
    weights = Weights(
        Source(path), (_addon("ip-adapter", path), _addon("image-encoder", path.parent / "image_encoder"))
    )
    model = addons.attach(both.model, weights)
    texts = [f"{index}.png:{scale}" for index, scale in enumerate(scales)]
    recipe = Recipe.from_dict({"model": "", **pairs.DEFAULTS, "image_prompt": texts, "ip_adapter": "x"})
    inputs = Inputs(prompts=tuple(InputImage(each, "") for each in images))
    latents = pipeline.sample(model, [recipe], inputs=inputs)
    assert (latents - wanted).abs().max() < 1e-4
    plain = addons.attach(model, Weights(Source(path)), weights)
    without = pipeline.sample(plain, [recipe.replace(image_prompt=[], ip_adapter=None)])
    assert not torch.allclose(latents, without, atol=1e-2)
    assert all(isinstance(each, AttnProcessor2_0) for each in plain.network.attn_processors.values())


def _addon(kind: str, path: Path) -> Addon:
    return Addon(kind, Asked(str(path)), Source(path))


@given(image=st.text(min_size=1).filter(lambda text: "\0" not in text), scale=st.sampled_from([0, 0.5, 1, 5]))
def test_the_syntax_round_trips(image, scale):
    prompt = ImagePrompt(image, float(scale))
    assert ImagePrompt.parse(str(prompt)) == prompt


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"image_prompt": "a.png"}, "ip_adapter"),
        ({"ip_adapter": "x"}, "ip_adapter"),
        ({"image_encoder": "x"}, "image_encoder"),
        ({"image_prompt": "a.png:7", "ip_adapter": "x"}, "image_prompt"),
        ({"image_prompt": "", "ip_adapter": "x"}, "image_prompt"),
        ({"image_prompt": "a.png", "ip_adapter": "x", "image_prompt_sha256": ["1", "2"]}, "image_prompt"),
    ],
)
def test_what_is_invalid(options, field):
    with pytest.raises(InvalidRecipe) as caught:
        Recipe.from_dict({"model": "", **pairs.DEFAULTS, **options})
    assert caught.value.field == field


def test_the_command(run, sd15, made, tmp_path):
    path = made("sd15", "plus")
    picture(1).save(tmp_path / "a.png")
    words = ("generate", "x", "-m", sd15, *FAST)
    done = run(*words, "--image-prompt", "a.png:0.6", "--ip-adapter", path, "-o", "b.png")
    assert done.status == 0, done.stderr
    run(*words, "-o", "c.png")
    with Image.open(tmp_path / "b.png") as image, Image.open(tmp_path / "c.png") as other:
        assert not np.array_equal(image, other)
        chunk = json.loads(image.info["sdcli"])
    assert chunk["recipe"]["image_prompt"] == ["a.png:0.6"]
    assert len(chunk["recipe"]["image_prompt_sha256"][0]) == 64
    assert [each["kind"] for each in chunk["addons"]] == ["ip-adapter", "image-encoder"]
    assert run("replay", "--verify", "b.png").status == 0
    assert "--image-prompt a.png:0.6 --ip-adapter" in run("info", "b.png").lines[-1]
    # with a scale of 0 there is nothing to see
    run(*words, "--image-prompt", "a.png:0", "--ip-adapter", path, "-o", "d.png")
    with Image.open(tmp_path / "c.png") as image, Image.open(tmp_path / "d.png") as other:
        assert np.array_equal(image, other)
    picture(2).save(tmp_path / "a.png")
    changed = run("replay", "b.png")
    assert (changed.status, "has changed" in changed.stderr) == (4, True)


def test_jobs_have_image_prompts_of_their_own(run, sd15, made, tmp_path):
    for seed in (1, 2):
        picture(seed).save(tmp_path / f"{seed}.png")
    adapter = {"ip_adapter": str(made("sd15", "base"))}
    jobs = [{"prompt": "x"}, *({"prompt": "x", "image_prompt": f"{seed}.png", **adapter} for seed in (1, 2))]
    jobs += [{"prompt": "x", "image_prompt": ["1.png", "2.png:0.5"], **adapter}, {"prompt": "x"}]
    lines = "\n".join(json.dumps({**each, "seed": 1}) for each in jobs).encode()
    done = run("batch", "-", "-o", "out", "-m", sd15, "--steps", "2", "-W", "64", "-H", "64", stdin=lines)
    assert done.status == 0, done.stderr
    found = [json.loads(line)["pixels_sha256"] for line in done.lines]
    assert len(set(found)) == 4  # those without an image are the same, before and after others


def test_the_images_api(run, sd15, made, tmp_path, tmp_path_factory, forked):
    """Forms have image prompts as files, and adapters by their names, and make the pictures that generate makes."""
    home, adapter = tmp_path_factory.mktemp("warm"), made("sd15", "plus")
    (home / ".config/sdcli").mkdir(parents=True)
    (home / ".config/sdcli/config.toml").write_text(f'[defaults]\nip_adapter_dir = "{adapter.parent}"\n')
    files = []
    for seed in (1, 2):
        picture(seed).save(tmp_path / f"{seed}.png")
        files.append(("image_prompt", (f"{seed}.png", (tmp_path / f"{seed}.png").read_bytes())))
    asked = {"prompt": "x", "steps": "2", "seed": "1", "dtype": "float32"}
    plain = {**asked, "size": "64x64"}
    named = {**asked, "ip_adapter": adapter.stem}
    with serving(home, forked, "-m", sd15) as warm:

        def sent(fields: dict[str, Any], *parts: Any) -> tuple[int, Any]:
            texts = [
                (key, each) for key, value in fields.items() for each in ([value] if isinstance(value, str) else value)
            ]
            of_texts = [(f'name="{key}"'.encode(), text.encode()) for key, text in texts]
            of_files = [(f'name="{key}"; filename="{name}"'.encode(), data) for key, (name, data) in parts]
            status, _, answer = call(warm, **form(*of_texts, *of_files))
            return status, answer

        def pixels(fields: dict[str, Any], *parts: Any) -> str:
            status, answer = sent(fields, *parts)
            assert status == 200, answer
            return str(answer["data"][0]["pixels_sha256"])

        words = (
            "generate",
            "x",
            "-m",
            sd15,
            *FAST,
            "--dtype",
            "float32",
            "--ip-adapter",
            adapter,
            "--json",
            "-o",
            "x.png",
        )
        for scales, texts in ((["0.6"], ["1.png:0.6", "2.png:0.6"]), (["1", "0"], ["1.png", "2.png:0"])):
            options = [word for text in texts for word in ("--image-prompt", text)]
            line = run(*words, *options, "--force").lines[0]
            fields = {**plain, **named, "image_prompt_scale": scales}
            assert pixels(fields, *files) == json.loads(line)["pixels_sha256"]
        image = ("image", ("1.png", (tmp_path / "1.png").read_bytes()))
        assert pixels({**named, "strength": "0.5"}, image, files[1]) != pixels({**asked, "strength": "0.5"}, image)
        wrong = {
            "no IP-Adapter": ({**plain, "ip_adapter": str(adapter)}, files),
            "image_prompt_scale is -1": ({**plain, **named, "image_prompt_scale": "-1"}, files[:1]),
            "image_prompt_scale is nan": ({**plain, **named, "image_prompt_scale": "nan"}, files[:1]),
            "image_prompt_scale is 1, 1": ({**plain, **named, "image_prompt_scale": ["1", "1"]}, files[:1]),
            "not a picture": ({**plain, **named}, [("image_prompt", ("a.png", b"x"))]),
            "files named image": (plain, []),
            "image_prompt is not a file": ({**plain, **named, "image_prompt": "/etc/passwd"}, files[:1]),
            "unknown parameter 'image_encoder'": ({**plain, **named, "image_encoder": "/etc"}, files[:1]),
        }
        for message, (fields, parts) in wrong.items():
            status, answer = sent(fields, *parts)
            assert (status, message in answer["error"]["message"]) == (400, True), (message, answer)


def test_an_adapter_has_a_name(run, made, sd15, tmp_path):
    picture(1).save(tmp_path / "a.png")
    assert run("models", "add", "faces", made("sd15", "plus")).status == 0
    shown = json.loads(run("models", "show", "faces", "--json").stdout)
    assert (shown["kind"], shown["image_features"], shown["patches"]) == ("ip-adapter", 32, True)
    done = run("generate", "x", "-m", sd15, "--image-prompt", "a.png", "--ip-adapter", "faces", *FAST, "--dry-run")
    assert done.status == 0, done.stderr
    assert "image_encoder" in done.stdout.decode()
    assert "faces is an IP-Adapter, not a model" in run("generate", "x", "-m", "faces").stderr


@pytest.mark.parametrize(
    ("change", "status", "error"),
    [
        ({"image_proj.proj.bias": torch.full((128,), torch.nan)}, 3, "not finite"),
        ({"ip_adapter.1.to_k_ip.weight": torch.zeros(3, 3)}, 3, "does not fit this model"),
        ({"ip_adapter.1.to_k_ip.weight": None, "ip_adapter.1.to_v_ip.weight": None}, 3, "cross-attentions"),
        ({"image_proj.proj.weight": torch.zeros(64, 24)}, 3, "16 features per token"),
        ({"image_proj.proj.weight": torch.zeros(128, 99)}, 3, "no image encoder"),
        ({"image_proj.proj.weight": None, "image_proj.proj.0.weight": torch.zeros(2, 2)}, 3, "FaceID"),
    ],
)
def test_what_does_not_fit(run, sd15, made, tmp_path, change, status, error):
    picture(1).save(tmp_path / "a.png")
    path = made("sd15", "base")
    tensors = {name: each for name, each in {**load_file(path), **change}.items() if each is not None}
    save_file(tensors, tmp_path / "bad.safetensors")
    (tmp_path / "image_encoder").symlink_to(path.parent / "image_encoder")
    done = run(
        "generate", "x", "-m", sd15, "--image-prompt", "a.png", "--ip-adapter", "bad.safetensors", *FAST, "-o", "x.png"
    )
    assert done.status == status, done.stderr
    assert error in done.stderr
    assert not (tmp_path / "x.png").exists()


def test_what_takes_no_image_prompt(run, made, tmp_path):
    picture(1).save(tmp_path / "a.png")
    done = run("generate", "fox", "--image-prompt", "a.png", "--ip-adapter", made("sd15", "base"))
    assert (done.status, "kit is not one of them" in done.stderr) == (3, True)
