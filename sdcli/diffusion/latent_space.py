"""The latent space of an autoencoder: its channels, its grid, and how its latents are normalised for f. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
    Latents are always (B, C, h, w); an architecture that takes tokens packs them itself.
    """

    channels: int = 4
    vae_scale_factor: int = 8
    scaling_factor: float = 1.0
    shift_factor: float = 0.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @classmethod
    def of(cls, vae: Mapping[str, Any]) -> Self:
        """Return the latent space of the config of an AutoencoderKL, AutoencoderTiny or VQModel.

        Raises KeyError, TypeError or ValueError for another config.
        """
        scaling_factor = vae.get("scaling_factor")
        if scaling_factor is None:
            scaling_factor = _SCALING_FACTORS.get(vae.get("_class_name", ""), _SCALING_FACTOR)
        channels, given = vae.get("latent_channels", 4), [vae.get("latents_mean"), vae.get("latents_std")]
        statistics = given != [None, None]
        if statistics and any(each is None or len(each) != channels for each in given):
            raise ValueError(f"latents_mean and latents_std must both have {channels} numbers")
        return cls(
            channels=channels,
            vae_scale_factor=2 ** (len(vae["block_out_channels"]) - 1),
            scaling_factor=scaling_factor,
            shift_factor=0.0 if statistics else vae.get("shift_factor") or 0.0,
            mean=tuple(vae["latents_mean"]) if statistics else (),
            std=tuple(vae["latents_std"]) if statistics else (),
        )

    def shape(self, width: int, height: int) -> tuple[int, int, int]:
        """Return the shape (C, h, w) of the latents of a picture of `width` × `height` pixels."""
        return self.channels, height // self.vae_scale_factor, width // self.vae_scale_factor

    def normalize(self, z: Tensor) -> Tensor:
        """Convert the encoder's z (B, C, h, w) to the latents (B, C, h, w) that f takes."""
        if self.mean:
            return (z - self._per_channel(self.mean, z)) / self._per_channel(self.std, z) * self.scaling_factor
        return (z - self.shift_factor if self.shift_factor else z) * self.scaling_factor

    def denormalize(self, latents: Tensor) -> Tensor:
        """Convert the latents (B, C, h, w) of f to what the decoder takes (B, C, h, w)."""
        z = latents / self.scaling_factor
        if self.mean:
            return z * self._per_channel(self.std, z) + self._per_channel(self.mean, z)
        return z + self.shift_factor if self.shift_factor else z

    def _per_channel(self, values: tuple[float, ...], like: Tensor) -> Tensor:
        return like.new_tensor(values).reshape(1, -1, 1, 1)
