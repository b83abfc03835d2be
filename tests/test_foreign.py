"""What other tools write, as they write it, and what of it is followed."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdcli.files import foreign, infotext, metadata
from sdcli.models import other_names
from sdcli.recipe import schedulers
from sdcli.recipe.recipe import Recipe

# AUTOMATIC1111/stable-diffusion-webui 1.9, with its setting for noise on the CPU
A1111 = """a red fox <lora:fluffy:0.8> in (snow:1.2)
Negative prompt: owl, blurry
Steps: 30, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6.5, Seed: 4294967295, Size: 512x768, \
Model hash: 6ce0161689, Model: v1-5-pruned-emaonly, Clip skip: 2, RNG: CPU, Version: v1.9.4"""

# stable-diffusion.cpp, examples/cli/main.cpp
SDCPP = """A sunflower field
Negative prompt: Blue sky
Steps: 30, CFG scale: 5.000000, Guidance: 3.500000, Eta: 0.000000, Seed: 197583933, Size: 512x512, \
Model: v1-5-pruned-emaonly.safetensors, RNG: cuda, Sampler: dpm++2m karras, Version: stable-diffusion.cpp"""

INVOKEAI = {
    "generation_mode": "sdxl_txt2img",
    "positive_prompt": "dark abstract painting",
    "negative_prompt": "frame",
    "width": 832,
    "height": 1216,
    "seed": 0,
    "rand_device": "cpu",
    "cfg_scale": 15.0,
    "cfg_rescale_multiplier": 0.25,
    "steps": 50,
    "scheduler": "dpmpp_2m_k",
    "seamless_x": False,
    "clip_skip": 1,
    "model": {"key": "9f58", "hash": "blake3:6a22", "name": "realXL_v10", "base": "sdxl", "type": "main"},
    "positive_style_prompt": "dark abstract painting",
    "negative_style_prompt": "frame",
    "loras": [],
    "app_version": "5.4.3",
}


def of(text: str) -> foreign.Translation:
    return foreign.from_parameters(infotext.parse(text))


def test_a1111():
    said = of(A1111)
    assert said.recipe == {
        "prompt": "a red fox <lora:fluffy:0.8> in (snow:1.2)",
        "negative_prompt": "owl, blurry",
        "steps": 30,
        "scheduler": "dpm++-2m",
        "sigmas": "karras",
        "guidance_scale": 6.5,
        "seed": 4294967295,
        "width": 512,
        "height": 768,
        "clip_skip": 2,
    }
    assert (said.model, said.model_hash) == ("v1-5-pruned-emaonly", "6ce0161689")
    assert not said.unhonoured


def test_tags_that_are_not_followed_are_named():
    said = of(A1111.replace("<lora:", "<hypernet:").replace("owl,", "owl <lora:dull:1>,"))
    assert said.unhonoured == ("Prompt: <hypernet:fluffy:0.8> is ignored", "Negative prompt: <lora:dull:1> is ignored")
    assert (said.recipe["prompt"], said.recipe["negative_prompt"]) == ("a red fox  in (snow:1.2)", "owl , blurry")


def test_a_second_pass_and_embeddings():
    fields = "Denoising strength: 0.6, Hires resize: 1024x1536, Hires upscaler: Latent, Hires steps: 12"
    text = A1111.replace("Clip skip: 2", f'{fields}, TI hashes: "bad-hands: c74b4e810b03, ink: 0123456789ab"')
    said = of(text)
    assert not said.unhonoured
    assert said.recipe["embedding"] == ["bad-hands", "ink"]
    assert {key: value for key, value in said.recipe.items() if key.startswith("hires")} == {
        "hires": "1024x1536", "hires_upscaler": "latent", "hires_strength": 0.6, "hires_steps": 20,
    }  # fmt: skip
    other = of(text.replace("Latent", "4x-UltraSharp"))
    assert [each.partition(":")[0] for each in other.unhonoured] == [
        "Denoising strength", "Hires resize", "Hires upscaler", "Hires steps",
    ]  # fmt: skip


def test_noise_from_elsewhere_is_named():
    for text in (A1111.replace("RNG: CPU, ", ""), A1111.replace("CPU", "NV")):
        assert [each.partition(":")[0] for each in of(text).unhonoured] == ["RNG"]


@pytest.mark.parametrize(
    ("field", "key"),
    [
        ("Denoising strength: 0.7", "Denoising strength"),
        ("Hires upscale: 2", "Hires upscale"),
        ("ENSD: 31337", "ENSD"),
        ("VAE: orange.vae.pt", "VAE"),
        ('Lora hashes: "fluffy: none"', "Lora hashes"),
        ("Eta: 0.5", "Eta"),
        ("Clip skip: many", "Clip skip"),
    ],
)
def test_each_key_that_cannot_be_followed_is_named(field, key):
    text = A1111.replace(" <lora:fluffy:0.8>", "").replace("Clip skip: 2", field)
    assert [each.partition(":")[0] for each in of(text).unhonoured] == [key]


def test_eta_goes_to_schedulers_that_take_one():
    said = of("fox\nSteps: 5, Sampler: DDIM, Seed: 1, Eta DDIM: 0.5, RNG: CPU")
    assert said.recipe["eta"] == 0.5
    assert said.unhonoured == ()


def test_an_unknown_sampler_is_named_and_left_to_the_model():
    said = of(A1111.replace("DPM++ 2M,", "Restart,"))
    assert "scheduler" not in said.recipe
    assert any(each.startswith("Sampler: Restart") for each in said.unhonoured)


def test_stable_diffusion_cpp():
    said = of(SDCPP)
    assert (said.recipe["scheduler"], said.recipe["sigmas"]) == ("dpm++-2m", "karras")
    assert (said.recipe["guidance_scale"], said.recipe["seed"]) == (5.0, 197583933)
    assert said.recipe["negative_prompt"] == "Blue sky"
    assert said.model == "v1-5-pruned-emaonly"
    assert [each.partition(":")[0] for each in said.unhonoured] == ["RNG"]


def test_stable_diffusion_cpp_s_json_at_the_end_does_not_overrule_the_fields():
    tail = {
        "schema": "sdcpp.image.params/v1",
        "seed": 1,
        "prompt": {"positive": "x, Seed: 999, Steps: 1", "negative": ""},
    }
    said = of(f"{SDCPP}, SDCPP: {json.dumps(tail, separators=(',', ':'))}")
    assert said == of(SDCPP)


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        ("euler_a", ("euler-a", "default")),
        ("euler_a karras", None),
        ("euler discrete", ("euler", "default")),
        ("dpm++2mv2 karras", None),
        ("lcm", ("lcm", "default")),
        ("heun ays", None),
    ],
)
def test_samplers_of_stable_diffusion_cpp(sampler, expected):
    said = of(SDCPP.replace("dpm++2m karras", sampler))
    if expected is None:
        assert "scheduler" not in said.recipe
        assert any(each.startswith("Sampler:") for each in said.unhonoured)
    else:
        assert (said.recipe["scheduler"], said.recipe["sigmas"]) == expected


def test_invokeai():
    said = foreign.from_invokeai(INVOKEAI)
    assert said.recipe == {
        "prompt": "dark abstract painting",
        "negative_prompt": "frame",
        "prompt_weights": False,
        "width": 832,
        "height": 1216,
        "seed": 0,
        "guidance_scale": 15.0,
        "guidance_rescale": 0.25,
        "steps": 50,
        "scheduler": "dpm++-2m",
        "sigmas": "karras",
        "clip_skip": 2,
    }
    assert (said.model, said.model_hash, said.unhonoured) == ("realXL_v10", "", ())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("loras", [{"model": {"name": "x"}, "weight": 0.5}]),
        ("generation_mode", "img2img"),
        ("seamless_x", True),
        ("rand_device", "cuda"),
        ("scheduler", "dpmpp_3m"),
        ("cfg_scale", [7.5, 5]),
        ("positive_style_prompt", "oil"),
        ("vae", {"name": "other"}),
        ("hrf_enabled", True),
    ],
)
def test_each_key_of_invokeai_that_cannot_be_followed_is_named(key, value):
    assert [each.partition(":")[0] for each in foreign.from_invokeai({**INVOKEAI, key: value}).unhonoured] == [key]


def test_invokeai_s_weights_are_letters_and_that_is_said():
    for prompt in ("a (fox)1.3", "fox++ in snow"):
        said = foreign.from_invokeai({**INVOKEAI, "positive_prompt": prompt, "positive_style_prompt": prompt})
        assert [each.partition(":")[0] for each in said.unhonoured] == ["prompt"]


def test_the_tables_name_schedulers_that_exist():
    assert set(foreign.SDCPP_SAMPLERS.values()) | set(foreign.INVOKEAI_SCHEDULERS.values()) <= set(schedulers.NAMES)


def test_sdcli_s_own_parameters_come_back():
    recipe = Recipe.from_dict(
        {"model": "kit", "prompt": "a fox", "negative_prompt": "owl", "steps": 9, "guidance_scale": 3.5,
         "scheduler": "euler", "sigmas": "karras", "width": 256, "height": 128, "seed": 5, "clip_skip": 2}
    )  # fmt: skip
    said = of(metadata.parameters(recipe))
    assert Recipe.from_dict({**said.recipe, "model": said.model}) == recipe
    assert said.unhonoured == ()


@given(st.dictionaries(st.text(max_size=12), st.text(max_size=20), max_size=6))
def test_no_text_makes_it_fail(fields):
    foreign.from_parameters(fields)
    foreign.from_parameters(dict.fromkeys(("Steps", "Seed", "Size", "CFG scale", "Eta", "Hashes", "Sampler"), "9" * 30))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda each: st.lists(each) | st.dictionaries(st.text(max_size=3), each),
    max_leaves=4,
)


@given(st.dictionaries(st.sampled_from([*INVOKEAI, "vae", "x"]), JSON, max_size=5))
def test_no_json_makes_it_fail(said):
    foreign.from_invokeai(said)


def test_a_picture_of_invokeai_is_read_as_one(tmp_path):
    chunks = PngInfo()
    chunks.add_text("invokeai_metadata", json.dumps(INVOKEAI))
    Image.new("RGB", (8, 8)).save(tmp_path / "i.png", pnginfo=chunks)
    found = metadata.read(tmp_path / "i.png")
    assert found.writer == "InvokeAI"
    assert foreign.translate(found) == foreign.from_invokeai(INVOKEAI)
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    assert foreign.translate(metadata.read(tmp_path / "plain.png")) is None


def test_models_are_found_by_name_by_file_and_by_hash(tmp_path, monkeypatch):
    from huggingface_hub import constants

    digest = "6ce0161689b3853acaa03779ec93eafe75a02f4ced659bee03f50797806fa2fa"
    repository = tmp_path / "hub" / "models--some--one"
    (repository / "blobs").mkdir(parents=True)
    (repository / "blobs" / digest).write_bytes(b"")
    snapshot = repository / "snapshots" / "0" / "renamed.safetensors"
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(repository / "blobs" / digest)
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "mine.safetensors").write_bytes(b"")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    assert other_names.find_model("kit") == "kit"
    assert other_names.find_model("gone", "6ce0161689") == str(snapshot)
    assert other_names.find_model("renamed") == str(snapshot)
    assert other_names.find_model("mine", folder=tmp_path / "beside") == str(tmp_path / "beside" / "mine.safetensors")
    for nowhere in ("gone", "", "../beside/mine", "*", "v1-5-pruned-emaonly"):
        assert other_names.find_model(nowhere) is None
