"""Training an autoencoder from scratch: diffusers' AutoencoderKL, which maps 8×8 pixels to 8 numbers.

At first, encoder and decoder each need the other to be trained. A linear teacher solves this: for the first steps, the
encoder learns to output the whitened principal components of each 8×8 patch, and the decoder learns to decode them.
After that, both are trained together. Uses scenes, but no captions.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from sdcli.training import checkpoint
from sdcli.training.loop import finish_step, step_noise
from sdcli.training.optimizers import MatrixOptimizer
from sdcli.training.parts import LATENT_CHANNELS
from sdcli.training.pool import to_tensor as to_tensor
from sdcli.training.settings import AutoencoderTraining
from sdcli.training.sheets import save_sheet
from sdcli.training.sources import Source
from sdcli.training.team import Team

PATCH = 8
ARCHITECTURE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (32, 64, 128, 160),
    "layers_per_block": 1,
    "latent_channels": LATENT_CHANNELS,
    "norm_num_groups": 8,
    "mid_block_add_attention": False,
    "sample_size": 256,
}


@dataclass(frozen=True)
class LinearTeacher:
    """Whitened PCA of 8×8×3 patches. mean: (192,); components: (C, 192) orthonormal rows; scale: (C,)."""

    mean: Tensor
    components: Tensor
    scale: Tensor

    def to(self, device: torch.device) -> "LinearTeacher":
        """Return the teacher on `device`."""
        return LinearTeacher(self.mean.to(device), self.components.to(device), self.scale.to(device))

    def encode(self, images: Tensor) -> Tensor:
        """Encode (n, 3, h, w) in -1 … 1 to (n, C, h/8, w/8), with unit variance on the fitted pictures."""
        patches = F.unfold(images, PATCH, stride=PATCH) - self.mean[:, None]
        codes = (self.components @ patches) / self.scale[:, None]
        return codes.reshape(*codes.shape[:2], images.shape[2] // PATCH, images.shape[3] // PATCH)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the linear reconstruction: (n, C, h, w) to (n, 3, 8h, 8w)."""
        patches = self.components.T @ (codes.flatten(2) * self.scale[:, None]) + self.mean[:, None]
        return F.fold(patches, (codes.shape[2] * PATCH, codes.shape[3] * PATCH), PATCH, stride=PATCH)


def fit_teacher(images: Tensor, channels: int) -> LinearTeacher:
    """Fit the principal components of the 8×8 patches of images (n, 3, h, w)."""
    patches = F.unfold(images, PATCH, stride=PATCH).transpose(1, 2).flatten(0, 1)
    mean = patches.mean(0)
    covariance = (patches - mean).T @ (patches - mean) / len(patches)
    values, vectors = torch.linalg.eigh(covariance)  # ascending
    return LinearTeacher(mean, vectors[:, -channels:].flip(1).T.contiguous(), values[-channels:].flip(0).sqrt())


def pictures(source: Source, seed: int, count: int) -> Tensor:
    """Return `count` random pictures for a seed, (n, 3, H, W) in -1 … 1."""
    items = source.draw(np.random.default_rng(seed), count)
    return to_tensor([source.picture(item).image for item in items])


def crops(source: Source, settings: AutoencoderTraining, step: int, team: Team) -> Tensor:
    """Return this process' part of the batch of a step, (n, 3, crop, crop) in -1 … 1.

    Crops near the middle of a picture are more frequent.
    """
    rng = np.random.default_rng([settings.seed, step, team.process])
    images = pictures(source, int(rng.integers(2**62)), max(1, settings.batch // team.processes))
    room = images.shape[2] - settings.crop
    out = []
    for image in images:
        top, left = (round(room * rng.beta(1.3, 1.3)) for _ in range(2))
        out.append(image[:, top : top + settings.crop, left : left + settings.crop])
    return torch.stack(out)


def reconstruction_loss(decoded: Tensor, images: Tensor, edge_weight: float) -> Tensor:
    """Return L1 + MSE of the pixels, plus the weighted L1 of the differences between neighbouring pixels.

    The differences keep edges sharp.
    """
    error = decoded.float() - images
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return error.abs().mean() + error.square().mean() + edge_weight * edges


def total_loss(
    vae: AutoencoderKL,
    images: Tensor,
    teacher: LinearTeacher | None,
    noise: Tensor,
    settings: AutoencoderTraining,
    team: Team,
) -> Tensor:
    """Return the loss of a batch. With a teacher, encoder and decoder are each trained on the teacher's codes."""
    with team.autocast():
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
    """Return the peak signal-to-noise ratio in dB for pictures in -1 … 1 (peak to peak 2)."""
    return float(10 * np.log10(4 / max(mse, 1e-12)))


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Decode the means of the latents of pictures (n, 3, H, W); returns float32 in -1 … 1 on the CPU."""
    parts = [vae.decode(vae.encode(part.to(vae.device)).latent_dist.mean).sample for part in images.split(4)]
    return torch.cat(parts).clamp(-1, 1).cpu()


def measure_psnr(vae: AutoencoderKL, images: Tensor) -> float:
    """Return the PSNR in dB of the reconstructions, from the mean squared error over all pictures."""
    return psnr((reconstruct(vae, images) - images).square().mean().item())


@torch.no_grad()
def set_scaling_factor(vae: AutoencoderKL, images: Tensor) -> float:
    """Set and return the scaling factor, which gives the latents of these pictures unit variance."""
    latents = torch.cat([vae.encode(part.to(vae.device)).latent_dist.mean for part in images.split(4)])
    factor = round(1 / latents.std().item(), 5)
    vae.register_to_config(scaling_factor=factor)
    return factor


class AutoencoderRun:
    """An autoencoder run: model, optimizer, teacher and step. `load_state(state())` restores it exactly."""

    def __init__(
        self, source: Source, settings: AutoencoderTraining, team: Team, architecture: dict[str, Any] = ARCHITECTURE
    ) -> None:
        torch.manual_seed(settings.seed)
        self.source, self.settings, self.team = source, settings, team
        self.vae = AutoencoderKL(**architecture).to(team.device)
        self.optimizer = MatrixOptimizer([self.vae], settings.lr, weight_decay=0.01)
        fitted = fit_teacher(pictures(source, settings.seed, settings.teacher_scenes), self.vae.config.latent_channels)
        self.teacher = fitted.to(team.device)
        self.step = 0
        self.shown: Tensor | None = None

    def prepare(self) -> Iterator[tuple[int, int]]:
        """Do nothing: there is nothing to encode."""
        return iter(())

    def keep(self, folder: Path) -> None:
        """Do nothing: this run has no data that belongs to one process."""

    def state(self) -> checkpoint.State:
        """Return the weights and the optimizer state."""
        return {"vae": self.vae.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state(self, state: checkpoint.State) -> None:
        """Restore the result of `state`."""
        self.vae.load_state_dict(state["vae"])
        self.optimizer.load_state_dict(state["optimizer"])

    def train_step(self) -> float:
        """Train one step and return its loss, averaged over the processes."""
        settings, team = self.settings, self.team
        images = crops(self.source, settings, self.step, team).to(team.device)
        side = settings.crop // PATCH
        shape = (len(images), self.vae.config.latent_channels, side, side)
        noise = step_noise(settings.seed + 1000 * team.process, self.step, shape).to(team.device)
        teacher = self.teacher if self.step < settings.teacher_steps else None
        loss = total_loss(self.vae, images, teacher, noise, settings, team)
        return finish_step(self, loss, [self.vae])

    def report(self) -> dict[str, object]:
        """Return additional log values: `samples`, and at checkpoints `psnr` in dB of whole pictures."""
        entry: dict[str, object] = {"samples": self.step * self.settings.batch}
        if self.step % self.settings.save_every == 0 or self.step == self.settings.steps:
            entry["psnr"] = round(measure_psnr(self.vae, self.unseen()), 2)
        return entry

    def unseen(self) -> Tensor:
        """Return 24 whole pictures for measuring; for the synthetic world, training does not use them."""
        if self.shown is None:
            self.shown = pictures(self.source, self.settings.seed + 1, 24)
        return self.shown

    def sheet(self, path: Path) -> None:
        """Write a sheet: pictures, and their reconstructions below them."""
        images = self.unseen()[:6]
        both = torch.cat([images, reconstruct(self.vae, images)])
        save_sheet(both, columns=6, path=path)
