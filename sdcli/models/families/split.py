"""Models of which each part is a file of its own: which parts a file has, and which are missing. Reads only headers.

The file with the transformer names the model; the others are given with `--part`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from sdcli.errors import ModelCorrupt, ModelError, ModelNotFound
from sdcli.files.json_files import load_json
from sdcli.files.user_files import stamp
from sdcli.models.families import flow
from sdcli.models.families.header import Header, read_header

HERE = Path(__file__).parent


def is_flow(file: Path) -> bool:
    """Whether the file has a transformer of flow matching; a file that cannot be read has none."""
    return kind_of(file) is not None


def kind_of(file: Path) -> str | None:
    """Return the kind of the transformer in a file, if it can be read and has one."""
    try:
        return flow.kind_of(header_of(file).tensors)
    except ModelError:
        return None


def header_of(file: Path) -> Header:
    """Return the header of a file, from memory while the file is unchanged. Raises what `read_header` raises."""
    return _header(file, stamp(file))


@lru_cache(maxsize=8)
def _header(file: Path, stamp: object) -> Header:
    return read_header(file)


def has_part(file: Path, part: str) -> bool:
    """Whether a file with a transformer of flow matching has this part too."""
    kind = kind_of(file)
    return kind is not None and _prefix(file, kind, part) is not None


def _prefix(file: Path, kind: str, part: str) -> str | None:
    return flow.prefix_of(header_of(file).tensors, part, flow.KINDS[kind].encoders.get(part, ""))


def check_parts(file: Path, parts: Mapping[str, Path]) -> None:
    """Raise ModelNotFound if parts of a model are neither in `file`, which has its transformer, nor among `parts`."""
    kind = kind_of(file)
    if kind is None:
        return
    missing = list(_missing(file, kind, parts))
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        files = flow.KINDS[kind].files
        raise ModelNotFound(
            f"{file} is only a part of a model: its {' and '.join(missing)} {verb} missing",
            f"add {' '.join(f'--part {part}={files[part]}' for part in missing)}",
        )


def _missing(file: Path, kind: str, parts: Mapping[str, Path]) -> Iterator[str]:
    for part in flow.KINDS[kind].files:
        if part not in parts and part not in flow.OPTIONAL and _prefix(file, kind, part) is None:
            yield part


def has_config(folder: Path, part: str, class_name: str) -> bool:
    """Whether `folder` has the config of such a part, in place of one of `class_name`, for a file with its weights."""
    try:
        config = load_json(folder / "config.json")
    except (OSError, ValueError):
        return False
    if not isinstance(config, dict):
        return False
    if part.startswith("text_encoder"):
        listed = config.get("architectures")
        return isinstance(listed, list) and bool(listed) and str(listed[0])[:_ALIKE] == class_name[:_ALIKE]
    return _IN_NAMES.get(part, part) in str(config.get("_class_name"))


def config_of_tiny_vae(file: Path) -> Path | None:
    """Return the folder with the config of a tiny autoencoder's file, next to it or here, or None for another file.

    Raises ModelCorrupt for a file that has only half of one.
    """
    tensors = header_of(file).tensors if file.suffix == ".safetensors" else {}
    if "1.weight" in tensors and "3.conv.0.weight" in tensors:
        hint = "use the folder of the tiny autoencoder, or its diffusion_pytorch_model.safetensors, which has both"
        raise ModelCorrupt(f"{file} is only the encoder or the decoder of a tiny autoencoder", hint)
    first = tensors.get("decoder.layers.0.weight")
    if first is None or "encoder.layers.0.weight" not in tensors:
        return None
    if has_config(file.parent, "tiny vae", ""):
        return file.parent
    folder = HERE / f"tiny-vae-{first.shape[1]}"
    return folder if folder.is_dir() else None


_IN_NAMES = {"transformer": "Transformer2DModel", "unet": "UNet2D", "vae": "Autoencoder", "tiny vae": "AutoencoderTiny"}
"""What the names of the classes of parts have."""
_ALIKE = 5
"""The letters that the names of classes of one kind of text encoder begin with: with a head, or without."""
