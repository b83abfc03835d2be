"""Commands of `sdcli models` for repositories on the hub: pull, verify and rm."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from typer.exceptions import Abort

from sdcli import config
from sdcli.commands import completion, model_facts
from sdcli.commands.model_options import Debug, HubName, Json, Quiet, Removable
from sdcli.errors import ModelCorrupt, ModelNotFound, UsageError
from sdcli.files.user_files import home_path, user_folder
from sdcli.models import registry, user_models
from sdcli.models.hub import lock
from sdcli.models.registry import ModelEntry
from sdcli.terminal import display, streams
from sdcli.terminal.printable import printable


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
