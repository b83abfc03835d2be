"""What a U-Net learns to draw by, besides text: nothing, a masked image, or a segmentation map.

Each context is what `sdcli.diffusion.context` makes of the same things when a picture is asked for. Knows nothing of
the loss.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sdcli.diffusion.context import segmentation
from sdcli.errors import InputError
from sdcli.files.palette import Class
from sdcli.training.masks import draw_mask, plan_mask
from sdcli.training.pool import Encoder, to_tensor
from sdcli.training.sources import Picture, Source


@dataclass(frozen=True)
class TextToImage:
    """Text alone."""

    channels: int = 0

    def describe(self, source: Source, item: Any, rng: np.random.Generator) -> Any:
        """The whole item."""
        return item

    def encode(
        self, encoder: Encoder, pictures: Sequence[Picture], rngs: Sequence[np.random.Generator]
    ) -> dict[str, Tensor]:
        """Latents (n, C, h, w), float16."""
        return {"latents": encoder(to_tensor([picture.image for picture in pictures])).half()}

    def context(self, kept: Mapping[str, Tensor]) -> Tensor | None:
        """Nothing."""
        return None

    def weights(self, kept: Mapping[str, Tensor]) -> Tensor | None:
        """The same everywhere."""
        return None

    def show(self, kept: Mapping[str, Tensor], decode: Callable[[Tensor], Tensor]) -> Tensor | None:
        """Nothing."""
        return None


@dataclass(frozen=True)
class Inpaint:
    """A mask, and the latents of the image without the masked part (see `sdcli.diffusion.context.masked_image`).

    A mask about a subject goes with a caption of that subject alone, because that is what it is to hold. Where the
    image is known the loss counts `known_weight`.
    """

    latent_channels: int
    known_weight: float

    @property
    def channels(self) -> int:
        """The mask and the masked image's latents: 5 for Stable Diffusion."""
        return 1 + self.latent_channels

    def describe(self, source: Source, item: Any, rng: np.random.Generator) -> Any:
        """The item, or its one subject that the mask is about."""
        plan = plan_mask(source.subjects(item), rng)
        return item if plan.subject is None else source.only(item, plan.subject)

    def encode(
        self, encoder: Encoder, pictures: Sequence[Picture], rngs: Sequence[np.random.Generator]
    ) -> dict[str, Tensor]:
        """Latents and masked latents (n, C, h, w), float16; masks (n, 1, h, w), uint8."""
        images = to_tensor([picture.image for picture in pictures])
        drawn = [
            draw_mask(plan_mask(len(picture.masks), rng), picture.masks, picture.image.shape[:2], rng)
            for picture, rng in zip(pictures, rngs, strict=True)
        ]
        masks = torch.from_numpy(np.stack(drawn))[:, None].float()
        latents, masked = encoder(torch.cat([images, images * (masks < 0.5)])).half().chunk(2)
        return {
            "latents": latents,
            "mask": F.interpolate(masks, size=latents.shape[-2:]).byte(),  # the nearest pixel stands for each
            "masked": masked,
        }

    def context(self, kept: Mapping[str, Tensor]) -> Tensor | None:
        """The mask, then the masked image's latents."""
        return torch.cat([kept["mask"].float(), kept["masked"].float()], dim=1)

    def weights(self, kept: Mapping[str, Tensor]) -> Tensor | None:
        """1 in the mask."""
        mask = kept["mask"].float()
        return mask + self.known_weight * (1 - mask)

    def show(self, kept: Mapping[str, Tensor], decode: Callable[[Tensor], Tensor]) -> Tensor | None:
        """The masked images, mid-grey where they are masked."""
        pictures = decode(kept["masked"])
        return pictures * (1 - F.interpolate(kept["mask"].float(), size=pictures.shape[-2:]))


@dataclass(frozen=True)
class Semantic:
    """A segmentation map: how much of each class there is in each cell (see `sdcli.diffusion.context.segmentation`)."""

    classes: Sequence[Class]

    @property
    def channels(self) -> int:
        """One a class."""
        return len(self.classes)

    def describe(self, source: Source, item: Any, rng: np.random.Generator) -> Any:
        """The whole item."""
        return item

    def encode(
        self, encoder: Encoder, pictures: Sequence[Picture], rngs: Sequence[np.random.Generator]
    ) -> dict[str, Tensor]:
        """Latents (n, C, h, w) and the shares of the classes (n, K, h, w), float16."""
        latents = encoder(to_tensor([picture.image for picture in pictures])).half()
        maps = torch.from_numpy(np.stack([_map_of(picture) for picture in pictures]))
        shares = segmentation.encode(maps, self.channels, maps.shape[-1] // latents.shape[-1])
        return {"latents": latents, "shares": shares.half()}

    def context(self, kept: Mapping[str, Tensor]) -> Tensor | None:
        """The shares, 0 … 1."""
        return kept["shares"].float()

    def weights(self, kept: Mapping[str, Tensor]) -> Tensor | None:
        """The same everywhere."""
        return None

    def show(self, kept: Mapping[str, Tensor], decode: Callable[[Tensor], Tensor]) -> Tensor | None:
        """Each cell in the colour of the class that has most of it."""
        colours = torch.tensor([each.color for each in self.classes]) / 127.5 - 1
        return F.interpolate(colours[kept["shares"].float().argmax(1)].permute(0, 3, 1, 2), scale_factor=8)


def _map_of(picture: Picture) -> np.ndarray:
    if picture.segmentation is None:
        raise InputError("these pictures have no segmentation maps", 'name them as "map_file_name" in metadata.jsonl')
    return picture.segmentation
