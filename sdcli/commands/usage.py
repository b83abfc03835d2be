"""Errors of the command line in sdcli's words: which value is wrong, and what fixes it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from typer.exceptions import TyperException

from sdcli.terminal.spelling import did_you_mean

_COMMANDS: Mapping[str, str] = {
    **dict.fromkeys(("txt2img", "text2img", "text-to-image", "t2i", "image", "create", "draw", "run"), "generate"),
    **dict.fromkeys(("image2image", "image-to-image", "i2i", "redraw", "variation"), "img2img"),
    **dict.fromkeys(("fill", "repaint"), "inpaint"),
    **dict.fromkeys(("metadata", "exif", "show"), "info"),
    **dict.fromkeys(("download", "get", "fetch", "install"), "models pull"),
    **dict.fromkeys(("ls", "list", "models-list"), "models list"),
    **dict.fromkeys(("server", "api", "webui"), "serve"),
    "version": "--version",
}
_OF_MODELS: Mapping[str, str] = {
    **dict.fromkeys(("download", "get", "fetch", "install"), "pull"),
    **dict.fromkeys(("ls", "all"), "list"),
    **dict.fromkeys(("remove", "delete", "uninstall"), "rm"),
    **dict.fromkeys(("info", "describe"), "show"),
}
"""What other tools call commands."""

_MUST_BE = (
    (r"valid int", "must be a whole number"),
    (r"valid float", "must be a number"),
    (r"valid boolean", "must be true or false"),
    (r"range (\S+)<=x<=(\S+)", r"must be from \1 to \2"),
    (r"range x>=(\S+)", r"must be at least \1"),
    (r"range x<=(\S+)", r"must be at most \1"),
)


def explain(error: TyperException, arguments: Sequence[str]) -> tuple[str, str]:
    """Return the message and the hint of an error about options and arguments."""
    context: Any = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "sdcli"
    message, see = error.format_message().rstrip("."), f"see {command} --help"
    unknown = re.match(r"No such command '(.*?)'", message)
    if unknown is not None:
        known = _OF_MODELS if command.endswith(" models") else _COMMANDS
        return f"no command {unknown[1]!r}", _of_command(unknown[1], command, known, context)
    wrong = re.match(r"Invalid value for (.*?): (.*)", message, re.DOTALL)
    if wrong is not None:
        return _of_value(error, wrong[1], wrong[2], arguments, see)
    option = re.match(r"No such option: (\S+)", message)
    if option is not None:
        return _of_option(option[1], message, arguments, command, see)
    valued = re.match(r"Option '(.*?)' does not take a value", message)
    if valued is not None:
        of_json = "use --json, or --json=full where pictures are made"
        return f"{valued[1]} takes no such value", of_json if valued[1] == "--json" else f"omit the value; {see}"
    bare = re.match(r"Option '(.*?)' requires an argument", message)
    if bare is not None:  # the parser does not say of which command
        named = [each for each in arguments[:1] if not each.startswith("-")]
        return f"{bare[1]} has no value", f"give it after a blank; see {' '.join([command, *named])} --help"
    missing = re.match(r"Missing (?:argument|option|parameter):? '(.*?)'", message)
    if missing is not None:
        return f"{missing[1]} is missing", see
    extra = re.match(r"Got unexpected extra arguments?(?:\(s\))? \((.*)\)", message, re.DOTALL)
    if extra is not None:
        takes_prompt = any(each.name == "prompt" for each in getattr(getattr(context, "command", None), "params", ()))
        hint = f'quote a prompt of several words, as in "arctic fox"; {see}' if takes_prompt else see
        return f"unexpected arguments: {extra[1]}", hint
    return message, see


def _of_command(word: str, command: str, known: Mapping[str, str], context: Any) -> str:
    if word in known:
        return f"use {command} {known[word]}"
    commands = list(getattr(getattr(context, "command", None), "commands", {}))
    return did_you_mean(word, commands, f"see {command} --help")


def _of_value(error: Any, named: str, reason: str, arguments: Sequence[str], see: str) -> tuple[str, str]:
    """A value that is of a wrong type or out of range."""
    name = max(re.findall(r"[^' /]+", named), key=len)
    parameter = getattr(error, "param", None)
    value = _given(arguments, [*getattr(parameter, "opts", ()), *getattr(parameter, "secondary_opts", ())])
    message = f"{name} has an invalid value" if value is None else f"{name} is {value!r}"
    for pattern, words in _MUST_BE:
        found = re.search(pattern, reason)
        if found is not None:
            return message, f"{name} {found.expand(words)}; {see}"
    return f"{name}: {reason}", see


def _given(arguments: Sequence[str], names: Sequence[str]) -> str | None:
    """The last value of an option on the command line, whose names are `names`."""
    value = None
    for index, word in enumerate(arguments):
        name, equals, after = word.partition("=")
        if name in names:
            value = after if equals else next(iter(arguments[index + 1 : index + 2]), None)
        elif word[:2] in names and not word.startswith("--"):
            value = word[2:]
    return value


def _of_option(name: str, message: str, arguments: Sequence[str], command: str, see: str) -> tuple[str, str]:
    """An unknown option; a word with a blank, or one that is no name, was a prompt."""
    word = next((each for each in arguments if each.startswith(name)), name)
    if " " in word or (not word.startswith("--") and len(word) > 2):
        hint = f"for a prompt that begins with -, put -- before it: {command} -- PROMPT"
        return f"no option {name!r}, in {word!r}", hint
    near = re.search(r"possible options?: (.*?)\)?$|Did you mean (.*?)\?", message, re.IGNORECASE)
    if near is None:
        return f"no option {name!r}", see
    return f"no option {name!r}", f"did you mean {near[1] or near[2]}? {see}"
