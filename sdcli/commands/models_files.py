"""Commands of `sdcli models` that write files: export, quantize and convert."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdcli.commands import completion
from sdcli.commands.model_options import Debug, Json, Name, Quiet
from sdcli.errors import UsageError
from sdcli.files import folders, palette
from sdcli.models import registry, vocabulary
from sdcli.models.source import INDEX, Source
from sdcli.models.weights import Weights
from sdcli.planning import dry_run
from sdcli.recipe import other_tools
from sdcli.recipe.part import PARTS
from sdcli.recipe.parts import QUANTIZATIONS
from sdcli.terminal import display, streams

_LISTED = 10


def export(
    name: Name,
    folder: Annotated[str, typer.Argument(metavar="DIR", help="A new or empty directory.")],
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.", show_default=False)] = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write a model as a diffusers folder.

    Works for every model: a folder, a single file in the original layout, or parts from several folders. Weights keep
    their dtype; text encoders and tokenizers are written in a layout that transformers 4 and 5 both load.

        sdcli models export kit kit-folder
    """
    source = registry.locate(registry.find(name))
    source.check()
    if source.is_controlnet:
        raise UsageError(f"{name} is a ControlNet, which is in diffusers' format already", f"copy {source.path}")
    folders.check(folder, force=force, known=(INDEX, palette.FILE, *PARTS))
    from sdcli.models.export import export as write

    with folders.written(folder, force=force) as staged, display.transfer(quiet=quiet) as start:
        pipeline = write(
            source, staged, start(sum(file.stat().st_size for file in dry_run.find_parts(Weights(source)).files))
        )
    if json:
        files = [file for file in Path(folder).rglob("*") if file.is_file()]
        facts = {"name": name, "path": folder, "pipeline": pipeline, "digest": Source(Path(folder)).sha256}
        size = sum(file.stat().st_size for file in files)
        streams.say(streams.to_json(facts | {"files": len(files), "bytes": size}))
    else:
        streams.say_path(folder)


def quantize(
    name: Name,
    folder: Annotated[str, typer.Argument(metavar="OUT", help="A new or empty directory.")],
    kind: Annotated[
        str,
        typer.Option(
            "--quantize", metavar="FORMAT", autocompletion=completion.of(*QUANTIZATIONS),
            help=f"One of {', '.join(QUANTIZATIONS)}; int8 is q8_0, and int4 q4_0.",
        ),
    ] = QUANTIZATIONS[0],
    force: Annotated[bool, typer.Option("--force", help="Replace what is in OUT.", show_default=False)] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:  # fmt: skip
    """Write a model as a folder with quantised weights.

    Quantises the layers of the network and of language models, and keeps everything else: the VAE, CLIP, norms, and
    the layers at both ends. The folder makes the same pictures as the model with --quantize, and takes less memory
    than the model.

        sdcli models quantize z-image-turbo z-image-q8
        sdcli models quantize flux-schnell schnell-q4 --quantize q4_1
    """
    chosen = other_tools.translate("quantize", kind)["quantize"]
    if chosen not in QUANTIZATIONS:
        raise UsageError(f"unknown format {kind!r}", f"the formats are {', '.join(QUANTIZATIONS)}")
    source = registry.locate(registry.find(name))
    source.check()
    folders.check(folder, force=force, known=(INDEX, palette.FILE, vocabulary.FILE, *PARTS))
    from sdcli.models.quantize import quantize as write

    with folders.written(folder, force=force) as staged, display.transfer(quiet=quiet) as start:
        size = sum(file.stat().st_size for file in dry_run.find_parts(Weights(source)).files)
        write(source, staged, chosen, start(size))
    streams.say_path(folder)


def convert(
    source: Annotated[str, typer.Argument(metavar="FILE", help="A .ckpt, .pt, .pth or .bin file.")],
    target: Annotated[str, typer.Argument(metavar="OUT.safetensors", help="The file to write.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.", show_default=False)] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Convert pickled weights to a .safetensors file.

    Works for checkpoints, VAEs, LoRAs, embeddings and upscalers, and keeps names and dtypes. Loading a pickle can run
    code, so the file is read by PyTorch's reader for weights only, in a process without network that can write no
    other file. Everything that is not a tensor is left out, and listed on stderr.

        sdcli models convert model.ckpt model.safetensors
    """
    from sdcli.models.convert import convert as run

    done = run(Path(source), Path(target), force=force)
    if json:
        streams.say(
            streams.to_json({"path": target, "kind": done.kind, "tensors": done.tensors, "dropped": done.dropped})
        )
        return
    streams.note(f"{done.kind}, {done.tensors} tensors")
    if done.dropped:
        more = f", and {len(done.dropped) - _LISTED} more" if len(done.dropped) > _LISTED else ""
        streams.note(f"left out, because they are not tensors: {', '.join(done.dropped[:_LISTED])}{more}")
    streams.say_path(target)
