"""Reads a pickled file of weights and writes its tensors as `.safetensors`: `python -m sdcli.models.unpickle IN OUT`.

The only place where a pickle is opened, and always in a process of its own (see convert.py): by torch's reader for
weights only, which makes tensors and containers and calls nothing else. Objects of other classes become empty
placeholders. The process cannot use the network, run programs, or write any file but OUT.

Prints JSON: the number of `tensors`, what was `dropped`, and the `kind` of the content. On failure the exit status is
3, and the last line on stderr is the reason.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_FORBIDDEN = (
    *("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.remove", "os.rename"),
    *("os.rmdir", "os.mkdir", "os.link", "os.symlink", "shutil.", "ctypes.", "urllib.", "ftplib.", "http."),
)
_INSIDE = ("state_dict", "params_ema", "params", "g_ema", "model_state_dict", "model")
"""The keys under which training scripts keep the weights, the preferred one first."""
_EMBEDDING = "string_to_param"


def main(source: str, target: str) -> int:
    """Convert `source` to `target` and return the exit status."""
    import torch
    from safetensors.torch import save_file

    torch.empty(1).numpy()  # what is imported lazily is imported before the restrictions
    _restrict(target)
    try:
        placeholders = _allow_placeholders(source)
        content = torch.load(source, map_location="cpu", weights_only=True, mmap=_is_archive(source))
    except Exception as error:  # noqa: BLE001  the reader raises many kinds
        print(_reason(error), file=sys.stderr)
        return 3
    kind, tensors, dropped = extract(content)
    if not tensors:
        print("it has no tensors", file=sys.stderr)
        return 3
    own = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    save_file(own, target, {"format": "pt"})
    print(json.dumps({"kind": kind, "tensors": len(own), "dropped": [*dropped, *placeholders]}))
    return 0


def _reason(error: Exception) -> str:
    """Return the part of torch's long message that says what is wrong, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = (line for line in lines if "GLOBAL" in line or "WeightsUnpickler error" in line)
    return next(told, lines[0] if lines else type(error).__name__)[:300]


def extract(content: Any) -> tuple[str, dict[str, Any], list[str]]:
    """Return the kind of a file's content, its tensors by name, and the names of everything else."""
    dropped: list[str] = []
    prefix = ""
    while isinstance(content, Mapping) and not _is_tensor(next(iter(content.values()), None)):
        if isinstance(content.get(_EMBEDDING), Mapping):
            vectors = next((each for each in content[_EMBEDDING].values() if _is_tensor(each)), None)
            found = {} if vectors is None else {"emb_params": vectors}
            return "an embedding", found, [f"{prefix}{key}" for key in content if key != _EMBEDDING]
        inside = next((key for key in _INSIDE if isinstance(content.get(key), Mapping)), None)
        if inside is None:
            break
        dropped += [f"{prefix}{key}" for key in content if key != inside]
        content, prefix = content[inside], f"{prefix}{inside}."
    tensors = {str(name): each for name, each in _items(content) if _is_tensor(each)}
    dropped += [f"{prefix}{name}" for name, each in _items(content) if not _is_tensor(each)]
    return _kind(tensors), tensors, dropped


def _items(content: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(content, Mapping):
        yield from content.items()


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _kind(tensors: Mapping[str, Any]) -> str:
    signs = {
        "a LoRA": (".lora_down.weight", ".lora_up.weight", ".lora_A.weight", ".hada_w1_a", ".lokr_w1"),
        "a checkpoint": ("diffusion_model.out.2.weight",),
        "a ControlNet": ("zero_convs.0.0.weight",),
        "a VAE": ("decoder.conv_in.weight", "decoder.conv_out.weight"),
    }
    for kind, ends in signs.items():
        if any(name.endswith(ends) for name in tensors):
            return kind
    return "weights"


def _is_archive(source: str) -> bool:
    import zipfile

    return zipfile.is_zipfile(source)


def _allow_placeholders(source: str) -> list[str]:
    """Let the reader replace objects of unknown classes by empty placeholders; returns their classes."""
    import torch

    if not _is_archive(source):
        return []
    unknown = torch.serialization.get_unsafe_globals_in_checkpoint(source)
    torch.serialization.add_safe_globals([(type("Placeholder", (_Placeholder,), {}), name) for name in unknown])
    return [f"objects of {name}" for name in unknown]


class _Placeholder:
    """An object that takes any state and keeps nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _restrict(target: str) -> None:
    """Forbid this process the network, programs, and writing any file but `target`."""
    allowed = str(Path(target).resolve())

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event.startswith(_FORBIDDEN):
            raise PermissionError(f"a file of weights must not use {event}")
        writes = isinstance(args[1], str) and any(letter in args[1] for letter in "wax+") if len(args) > 1 else False
        if event == "open" and writes and str(Path(str(args[0])).resolve()) != allowed:
            raise PermissionError(f"a file of weights must not write {args[0]}")

    sys.addaudithook(hook)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
