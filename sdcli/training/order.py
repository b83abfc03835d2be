"""What is to be trained, from what, and where to: settled and checked before anything heavy is imported.

A run is a folder. Its `run.json` says how it was begun, so that the same command, or a shorter one, goes on with it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from sdcli.errors import InputError, ModelCorrupt, ModelNotFound, OutputError, UsageError
from sdcli.files import palette
from sdcli.files.palette import Class
from sdcli.training.imagefolder import Row, read_rows
from sdcli.training.settings import STAGES, Training, resumed

RUN = "run.json"
WORLDS = ("kit", "kit-rows", "kit-mixed", "few")
MODEL = "model"
"""The folder in a run's folder that its finished model is written to."""


@dataclass(frozen=True)
class Begin:
    """How a run begins, beside its settings; paths are absolute. None of `data` is the synthetic world.

    `sprites` is the folder or archive of the world's subjects, None the npm package, and `world` what it holds. `base`
    is a diffusers folder to go on from, `vae` an autoencoder to build a new model on. `size` is the side of the
    autoencoder's pictures. `text` says whether the text encoder is trained too; None: where it is new.
    """

    data: str | None = None
    sprites: str | None = None
    world: str = "kit"
    base: str | None = None
    vae: str | None = None
    size: int | None = None
    text: bool | None = None


@dataclass(frozen=True)
class Order:
    """A run: what `run.json` says, and where it stands."""

    stage: str
    out: Path
    settings: Training
    begin: Begin
    digest: str | None
    """SHA-256 of the user's metadata, which must not change under a run."""

    def rows(self) -> list[Row]:
        """The user's pictures."""
        assert self.begin.data is not None
        return read_rows(Path(self.begin.data), texts=self.stage != "autoencoder", maps=self.stage == "semantic")

    def classes(self) -> tuple[Class, ...]:
        """The classes of the user's maps."""
        assert self.begin.data is not None
        found = palette.read(Path(self.begin.data))
        if not found:
            problem = f"there is no {palette.FILE} in {self.begin.data}"
            raise InputError(
                problem, 'a JSON list of {"index": 0, "name": "sky", "color": [120, 180, 240]} for the maps'
            )
        return found

    @staticmethod
    def written(folder: Path) -> set[str]:
        """The names in a folder that are such as a run's model has: those of its parts, or of the files of one."""
        names = ("model_index.json", "vae", "unet", "text_encoder", "tokenizer", "scheduler")
        files = ("config.json", "classes.json", "diffusion_pytorch_model*.safetensors*")
        return {each.name for pattern in (*names, *files) for each in folder.glob(pattern)}

    def write(self) -> None:
        """Make the run's folder and write `run.json` into it. Raises OutputError."""
        said = {"stage": self.stage, "settings": asdict(self.settings), "begin": asdict(self.begin)}
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            partial = self.out / (RUN + ".partial")
            partial.write_text(json.dumps({**said, "digest": self.digest}, indent=2) + "\n", encoding="utf-8")
            partial.replace(self.out / RUN)
        except OSError as error:
            raise OutputError(f"cannot write {self.out}: {error.strerror}", "name another folder with --out") from error


def plan(stage: str, out: Path, begin: Mapping[str, Any], settings: Mapping[str, Any]) -> Order:
    """The run in `out`, which goes on if it was begun; of `begin` and `settings` only what was given.

    Raises UsageError, InputError or ModelNotFound where it cannot be.
    """
    begin = {key: str(value.resolve()) if isinstance(value, Path) else value for key, value in begin.items()}
    if (out / RUN).exists():
        order = _go_on(read(out), stage, begin, settings)
    else:
        started = Begin(**begin)
        order = Order(stage, out, STAGES[stage](**settings), started, _digest(started))
    _check(order)
    return order


def read(out: Path) -> Order:
    """The run in a folder. Raises ModelNotFound or ModelCorrupt."""
    try:
        said = json.loads((out / RUN).read_text(encoding="utf-8"))
        kind = STAGES[said["stage"]]
        return Order(said["stage"], out, kind(**said["settings"]), Begin(**said["begin"]), said["digest"])
    except FileNotFoundError as error:
        raise ModelNotFound(f"{out} holds no run of sdcli train", "name the folder that --out named") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelCorrupt(f"cannot read {out / RUN}: {error}", "begin the run anew in another folder") from error


def _go_on(before: Order, stage: str, begin: Mapping[str, Any], settings: Mapping[str, Any]) -> Order:
    if before.stage != stage:
        raise UsageError(f"{before.out} holds a run of {before.stage}, not {stage}", "name another folder with --out")
    for each in fields(Begin):
        was = getattr(before.begin, each.name)
        if each.name in begin and begin[each.name] != was:
            names = {"base": "--from", "text": "--train-text-encoder"}
            option = names.get(each.name, "--" + each.name)
            raise UsageError(
                f"this run was begun with {option} {was}, not {begin[each.name]}",
                "leave the option away to go on, or name another folder with --out",
            )
    if before.digest != _digest(before.begin):
        problem = f"the pictures in {before.begin.data} have changed since the run began"
        raise InputError(problem, "begin another run, with another folder for --out")
    goes_on = resumed(type(before.settings), asdict(before.settings), settings)
    return Order(stage, before.out, goes_on, before.begin, before.digest)


def _check(order: Order) -> None:
    """Refuse what cannot be, as far as that can be told without loading anything."""
    begin, stage = order.begin, order.stage
    if begin.world not in WORLDS:
        raise UsageError(f"--world is {begin.world}", f"it is one of {', '.join(WORLDS)}")
    if stage in ("text-encoder", "inpaint", "semantic") and begin.base is None:
        raise UsageError(f"{stage} needs a trained model", "name a diffusers folder with --from, such as kit's")
    if stage == "text-to-image" and (begin.base is None) == (begin.vae is None):
        hint = "--vae FOLDER trains a new model on an autoencoder, --from FOLDER goes on with a whole one"
        raise UsageError("text-to-image needs one of --vae and --from", hint)
    for option, path, file in (("--from", begin.base, "model_index.json"), ("--vae", begin.vae, "config.json")):
        if path is not None and not Path(path, file).is_file():
            raise ModelNotFound(f"there is no {file} in {path}", f"{option} names a folder that diffusers could load")
    if begin.data is not None:
        order.rows()
        if stage == "semantic":
            order.classes()


def _digest(begin: Begin) -> str | None:
    if begin.data is None:
        return None
    digest = hashlib.sha256()
    for row in read_rows(Path(begin.data), texts=False):
        digest.update(f"{row.image} {row.image.stat().st_size} {row.text}\n".encode())
    return digest.hexdigest()
