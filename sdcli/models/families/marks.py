"""What a single file says of how its network was trained, besides names and shapes: its marks. Imports no torch.

A mark is an entry of the header's metadata (`modelspec.prediction_type`), an empty tensor (`v_pred`, `ztsnr`, as
ComfyUI and Automatic1111 read them), or a key of a NAME.yaml next to the file, in the form of CompVis and SGM. A mark
is followed or refused: pictures made against it are noise.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdcli.errors import ModelCorrupt, ModelError
from sdcli.files.json_files import read_bounded
from sdcli.models.families.header import Header

MAX_BYTES = 2**18
_CHOOSE = "use another model; or name its family: sdcli models add NAME FILE, then family in the file that it prints"
_EDM = ("edm_mean", "edm_std", "edm_vpred.")
_BASE_STEP = 875_000
"""The `global_step` of the 2.0 base model, which predicts noise, as in diffusers."""
_PREDICTIONS = {"epsilon": False, "eps": False, "v": True, "v_prediction": True, "v-prediction": True, "vpred": True}
_SCALINGS = {"EpsScaling": False, "VScaling": True, "VScalingWithEDMcNoise": None, "EDMScaling": None}
"""Classes of the `scaling_config` in SGM's configs; None for those that are not supported."""
_ZERO_SNR = ("rescale_betas_zero_snr", "zsnr", "ztsnr", "zero_terminal_snr")
_VALUES = ("linear_start", "linear_end", "timesteps", "scale_factor")
"""Keys of CompVis' configs whose values a family fixes."""


@dataclass(frozen=True)
class Marks:
    """Whether the file predicts v, None if that is not recorded; and whether its schedule has zero terminal SNR.

    `values` are those of the YAML that a family fixes, by the names of CompVis.
    """

    predicts_v: bool | None
    zero_snr: bool
    values: Mapping[str, Any]


def yaml_beside(path: Path) -> Path | None:
    """Return the NAME.yaml next to the file, if it is one that describes a model."""
    for suffix in (".yaml", ".yml"):
        file = path.with_suffix(suffix)
        if file.is_file() and any(True for _ in _pairs(_read(file))):
            return file
    return None


def read(path: Path, header: Header) -> Marks:
    """Read all marks. Raises ModelError for those that contradict each other or are not supported, and ModelCorrupt."""
    edm = next((name for name in header.tensors if name.startswith(_EDM)), None)
    if edm is not None:
        raise ModelError(
            f"{path} has {edm}: it was trained with the noise of EDM, which is not supported", "use another model"
        )
    predictions, zero_snr = set(_own_predictions(path, header)), "ztsnr" in header.tensors
    beside = yaml_beside(path)
    pairs = [] if beside is None else list(_pairs(_read(beside)))
    for key, value in pairs:
        predictions |= _prediction(path.with_suffix(".yaml"), key, value)
        zero_snr |= key in _ZERO_SNR and value is True
    if len(predictions) > 1:
        raise ModelError(f"{path} is marked as predicting both noise and v", _CHOOSE)
    predicts_v = next(iter(predictions), None)
    if predicts_v is None:
        predicts_v = _by_global_step(path, header)
    if zero_snr and not predicts_v:
        raise ModelError(f"{path} is marked with zero terminal SNR, but not with v-prediction", _CHOOSE)
    return Marks(predicts_v, zero_snr, {key: value for key, value in pairs if key in _VALUES})


def check_values(path: Path, values: Mapping[str, Any], scheduler: Mapping[str, Any], vae: Mapping[str, Any]) -> None:
    """Raise ModelError if a value of the YAML next to `path` is not that of the family's configs."""
    ours = {
        "linear_start": scheduler["beta_start"],
        "linear_end": scheduler["beta_end"],
        "timesteps": scheduler["num_train_timesteps"],
        "scale_factor": vae["scaling_factor"],
    }
    for key, value in values.items():
        if value != ours[key]:
            raise ModelError(
                f"the YAML next to {path} sets {key} to {value!r}, and models of its kind have {ours[key]!r}", _CHOOSE
            )


def _own_predictions(path: Path, header: Header) -> Iterator[bool]:
    recorded = header.metadata.get("modelspec.prediction_type", "").strip().lower()
    if recorded:
        yield _known(path, "modelspec.prediction_type", recorded)
    if "v_pred" in header.tensors:
        yield True


def _known(path: Path, key: str, value: str) -> bool:
    if value not in _PREDICTIONS:
        raise ModelError(f"{path}: {key} is {value!r}, which is not supported", _CHOOSE)
    return _PREDICTIONS[value]


def _prediction(file: Path, key: str, value: Any) -> set[bool]:
    """Return the prediction that a key of the YAML sets. Raises ModelError for a value that is not supported."""
    if key == "parameterization":
        return {_known(file, key, str(value).lower())}
    name = str(value).rpartition(".")[2]
    if key == "target" and name in _SCALINGS:
        predicts_v = _SCALINGS[name]
        if predicts_v is None:
            raise ModelError(f"{file}: {name} is not supported", _CHOOSE)
        return {predicts_v}
    return set()


def _pairs(content: Any) -> Iterator[tuple[str, Any]]:
    """Yield the keys that matter and their values, wherever they are; each mapping once, however often it is used."""
    known = ("parameterization", "target", *_ZERO_SNR, *_VALUES)
    waiting, seen = [content], set()
    while waiting:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, list):
            waiting += each
        elif isinstance(each, Mapping):
            yield from ((key, value) for key, value in each.items() if key in known and not isinstance(value, dict))
            waiting += each.values()


def _read(file: Path) -> Any:
    """Return the content of a YAML file: plain values, mappings and lists."""
    import yaml

    try:
        return yaml.safe_load(read_bounded(file, MAX_BYTES).decode("utf-8-sig"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError, AttributeError, TypeError) as error:
        what = " ".join(str(error).split())
        raise ModelCorrupt(
            f"{file} cannot be read: {what}", "fix it, or rename it if it is not of this model"
        ) from error


def _by_global_step(path: Path, header: Header) -> bool | None:
    step = header.tensors.get("global_step")
    if step is None or step.dtype != "I64" or step.shape not in ((), (1,)):
        return None
    with path.open("rb") as file:
        file.seek(step.start)
        return False if struct.unpack("<q", file.read(8))[0] == _BASE_STEP else None
