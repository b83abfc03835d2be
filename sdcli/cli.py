"""The command line: which commands there are, and the only place where an exception becomes an exit status."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Collection, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Annotated

import typer
from typer.exceptions import Abort, Exit, TyperException

from sdcli import __version__
from sdcli.commands import completion, usage
from sdcli.commands.plain_help import Commands
from sdcli.config import misspelt, without_effect
from sdcli.errors import ExitStatus, OutOfMemory, OutputError, SdcliError, UsageError
from sdcli.terminal import signals
from sdcli.terminal.streams import complain, show_traceback, warn

COMMANDS = {
    "Make pictures": ("generate", "synthesize", "batch", "explain", "serve"),
    "Edit pictures": ("img2img", "inpaint", "outpaint", "edit", "upscale"),
    "Work with files": ("info", "sheet", "replay", "encode", "decode"),
    "Manage models": ("models", "bench"),
    "Train models": ("train",),
    "Settings": ("config",),
}
"""The names of commands and of groups of commands, by the heading that they have in the help."""
_MODULES = {"decode": "sdcli.commands.encode"}
"""The modules of commands, where their names are others."""


def application(names: Collection[str] | None = None) -> Commands:
    """Return the command line with the commands of these names, or with all. Importing all of them takes 0.2 s."""
    app = Commands(
        name="sdcli",
        help="""Generate images from text with latent diffusion models, on this machine.

        Results go to stdout, everything else to stderr. See 'sdcli COMMAND --help' for one command.""",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for heading, all_names in COMMANDS.items():
        for name in all_names if names is None else [each for each in all_names if each in names]:
            command = getattr(import_module(_MODULES.get(name, f"sdcli.commands.{name}")), name)
            if isinstance(command, Commands):
                app.add_typer(command, name=name, rich_help_panel=heading)
            else:
                app.command(rich_help_panel=heading)(command)
    return app


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"sdcli {__version__}")
        raise Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    config_file: Annotated[
        str | None,
        typer.Option(
            "--config", metavar="FILE", show_default="SDCLI_CONFIG, or sdcli/config.toml in XDG_CONFIG_HOME",
            help="The config file, given before the command.",
        ),
    ] = None,
) -> None:  # fmt: skip
    """Options of sdcli itself."""
    if config_file is not None:
        if not config_file:
            raise UsageError("--config is empty", "give it a path, or omit it")
        os.environ["SDCLI_CONFIG"] = config_file
    for name, near in misspelt():
        warn(f"unknown variable {name}; did you mean {near}?")
    for name in without_effect():
        warn(f"{name} has no effect: it belongs to a single picture, and can only be given as an option")


def run(arguments: Sequence[str]) -> int:
    """Run `sdcli ARGUMENTS…` and return its exit status; errors are two lines on stderr."""
    debug = "--debug" in arguments
    completion.prepare(os.environ, arguments)
    try:
        signals.watch()
        status = _application_for(arguments)(args=list(arguments), prog_name="sdcli", standalone_mode=False)
        sys.stdout.flush()
        return int(status or ExitStatus.OK)
    except BaseException as error:  # noqa: BLE001  every exception ends here, as an exit status
        if debug:
            show_traceback(error)
        number = signals.came()
        return _exit_status(error, arguments) if number is None else 128 + number


def _application_for(arguments: Sequence[str]) -> Commands:
    """Return the command line with the command that is asked for, or with all where it does not come first."""
    first = arguments[0] if arguments else ""
    return application([first] if any(first in names for names in COMMANDS.values()) else None)


def _exit_status(error: BaseException, arguments: Sequence[str]) -> int:
    match error:
        case SdcliError():
            complain(error.message, error.hint)
            return error.exit_status
        case Exit():
            return error.exit_code
        case TyperException():
            return _usage_error(error, arguments)
        case BrokenPipeError():  # while printing help or flushing stdout
            _die_of_closed_pipe()
            return ExitStatus.OK
        case KeyboardInterrupt() | Abort():
            return ExitStatus.INTERRUPTED
        case MemoryError():
            shortage = OutOfMemory("out of memory", "make a smaller picture, or choose --dtype bfloat16")
            return _exit_status(shortage, arguments)
        case SystemExit() if isinstance(error.__context__, BrokenPipeError):  # how typer handles a closed pipe
            _die_of_closed_pipe()
            return ExitStatus.OK
        case SystemExit():
            return error.code if isinstance(error.code, int) else ExitStatus.BUG
        case OSError() if error.errno in _NO_ROOM and error.filename is None:  # from a print, not from a file
            return _stdout_failed(error, arguments)
    kind = type(error).__name__
    complain(
        f"{kind}: {error}" if str(error) else kind,
        "this is a bug in sdcli; run again with --debug for the traceback, and report it",
    )
    return ExitStatus.BUG


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


def _stdout_failed(error: OSError, arguments: Sequence[str]) -> int:
    with suppress(OSError):  # discards the buffer, so that Python does not write it again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return _exit_status(
        OutputError(f"stdout: {error.strerror}", "check that there is space where stdout is written"), arguments
    )


def _usage_error(error: TyperException, arguments: Sequence[str]) -> int:
    """Print an error of typer about options and arguments in two lines."""
    if type(error).__name__ == "NoArgsIsHelpError":  # the help itself is the message
        print(error.format_message(), file=sys.stderr)
    else:
        complain(*usage.explain(error, arguments))
    return ExitStatus.USAGE


def _die_of_closed_pipe() -> None:
    """End by SIGPIPE, like any Unix program whose reader is gone."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.raise_signal(signal.SIGPIPE)
