"""Small pictures of latents without the autoencoder: each latent becomes one pixel by a linear map.

Such a map shows colours and outlines, and costs almost nothing. The factors of Stable Diffusion, SD 3, FLUX.1 and
FLUX.2 are those of InvokeAI (Apache-2.0; invokeai/app/util/step_callback.py at 01d6f09b), which were fitted like those
of kit (see `fit`): https://github.com/invoke-ai/InvokeAI
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from PIL.Image import Image as Picture
    from torch import Tensor

    from sdcli.diffusion.latent_space import LatentSpace

Row = tuple[float, float, float]


@dataclass(frozen=True)
class LinearMap:
    """Red, green and blue, in −1 … 1, of a latent: the sum of its channels times their `factors`, and `bias`."""

    factors: tuple[Row, ...]
    bias: Row = (0.0, 0.0, 0.0)


_SD = LinearMap(
    (
        (0.3444, 0.1385, 0.0670),
        (0.1247, 0.4027, 0.1494),
        (-0.3192, 0.2513, 0.2103),
        (-0.1307, -0.1874, -0.7445),
    )
)
_SDXL = LinearMap(
    (
        (0.3816, 0.4930, 0.5320),
        (-0.3753, 0.1631, 0.1739),
        (0.1770, 0.3588, -0.2048),
        (-0.4350, -0.2644, -0.4289),
    )
)
_SD3 = LinearMap(
    (
        (-0.0524, 0.0325, 0.0749),
        (-0.0581, 0.0076, 0.0573),
        (0.1614, 0.0127, -0.0377),
        (0.1442, 0.0846, 0.1594),
        (0.0489, 0.0056, -0.0669),
        (0.0519, 0.1922, 0.0626),
        (0.1539, 0.0482, 0.0710),
        (-0.0860, 0.0901, 0.1089),
        (-0.1240, -0.0677, 0.0034),
        (-0.0440, 0.0783, 0.0226),
        (0.0310, 0.0638, 0.0775),
        (-0.0132, 0.0855, -0.0877),
        (0.0646, 0.0591, 0.1326),
        (-0.0786, -0.0226, -0.1276),
        (-0.0992, -0.0801, -0.0626),
        (-0.0339, -0.0804, -0.0608),
    )
)
_FLUX = LinearMap(
    (
        (-0.0412, 0.0149, 0.0521),
        (0.0056, 0.0291, 0.0768),
        (0.0342, -0.0681, -0.0427),
        (-0.0258, 0.0092, 0.0463),
        (0.0863, 0.0784, 0.0547),
        (-0.0017, 0.0402, 0.0158),
        (0.0501, 0.1058, 0.1152),
        (-0.0209, -0.0218, -0.0329),
        (-0.0314, 0.0083, 0.0896),
        (0.0851, 0.0665, -0.0472),
        (-0.0534, 0.0238, -0.0024),
        (0.0452, -0.0026, 0.0048),
        (0.0892, 0.0831, 0.0881),
        (-0.1117, -0.0304, -0.0789),
        (0.0027, -0.0479, -0.0043),
        (-0.1146, -0.0827, -0.0598),
    )
)
_FLUX2 = LinearMap(
    (
        (0.0058, 0.0113, 0.0073),
        (0.0495, 0.0443, 0.0836),
        (-0.0099, 0.0096, 0.0644),
        (0.2144, 0.3009, 0.3652),
        (0.0166, -0.0039, -0.0054),
        (0.0157, 0.0103, -0.0160),
        (-0.0398, 0.0902, -0.0235),
        (-0.0052, 0.0095, 0.0109),
        (-0.3527, -0.2712, -0.1666),
        (-0.0301, -0.0356, -0.0180),
        (-0.0107, 0.0078, 0.0013),
        (0.0746, 0.0090, -0.0941),
        (0.0156, 0.0169, 0.0070),
        (-0.0034, -0.0040, -0.0114),
        (0.0032, 0.0181, 0.0080),
        (-0.0939, -0.0008, 0.0186),
        (0.0018, 0.0043, 0.0104),
        (0.0284, 0.0056, -0.0127),
        (-0.0024, -0.0022, -0.0030),
        (0.1207, -0.0026, 0.0065),
        (0.0128, 0.0101, 0.0142),
        (0.0137, -0.0072, -0.0007),
        (0.0095, 0.0092, -0.0059),
        (0.0000, -0.0077, -0.0049),
        (-0.0465, -0.0204, -0.0312),
        (0.0095, 0.0012, -0.0066),
        (0.0290, -0.0034, 0.0025),
        (0.0220, 0.0169, -0.0048),
        (-0.0332, -0.0457, -0.0468),
        (-0.0085, 0.0389, 0.0609),
        (-0.0076, 0.0003, -0.0043),
        (-0.0111, -0.0460, -0.0614),
    ),
    (-0.0329, -0.0718, -0.0851),
)
_KIT = LinearMap(
    (
        (-0.2897, -0.2417, -0.1686),
        (0.1600, -0.0631, -0.2781),
        (0.0887, -0.1958, 0.0842),
        (0.0333, 0.0345, 0.0200),
        (-0.0152, -0.0156, 0.0111),
        (-0.0074, 0.0068, -0.0273),
        (-0.0208, -0.0262, 0.0179),
        (0.0026, 0.0083, 0.0041),
    ),
    (0.2125, 0.1801, 0.1989),
)

# by channels, scaling factor and shift factor, in which the published latent spaces differ
_MAPS: Mapping[tuple[int, float, float], LinearMap] = MappingProxyType(
    {
        (4, 0.18215, 0.0): _SD,
        (4, 0.13025, 0.0): _SDXL,
        (16, 1.5305, 0.0609): _SD3,
        (16, 0.3611, 0.1159): _FLUX,
        (8, 0.25628, 0.0): _KIT,
    }
)


def linear_map(space: LatentSpace) -> LinearMap | None:
    """Return the map of a latent space, or None if none is known."""
    if space.patch > 1:
        return _FLUX2 if space.channels == len(_FLUX2.factors) * space.patch**2 else None
    if space.mean or space.has_frames:
        return None
    return _MAPS.get((space.channels, space.scaling_factor, space.shift_factor))


def preview(latents: Tensor, space: LatentSpace) -> Picture | None:
    """Return a small picture, 8-bit RGB, of normalised `latents` (C, h, w), one pixel for each latent (four for
    FLUX.2), or None if no linear map of their latent space is known.

    Waits for the device. Values that are not finite become black.
    """
    from sdcli.files.images import to_image

    known = linear_map(space)
    if known is None:
        return None
    factors = latents.new_tensor(known.factors)
    pixels = _unpatched(latents, space.patch).permute(1, 2, 0) @ factors + latents.new_tensor(known.bias)
    return to_image(pixels.permute(2, 0, 1).nan_to_num(-1.0))


def fit(latents: Tensor, pixels: Tensor) -> tuple[LinearMap, float]:
    """Return the linear map with the least squared error from `latents` (N, C, h, w) to `pixels` (N, 3, H, W), in
    −1 … 1, and the root of that error's mean. A latent is compared with the mean of its square of pixels.

    `python -m sdcli.training.preview MODEL` prints the map of a model's own pictures.
    """
    import torch

    small = torch.nn.functional.interpolate(pixels.double(), latents.shape[2:], mode="area")
    known = latents.double().movedim(1, -1).flatten(0, -2)
    wanted = small.movedim(1, -1).flatten(0, -2)
    known = torch.cat([known, torch.ones_like(known[:, :1])], 1)
    solved = torch.linalg.lstsq(known, wanted).solution
    rows: list[Row] = [(red, green, blue) for red, green, blue in solved.tolist()]
    return LinearMap(tuple(rows[:-1]), rows[-1]), float((known @ solved - wanted).square().mean().sqrt())


def _unpatched(latents: Tensor, patch: int) -> Tensor:
    """Undo that each `patch` × `patch` square of latents has become channels."""
    import torch

    return torch.nn.functional.pixel_shuffle(latents, patch) if patch > 1 else latents
