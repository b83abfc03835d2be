"""The command line: which commands there are, and the only place where an exception becomes an exit status."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated

import typer
from typer.exceptions import Abort, Exit, TyperException

from sdcli import __version__
from sdcli.commands import completion, usage
from sdcli.commands.batch import batch
from sdcli.commands.bench import bench
from sdcli.commands.config import config
from sdcli.commands.edit import edit
from sdcli.commands.encode import decode, encode
from sdcli.commands.explain import explain
from sdcli.commands.generate import generate
from sdcli.commands.img2img import img2img
from sdcli.commands.info import info
from sdcli.commands.inpaint import inpaint
from sdcli.commands.models import models
from sdcli.commands.outpaint import outpaint
from sdcli.commands.plain_help import Commands
from sdcli.commands.replay import replay
from sdcli.commands.serve import serve
from sdcli.commands.sheet import sheet
from sdcli.commands.synthesize import synthesize
from sdcli.commands.train import train
from sdcli.commands.train_kit import kit
from sdcli.commands.train_lora import lora
from sdcli.commands.trained import export, measure
from sdcli.commands.upscale import upscale
from sdcli.config import misspelt, without_effect
from sdcli.errors import ExitStatus, OutOfMemory, OutputError, SdcliError, UsageError
from sdcli.terminal import signals
from sdcli.terminal.streams import complain, show_traceback, warn

app = Commands(
    name="sdcli",
    help="""Generate images from text with latent diffusion models, on this machine.

    Results go to stdout, everything else to stderr. See 'sdcli COMMAND --help' for one command.""",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_MAKE, _EDIT, _FILES, _MODELS = "Make pictures", "Edit pictures", "Work with files", "Manage models"
_TRAIN, _SETTINGS = "Train models", "Settings"

for _heading, _commands in {
    _MAKE: (generate, synthesize, batch, explain, serve),
    _EDIT: (img2img, inpaint, outpaint, edit, upscale),
    _FILES: (info, sheet, replay, encode, decode),
}.items():
    for _command in _commands:
        app.command(rich_help_panel=_heading)(_command)
for _command in (kit, lora, measure, export):
    train.command()(_command)
app.add_typer(models, name="models", rich_help_panel=_MODELS)
app.command(rich_help_panel=_MODELS)(bench)
app.add_typer(train, name="train", rich_help_panel=_TRAIN)
app.add_typer(config, name="config", rich_help_panel=_SETTINGS)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"sdcli {__version__}")
        raise Exit


@app.callback()
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
        status = app(args=list(arguments), prog_name="sdcli", standalone_mode=False)
        sys.stdout.flush()
        return int(status or ExitStatus.OK)
    except BaseException as error:  # noqa: BLE001  every exception ends here, as an exit status
        if debug:
            show_traceback(error)
        number = signals.came()
        return _exit_status(error, arguments) if number is None else 128 + number


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
