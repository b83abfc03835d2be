"""Help as plain text: a usage line, a description, examples, then the options and commands by group."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

_WIDEST = 100
"""Columns that help takes at most, however wide the terminal is."""

_INDENT, _NAMES = 2, 26
"""Columns before a name, and columns for the name; a longer name has its description on the next line."""

_NARROW = 60
"""Columns of a terminal below which every description is on lines of its own, after `_HANGING` columns."""
_HANGING = 8

_WRITTEN_OUT = {"--json=full": ["--json", "--json"]}

_HARD_SPACE = "\u00a0"


class Commands(typer.Typer):
    """A group of commands whose help is plain text; `rich_help_panel` is the heading of a command or an option."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(cls=_Group, no_args_is_help=True, rich_markup_mode=None, **settings)

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Any], Any]:
        """Add the decorated function as a command, with plain help too."""
        return super().command(name, cls=_Command, **settings)


class _Command(TyperCommand):
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words, of which `--json=full` means `--json` twice: typer has no options with optional values."""
        if any(isinstance(each, TyperOption) and each.count and "--json" in each.opts for each in self.params):
            end = args.index("--") if "--" in args else len(args)
            args = [each for word in args[:end] for each in _WRITTEN_OUT.get(word, [word])] + args[end:]
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(_help_of(self, ctx, {}))


class _Group(TyperGroup):
    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(_help_of(self, ctx, self.commands))


def _help_of(command: TyperCommand | TyperGroup, ctx: Any, commands: Mapping[str, Any]) -> str:
    parameters = [each for each in command.get_params(ctx) if not getattr(each, "hidden", False)]
    usage = f"usage: {ctx.command_path} "
    pieces = ["[OPTIONS]", *(_piece(each) for each in parameters if isinstance(each, TyperArgument))]
    pieces += ["COMMAND ..."] if commands else []
    hanging = " " * (_HANGING if _is_narrow() else len(usage))
    parts = [_filled(" ".join(pieces), usage, hanging), *_description(command.help or "")]
    sections: dict[str, list[str]] = {}
    for name, each in commands.items():
        lines = sections.setdefault(each.rich_help_panel or "Commands", [])
        lines += _entry(name, (each.help or "").partition("\n\n")[0].rstrip("."))
    for heading, each in _headed(parameters):
        sections.setdefault(heading, []).extend(_entry(_names(each), " ".join(_facts(each))))
    parts += [f"{heading}:\n" + "\n".join(lines) for heading, lines in sections.items()]
    return "\n\n".join(parts) + "\n"


def _headed(parameters: Sequence[Any]) -> list[tuple[str, Any]]:
    """Each parameter with its heading: arguments, options without a panel, then the panels."""
    arguments = [each for each in parameters if isinstance(each, TyperArgument)]
    options = [each for each in parameters if not isinstance(each, TyperArgument)]
    plain = [each for each in options if not each.rich_help_panel and each.name != "help"]
    in_panels = [each for each in options if each.rich_help_panel]
    own = "Options" if plain or not in_panels else "Other options"
    rows = [("Arguments", each) for each in arguments] + [("Options", each) for each in plain]
    rows += [(each.rich_help_panel, each) for each in in_panels]
    return rows + [(own, each) for each in options if each.name == "help"]


def _piece(argument: TyperArgument) -> str:
    """An argument in the usage line."""
    name = f"{_names(argument)}{'...' if argument.nargs == -1 else ''}"
    return name if argument.required else f"[{name}]"


def _description(text: str) -> list[str]:
    """The paragraphs of a docstring; one that is indented is an example, and stays as it is.

    An example that is the only paragraph after the first line has lost its indentation.
    """
    paragraphs = [each for each in text.split("\n\n") if each.strip()]
    if len(paragraphs) == 2 and all(line.startswith("sdcli ") for line in paragraphs[1].splitlines()):
        paragraphs[1] = textwrap.indent(paragraphs[1], "    ")
    return [each if each.startswith(" ") else _filled(each) for each in paragraphs]


def _names(parameter: Any) -> str:
    """`-m, --model MODEL`, with the long name in one column whether there is a short one or not."""
    if isinstance(parameter, TyperArgument):
        return str(parameter.metavar or parameter.name)
    short = [each for each in parameter.opts if not each.startswith("--")]
    long = [each for each in parameter.opts if each.startswith("--")]
    for yes, no in zip(tuple(long), parameter.secondary_opts, strict=False):
        long = [f"--[no-]{yes[2:]}" if no == f"--no-{yes[2:]}" else f"{yes} | {no}"]
    value = "" if parameter.is_flag else f" {parameter.metavar or parameter.type_descriptor}"
    value = value.lstrip() if value.startswith(" [=") else value  # as in --json[=full]
    return ("".join(f"{each}, " for each in short) or " " * 4) + ", ".join(long) + value


def _facts(parameter: Any) -> Iterable[str]:
    if parameter.help:
        yield parameter.help
    variable = getattr(parameter, "envvar", None)
    if variable:
        yield f"[env: {variable}]"
    if isinstance(parameter.show_default, str):
        yield f"[default: {parameter.show_default}]"
    elif parameter.show_default and parameter.default not in (None, False, (), []):
        yield f"[default: {parameter.default}]"
    if parameter.required and not isinstance(parameter, TyperArgument):
        yield "[required]"


def _entry(name: str, text: str) -> list[str]:
    narrow = _is_narrow()
    start, column = " " * _INDENT + name, " " * (_HANGING if narrow else _INDENT + _NAMES + 1)
    if not text:
        return [start]
    if narrow or len(name) > _NAMES:
        return [start, _filled(text, column, column)]
    return [_filled(text, f"{start:{len(column)}}", column)]


def _is_narrow() -> bool:
    return shutil.get_terminal_size().columns < _NARROW


def _filled(text: str, first: str = "", others: str = "") -> str:
    filled = textwrap.fill(
        " ".join(text.split()).replace("[default: ", f"[default:{_HARD_SPACE}"),
        max(min(shutil.get_terminal_size().columns, _WIDEST), 2 * _HANGING),
        initial_indent=first,
        subsequent_indent=others,
        break_on_hyphens=False,
        break_long_words=False,
    )
    return filled.replace(_HARD_SPACE, " ")
