"""docs/reference.md has the help texts of the program. `python -m tests.test_docs` updates it."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from sdcli import cli, errors
from sdcli.recipe import schedulers
from tests.shell import call

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "docs" / "reference.md"
HELP = re.compile(r"(?<=<!-- help: )(.+?) -->\n```text\n(.*?)```\n", re.DOTALL)
TABLE = re.compile(r"(?<=<!-- schedulers -->\n)(.*?)(?=\n\n|\Z)", re.DOTALL)


def help_text(command: str) -> str:
    done = call(*command.split()[1:], "--help", home=ROOT, env={"COLUMNS": "100"})
    assert done.status == 0, done.stderr
    return "\n".join(line.rstrip() for line in done.stdout.decode().strip().splitlines()) + "\n"


def named(command: Any, name: str) -> Iterator[str]:
    """The names of the program itself, and of every command that does something."""
    groups = getattr(command, "commands", {})
    if name == "sdcli" or not groups:
        yield name
    for word, below in groups.items():
        yield from named(below, f"{name} {word}")


def scheduler_table() -> str:
    def yes(flag: bool) -> str:
        return "yes" if flag else ""

    rows = ["| name | in diffusers | `--sigmas` | `--eta` | zero terminal SNR |", "|---|---|---|---|---|"]
    for name in schedulers.NAMES:
        row = schedulers.TABLE[name]
        facts = (
            row.class_name,
            yes(len(row.sigmas) > 1),
            yes(row.takes_eta),
            "itself" if row.zero_snr else "rescaled betas",
        )
        rows.append(f"| {name} | {' | '.join(facts)} |")
    return "\n".join(rows)


def written(text: str) -> str:
    text = HELP.sub(lambda match: f"{match[1]} -->\n```text\n{help_text(match[1])}```\n", text)
    return TABLE.sub(lambda match: scheduler_table(), text)


def test_the_reference_says_what_the_program_says():
    text = REFERENCE.read_text()
    commands = [match[1] for match in HELP.finditer(text)]
    assert sorted(commands) == sorted(named(typer.main.get_command(cli.application()), "sdcli"))
    assert written(text) == text, "docs/reference.md is stale: run python -m tests.test_docs"


def test_help_groups_the_commands_and_shows_no_type_of_a_flag():
    text = REFERENCE.read_text()
    groups = re.findall(r"^([A-Z][a-z ]+):$", help_text("sdcli"), re.MULTILINE)
    assert groups == [
        "Make pictures",
        "Edit pictures",
        "Work with files",
        "Manage models",
        "Train models",
        "Settings",
        "Options",
    ]
    assert "<bool>" not in text
    assert "--[no-]prompt-weights " in text


def test_the_documentation_lists_every_exit_status_in_use():
    text = (ROOT / "docs" / "scripts.md").read_text()
    listed = {int(number) for row in re.findall(r"^\| ([\d, ]+) \|", text, re.MULTILINE) for number in row.split(",")}
    assert listed == set(errors.ExitStatus)


if __name__ == "__main__":
    REFERENCE.write_text(written(REFERENCE.read_text()))
