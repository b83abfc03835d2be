"""Qwen-Image 2.1 against diffusers' pipeline. Its processor class needs torchvision, so the pipeline has another."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.qwenimage21.pipeline_qwenimage21 import QwenImage21Pipeline
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLForConditionalGeneration

from sdcli.diffusion import autoencode, packing, pipeline
from sdcli.files import images
from sdcli.models import loading, located
from sdcli.models.source import Source
from sdcli.planning import resolve
from tests import tiny_flow
from tests.test_generate import two_lines

PROMPT = "arctic fox, in the snow"
SYSTEM = "<|im_start|>system\nComprehend and analyze the provided prompt.<|im_end|>\n"


class Processor:
    """What Qwen3VLProcessor does with texts."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def apply_chat_template(self, messages: Any, **options: Any) -> Any:
        return self.tokenizer([SYSTEM]).input_ids

    def __call__(self, text: list[str], **options: Any) -> Any:
        tokens = self.tokenizer(text, return_tensors="pt")
        found = SimpleNamespace(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        return SimpleNamespace(to=lambda device: found)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_flow.make_folder("qwen-image-21", tmp_path_factory.mktemp("qwen") / "model")


def pipeline_of(model: Any) -> Any:
    encoder = model.text_encoders[0]
    text = Qwen3VLForConditionalGeneration(encoder.model.config)
    text.model = encoder.model
    config = {key: each for key, each in model.scheduler_config.items() if key not in ("use_flow_sigmas", "flow_shift")}
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
    made = QwenImage21Pipeline(scheduler, model.vae, text.eval(), Processor(encoder.tokenizer), model.network)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_pictures_are_those_of_diffusers(folder, scale):
    """Without transparency: its first three channels."""
    asked = {"model": str(folder), "prompt": PROMPT, "negative_prompt": "blue" if scale > 1 else "", "steps": 4}
    asked |= {"seed": 7, "width": 96, "height": 64, "guidance_scale": scale, "dtype": "float32", "device": "cpu"}
    found = resolve.resolve(located.find(str(folder)), asked)
    model = loading.load(Source(folder), name="", device=torch.device("cpu"), dtype=torch.float32)
    ours = pipeline.sample(model, [found.recipe])
    pipe, noise = pipeline_of(model), torch.randn(1, 4, 4, 6, generator=torch.Generator().manual_seed(7))
    given = {"prompt": PROMPT, "negative_prompt": "blue" if scale > 1 else None, "true_cfg_scale": scale}
    given |= {"width": 96, "height": 64, "num_inference_steps": 4, "use_kv_cache": False}
    theirs = pipe(latents=packing.flatten(noise), output_type="latent", **given).images
    assert (packing.flatten(ours) - theirs).abs().max() <= 1e-4
    pixels = images.to_image(autoencode.decode(model, ours)[0])
    expected = pipe(latents=packing.flatten(noise), output_type="pil", **given).images[0]
    apart = torch.tensor(list(pixels.tobytes())) - torch.tensor(list(expected.convert("RGB").tobytes()))
    assert apart.abs().max() <= 1


def test_a_picture_of_an_image(folder, run, tmp_path):
    size = ("--steps", 2, "--seed", 1, "-W", 64, "-H", 64)
    assert run("generate", PROMPT, "-m", folder, "-o", "a.png", *size).status == 0
    assert run("img2img", "a.png", PROMPT, "-m", folder, "-o", "b.png", *size).status == 0
    done = run("edit", "a.png", PROMPT, "-m", folder, *size)
    assert (done.status, len(two_lines(done))) == (2, 2)


def test_own_noise_levels(folder):
    from sdcli.diffusion import architectures

    architecture = architectures.load("qwen_image21")
    configs = [Source(folder).config(part) for part in ("transformer", "vae")]
    facts = architecture.facts(*configs, {"sample_sigmas": [1.0, 0.5]})
    assert (facts.defaults["steps"], facts.schedule) == (2, {"sample_sigmas": [1.0, 0.5]})
    scheduler = FlowMatchEulerDiscreteScheduler.from_config({"sample_sigmas": [1.0, 0.25]})
    architecture.set_timesteps(scheduler, 2, (4, 4, 4))
    assert scheduler.sigmas.tolist() == [1.0, 0.25, 0.0]
    architecture.set_timesteps(scheduler, 4, (4, 4, 4))
    assert scheduler.sigmas.tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
