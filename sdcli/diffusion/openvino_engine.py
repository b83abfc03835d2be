"""OpenVINO as the engine of a U-Net and of the VAE's decoder: converted once, kept on disk, and run on the CPU.

The modules of torch remain as shells with their configs, whose `forward` calls OpenVINO; their weights are freed. Text
encoders and the VAE's encoder, which run once, stay in torch.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdcli.diffusion.model import LatentDiffusionModel
from sdcli.errors import InvalidRecipe
from sdcli.files.user_files import cache_folder, locked

_HINTS = {torch.float32: "f32", torch.bfloat16: "bf16"}
_DECODERS = ("AutoencoderKL", "AutoencoderTiny")


def check() -> None:
    """Raise InvalidRecipe if the package is not installed."""
    if find_spec("openvino") is None:
        hint = "install it with: pip install 'sdcli[openvino]'; or omit --engine"
        raise InvalidRecipe("--engine openvino needs the package openvino", hint, "engine")


def prepare(model: LatentDiffusionModel, identity: str) -> LatentDiffusionModel:
    """Have OpenVINO run the network, that of a refiner, and the VAE's decoder, where they are loaded; return `model`.

    They are converted at their first call, unless those of the same `identity`, the digest of all weights and how they
    are merged, are kept already. Raises InvalidRecipe if the network is no U-Net.
    """
    check()
    if model.architecture != "unet":
        raise InvalidRecipe("engine openvino only runs models with a U-Net", "omit engine", "engine")
    for name, each in (("unet", model), ("refiner", model.refiner)):
        if each is not None and _is_loaded(each.network):
            each.network.forward = _forward_of(each.network, name, identity)
    if type(model.vae).__name__ in _DECODERS and _is_loaded(model.vae):
        model.vae.decoder.forward = _forward_of(model.vae.decoder, "vae-decoder", identity)
    return model


def _is_loaded(module: nn.Module) -> bool:
    return not any(each.is_meta for each in module.parameters())


def _forward_of(module: nn.Module, name: str, identity: str) -> Callable[..., Any]:
    """Return what replaces the `forward` of a module whose output is one tensor, or a tuple of one."""
    original = module.forward
    dtype = next(module.parameters()).dtype
    loaded: dict[tuple[str, ...], Any] = {}
    compiled: dict[Any, Any] = {}

    def forward(*inputs: Tensor, return_dict: bool = True, **named: Any) -> Any:
        given = _flat(inputs, named)
        names, as_tuple = tuple(given), module.__class__.__name__ == "UNet2DConditionModel"
        if names not in loaded:
            wrapped = _Flat(original, names, len(inputs), as_tuple)
            loaded[names] = _converted(wrapped, given, f"{name}-{_digest(identity, dtype, names)}")
            module.to("meta").to(dtype)
        hint = _HINTS[inputs[0].dtype]
        key = names, hint, torch.get_num_threads(), tuple(each.shape for each in given.values())
        if key not in compiled:
            compiled.clear()  # one size at a time: each holds its own copy of the weights
            compiled[key] = _compiled(loaded[names], given, hint)
        made = compiled[key]([each.float().contiguous().numpy() for each in given.values()])[0]
        result = torch.from_numpy(made).to(inputs[0].dtype)
        return (result,) if as_tuple else result

    return forward


def _flat(inputs: tuple[Tensor, ...], named: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return all tensors of a call by name, with those of `added_cond_kwargs` among them."""
    found = {str(place): each for place, each in enumerate(inputs)}
    for key, value in named.items():
        for inner, each in (value if isinstance(value, dict) else {key: value}).items():
            if each is not None:
                found[inner] = each
    return found


class _Flat(nn.Module):
    """Calls `original` with tensors only, as a trace needs it."""

    def __init__(self, original: Any, names: tuple[str, ...], positional: int, as_tuple: bool) -> None:
        super().__init__()
        self.module = original.__self__
        self.original, self.names, self.positional, self.as_tuple = original, names, positional, as_tuple

    def forward(self, *tensors: Tensor) -> Tensor:
        named: dict[str, Any] = dict(zip(self.names, tensors, strict=True))
        inputs = [named.pop(str(place)) for place in range(self.positional)]
        added = {key: named.pop(key) for key in ("text_embeds", "time_ids") if key in named}
        options = {"return_dict": False} if self.as_tuple else {}
        made = self.original(*inputs, **named, **({"added_cond_kwargs": added} if added else {}), **options)
        result: Tensor = made[0] if self.as_tuple else made
        return result


def _digest(identity: str, dtype: torch.dtype, names: tuple[str, ...]) -> str:
    parts = (identity, str(dtype), *names, *(version(each) for each in ("openvino", "diffusers", "torch")))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _converted(module: _Flat, example: Mapping[str, Tensor], name: str) -> Any:
    """Return the model of OpenVINO that is kept under `name`, converted now if there is none."""
    import openvino

    folder = cache_folder() / "openvino"
    with locked(folder):
        place = folder / name
        if not place.is_dir():
            temporary = Path(tempfile.mkdtemp(dir=folder))
            try:
                half = next(module.parameters()).dtype != torch.float32  # float16 has room for most of bfloat16
                openvino.save_model(_convert(module, example), temporary / "model.xml", compress_to_fp16=half)
                temporary.rename(place)
            except BaseException:
                shutil.rmtree(temporary)
                raise
    return openvino.Core().read_model(place / "model.xml")


def _convert(module: _Flat, example: Mapping[str, Tensor]) -> Any:
    """Trace the module in float32, and convert it. In which precision it runs is decided when it is compiled.

    `openvino.convert_model` is not used: it has telemetry.
    """
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        warnings.simplefilter("ignore")  # about values that are constants in a trace, which they are here
        copies = tuple(each.to(torch.float32, copy=True) for each in example.values())
        module.float()
        decoder = TorchScriptPythonDecoder(module, example_input=copies, trace_kwargs={"check_trace": False})
    frontend = FrontEndManager().load_by_framework("pytorch")
    return frontend.convert(frontend.load(decoder))


def _compiled(model: Any, example: Mapping[str, Tensor], hint: str) -> Any:
    """Compile for the sizes of `example`, which is faster than for any size."""
    import openvino

    sized = model.clone()
    sized.reshape({place: list(each.shape) for place, each in enumerate(example.values())})
    options = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    return openvino.Core().compile_model(sized, "CPU", options)
