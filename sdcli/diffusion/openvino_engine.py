"""OpenVINO as the engine of a network and of the VAE's decoder: converted once, kept on disk, run on a CPU, GPU or NPU.

The modules of torch remain as shells with their configs, whose `forward` calls OpenVINO; their weights are freed. Text
encoders and the VAE's encoder, which run once, stay in torch.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_flatten, tree_unflatten

from sdcli.diffusion import converted, halves, subpixel
from sdcli.diffusion.model import LatentDiffusionModel
from sdcli.errors import InvalidRecipe
from sdcli.files.user_files import locked
from sdcli.recipe.parts import OF_OPENVINO

_HINTS = {torch.float32: "f32", torch.bfloat16: "bf16"}
REFUSED = {"lumina2": "Lumina 2", "qwen_image": "Qwen-Image", "z_image": "Z-Image"}
"""The architectures that OpenVINO 2026.4 cannot convert: they compute with complex numbers."""
_DECODERS = ("AutoencoderKL", "AutoencoderTiny")
_CORES: list[Any] = []
"""The core of this process, once there is one."""


def check() -> None:
    """Raise InvalidRecipe if the package is not installed."""
    if find_spec("openvino") is None:
        hint = "install it with: pip install 'sdcli[openvino]'; or omit --engine"
        raise InvalidRecipe("--engine openvino needs the package openvino", hint, "engine")


def choose(asked: str) -> str:
    """Return the device of a recipe that `asked` means: `auto` is the CPU.

    Raises InvalidRecipe if OpenVINO does not find it, or is not installed.
    """
    if asked in ("auto", "cpu"):
        return "cpu"
    check()
    if OF_OPENVINO[asked] not in {each.partition(".")[0] for each in _core().available_devices}:
        hint = "install its driver for OpenVINO, or choose --device cpu"
        raise InvalidRecipe(f"OpenVINO finds no {asked} device here", hint, "device")
    return asked


def prepare(model: LatentDiffusionModel, identity: str, device: str = "cpu") -> LatentDiffusionModel:
    """Have OpenVINO run the network, that of a refiner, and the VAE's decoder, where they are loaded; return `model`.

    `device` is that of the resolved recipe.

    They are converted at their first call, unless those of the same `identity`, the digest of all weights and how they
    are merged, are kept already. Raises InvalidRecipe for a network that cannot be converted.
    """
    check()
    if model.architecture in REFUSED:
        what = f"engine openvino cannot convert the transformer of {REFUSED[model.architecture]}"
        raise InvalidRecipe(what, "omit engine", "engine")
    for name, each in (("network", model), ("refiner", model.refiner)):
        if each is not None and _is_loaded(each.network):
            shares = model.architecture == "unet"
            each.network.forward = _Forward(each.network, name, identity, device, shares=shares)
    if type(model.vae).__name__ in _DECODERS and _is_loaded(model.vae):
        model.vae.decoder.forward = _Forward(model.vae.decoder, "vae-decoder", identity, device)
    return model


def _is_loaded(module: nn.Module) -> bool:
    return not any(each.is_meta for each in module.parameters())


class _Forward:
    """What replaces the `forward` of a module whose output is one tensor, or a tuple of one.

    If it `shares`, the module is a UNet2DConditionModel, whose halves of guidance can share layers.
    """

    def __init__(self, module: nn.Module, name: str, identity: str, device: str, *, shares: bool = False) -> None:
        self._original, self._shares, self._parts = module.forward, shares, 1
        self._name, self._identity, self._device = name, identity, device
        self._dtype = next(module.parameters()).dtype
        self._loaded: dict[str, Any] = {}
        self._compiled: dict[Any, Any] = {}

    @contextmanager
    def computed_once(self) -> Iterator[None]:
        """Compute the layers before the context for one half of the batch."""
        self._parts = 2 if self._shares else 1
        try:
            yield
        finally:
            self._parts = 1

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        called = _Call(self._original, inputs, named, shares=self._shares)
        kind, threads = called.kind, torch.get_num_threads()
        if kind not in self._loaded:
            dtype = str(self._dtype).removeprefix("torch.")
            self._loaded[kind] = _converted(called, converted.place(self._name, self._identity, dtype, kind))
            called.module.to("meta").to(self._dtype)
        key = kind, threads, self._parts, tuple(each.shape for each in called.tensors)
        if key not in self._compiled:
            self._compiled.clear()  # one size at a time: each holds its own copy of the weights
            model = _with_parts(self._loaded[kind], self._parts) if self._shares else self._loaded[kind].clone()
            self._compiled[key] = _compiled(model, called.tensors, self._dtype, self._device)
        made = self._compiled[key]([_exact(each).contiguous().numpy() for each in called.tensors])[0]
        result = torch.from_numpy(made).to(self._dtype)
        return (result,) if named.get("return_dict") is False else result


class _Call(nn.Module):
    """A call of `original`, the `forward` of a module, as a function of the tensors in its arguments.

    If it `shares`, the last one says of how many equal parts the layers before the context compute one.
    `kind` tells apart calls that give different functions: with other arguments, or other ones than tensors.
    """

    def __init__(self, original: Any, inputs: tuple[Any, ...], named: dict[str, Any], *, shares: bool) -> None:
        super().__init__()
        self.module, self.original, self.shares = original.__self__, original, shares
        self._leaves, self._spec = tree_flatten((inputs, named))
        self.tensors = [each for each in self._leaves if isinstance(each, Tensor)]
        others = [None if isinstance(each, Tensor) else each for each in self._leaves]
        self.kind = f"{self._spec} {others}" + " and parts" * shares

    def forward(self, *tensors: Tensor) -> Tensor:
        """Call it with these tensors instead."""
        parts = tensors[-1] if self.shares else None
        given = iter(tensors)
        leaves = [next(given) if isinstance(each, Tensor) else each for each in self._leaves]
        inputs, named = tree_unflatten(leaves, self._spec)
        with halves.computed_in_part(self.module, parts) if parts is not None else nullcontext():
            made = self.original(*inputs, **named)
        while isinstance(made, tuple | list):
            made = made[0]
        result: Tensor = made
        return result


def _exact(tensor: Tensor) -> Tensor:
    """Return a tensor in a type of numbers that OpenVINO and numpy know."""
    return tensor.float() if tensor.is_floating_point() else tensor


def _converted(called: _Call, place: Path) -> Any:
    """Return the model of OpenVINO that is kept in the folder `place`, converted now if there is none."""
    import openvino

    with locked(place.parent):
        if not place.is_dir():
            temporary = Path(tempfile.mkdtemp(dir=place.parent))
            try:
                half = next(called.parameters()).dtype != torch.float32  # float16 has room for most of bfloat16
                openvino.save_model(_convert(called), temporary / "model.xml", compress_to_fp16=half)
                temporary.rename(place)
            except BaseException:
                shutil.rmtree(temporary)
                raise
    return _core().read_model(place / "model.xml")


def _core() -> Any:
    """Return the core of OpenVINO, one for the whole process.

    The CPU plugin of each core gives signal handlers a stack, and frees it with itself. If there were several that did
    not end in reverse order, a freed stack would remain in use (OpenVINO 2026.4): the next signal would be a crash.
    """
    import openvino

    if not _CORES:
        _CORES.append(openvino.Core())
    return _CORES[0]


def _convert(called: _Call) -> Any:
    """Trace the call in float32, and convert it. In which precision it runs is decided when it is compiled.

    `openvino.convert_model` is not used: it has telemetry.
    """
    from openvino.frontend import FrontEndManager, OpConversionFailure
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        warnings.simplefilter("ignore")  # about values that are constants in a trace, which they are here
        copies = [_exact(each).clone() for each in called.tensors]
        if called.shares:
            # an odd size, for which a U-Net reads the sizes to upsample to from its inputs
            height, width = copies[0].shape[2:]
            copies[0] = functional.pad(copies[0], (0, 1 - width % 2, 0, 1 - height % 2))
            copies.append(torch.tensor(1))
        called.float()
        decoder = TorchScriptPythonDecoder(called, example_input=tuple(copies), trace_kwargs={"check_trace": False})
    frontend = FrontEndManager().load_by_framework("pytorch")
    try:
        return frontend.convert(frontend.load(decoder))
    except OpConversionFailure as error:
        what = f"OpenVINO cannot convert a {type(called.module).__name__}"
        raise InvalidRecipe(what, "omit engine", "engine") from error


def _with_parts(model: Any, parts: int) -> Any:
    """Return a copy of a converted `_Call` that shares, with its last argument fixed."""
    from openvino import op

    fixed = model.clone()
    parameter = fixed.get_parameters()[-1]
    constant = op.Constant(np.array(parts, dtype=np.int64))
    for each in parameter.output(0).get_target_inputs():
        each.replace_source_output(constant.output(0))
    fixed.remove_parameter(parameter)
    return fixed


def _compiled(model: Any, tensors: Sequence[Tensor], dtype: torch.dtype, device: str) -> Any:
    """Compile `model`, which is changed, for the sizes of `tensors`, which is faster than for any size.

    GPUs and NPUs compute with float16 where the CPU does with bfloat16.
    """
    model.reshape({place: list(each.shape) for place, each in enumerate(tensors)})
    if device == "cpu":
        subpixel.shorten(model)
        options = {"INFERENCE_PRECISION_HINT": _HINTS[dtype], "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        return _core().compile_model(model, "CPU", options)
    options = {"INFERENCE_PRECISION_HINT": "f32" if dtype == torch.float32 else "f16"}
    return _core().compile_model(model, OF_OPENVINO[device], options)
