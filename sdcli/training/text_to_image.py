"""Training the text-to-image model: a U-Net and a CLIP text encoder together, on the latents of a frozen autoencoder.

The U-Net learns to predict v (Salimans and Ho 2022, eq. 30 ff.) under a schedule whose last step is pure noise
(Lin et al. 2023, "Common Diffusion Noise Schedules and Sample Steps Are Flawed").
"""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from sdcli.training import checkpoint, parallel
from sdcli.training.autoencoder import step_noise, to_tensor
from sdcli.training.captions import caption
from sdcli.training.optimizers import AveragedWeights, MatrixOptimizer, learning_rate
from sdcli.training.world import Scene, Sprites, render, scenes

TEXT_WIDTH = 192
UNET: dict[str, Any] = {
    "sample_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (64, 128, 160),
    "layers_per_block": 1,
    "cross_attention_dim": TEXT_WIDTH,
    "attention_head_dim": (1, 2, 5),  # the number of heads, despite its name
    "norm_num_groups": 16,
    "use_linear_projection": True,
}
TEXT_ENCODER: dict[str, Any] = {
    "hidden_size": TEXT_WIDTH,
    "intermediate_size": 4 * TEXT_WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "projection_dim": TEXT_WIDTH,
    "max_position_embeddings": 77,
}
SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 1,  # of no effect with trailing timesteps, but diffusers warns of any other
}


@dataclass(frozen=True)
class TextToImageTraining:
    """Everything that determines a run, besides autoencoder and tokenizer.

    Latents are encoded once: `scenes` of them before the first step, and `fresh` more at each step up to `most_scenes`.
    """

    seed: int = 1
    steps: int = 4000
    batch: int = 32
    lr: float = 2e-3
    warmup: int = 100
    cooldown: int = 1000
    scenes: int = 3072
    fresh: int = 2
    most_scenes: int = 24576
    empty_prompts: float = 0.1
    timestep_shift: float = 0.4
    average_decay: float = 0.998
    save_every: int = 500


class Latents:
    """Scenes and their latents, in the order of the world's seed. What is in it depends on its size only."""

    def __init__(self, vae: AutoencoderKL, sprites: Sprites, seed: int) -> None:
        self.vae, self.sprites = vae, sprites
        self.source = scenes(seed)
        self.scenes: list[Scene] = []
        self.encoded: list[Tensor] = []  # each (4, 32, 32), float16, scaled to unit variance

    def load(self, file: Path) -> None:
        """Take the latents that `save` wrote."""
        self.encoded = list(checkpoint.load(file)["latents"])
        self.scenes = list(islice(self.source, len(self.encoded)))

    def save(self, file: Path) -> None:
        """Keep the latents, so that a resumed run need not encode them again."""
        checkpoint.save(file, {"latents": torch.stack(self.encoded)})

    @torch.no_grad()
    def grow(self, size: int) -> None:
        """Render and encode scenes until there are at least `size`."""
        while len(self.encoded) < size:
            added = list(islice(self.source, min(16, size - len(self.encoded))))
            images = to_tensor([render(scene, self.sprites).image for scene in added])
            with torch.autocast("cpu", torch.bfloat16):
                means = self.vae.encode(images).latent_dist.mean
            self.encoded.extend((means.float() * self.vae.config.scaling_factor).half())
            self.scenes.extend(added)


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A fresh text encoder for this tokenizer."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **TEXT_ENCODER,
        )
    )


def tokenize(tokenizer: CLIPTokenizer, prompts: list[str]) -> Tensor:
    """Token ids (n, 77)."""
    encoded = tokenizer(
        prompts, padding="max_length", truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt"
    )
    ids: Tensor = encoded.input_ids
    return ids


@dataclass(frozen=True)
class Batch:
    """latents and noise: (n, 4, h, w); timesteps: (n,) integers; token_ids: (n, 77)."""

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    token_ids: Tensor


def draw_batch(pool: Latents, size: int, tokenizer: CLIPTokenizer, settings: TextToImageTraining, step: int) -> Batch:
    """This process' part of the batch of a step, from the first `size` scenes; it depends on nothing else.

    Timesteps are logit-normal (Esser et al. 2024, section 3.1), shifted towards the noise, where shapes are decided.
    """
    process, processes = parallel.place()
    count = settings.batch // processes
    rng = np.random.default_rng([settings.seed, step, process])
    chosen = [int(index) for index in rng.integers(size, size=count)]
    empty = rng.uniform(size=count) < settings.empty_prompts
    prompts = ["" if e else caption(pool.scenes[i], rng) for i, e in zip(chosen, empty, strict=True)]
    latents = torch.stack([pool.encoded[index] for index in chosen]).float()
    noisiness = 1 / (1 + np.exp(-rng.normal(settings.timestep_shift, 1.0, size=count)))
    steps = SCHEDULER["num_train_timesteps"]
    timesteps = torch.from_numpy(np.minimum((noisiness * steps).astype(np.int64), steps - 1))
    return Batch(
        latents,
        step_noise(settings.seed + 1000 * process, step, latents.shape),
        timesteps,
        tokenize(tokenizer, prompts),
    )


def v_loss(unet: UNet2DConditionModel, text_encoder: CLIPTextModel, scheduler: DDIMScheduler, batch: Batch) -> Tensor:
    """Mean squared error of the predicted v = sqrt(alphas_cumprod) noise - sqrt(1 - alphas_cumprod) latents."""
    noisy = scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
    target = scheduler.get_velocity(batch.latents, batch.noise, batch.timesteps)
    with torch.autocast("cpu", torch.bfloat16):
        context = text_encoder(batch.token_ids).last_hidden_state
        prediction = unet(noisy, batch.timesteps, context).sample
    loss: Tensor = (prediction.float() - target).square().mean()
    return loss


class TextToImageRun:
    """A run in memory: models, optimizer, averages and step; `save` and `restore` are exact."""

    def __init__(
        self,
        tokenizer: CLIPTokenizer,
        pool: Latents,
        settings: TextToImageTraining,
        unet: dict[str, Any] = UNET,
    ) -> None:
        torch.manual_seed(settings.seed)
        self.tokenizer, self.pool, self.settings = tokenizer, pool, settings
        self.unet = UNet2DConditionModel(**unet)
        self.text_encoder = build_text_encoder(tokenizer)
        self.scheduler = DDIMScheduler(**SCHEDULER)
        modules = [self.unet, self.text_encoder]
        self.optimizer = MatrixOptimizer(modules, settings.lr, weight_decay=0.01)
        self.average = AveragedWeights(modules, settings.average_decay)
        self.step, self.seconds = 0, 0.0

    def latents_file(self, folder: Path) -> Path:
        """Where this process keeps its latents."""
        return folder / f"latents-{parallel.place()[0]}.pt"

    def restore(self, folder: Path) -> None:
        """Go on from the checkpoint in `folder`, if there is one."""
        if self.latents_file(folder).exists():
            self.pool.load(self.latents_file(folder))
        if (folder / "text-to-image.pt").exists():
            state = checkpoint.load(folder / "text-to-image.pt")
            self.step, self.seconds = state["step"], state["seconds"]
            for name in ("unet", "text_encoder", "optimizer", "average"):
                getattr(self, name).load_state_dict(state[name])

    def save(self, folder: Path) -> None:
        """Write the checkpoint of this moment; what all processes share is written by the first."""
        self.pool.save(self.latents_file(folder))
        if parallel.place()[0] == 0:
            names = ("unet", "text_encoder", "optimizer", "average")
            state = {name: getattr(self, name).state_dict() for name in names}
            checkpoint.save(folder / "text-to-image.pt", {"step": self.step, "seconds": self.seconds, **state})

    def train_step(self) -> float:
        """One step; returns its loss."""
        settings, (_, processes) = self.settings, parallel.place()
        size = min(settings.most_scenes, settings.scenes + self.step * settings.fresh) // processes
        self.pool.grow(size)
        batch = draw_batch(self.pool, size, self.tokenizer, settings, self.step)
        loss = v_loss(self.unet, self.text_encoder, self.scheduler, batch)
        loss.backward()
        parameters = [*self.unet.parameters(), *self.text_encoder.parameters()]
        parallel.average_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        rate = learning_rate(self.step, settings.lr, settings.steps, settings.warmup, settings.cooldown)
        self.optimizer.step(rate)
        self.average.update()
        self.step += 1
        return loss.item()

    def report(self) -> dict[str, object]:
        """What the log says besides step, loss and time."""
        return {"samples": self.step * self.settings.batch, "scenes": len(self.pool.encoded)}
