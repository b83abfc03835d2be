"""`sdcli sheet`: pictures side by side, as a PNG or as a page for a browser."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from sdcli.commands import options
from sdcli.errors import InputError, UsageError
from sdcli.making.sheets import entries, writing
from sdcli.terminal import display, streams

Html = Annotated[
    bool,
    typer.Option(
        "--html", rich_help_panel=options.OUTPUT, show_default=False,
        help="Also write a page for a browser, next to the PNG: zoom, comparison of two pictures, recipes, filters.",
    ),
]  # fmt: skip


def sheet(
    pictures: Annotated[
        list[str] | None,
        typer.Argument(metavar="PICTURES", help="Pictures, and directories of pictures.", show_default=False),
    ] = None,
    *,
    files_from: Annotated[
        str | None,
        typer.Option("--files-from", metavar="FILE", help="Also read paths from FILE, one per line; - is stdin."),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="FILE", rich_help_panel=options.OUTPUT,
            help="A file.png, or a file.html for a page; - writes the PNG to stdout.",
            show_default="sheet.png, or sheet.html with --html",
        ),
    ] = None,
    html: Html = False,
    thumbnail: Annotated[
        int,
        typer.Option(
            "--thumbnail", metavar="PIXELS", min=32, max=4096,
            help="The largest side of a picture in the PNG; less if there are many.",
        ),
    ] = writing.THUMBNAIL,
    font: Annotated[
        list[str] | None,
        typer.Option(
            "--font", metavar="FILE", show_default=False,
            help="A font for characters of the PNG that sdcli's own lacks, such as Chinese. Can be repeated.",
        ),
    ] = None,
    force: options.Force = False,
    json: Annotated[
        bool, typer.Option("--json", rich_help_panel=options.OUTPUT, help="Print one JSON object.", show_default=False)
    ] = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:  # fmt: skip
    """Write a sheet of pictures: a PNG, or a page for a browser.

    Reads the recipes in the pictures' metadata. What differs between them is written next to the pictures: one key as a
    row, two as rows and columns, and further ones as headings. Pictures of other tools are arranged by what sdcli info
    reads of them. The page is one file that requests nothing.

        sdcli sheet out/ -o grid.png --html
        sdcli batch --matrix prompt="a fox,an owl" --matrix steps=4,8 -o out/ | jq -r .path | sdcli sheet --files-from -
    """
    asked = writing.Sheet(writing.files_of(output, html=html), thumbnail, tuple(font or ()), force)
    if writing.STDOUT in (pictures or ()):
        raise UsageError("- is not a picture of a sheet", "give --files-from - for a list of paths on stdin")
    if not pictures and files_from is None:
        raise UsageError("PICTURES is missing", "give pictures, a directory, or --files-from FILE")
    if writing.STDOUT in asked.files and (json or sys.stdout.isatty()):
        problem = "-o - and --json both write to stdout" if json else "-o - writes a PNG, and stdout is a terminal"
        raise UsageError(problem, "give a file.png, or redirect stdout")
    writing.check(asked)
    given = [*(pictures or ()), *(_listed(files_from) if files_from is not None else ())]
    paths = entries.paths_in(given, but=asked.files)
    with display.counting("reading pictures", len(paths), quiet=quiet) as count:
        written = writing.write(asked, paths, count)
    writing.report(written)
    if written.data:
        sys.stdout.flush()
        streams.write_bytes(sys.stdout.buffer, written.data)
    elif json:
        recorded = {"files": written.files, "pictures": written.pictures, "axes": written.axes}
        streams.say(streams.to_json(recorded | {"failed": len(written.errors)}))
    else:
        for path in written.files:
            streams.say_path(path)
    if written.errors:
        raise typer.Exit(written.errors[-1].exit_status)


def _listed(path: str) -> list[str]:
    """The paths in a file, one per line. Raises InputError."""
    try:
        data = sys.stdin.buffer.read() if path == writing.STDOUT else Path(path).read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"cannot read {path}: {reason}", "give a file of paths, or - for stdin") from error
    return [line for line in data.decode("utf-8", "surrogateescape").split("\n") if line.strip()]
