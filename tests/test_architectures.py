"""The table of architectures, and a trial: flow-matching transformers as one module each, the loop as it is.

The trial modules encode nothing (their contexts are drawn), and are held against diffusers' own pipelines.
"""

import subprocess
import sys
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.models.transformers.transformer_z_image import ZImageTransformer2DModel
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3_img2img import StableDiffusion3Img2ImgPipeline
from diffusers.pipelines.z_image.pipeline_z_image import ZImagePipeline, calculate_shift
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from PIL import Image
from torch import Generator, Tensor

from sdcli.diffusion import architectures, pipeline, samplers
from sdcli.diffusion.context import Context
from sdcli.diffusion.denoise import Denoiser, Evaluation
from sdcli.diffusion.facts import Facts
from sdcli.diffusion.guidance import Guidance, guide
from sdcli.diffusion.latent_space import LatentSpace
from sdcli.diffusion.model import LatentDiffusionModel
from sdcli.errors import ModelError
from sdcli.files.canvas import InitialImage
from sdcli.files.inputs import NO_INPUTS, Inputs
from sdcli.recipe.recipe import Recipe
from tests import pairs


def test_networks_are_told_by_the_part_and_the_class():
    assert architectures.find("unet", {"_class_name": "UNet2DConditionModel"}) == "unet"
    assert architectures.find("unet", {}) == "unet"
    assert architectures.find("transformer", {"_class_name": "Transformer2DModel"}) == "dit"
    for part, class_name in (("transformer", "FluxTransformer2DModel"), ("unet", "UNetSpatioTemporalConditionModel")):
        with pytest.raises(ModelError, match=class_name):
            architectures.find(part, {"_class_name": class_name})


def test_reading_facts_loads_no_torch():
    program = "import sys\nfrom sdcli.diffusion import architectures\n"
    program += "for name in architectures.TABLE: assert callable(architectures.load(name).facts)\n"
    program += "print({'torch', 'numpy', 'diffusers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


class FlowEuler(FlowMatchEulerDiscreteScheduler):
    """What a row of flow matching would make: diffusers' class, with what all the others have."""

    init_noise_sigma = 1.0

    def scale_model_input(self, sample: Tensor, timestep: Tensor) -> Tensor:
        return sample

    def add_noise(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return self.scale_noise(sample, timesteps, noise)


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=Generator().manual_seed(seed))


def facts(network: Mapping[str, Any], vae: Mapping[str, Any]) -> Facts:
    return Facts(native_size=64, size_multiple=16, in_channels=network["in_channels"], latent_space=LatentSpace.of(vae))


def sd3_encode(model: Any, condition: Any, size: tuple[int, int], guidance: Guidance) -> Context:
    return Context(
        prompt_embeds=drawn(1, 7, 32, seed=1),
        negative_prompt_embeds=drawn(1, 7, 32, seed=2),
        pooled_prompt_embeds=drawn(1, 24, seed=3),
        negative_pooled_prompt_embeds=drawn(1, 24, seed=4),
    )


def sd3_bind(network: Any, context: Context, guidance: Guidance, batch: int) -> Denoiser:
    embeds, pooled = (
        torch.cat([half.expand(batch, *half.shape[1:]) for half in halves])
        for halves in (
            (context.negative_prompt_embeds, context.prompt_embeds),
            (context.negative_pooled_prompt_embeds, context.pooled_prompt_embeds),
        )
    )

    def denoiser(latents: Tensor, timestep: Tensor, evaluation: Evaluation) -> Tensor:
        sample = torch.cat([latents, latents]).to(network.dtype)
        velocity = network(sample, embeds, pooled, timestep.expand(len(sample)), return_dict=False)[0]
        return guide(velocity.float(), guidance)

    return denoiser


SD3 = SimpleNamespace(
    facts=facts,
    latent_space=lambda vae: LatentSpace.of(vae.config),
    encode=sd3_encode,
    bind=sd3_bind,
    set_timesteps=lambda scheduler, steps, shape: scheduler.set_timesteps(steps),
)


def z_bind(network: Any, context: Context, guidance: Guidance, batch: int) -> Denoiser:
    positive, negative = ([each[0]] * batch for each in (context.prompt_embeds, context.negative_prompt_embeds))

    def denoiser(latents: Tensor, timestep: Tensor, evaluation: Evaluation) -> Tensor:
        sample = list(torch.cat([latents, latents]).to(network.dtype)[:, :, None])
        time = ((1000 - timestep) / 1000).expand(len(sample))
        velocity = torch.stack(network(sample, time, [*positive, *negative], return_dict=False)[0]).float()
        conditional, unconditional = velocity[:, :, 0].chunk(2)
        return -(conditional + guidance.scale * (conditional - unconditional))

    return denoiser


def z_set_timesteps(scheduler: Any, steps: int, shape: tuple[int, int, int]) -> None:
    mu = calculate_shift(shape[1] // 2 * (shape[2] // 2), 256, 4096, 0.5, 1.15)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.0, steps + 1)[:-1], mu=mu)


Z_IMAGE = SimpleNamespace(
    facts=facts,
    latent_space=lambda vae: LatentSpace.of(vae.config),
    encode=lambda *_: Context(drawn(1, 9, 16, seed=1), drawn(1, 5, 16, seed=2)),
    bind=z_bind,
    set_timesteps=z_set_timesteps,
)


def shaken(made: Any) -> Any:
    generator = Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return made.eval()


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    return shaken(
        AutoencoderKL(
            block_out_channels=(8, 8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            norm_num_groups=4,
            latent_channels=16,
            scaling_factor=1.5305,
            shift_factor=0.0609,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
    )


def model_of(network: Any, vae: AutoencoderKL, trial: Any, monkeypatch: Any, **config: Any) -> LatentDiffusionModel:
    """A model of a trial architecture, and its scheduler in the place of the one that a recipe names."""
    monkeypatch.setitem(sys.modules, f"{architectures.__name__}.trial", trial)
    monkeypatch.setattr(samplers, "make", lambda *_, **__: FlowEuler(**config))
    cpu, space = torch.device("cpu"), trial.latent_space(vae)
    said = trial.facts(network.config, vae.config)
    return LatentDiffusionModel("", vae, (), network, "trial", said, space, config, cpu, torch.float32)


def recipe_of(**options: Any) -> Recipe:
    return Recipe.from_dict({"model": "", **pairs.DEFAULTS, "width": 64, "height": 96, "scheduler": "euler", **options})


@pytest.fixture(scope="module")
def sd3_network() -> SD3Transformer2DModel:
    settings = {"num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2, "caption_projection_dim": 16}
    settings |= {"joint_attention_dim": 32, "pooled_projection_dim": 24, "sample_size": 8, "pos_embed_max_size": 12}
    return shaken(SD3Transformer2DModel(**settings))


@pytest.mark.parametrize("strength", [None, 0.5])
def test_sd3_would_be_one_module(sd3_network, vae, monkeypatch, strength):
    """Joint and pooled tokens, a static shift, a shifted latent space; from noise and from an image."""
    model = model_of(sd3_network, vae, SD3, monkeypatch, shift=3.0)
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (96, 64, 3), dtype=np.uint8))
    given = {} if strength is None else {"image": "given", "strength": strength}
    ours = pipeline.sample(model, [recipe_of(**given)], inputs=Inputs(InitialImage(image)) if given else NO_INPUTS)
    context = sd3_encode(None, None, (0, 0), Guidance(1.0))
    kind = StableDiffusion3Pipeline if strength is None else StableDiffusion3Img2ImgPipeline
    parts = dict.fromkeys(
        ["tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2", "tokenizer_3", "text_encoder_3"]
    )
    pipe = kind(transformer=sd3_network, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=vae, **parts)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        **{key: value for key, value in vars(context).items() if "embeds" in key},
        **({} if strength is None else {"image": image, "strength": strength}),
        width=64,
        height=96,
        num_inference_steps=4,
        guidance_scale=5.0,
        generator=Generator().manual_seed(7),
        output_type="latent",
    ).images
    assert theirs.std() > 0.1
    assert (ours - theirs).abs().max() <= 1e-4


def test_z_image_would_be_one_module(vae, monkeypatch):
    """Time turned round, the prediction's sign, guidance of its own, prompts of two lengths, a shift by the size."""
    settings = {"dim": 48, "n_layers": 1, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2, "cap_feat_dim": 16}
    network = shaken(ZImageTransformer2DModel(**settings, axes_dims=[8, 8, 8], axes_lens=[256, 64, 64]))
    model = model_of(network, vae, Z_IMAGE, monkeypatch, use_dynamic_shifting=True)
    ours = pipeline.sample(model, [recipe_of()])
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    pipe = ZImagePipeline(transformer=network, scheduler=scheduler, vae=vae, text_encoder=None, tokenizer=None)
    pipe.set_progress_bar_config(disable=True)
    context = Z_IMAGE.encode()
    with torch.no_grad():
        theirs = pipe(
            prompt_embeds=list(context.prompt_embeds),
            negative_prompt_embeds=list(context.negative_prompt_embeds),
            width=64,
            height=96,
            num_inference_steps=4,
            guidance_scale=5.0,
            generator=Generator().manual_seed(7),
            output_type="latent",
        ).images
    assert theirs.std() > 0.1
    assert (ours - theirs).abs().max() <= 1e-4
