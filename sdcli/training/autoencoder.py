"""Training the autoencoder: an AutoencoderKL (diffusers) of 8×8 pixels to 4 numbers, from nothing.

Encoder and decoder of a fresh autoencoder wait for each other. A linear teacher breaks that: for the first steps the
encoder learns to give the whitened principal components of each 8×8 patch and the decoder learns to read them.
Then both are trained together. Knows scenes, but no captions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from sdcli.training import checkpoint
from sdcli.training.optimizers import MatrixOptimizer, learning_rate
from sdcli.training.world import Sprites, render, scenes

PATCH = 8
ARCHITECTURE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (32, 64, 128, 128),
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 8,
    "mid_block_add_attention": False,
    "sample_size": 256,
}


@dataclass(frozen=True)
class AutoencoderTraining:
    """Everything that determines a run. Crops are square and a multiple of 8 pixels."""

    seed: int = 1
    steps: int = 2400
    batch: int = 4
    crop: int = 128
    lr: float = 2e-3
    warmup: int = 50
    cooldown: int = 1200
    teacher_steps: int = 200
    teacher_scenes: int = 256
    kl_weight: float = 1e-4
    edge_weight: float = 1.0
    save_every: int = 100


@dataclass(frozen=True)
class LinearTeacher:
    """Whitened PCA of 8×8×3 patches. mean: (192,); components: (4, 192) orthonormal rows; scale: (4,)."""

    mean: Tensor
    components: Tensor
    scale: Tensor

    def encode(self, images: Tensor) -> Tensor:
        """(n, 3, h, w) in -1 … 1 to (n, 4, h/8, w/8), of unit variance over the pictures it was fitted to."""
        patches = F.unfold(images, PATCH, stride=PATCH) - self.mean[:, None]
        codes = (self.components @ patches) / self.scale[:, None]
        return codes.reshape(*codes.shape[:2], images.shape[2] // PATCH, images.shape[3] // PATCH)

    def decode(self, codes: Tensor) -> Tensor:
        """The linear reconstruction, (n, 4, h, w) to (n, 3, 8h, 8w)."""
        patches = self.components.T @ (codes.flatten(2) * self.scale[:, None]) + self.mean[:, None]
        return F.fold(patches, (codes.shape[2] * PATCH, codes.shape[3] * PATCH), PATCH, stride=PATCH)


def fit_teacher(images: Tensor, channels: int) -> LinearTeacher:
    """Principal components of the patches of (n, 3, h, w) images."""
    patches = F.unfold(images, PATCH, stride=PATCH).transpose(1, 2).flatten(0, 1)
    mean = patches.mean(0)
    covariance = (patches - mean).T @ (patches - mean) / len(patches)
    values, vectors = torch.linalg.eigh(covariance)  # ascending
    return LinearTeacher(mean, vectors[:, -channels:].flip(1).T.contiguous(), values[-channels:].flip(0).sqrt())


def to_tensor(images: list[np.ndarray]) -> Tensor:
    """uint8 (h, w, 3) arrays to one float tensor (n, 3, h, w) in -1 … 1."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def render_batch(sprites: Sprites, seed: int, count: int) -> Tensor:
    """The first `count` scenes of a seed as (n, 3, 256, 256) in -1 … 1."""
    return to_tensor([render(scene, sprites).image for scene in islice(scenes(seed), count)])


def crops(sprites: Sprites, settings: AutoencoderTraining, step: int) -> Tensor:
    """The batch of a step: crops of fresh scenes, near the middle more often, where the subjects are."""
    rng = np.random.default_rng([settings.seed, step])
    images = render_batch(sprites, int(rng.integers(2**62)), settings.batch)
    room = images.shape[2] - settings.crop
    out = []
    for image in images:
        top, left = (round(room * rng.beta(1.3, 1.3)) for _ in range(2))
        out.append(image[:, top : top + settings.crop, left : left + settings.crop])
    return torch.stack(out)


def reconstruction_loss(decoded: Tensor, images: Tensor, edge_weight: float) -> Tensor:
    """L1 + MSE of the pixels, and L1 of the differences between neighbours, which keeps edges crisp."""
    error = decoded.float() - images
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return error.abs().mean() + error.square().mean() + edge_weight * edges


def total_loss(
    vae: AutoencoderKL, images: Tensor, teacher: LinearTeacher | None, noise: Tensor, settings: AutoencoderTraining
) -> Tensor:
    """The loss of a batch. With a teacher, encoder and decoder each learn from it and not from each other."""
    with torch.autocast("cpu", torch.bfloat16):
        posterior = vae.encode(images).latent_dist
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        if teacher is not None:
            codes = teacher.encode(images)
            latents = codes + 0.05 * noise
            extra = (mean - codes).square().mean() + 0.01 * (logvar + 6).square().mean()
        else:
            latents = mean + (0.5 * logvar).exp() * noise
            kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
            extra = settings.kl_weight * kl
        decoded = vae.decode(latents).sample
    loss: Tensor = reconstruction_loss(decoded, images, settings.edge_weight) + extra
    return loss


def psnr(mse: float) -> float:
    """Peak signal to noise ratio in dB of pictures in -1 … 1 (peak to peak 2)."""
    return float(10 * np.log10(4 / max(mse, 1e-12)))


@torch.no_grad()
def measure_psnr(vae: AutoencoderKL, images: Tensor) -> float:
    """PSNR in dB, in fp32, of whole pictures decoded from the means of their latents."""
    errors = []
    for chunk in images.split(4):
        decoded = vae.decode(vae.encode(chunk).latent_dist.mean).sample.clamp(-1, 1)
        errors.append((decoded - chunk).square().mean().item())
    return psnr(float(np.mean(errors)))


@torch.no_grad()
def set_scaling_factor(vae: AutoencoderKL, images: Tensor) -> float:
    """Set the factor that gives latents unit variance, measured over these pictures; returns it."""
    latents = torch.cat([vae.encode(chunk).latent_dist.mean for chunk in images.split(4)])
    factor = round(1 / latents.std().item(), 5)
    vae.register_to_config(scaling_factor=factor)
    return factor


def step_noise(seed: int, step: int, shape: tuple[int, ...]) -> Tensor:
    """The noise of a step depends on seed and step only, so that a resumed run repeats it."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    return torch.randn(shape, generator=generator)


class AutoencoderRun:
    """A run in memory: model, optimizer and step; `save` and `restore` are exact."""

    def __init__(
        self, sprites: Sprites, settings: AutoencoderTraining, architecture: Mapping[str, Any] = ARCHITECTURE
    ) -> None:
        torch.manual_seed(settings.seed)
        self.sprites, self.settings = sprites, settings
        self.vae = AutoencoderKL(**architecture)
        self.optimizer = MatrixOptimizer([self.vae], settings.lr, weight_decay=0.01)
        self.teacher = fit_teacher(
            render_batch(sprites, settings.seed, settings.teacher_scenes), self.vae.config.latent_channels
        )
        self.step, self.seconds = 0, 0.0

    def restore(self, folder: Path) -> None:
        """Go on from the checkpoint in `folder`, if there is one."""
        file = folder / "autoencoder.pt"
        if file.exists():
            state = checkpoint.load(file)
            self.step, self.seconds = state["step"], state["seconds"]
            self.vae.load_state_dict(state["vae"])
            self.optimizer.load_state_dict(state["optimizer"])

    def save(self, folder: Path) -> None:
        """Write the checkpoint of this moment."""
        state = {"vae": self.vae.state_dict(), "optimizer": self.optimizer.state_dict()}
        checkpoint.save(folder / "autoencoder.pt", {"step": self.step, "seconds": self.seconds, **state})

    def train_step(self) -> float:
        """One step; returns its loss."""
        settings = self.settings
        images = crops(self.sprites, settings, self.step)
        side = settings.crop // PATCH
        noise = step_noise(settings.seed, self.step, (len(images), self.vae.config.latent_channels, side, side))
        teacher = self.teacher if self.step < settings.teacher_steps else None
        loss = total_loss(self.vae, images, teacher, noise, settings)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.vae.parameters(), 1.0)
        rate = learning_rate(self.step, settings.lr, settings.steps, settings.warmup, settings.cooldown)
        self.optimizer.step(rate)
        self.step += 1
        return loss.item()

    def report(self) -> dict[str, object]:
        """What the log says besides step, loss and time; the PSNR is of whole scenes that training does not see."""
        unseen = render_batch(self.sprites, self.settings.seed + 1, 24)
        samples = self.step * self.settings.batch
        return {"samples": samples, "psnr_unseen": round(measure_psnr(self.vae, unseen), 2)}
