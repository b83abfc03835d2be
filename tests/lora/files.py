"""LoRA files with random numbers for tiny models, in the layouts of several tools."""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sdcli.diffusion.model import LatentDiffusionModel
from sdcli.models.loading import single_file

ATTENTION = re.compile(r"attn\d\.to_(q|k|v|out\.0)$|self_attn\.(q|k|v|out)_proj$")
EVERYTHING = re.compile(r"attn\d\.to_(q|k|v|out\.0)$|self_attn\.\w+$|ff\.net\.\d(\.proj)?$|conv\d$|proj_in$|mlp\.fc\d$")
RANK = 3

Changes = dict[tuple[str, str], dict[str, Tensor]]
"""The tensors of each layer by their role, by the part and the module's name in it."""


def parts(model: LatentDiffusionModel) -> dict[str, nn.Module]:
    encoders = {f"text_encoder{'_2' if index else ''}": each.model for index, each in enumerate(model.text_encoders)}
    return {"unet": model.network, **encoders}


def low_rank(weight: Tensor, generator: torch.Generator, *, alpha: float | None = 2.0) -> dict[str, Tensor]:
    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    out, width, *kernel = weight.shape
    made = {"down": normal(RANK, width, *kernel) * 0.3, "up": normal(out, RANK, *[1] * len(kernel)) * 0.3}
    return made if alpha is None else {**made, "alpha": torch.tensor(alpha)}


def changes(
    model: LatentDiffusionModel,
    layers: re.Pattern[str] = ATTENTION,
    make: Callable[..., dict[str, Tensor]] = low_rank,
    *,
    seed: int = 1,
    only: Iterable[str] = ("unet", "text_encoder", "text_encoder_2"),
    **settings: Any,
) -> Changes:
    """Random changes of the layers of a model whose names match."""
    generator = torch.Generator().manual_seed(seed)
    return {
        (part, name): make(layer.weight, generator, **settings)
        for part, module in parts(model).items()
        for name, layer in module.named_modules()
        if part in only and layers.search(name) and getattr(layer, "weight", None) is not None
    }


_KOHYA = {"down": "lora_down.weight", "up": "lora_up.weight", "mid": "lora_mid.weight"}
_PEFT = {"down": "lora_A.weight", "up": "lora_B.weight", "magnitude": "lora_magnitude_vector"}


def kohya(made: Changes, model: LatentDiffusionModel) -> dict[str, Tensor]:
    prefixes = {"unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2"}
    if len(model.text_encoders) == 2:
        prefixes["text_encoder"] = "lora_te1"
    return _named(made, lambda part, name: f"{prefixes[part]}_{_module(part, name).replace('.', '_')}", _KOHYA)


def kohya_of_sgm(made: Changes, model: LatentDiffusionModel) -> dict[str, Tensor]:
    """Kohya's names for SDXL, which has the original numbers of blocks."""

    def name_of(part: str, name: str) -> str:
        if part == "unet":
            original = single_file.unet(f"{name}.weight", model.network.config).removesuffix(".weight")
            return f"lora_unet_{original.replace('.', '_')}"
        number = "2" if part.endswith("2") else "1" if len(model.text_encoders) == 2 else ""
        return f"lora_te{number}_{_module(part, name).replace('.', '_')}"

    return _named(made, name_of, _KOHYA)


def diffusers(made: Changes, model: LatentDiffusionModel) -> dict[str, Tensor]:
    return _named(made, lambda part, name: f"{part}.{_module(part, name)}", _PEFT)


def old_diffusers(made: Changes, model: LatentDiffusionModel) -> dict[str, Tensor]:
    """The names of diffusers before 0.18, after its attention processors."""

    def name_of(part: str, name: str) -> str:
        if part == "unet":
            return "unet." + re.sub(r"\.to_(q|k|v|out)(\.0)?$", r".processor.to_\1_lora", name)
        return f"{part}.{_module(part, name)}.lora_linear_layer"

    found = {}
    for (part, name), tensors in made.items():
        stem = name_of(part, name)
        found |= {f"{stem}.{role}.weight": tensors[role] for role in ("down", "up")}
    return found


def comfy(made: Changes, model: LatentDiffusionModel) -> dict[str, Tensor]:
    """Original names with dots, as trainers for ComfyUI write them."""

    def name_of(part: str, name: str) -> str:
        if part == "unet":
            original = single_file.unet(f"{name}.weight", model.network.config).removesuffix(".weight")
            return f"diffusion_model.{original}"
        return f"text_encoders.clip_{'g' if part.endswith('2') else 'l'}.transformer.{_module(part, name)}"

    return _named(made, name_of, _PEFT)


LAYOUTS: Mapping[str, Callable[[Changes, LatentDiffusionModel], dict[str, Tensor]]] = {
    each.__name__: each for each in (kohya, kohya_of_sgm, diffusers, old_diffusers, comfy)
}


def _module(part: str, name: str) -> str:
    """The name of a module as transformers 4 had it, for text encoders."""
    return name if part == "unet" else "text_model." + name.removeprefix("text_model.")


def _named(made: Changes, name_of: Callable[[str, str], str], roles: Mapping[str, str]) -> dict[str, Tensor]:
    return {
        f"{name_of(part, name)}.{roles.get(role, role)}": tensor
        for (part, name), tensors in made.items()
        for role, tensor in tensors.items()
    }


def write(path: Path, tensors: Mapping[str, Tensor], **metadata: str) -> Path:
    save_file(
        {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()},
        path,
        metadata or None,
    )
    return path
