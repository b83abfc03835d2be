"""Finds the tensors of a component in a file: alone there, or with other parts; in diffusers' or the original layout.

The layouts of transformers are known to diffusers' converters. They are run on `Recorded` tensors, which only note what
is done to them, so that no weight is read, and each tensor of the module has the tensor it is made of, and how.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdcli.errors import ModelCorrupt
from sdcli.models.families import flow
from sdcli.models.families.split import header_of
from sdcli.models.loading import gguf_names, pixart_names, single_file
from sdcli.models.loading.match import within
from sdcli.models.loading.weights import Stored

_ORIGINAL: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "FluxTransformer2DModel": (
        "convert_flux_transformer_checkpoint_to_diffusers",
        ("double_blocks.", "single_blocks."),
    ),
    "Flux2Transformer2DModel": (
        *("convert_flux2_transformer_checkpoint_to_diffusers", ("double_blocks.", "single_blocks.")),
    ),
    "SD3Transformer2DModel": ("convert_sd3_transformer_checkpoint_to_diffusers", ("joint_blocks.",)),
    "ZImageTransformer2DModel": (
        "convert_z_image_transformer_checkpoint_to_diffusers",
        ("x_embedder.", "final_layer."),
    ),
    "ChromaTransformer2DModel": (
        *("convert_chroma_transformer_checkpoint_to_diffusers", ("double_blocks.", "single_blocks.")),
    ),
    "Krea2Transformer2DModel": ("convert_krea2_transformer_checkpoint_to_diffusers", ("txtfusion.", "txtmlp.")),
    "Lumina2Transformer2DModel": ("convert_lumina2_to_diffusers", ("cap_embedder.", "final_layer.")),
    **dict.fromkeys(("PixArtTransformer2DModel", "SanaTransformer2DModel"), ("", pixart_names.SIGNS)),
    "AutoencoderKLQwenImage": ("convert_wan_vae_to_diffusers", ("encoder.downsamples.", "decoder.upsamples.")),
    "AutoencoderDC": ("convert_autoencoder_dc_checkpoint_to_diffusers", ("encoder.stages.", "decoder.stages.")),
}
"""diffusers' converters by classes, or none if it has none, and the tensors that only the original layout has."""
_ANOTHER = "download the file again, or use one of the model's family"


def find(
    file: Path, stored: Mapping[str, Stored], part: str, module: nn.Module, config: Mapping[str, Any], encoder: str = ""
) -> Mapping[str, Stored]:
    """Return the tensors of `part` in a file with the tensors `stored`, by their names in its empty `module`.

    `encoder` is what the name of a text encoder has in a file of several parts.

    Raises ModelCorrupt, with the tensor's name, for one that is missing or unknown.
    """
    own = _own(file, stored, part, encoder)
    name = type(module).__name__
    converter, signs = _ORIGINAL.get(name, ("", ()))
    if any(key.startswith(signs) for key in own) if signs else False:
        own = _converted(file, own, converter, name)
    elif name in _BY_NAME:
        own = _by_name(own, module, config)
    elif part.startswith("text_encoder"):
        own = _text(file, own, module)
    found = within(own, module, file, f"use a {part} of the model's family, or download the file again")
    shapes = {name: tuple(each.shape) for name, each in module.state_dict().items()}
    return {name: _with_ones(each, shapes[name]) for name, each in found.items()}


def _with_ones(stored: Stored, shape: tuple[int, ...]) -> Stored:
    """Return the tensor with the first dimensions of `shape` that are 1: llama.cpp's tools do not write them."""
    own, view = stored.entry.shape, stored.view
    ones = len(shape) - len(own)
    if ones <= 0 or shape != (1,) * ones + own or stored.is_quantised:
        return stored
    return replace(stored, view=lambda tensor: view(tensor).reshape(shape))


def _own(file: Path, stored: Mapping[str, Stored], part: str, encoder: str) -> Mapping[str, Stored]:
    """Return the tensors of the part, without its prefix."""
    prefix = flow.prefix_of(stored, part, encoder)
    if prefix is None:
        raise ModelCorrupt(f"{file} has no {part}", f"add it: --part {part}=FILE")
    return {key.removeprefix(prefix): stored[key] for key in flow.own_names(stored, part, encoder)}


def _converted(file: Path, own: Mapping[str, Stored], converter: str, name: str) -> Mapping[str, Stored]:
    from diffusers.loaders import single_file_utils

    recorded: dict[str, Any] = {key: Recorded(each) for key, each in own.items()}
    convert: Callable[..., dict[str, Recorded]] = getattr(single_file_utils, converter, None) or partial(
        pixart_names.convert, name=name
    )
    try:
        found = convert(recorded)
    except KeyError as error:
        raise ModelCorrupt(f"{file} has no tensor {error.args[0]}", _ANOTHER) from error
    except (ValueError, IndexError, RuntimeError, AttributeError, TypeError) as error:
        raise ModelCorrupt(f"{file}: its tensors are not those of a {name}: {error}", _ANOTHER) from error
    left = recorded if converter else {}  # those that diffusers' converters do not know
    return {key: each.stored for key, each in {**left, **found}.items()}


class Recorded:
    """A stored tensor in a converter, which notes the operations on it.

    They are on its rows, or keep the order of its numbers.
    """

    def __init__(self, stored: Stored, meta: Tensor | None = None) -> None:
        self.stored = stored
        self.meta = torch.empty(stored.entry.shape, device="meta") if meta is None else meta

    @property
    def shape(self) -> torch.Size:
        """The shape after the operations."""
        return self.meta.shape

    def chunk(self, count: int, dim: int = 0) -> list[Recorded]:
        """Like Tensor.chunk."""
        return [self._then(partial(_piece, count=count, dim=dim, index=each)) for each in range(count)]

    def split(self, sizes: Any, dim: int = 0) -> list[Recorded]:
        """Like Tensor.split. FLUX.1's converter has the sizes of one width; their proportions count."""
        rows, total = self.shape[0], sum(sizes)
        scaled = [size * rows // total for size in sizes]
        if sum(scaled) != rows:
            raise ValueError(f"{self.stored.key} has {rows} rows")
        return [self._then(partial(_split, sizes=scaled, dim=dim, index=each)) for each in range(len(sizes))]

    def reshape(self, *shape: int) -> Recorded:
        """Like Tensor.reshape, which keeps the order of numbers."""
        return self._then(partial(_reshaped, shape=shape))

    def squeeze(self) -> Recorded:
        """Like Tensor.squeeze, of the kernels of convolutions of one pixel."""
        return self.reshape(*self.shape[:2]) if self.shape[2:] == (1, 1) else self

    def _then(self, step: Callable[[Tensor], Tensor]) -> Recorded:
        before = self.stored.view
        return Recorded(replace(self.stored, view=lambda tensor: step(before(tensor))), step(self.meta))

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.chunk:
            return args[0].chunk(*args[1:], **kwargs)
        if function is torch.split:
            return args[0].split(*args[1:], **kwargs)
        if function is torch.cat:
            return _joined(list(args[0]))
        return NotImplemented


def _piece(tensor: Tensor, count: int, dim: int, index: int) -> Tensor:
    return tensor.chunk(count, dim)[index]


def _reshaped(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    return tensor.reshape(shape)


def _split(tensor: Tensor, sizes: list[int], dim: int, index: int) -> Tensor:
    piece: Tensor = torch.split(tensor, sizes, dim)[index]
    return piece


def _joined(pieces: list[Recorded]) -> Recorded:
    if len(pieces) == 1:
        return pieces[0]
    views = [each.stored.view for each in pieces]
    if len({each.stored.key for each in pieces}) > 1:
        raise ValueError("pieces of several tensors are joined")
    return Recorded(
        replace(pieces[0].stored, view=lambda tensor: torch.cat([view(tensor) for view in views])),
        torch.cat([each.meta for each in pieces]),
    )


def _by_name(own: Mapping[str, Stored], module: nn.Module, config: Mapping[str, Any]) -> Mapping[str, Stored]:
    """Rename the tensors of a U-Net or a VAE in the original layout; others keep their names."""
    original = _BY_NAME[type(module).__name__]
    names = {original(name, config): name for name in module.state_dict()}
    if not any(key in own and key != name for key, name in names.items()):
        return own
    renamed = {names.get(key, key): each for key, each in own.items()}
    return {
        name: replace(each, view=single_file.as_linear) if ".attentions.0.to_" in name and _is_vae(module) else each
        for name, each in renamed.items()
    }


def _is_vae(module: nn.Module) -> bool:
    return type(module).__name__ != "UNet2DConditionModel"


def _vae_of_flux2(name: str, config: Mapping[str, Any]) -> str:
    """The original has the quantisation's layers inside of its encoder and its decoder."""
    for half, layer in (("encoder", "quant_conv."), ("decoder", "post_quant_conv.")):
        if name.startswith(layer):
            return f"{half}.{name}"
    return name if name.startswith("bn.") else single_file.vae(name, config)


_BY_NAME: Mapping[str, Callable[[str, Mapping[str, Any]], str]] = {
    "UNet2DConditionModel": single_file.unet,
    "AutoencoderKL": single_file.vae,
    "AutoencoderKLFlux2": _vae_of_flux2,
}


def _text(file: Path, own: Mapping[str, Stored], module: Any) -> Mapping[str, Stored]:
    """Rename the tensors of a text encoder in a GGUF file, and complete what files of text encoders lack.

    A language model that also sees can be without its eyes, and CLIP-L without the projection of its pooled state,
    which is then the identity, as in ComfyUI and diffusers.
    """
    architecture = header_of(file).metadata.get("general.architecture")
    if architecture is not None:
        own = gguf_names.renamed(file, own, module, architecture)
    if hasattr(module, "visual") and not any("visual." in key for key in own):
        module.visual = None
    projection, last = "text_projection.weight", "text_model.final_layer_norm.weight"
    if projection in module.state_dict() and projection not in own and last in own:
        return {**own, projection: replace(own[last], view=lambda norm: torch.eye(len(norm)))}
    return own
