"""The configuration of a training run, checked before any large library is imported.

A run is a folder. Its `run.json` records the configuration, so that the same command, or just `sdcli train STAGE --out
FOLDER`, continues the run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from sdcli.diffusion import architectures
from sdcli.errors import InputError, ModelCorrupt, ModelError, ModelNotFound, OutputError, UsageError
from sdcli.files import atomic, palette
from sdcli.files.json_files import load_json
from sdcli.files.palette import Class
from sdcli.models import located
from sdcli.training.imagefolder import Row, read_rows
from sdcli.training.settings import STAGES, Training, resumed

RUN = "run.json"
WORLDS = ("kit", "kit-rows", "kit-mixed", "few")
MODEL = "model"
"""The folder, in the run's folder, that the finished model is written to."""
LORA_SUFFIX, LORA_RUN = ".safetensors", ".run"
"""The suffixes of a LoRA's file and of the folder of its run, next to it."""


@dataclass(frozen=True)
class Begin:
    """The inputs of a run, besides its settings. Paths are absolute.

    `data`: the user's pictures; None for the synthetic world. `sprites`: a folder or archive of the world's subjects;
    None for the npm package. `world`: the name of the world. `base`: a diffusers folder to start from. `vae`: an
    autoencoder for a new model. `size`: the side of the autoencoder's pictures, or of a LoRA's, in pixels. `text`:
    whether to train the text encoder; None trains it only if it is new.

    For a LoRA, `base` is any model: a name or a path. `prompt`: the text of all pictures. `class_prompts` and
    `class_data`: what the pictures of the class are made from, and a folder of them. `sheet_prompts`: what sample
    pictures are made from. `gradient_checkpointing`: whether activations are recomputed; None does so for large models.
    """

    data: str | None = None
    sprites: str | None = None
    world: str = "kit"
    base: str | None = None
    vae: str | None = None
    size: int | None = None
    text: bool | None = None
    prompt: str | None = None
    class_prompts: Sequence[str] = ()
    class_data: str | None = None
    sheet_prompts: Sequence[str] = ()
    gradient_checkpointing: bool | None = None


OPTIONS = {
    "base": "--from",
    "text": "--train-text-encoder",
    "class_prompts": "--class-prompt",
    "sheet_prompts": "--sheet-prompt",
}
"""The options of fields that have another name."""


@dataclass(frozen=True)
class RunConfig:
    """The configuration of a run, as in `run.json`, and its folder."""

    stage: str
    out: Path
    settings: Training
    begin: Begin
    digest: str | None
    """The sha256 of the user's metadata, which must not change during a run."""

    def rows(self) -> list[Row]:
        """Return the user's pictures."""
        assert self.begin.data is not None
        folder, texts = Path(self.begin.data), self.stage != "autoencoder"
        return read_rows(folder, texts=texts, maps=self.stage == "semantic", text=self.begin.prompt)

    def class_rows(self) -> list[Row]:
        """Return the user's pictures of the class, with their own texts or the class prompt."""
        assert self.begin.class_data is not None
        prompts = self.begin.class_prompts
        return read_rows(Path(self.begin.class_data), text=prompts[0] if prompts else None)

    @property
    def result(self) -> Path:
        """The finished model: a folder in the run's folder, or for a LoRA a file next to it."""
        return self.out.with_suffix(LORA_SUFFIX) if self.stage == "lora" else self.out / MODEL

    def classes(self) -> tuple[Class, ...]:
        """Return the classes of the user's maps. Raises InputError if there is no classes.json."""
        assert self.begin.data is not None
        found = palette.read(Path(self.begin.data))
        if not found:
            problem = f"there is no {palette.FILE} in {self.begin.data}"
            raise InputError(
                problem, 'it must be a JSON list of {"index": 0, "name": "sky", "color": [120, 180, 240]} for the maps'
            )
        return found

    @staticmethod
    def written(folder: Path) -> set[str]:
        """Return the names in a folder that a run's model may have: components, or the files of a component."""
        names = ("model_index.json", "vae", "unet", "text_encoder", "tokenizer", "scheduler")
        files = ("config.json", "classes.json", "diffusion_pytorch_model*.safetensors*")
        return {each.name for pattern in (*names, *files) for each in folder.glob(pattern)}

    def write(self) -> None:
        """Create the run's folder and write `run.json`. Raises OutputError."""
        content = {"stage": self.stage, "settings": asdict(self.settings), "begin": asdict(self.begin)}
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            text = json.dumps({**content, "digest": self.digest}, indent=2) + "\n"
            atomic.replace(self.out / RUN, text.encode())
        except OSError as error:
            raise OutputError(f"cannot write {self.out}: {error.strerror}", "use another folder with --out") from error


def plan(stage: str, out: Path, begin: Mapping[str, Any], settings: Mapping[str, Any]) -> RunConfig:
    """Return the configuration of the run in `out`, which continues if it exists.

    `begin` and `settings` are only the options given. Raises UsageError, InputError or ModelNotFound for invalid
    options.
    """
    begin = {key: str(value.resolve()) if isinstance(value, Path) else value for key, value in begin.items()}
    if (out / RUN).exists():
        config = _continued(read(out), stage, begin, settings)
    else:
        started = _begin(begin)
        config = RunConfig(stage, out, STAGES[stage](**settings), started, _digest(started))
    _check(config)
    return config


def _begin(values: Mapping[str, Any]) -> Begin:
    """Return the inputs of a run from options or JSON, which have lists where `Begin` has tuples."""
    made: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return Begin(**made)


def read(out: Path) -> RunConfig:
    """Read the configuration of the run in a folder. Raises ModelNotFound or ModelCorrupt."""
    try:
        content = load_json(out / RUN)
        kind = STAGES[content["stage"]]
        return RunConfig(
            content["stage"], out, kind(**content["settings"]), _begin(content["begin"]), content["digest"]
        )
    except FileNotFoundError as error:
        raise ModelNotFound(f"{out} is not a run of sdcli train", "give the folder of --out") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelCorrupt(f"cannot read {out / RUN}: {error}", "start a new run in another folder") from error


def _continued(before: RunConfig, stage: str, begin: Mapping[str, Any], settings: Mapping[str, Any]) -> RunConfig:
    if before.stage != stage:
        raise UsageError(f"{before.out} is a run of {before.stage}, not {stage}", "use another folder with --out")
    for each in fields(Begin):
        was = getattr(before.begin, each.name)
        if each.name in begin and begin[each.name] != was:
            option = OPTIONS.get(each.name, "--" + each.name.replace("_", "-"))
            option = "--model" if before.stage == "lora" and each.name == "base" else option
            raise UsageError(
                f"this run was started with {option} {was}, not {begin[each.name]}",
                "omit the option to continue, or use another folder with --out",
            )
    if before.digest != _digest(before.begin):
        problem = f"the pictures in {before.begin.data} have changed since the run started"
        raise InputError(problem, "start a new run with another folder for --out")
    continued = resumed(type(before.settings), asdict(before.settings), settings)
    return RunConfig(stage, before.out, continued, before.begin, before.digest)


def _check(config: RunConfig) -> None:
    """Raise an error for everything that is invalid, as far as it can be checked without loading models."""
    begin, stage = config.begin, config.stage
    if begin.world not in WORLDS:
        raise UsageError(f"--world is {begin.world}", f"it must be one of {', '.join(WORLDS)}")
    if stage in ("text-encoder", "inpaint", "semantic") and begin.base is None:
        raise UsageError(
            f"{stage} needs a trained model", "give a diffusers folder or a name with --from, such as --from kit"
        )
    if stage == "text-to-image" and (begin.base is None) == (begin.vae is None):
        hint = "--vae FOLDER trains a new model on an autoencoder, --from FOLDER continues with a trained model"
        raise UsageError("text-to-image needs one of --vae and --from", hint)
    if stage == "lora":
        _check_lora(config)
        return
    for option, path, file in (("--from", begin.base, "model_index.json"), ("--vae", begin.vae, "config.json")):
        if path is not None and not Path(path, file).is_file():
            raise ModelNotFound(f"there is no {file} in {path}", f"{option} takes a folder in diffusers' layout")
    if begin.data is not None:
        config.rows()
        if stage == "semantic":
            config.classes()


def _check_lora(config: RunConfig) -> None:
    begin = config.begin
    if begin.data is None:
        raise UsageError("train lora needs a folder of pictures", "sdcli train lora FOLDER -o NAME.safetensors")
    config.rows()
    if begin.class_data is not None:
        config.class_rows()
    assert begin.base is not None
    found = located.find(begin.base)
    name, facts = found.entry.name, found.facts
    if architectures.find(found.source.denoiser, found.denoiser_config) != "unet" or facts.labels is not None:
        raise ModelError(f"{name} has no U-Net for prompts", "use Stable Diffusion 1.x, 2.x or XL, or kit")
    if facts.in_channels != facts.latent_space.channels:
        hint = "train on the text-to-image model it comes from; the LoRA fits both"
        raise ModelError(f"{name} takes more than a prompt", hint)
    if facts.guidance_distilled:
        raise ModelError(f"{name} is distilled", "train on the model it was distilled from; the LoRA fits both")
    multiple = facts.size_multiple
    if begin.size is not None and begin.size % (8 * multiple):
        raise UsageError(f"--size is {begin.size}", f"it must be a multiple of {8 * multiple}")


def _digest(begin: Begin) -> str | None:
    if begin.data is None:
        return None
    digest = hashlib.sha256()
    rows = read_rows(Path(begin.data), texts=False)
    rows += read_rows(Path(begin.class_data), texts=False) if begin.class_data is not None else []
    for row in rows:
        digest.update(f"{row.image} {row.image.stat().st_size} {row.text}\n".encode())
    return digest.hexdigest()
