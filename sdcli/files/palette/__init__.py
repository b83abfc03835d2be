"""The classes of a segmentation map and their colours: `classes.json` in a model's folder.

The file is a JSON list of `{"index": 0, "name": "sky", "color": [120, 180, 240]}`, ordered by index, which is also the
order of the U-Net's channels after the latents. The palette of ADE20K, which ControlNets for segmentation are trained
with, is shipped in the same form (ade20k/ in this folder). Reads and writes only JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sdcli.errors import ModelCorrupt
from sdcli.files.json_files import load_json

FILE = "classes.json"
ADE20K = "ade20k"
SHIPPED = (ADE20K,)
MAX_CLASSES = 256
"""The number of values of an 8-bit image of indices."""


@dataclass(frozen=True)
class Class:
    """One class of a map. `color` is red, green, blue, 0 … 255."""

    index: int
    name: str
    color: tuple[int, int, int]

    @property
    def hex(self) -> str:
        """The colour as `#rrggbb`."""
        return "#" + bytes(self.color).hex()


def shipped(name: str) -> tuple[Class, ...]:
    """Return the classes of one of SHIPPED."""
    return read(Path(__file__).parent / name)


def find(unet: Path) -> Path:
    """Return the path of FILE for the U-Net in the folder `unet`, which is in it or in the folder above."""
    return unet / FILE if (unet / FILE).exists() else unet.parent / FILE


def read(folder: Path) -> tuple[Class, ...]:
    """Read the classes of the model in `folder`, empty without a FILE. Raises ModelCorrupt if it is invalid."""
    file = folder / FILE
    try:
        listed = load_json(file)
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except (OSError, ValueError) as error:
        raise _wrong(file, str(error)) from error
    try:
        classes = tuple(_class(each) for each in listed)
    except (TypeError, KeyError, ValueError) as error:
        raise _wrong(file, f"an entry is not a class: {error}") from error
    fault = _fault(classes)
    if fault:
        raise _wrong(file, fault)
    return classes


def write(folder: Path, classes: Iterable[Class]) -> None:
    """Write FILE to `folder`, one entry per line. Raises ValueError for classes that `read` would reject."""
    classes = tuple(classes)
    fault = _fault(classes)
    if fault:
        raise ValueError(fault)
    lines = ",\n".join(f"  {json.dumps(asdict(each), ensure_ascii=False)}" for each in classes)
    (folder / FILE).write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def _class(entry: Any) -> Class:
    index, name, color = entry["index"], entry["name"], entry["color"]
    if type(index) is not int or type(name) is not str or not name:
        raise ValueError(f"{entry} has no index or no name")
    if len(color) != 3 or not all(type(value) is int and 0 <= value <= 255 for value in color):
        raise ValueError(f"the color of {name} is {color}")
    return Class(index, name, tuple(color))


def _fault(classes: Sequence[Class]) -> str | None:
    """Return what is wrong with the list of classes, or None."""
    if not 1 <= len(classes) <= MAX_CLASSES:
        return f"it lists {len(classes)} classes, and there must be 1 to {MAX_CLASSES}"
    if [each.index for each in classes] != list(range(len(classes))):
        return f"its indices are not 0 to {len(classes) - 1} in order"
    names = [each.name for each in classes]
    twice = next((name for name in names if names.count(name) > 1), None)
    return None if twice is None else f"two classes have the name {twice}"


def _wrong(file: Path, what: str) -> ModelCorrupt:
    return ModelCorrupt(f"{file}: {what}", "download the model's folder again; this file lists the classes of its maps")
