"""The tasks of a U-Net, by its condition besides text: none, a masked image, or a segmentation map.

The condition is the same as that of `sdcli.diffusion.context` at inference. Does not depend on the loss.
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
    """No condition besides text."""

    channels: int = 0

    def describe(self, source: Source, item: Any, rng: np.random.Generator) -> Any:
        """Return the whole item."""
        return item

    def encode(
        self, encoder: Encoder, pictures: Sequence[Picture], rngs: Sequence[np.random.Generator]
    ) -> dict[str, Tensor]:
        """Return the latents (n, C, h, w), float16."""
        return {"latents": encoder(to_tensor([picture.image for picture in pictures])).half()}

    def context(self, kept: Mapping[str, Tensor]) -> Tensor | None:
        """Return None: there are no channels besides the latents."""
        return None

    def weights(self, kept: Mapping[str, Tensor]) -> Tensor | None:
        """Return None: the weight is 1 everywhere."""
        return None

    def show(self, kept: Mapping[str, Tensor], decode: Callable[[Tensor], Tensor]) -> Tensor | None:
        """Return None: there is no condition to show."""
        return None


@dataclass(frozen=True)
class Inpaint:
    """A mask, and the latents of the image without the masked part (see `sdcli.diffusion.context.masked_image`).

    A mask around a subject has a caption of that subject alone, which describes the content of the mask. The loss has
    the weight `known_weight` where the image is known.
    """

    latent_channels: int
    known_weight: float

    @property
    def channels(self) -> int:
        """The number of channels of the mask and the masked image's latents: 5 for Stable Diffusion."""
        return 1 + self.latent_channels

    def describe(self, source: Source, item: Any, rng: np.random.Generator) -> Any:
        """Return the item, or the item with only the subject that the mask is around."""
        plan = plan_mask(source.subjects(item), rng)
        return item if plan.subject is None else source.only(item, plan.subject)

    def encode(
        self, encoder: Encoder, pictures: Sequence[Picture], rngs: Sequence[np.random.Generator]
    ) -> dict[str, Tensor]:
        """Return latents and masked latents (n, C, h, w), float16; masks (n, 1, h, w), uint8."""
        images = to_tensor([picture.image for picture in pictures])
        drawn = [
            draw_mask(plan_mask(len(picture.masks), rng), picture.masks, picture.image.shape[:2], rng)
            for picture, rng in zip(pictures, rngs, strict=True)
        ]
        masks = torch.from_numpy(np.stack(drawn))[:, None].float()
        latents, masked = encoder(torch.cat([images, images * (masks < 0.5)])).half().chunk(2)
        return {
            "latents": latents,
            "mask": F.interpolate(masks, size=latents.shape[-2:]).byte(),  # nearest neighbour
            "masked": masked,
        }

    def context(self, kept: Mapping[str, Tensor]) -> Tensor | None:
        """Return the mask, then the masked image's latents."""
        return torch.cat([kept["mask"].float(), kept["masked"].float()], dim=1)

    def weights(self, kept: Mapping[str, Tensor]) -> Tensor | None:
        """Return 1 inside the mask, `known_weight` outside."""
        mask = kept["mask"].float()
        return mask + self.known_weight * (1 - mask)

    def show(self, kept: Mapping[str, Tensor], decode: Callable[[Tensor], Tensor]) -> Tensor | None:
        """Return the masked images, grey inside the mask."""
        pictures = decode(kept["masked"])
        return pictures * (1 - F.interpolate(kept["mask"].float(), size=pictures.shape[-2:]))


@dataclass(frozen=True)
class Semantic:
    """A segmentation map, as the share of each class in each cell (see `sdcli.diffusion.context.segmentation`)."""

    classes: Sequence[Class]

    @property
    def channels(self) -> int:
        """The number of classes."""
        return len(self.classes)

    def describe(self, source: Source, item: Any, rng: np.random.Generator) -> Any:
        """Return the whole item."""
        return item

    def encode(
        self, encoder: Encoder, pictures: Sequence[Picture], rngs: Sequence[np.random.Generator]
    ) -> dict[str, Tensor]:
        """Return the latents (n, C, h, w) and the shares of the classes (n, K, h, w), float16."""
        latents = encoder(to_tensor([picture.image for picture in pictures])).half()
        maps = torch.from_numpy(np.stack([_map_of(picture) for picture in pictures]))
        shares = segmentation.encode(maps, self.channels, maps.shape[-1] // latents.shape[-1])
        return {"latents": latents, "shares": shares.half()}

    def context(self, kept: Mapping[str, Tensor]) -> Tensor | None:
        """Return the shares, 0 … 1."""
        return kept["shares"].float()

    def weights(self, kept: Mapping[str, Tensor]) -> Tensor | None:
        """Return None: the weight is 1 everywhere."""
        return None

    def show(self, kept: Mapping[str, Tensor], decode: Callable[[Tensor], Tensor]) -> Tensor | None:
        """Return each cell in the colour of its most frequent class."""
        colours = torch.tensor([each.color for each in self.classes]) / 127.5 - 1
        return F.interpolate(colours[kept["shares"].float().argmax(1)].permute(0, 3, 1, 2), scale_factor=8)


def _map_of(picture: Picture) -> np.ndarray:
    if picture.segmentation is None:
        raise InputError("these pictures have no segmentation maps", 'add them as "map_file_name" to metadata.jsonl')
    return picture.segmentation
