"""The latent space of an autoencoder: its channels, its grid, and how its latents are normalised for f. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from torch import Tensor

# Defaults of diffusers' classes.
_SCALING_FACTORS = {"AutoencoderTiny": 1.0}
_SCALING_FACTOR = 0.18215


@dataclass(frozen=True)
class LatentSpace:
    """The latents that f takes: `channels` numbers for each square of `vae_scale_factor` × `vae_scale_factor` pixels.

    f takes the autoencoder's latents z normalised to about zero mean and unit variance:
    (z − shift_factor) · scaling_factor, or (z − mean) / std · scaling_factor with one `mean` and one `std` per channel,
    like diffusers' pipelines with `scaling_factor`, `shift_factor`, `latents_mean` and `latents_std`.
    Latents are always (B, C, h, w); an architecture that takes tokens packs them itself. With a `patch` of p they are
    the autoencoder's latents with each p × p square as channels (FLUX.2), and `mean` and `std` are those of all of
    these channels. `has_frames`: the autoencoder is one of videos, and takes pictures as (B, C, 1, H, W).
    """

    channels: int = 4
    vae_scale_factor: int = 8
    scaling_factor: float = 1.0
    shift_factor: float = 0.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    patch: int = 1
    has_frames: bool = False

    @classmethod
    def of(cls, vae: Mapping[str, Any]) -> Self:
        """Return the latent space of the config of an AutoencoderKL, AutoencoderTiny, AutoencoderDC, VQModel,
        AutoencoderKLFlux2, AutoencoderKLQwenImage or AutoencoderKLQwenImage21.

        The mean and standard deviation of an AutoencoderKLFlux2 are in its weights: see `with_statistics`. Raises
        KeyError, TypeError or ValueError for another config.
        """
        if "z_dim" in vae:
            return cls._of_frames(vae)
        scaling_factor = vae.get("scaling_factor")
        if scaling_factor is None:
            scaling_factor = _SCALING_FACTORS.get(vae.get("_class_name", ""), _SCALING_FACTOR)
        channels, given = vae.get("latent_channels", 4), [vae.get("latents_mean"), vae.get("latents_std")]
        statistics = given != [None, None]
        if statistics and any(each is None or len(each) != channels for each in given):
            raise ValueError(f"latents_mean and latents_std must both have {channels} numbers")
        patch = _patch(vae)
        return cls(
            channels=channels * patch**2,
            vae_scale_factor=2 ** (len(vae.get("block_out_channels") or vae["encoder_block_out_channels"]) - 1) * patch,
            scaling_factor=1.0 if patch > 1 else scaling_factor,
            patch=patch,
            shift_factor=0.0 if statistics else vae.get("shift_factor") or 0.0,
            mean=tuple(vae["latents_mean"]) if statistics else (),
            std=tuple(vae["latents_std"]) if statistics else (),
        )

    @classmethod
    def _of_frames(cls, vae: Mapping[str, Any]) -> Self:
        mean, std = tuple(vae["latents_mean"]), tuple(vae["latents_std"])
        if not len(mean) == len(std) == vae["z_dim"]:
            raise ValueError(f"latents_mean and latents_std must both have {vae['z_dim']} numbers")
        factor = 2 ** len(vae["temperal_downsample"])
        return cls(channels=vae["z_dim"], vae_scale_factor=factor, mean=mean, std=std, has_frames=True)

    def with_statistics(self, mean: Iterable[float], std: Iterable[float]) -> Self:
        """Return the same with the mean and standard deviation of each channel."""
        return replace(self, mean=tuple(mean), std=tuple(std))

    def shape(self, width: int, height: int) -> tuple[int, int, int]:
        """Return the shape (C, h, w) of the latents of a picture of `width` × `height` pixels."""
        return self.channels, height // self.vae_scale_factor, width // self.vae_scale_factor

    def normalize(self, z: Tensor) -> Tensor:
        """Convert the encoder's z (B, C, h, w), or (B, C, 1, h, w) with frames, to the latents (B, C, h, w) of f."""
        if self.has_frames:
            z = z.squeeze(2)
        if self.patch > 1:
            z = _to_patches(z, self.patch)
        if self.mean:
            return (z - self._per_channel(self.mean, z)) / self._per_channel(self.std, z) * self.scaling_factor
        return (z - self.shift_factor if self.shift_factor else z) * self.scaling_factor

    def denormalize(self, latents: Tensor) -> Tensor:
        """Convert the latents (B, C, h, w) of f to what the decoder takes: (B, C, h, w), or (B, C, 1, h, w)."""
        z = latents / self.scaling_factor
        if self.mean:
            z = z * self._per_channel(self.std, z) + self._per_channel(self.mean, z)
        elif self.shift_factor:
            z = z + self.shift_factor
        if self.patch > 1:
            z = _from_patches(z, self.patch)
        return z.unsqueeze(2) if self.has_frames else z

    def _per_channel(self, values: tuple[float, ...], like: Tensor) -> Tensor:
        return like.new_tensor(values).reshape(1, -1, 1, 1)


def _patch(vae: Mapping[str, Any]) -> int:
    """Return the side of the patches of an AutoencoderKLFlux2, and 1 for other classes."""
    if "batch_norm_eps" not in vae:
        return 1
    height, width = vae.get("patch_size", (2, 2))
    if height != width:
        raise ValueError(f"patch_size must be square, and is {height}×{width}")
    return int(height)


def _to_patches(z: Tensor, side: int) -> Tensor:
    """Convert (B, C, h, w) to (B, C · side², h / side, w / side)."""
    batch, channels, height, width = z.shape
    z = z.reshape(batch, channels, height // side, side, width // side, side).permute(0, 1, 3, 5, 2, 4)
    return z.reshape(batch, channels * side**2, height // side, width // side)


def _from_patches(z: Tensor, side: int) -> Tensor:
    """Convert (B, C · side², h, w) to (B, C, h · side, w · side)."""
    batch, channels, height, width = z.shape
    z = z.reshape(batch, channels // side**2, side, side, height, width).permute(0, 1, 4, 2, 5, 3)
    return z.reshape(batch, channels // side**2, height * side, width * side)
