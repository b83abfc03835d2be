"""What is in the file of an IP-Adapter (Ye et al. 2023): its kind, and what it is made for. Reads headers.

The layout is that of h94/IP-Adapter: `image_proj.…` makes tokens of an encoded image, and `ip_adapter.N.to_k_ip` and
`to_v_ip` are further keys and values of the cross-attentions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from sdcli.errors import ModelError
from sdcli.models import families
from sdcli.models.families.header import Header

_LAYER = re.compile(r"ip_adapter\.(\d+)\.to_[kv]_ip\.weight")
_MADE_FOR = {768: "SD 1.x", 1024: "SD 2.x", 2048: "SDXL"}


@dataclass(frozen=True)
class IpAdapterFile:
    """The header of a file. `token_features` is the width of the U-Net's text, `image_features` that of the image's
    encoding, of all its patches (`patches`), before the last layer, or of the whole image.
    """

    token_features: int
    image_features: int
    patches: bool
    layers: int

    @property
    def made_for(self) -> str:
        """The family of models, in words."""
        return _MADE_FOR.get(self.token_features, f"models whose text has {self.token_features} features per token")


def is_ip_adapter(header: Header) -> bool:
    """Whether the tensors of a file are those of an IP-Adapter."""
    return any(name.startswith("image_proj.") for name in header.tensors) and any(map(_LAYER.match, header.tensors))


def read(path: Path) -> IpAdapterFile:
    """Read the header of an IP-Adapter. Raises what `families.read_header` raises, and ModelError for anything else."""
    header = families.read_header(path)
    if not is_ip_adapter(header):
        hint = "an IP-Adapter has tensors such as image_proj.proj.weight and ip_adapter.1.to_k_ip.weight"
        raise ModelError(f"{path} is no IP-Adapter", hint)
    shapes = {
        name.removeprefix("image_proj."): each.shape
        for name, each in header.tensors.items()
        if name.startswith("image_proj.")
    }
    layers = sum(1 for name in header.tensors if _LAYER.fullmatch(name)) // 2
    try:
        if "proj.weight" in shapes:
            return IpAdapterFile(shapes["proj.weight"][0] // 4, shapes["proj.weight"][1], False, layers)
        if "latents" in shapes and "proj_out.weight" in shapes:
            return IpAdapterFile(shapes["proj_out.weight"][0], shapes["proj_in.weight"][1], True, layers)
        if "proj.3.weight" in shapes:
            return IpAdapterFile(shapes["proj.3.weight"][0], shapes["proj.0.weight"][1], True, layers)
    except (KeyError, IndexError):
        pass
    face = "norm.weight" in shapes or "perceiver_resampler.proj_in.weight" in shapes
    what = "an IP-Adapter of the kind FaceID" if face else "an IP-Adapter of an unknown kind"
    hint = "use one of h94/IP-Adapter: base, light, plus, plus-face or full-face"
    raise ModelError(f"{path} is {what}, which is not supported", hint)
