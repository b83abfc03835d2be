"""`sdcli models`: list, show, download, verify, name, export and remove models."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.exceptions import Abort

from sdcli import config
from sdcli.commands import completion, model_facts
from sdcli.commands.plain_help import Commands
from sdcli.errors import ModelCorrupt, ModelNotFound, UsageError
from sdcli.files import folders, palette
from sdcli.files.user_files import home_path, user_folder
from sdcli.models import registry, user_models, vocabulary
from sdcli.models.hub import lock
from sdcli.models.registry import ModelEntry
from sdcli.models.source import INDEX, Source
from sdcli.models.weights import Weights
from sdcli.planning import dry_run
from sdcli.recipe import other_tools
from sdcli.recipe.part import PARTS
from sdcli.recipe.parts import QUANTIZATIONS
from sdcli.terminal import columns, display, streams
from sdcli.terminal.printable import printable

models = Commands(help="List, show, download, verify, name, export and remove models.")

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="A name from `sdcli models list`, or a path.",
        autocompletion=completion.any_model,
    ),
]
HubName = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="A name from `sdcli models list`, or OWNER/NAME on the hub.",
        autocompletion=completion.hub_model,
    ),
]
Removable = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="A name from `sdcli models list`, or OWNER/NAME on the hub.",
        autocompletion=completion.removable_model,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object per line.", show_default=False)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.", show_default=False)]
Debug = Annotated[bool, typer.Option("--debug", help="Print the traceback of an error.", show_default=False)]


@models.command("list")
def list_models(json: Json = False) -> None:
    """List the known models.

    The columns are the name, whether its files are on this machine, their size, the kind, who named it (sdcli or you),
    and a description. A ControlNet is used together with a model: sdcli generate --control NAME=IMAGE.
    """
    entries = registry.entries().values()
    rows = [("NAME", "STATE", "SIZE", "KIND", "FROM", "DESCRIPTION")]
    for entry in entries:
        size = _size(entry) if registry.is_present(entry) else None
        if json:
            line = {
                "name": entry.name,
                "present": size is not None,
                "origin": entry.origin,
                "kind": entry.kind,
                "description": entry.description,
                "bytes": size,
            }
            streams.say(streams.to_json(line))
            continue
        state, whose = "absent" if size is None else "here", "sdcli" if entry.origin == registry.SHIPPED else "you"
        what = entry.description or entry.repo or entry.folder or ""
        rows.append((entry.name, state, "-" if size is None else display.format_size(size), entry.kind, whose, what))
    if not json:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        for row in columns.lines(rows, width):
            streams.say(row)


def _size(entry: ModelEntry) -> int:
    """The bytes of a model's files."""
    path = registry.locate(entry).path
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return sum(file.stat().st_size for file in files)


@models.command("show")
def show(name: Name, json: Json = False) -> None:
    """Show a model's path, its inputs and its defaults.

    Reads the model's configs, and no weights.
    """
    facts = model_facts.describe(registry.find(name))
    if json:
        streams.say(streams.to_json(facts))
        return
    vocabulary = facts.pop("vocabulary", None)
    facts |= model_facts.part_lines(facts.pop("components", {}))
    width = max(map(len, facts))
    for key, value in facts.items():
        streams.say(f"{key:{width}}  {_shown(value)}")
    if vocabulary is not None:
        _show_groups(vocabulary["groups"])


def _show_groups(groups: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
    """What a model knows, a paragraph a group: phrases, and their synonyms in brackets."""
    width = max(20, shutil.get_terminal_size().columns - 2)
    for name, phrases in groups.items():
        content = (f"{phrase} ({', '.join(others)})" if others else phrase for phrase, others in phrases.items())
        lines = textwrap.wrap(", ".join(content), width=width, break_on_hyphens=False)
        for line in ("", name, *(f"  {line}" for line in lines)):
            streams.say(line)


@models.command("labels")
def labels(name: Name, json: Json = False, debug: Debug = False) -> None:
    """List the classes of a class-conditional model.

    Each line has a class's number and its names, as --label takes them.

        sdcli models labels ldm-imagenet | grep fox
    """
    entry = registry.find(name)
    known = registry.labels_of(entry)
    if known is None:
        raise UsageError(f"{entry.name} takes a text, not a class label", "use a PROMPT")
    for index, names in enumerate(known.names):
        line = streams.to_json({"index": index, "names": names})
        streams.say(line if json else f"{index:<{len(str(len(known.names)))}}  {', '.join(names)}")


@models.command("pull")
def pull(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME|URL",
            help="A name from `sdcli models list`, OWNER/NAME on the hub, or the https address of a file.",
            autocompletion=completion.hub_model,
        ),
    ],
    revision: Annotated[
        str, typer.Option("--revision", metavar="R", help="The branch, tag or commit to download.")
    ] = "main",
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="The directory for the file of a URL.",
            show_default="~/.local/share/sdcli/models",
        ),
    ] = None,
    sha256: Annotated[
        str | None,
        typer.Option("--sha256", metavar="HEX", help="What the file of a URL must have.", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.", show_default=False)] = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Download a model from the Hugging Face hub, or a file from a URL, and print its path.

    This is the only command that uses the network. It downloads only the files that are needed, resumes an interrupted
    download, and verifies files that are already present. The commit is pinned: the model does not change until the
    next pull. HF_TOKEN is sent for gated and private models; HF_ENDPOINT selects another hub.

    A URL is that of a .safetensors or .gguf file. Its size is checked, and its sha256 if --sha256, the hub or Civitai
    give one. CIVITAI_TOKEN is sent to Civitai.

        sdcli models pull sd15
        sdcli generate "arctic fox, photograph" -m sd15
        sdcli models pull https://civitai.com/api/download/models/128713 -o ~/loras
    """
    from sdcli.models.hub import address
    from sdcli.models.hub.pull import pull as get

    if address.is_address(name):
        _pull_file(name, output, sha256, force=force, json=json, quiet=quiet)
        return
    for option, value in (("--output", output), ("--sha256", sha256), ("--force", force or None)):
        if value is not None:
            raise UsageError(f"{option} is for a URL, and {name} is a name", "omit it")
    entry = _on_hub(registry.find(name), "pull")
    assert entry.repo is not None
    try:
        with display.transfer(quiet=quiet) as start:
            pin = get(entry.repo, entry.variant, revision, start, entry.file)
    except KeyboardInterrupt:
        streams.warn("stopped; the same command resumes the download")
        raise
    path = str(registry.locate(entry).path)
    if json:
        facts = {"name": entry.name, "repo": entry.repo, "revision": pin.revision, "path": path}
        streams.say(streams.to_json(facts | {"files": len(pin.files), "bytes": pin.size}))
    else:
        streams.say_path(path)


def _pull_file(url: str, output: str | None, sha256: str | None, *, force: bool, json: bool, quiet: bool) -> None:
    from sdcli.models.hub import address

    folder = user_folder("XDG_DATA_HOME", ".local/share") / "models" if output is None else home_path(output)
    try:
        with display.transfer(quiet=quiet) as start:
            found = address.pull(url, folder, start, sha256, force=force)
    except KeyboardInterrupt:
        streams.warn("stopped; the same command resumes the download")
        raise
    if json:
        facts = {"url": url, "path": str(found.path), "bytes": found.size, "sha256": found.sha256}
        streams.say(streams.to_json(facts))
    else:
        streams.say_path(str(found.path))


@models.command("verify")
def verify(name: HubName, json: Json = False, quiet: Quiet = False, debug: Debug = False) -> None:
    """Verify the files of a downloaded model against their recorded checksums.

    Prints "ok", "missing" or "changed" for each file. The exit status is 3 if any file is missing or changed.
    """
    entry = _on_hub(registry.find(name), "verify")
    assert entry.repo is not None
    pin = model_facts.pin_of(entry)
    if pin is None:
        hint = f"download and pin it with: sdcli models pull {entry.name}"
        raise ModelNotFound(f"{entry.name} was not downloaded by sdcli, so there are no checksums", hint)
    bad = []
    snapshot = lock.cache_folder(entry.repo) / "snapshots" / pin.revision
    with display.transfer(quiet=quiet) as start:
        on_bytes = start(pin.size)
        for path, state in lock.check(pin, snapshot, on_bytes):
            streams.say(streams.to_json({"file": path, "status": state}) if json else f"{state:7}  {path}")
            bad += [path] if state != "ok" else []
    if bad:
        raise ModelCorrupt(
            f"{len(bad)} of {len(pin.files)} files of {entry.name} are missing or changed: {', '.join(bad)}",
            f"download them again with: sdcli models pull {entry.name} --revision {pin.revision}",
        )


@models.command("add")
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The new name: letters, digits, '.', '_' and '-'.")],
    source: Annotated[
        str,
        typer.Argument(
            metavar="PATH|OWNER/NAME",
            help="A diffusers folder, a .safetensors or .gguf file, or a repository on the hub.",
        ),
    ],
    part: Annotated[
        list[str] | None,
        typer.Option(
            "--part",
            metavar="PART=PATH",
            autocompletion=completion.part,
            help=f"Load this part from another folder or file: {', '.join(PARTS)}. Can be repeated.",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a name that you added before.", show_default=False)
    ] = False,
    debug: Debug = False,
) -> None:
    """Add a name for a model of your own, or for a ControlNet, LoRA or embedding.

    The name is written to sdcli/models.toml in XDG_CONFIG_HOME, and the path of that file is printed. You can edit the
    file: an entry can also have a description, license, variant, family, and tables of parts and defaults.

        sdcli models add ink ~/models/ink.safetensors
        sdcli models add soft ~/models/ink.safetensors --part vae=~/models/vae-ft-mse.safetensors
    """
    streams.say_path(str(user_models.add(name, source, part or (), force=force)))


@models.command("export")
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


@models.command("quantize")
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


@models.command("convert")
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


_LISTED = 10


@models.command("rm")
def remove(
    name: Removable,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.", show_default=False)] = False,
    debug: Debug = False,
) -> None:
    """Remove a name that you added, or the files of a downloaded model.

    Asks before it deletes downloaded files. A folder or file of your own is never deleted, and downloaded files that
    another name uses are kept.
    """
    entry = registry.find(name)
    pin, named = model_facts.pin_of(entry), name in config.read_models()
    shared = [each.name for each in registry.entries().values() if each.repo == entry.repo and each.name != name]
    if named and shared:
        pin = None
    if not named and pin is None:
        raise _nothing_to_remove(entry)
    if pin is not None:
        assert entry.repo is not None
        _confirm(f"{entry.name}: {len(pin.files)} files, {display.format_size(pin.size)}", yes)
        from sdcli.models.hub.pull import free

        free(entry.repo, pin.revision)
        lock.write(entry.repo, None)
    if named:
        user_models.remove(name)


def _on_hub(entry: ModelEntry, command: str) -> ModelEntry:
    """Return the entry if it is a repository on the hub."""
    if entry.repo is None:
        what = "comes with sdcli" if entry.origin == registry.SHIPPED else f"is {entry.folder}, on this machine"
        if entry.folder is None:
            what = "is not in a repository that sdcli can use"
        raise UsageError(f"{entry.name} {what}: there is nothing to {command}", "see sdcli models list")
    return entry


def _nothing_to_remove(entry: ModelEntry) -> UsageError | ModelNotFound:
    if entry.repo is None and entry.origin == registry.SHIPPED:
        return UsageError(f"{entry.name} comes with sdcli and cannot be removed", "see sdcli models list")
    if entry.origin == str(config.config_path()):
        return UsageError(f"{entry.name} is defined in {entry.origin}", "remove it there")
    if entry.repo is None:
        return UsageError(f"{entry.name} is a path, not a name that you added", f"remove {entry.folder} yourself")
    if registry.is_present(entry):
        hint = f"if nothing else needs it: hf cache rm model/{entry.repo}"
        return UsageError(f"{entry.repo} was put into the hub cache by another tool", hint)
    return ModelNotFound(f"{entry.name} is not on this machine: there is nothing to remove", "see sdcli models list")


def _confirm(what: str, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"this would remove {what}", "use --yes if stdin is not a terminal")
    print(f"remove {printable(what)}? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise Abort


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={each}" for key, each in value.items())
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)
