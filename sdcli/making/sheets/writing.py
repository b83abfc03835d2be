"""Files of sheets: a PNG, a page, or both. Imports PIL when a sheet is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import PurePath
from typing import TYPE_CHECKING

from sdcli.errors import InputError, SdcliError, UsageError
from sdcli.files import outputs
from sdcli.making.sheets.axes import arrange
from sdcli.making.sheets.entries import GENERATOR, Entry, Sides, is_sheet, read_all
from sdcli.terminal import streams

if TYPE_CHECKING:
    from sdcli.making.sheets.axes import Arrangement

STDOUT = "-"
THUMBNAIL = 256
PNG, PAGE = ".png", ".html"


@dataclass(frozen=True)
class Sheet:
    """What to write: files that end in .png or .html, or `-` for a PNG; and how.

    `thumbnail` is the largest side of a picture in a PNG, and `fonts` are files of fonts to use before sdcli's own.
    """

    files: tuple[str, ...]
    thumbnail: int = THUMBNAIL
    fonts: tuple[str, ...] = ()
    force: bool = False
    renew: bool = False
    """Whether a file that is a sheet is replaced without `force`."""
    option: str = "-o"
    """The option that names the files, for errors."""

    def destination(self, path: str) -> outputs.Destination:
        """How one of the files is written."""
        kind = outputs.Kind(self.option, PurePath(path).suffix)
        return outputs.Destination(path, force=self.force or (self.renew and is_sheet(path)), kind=kind)


@dataclass(frozen=True)
class Written:
    """The files that were written, the number of pictures on them, and the errors of the others.

    `data` is the PNG for stdout, `axes` has the keys that are rows, columns and headings, and `missing` the characters
    that no font had.
    """

    files: tuple[str, ...]
    pictures: int
    axes: tuple[str, ...]
    errors: tuple[SdcliError, ...] = ()
    missing: str = ""
    data: bytes = b""


def files_of(output: str | None, *, html: bool, option: str = "-o") -> tuple[str, ...]:
    """Return the files to write: `output`, and with `html` a page next to it. Raises UsageError for another suffix."""
    if output is None:
        return (f"sheet{PAGE if html else PNG}",)
    if output == STDOUT:
        if html:
            raise UsageError(f"{option} - writes a PNG to stdout, and --html needs a file", f"give {option} sheet.html")
        return (output,)
    suffix = PurePath(output).suffix.lower()
    if suffix not in (PNG, PAGE):
        raise UsageError(f"{option} {output!r} is neither .png nor .html", f"name it, as in {option} sheet.png")
    if html and suffix == PNG:
        return output, str(PurePath(output).with_suffix(PAGE))
    return (output,)


def check(sheet: Sheet) -> None:
    """Raise OutputExists or OutputError if a file of the sheet cannot be written, and InputError for a wrong font."""
    for path in sheet.files:
        if path != STDOUT:
            destination = sheet.destination(path)
            outputs.check(path, force=destination.force, kind=destination.kind)
    if sheet.fonts:
        from sdcli.making.sheets.fonts import Lettering

        Lettering(sheet.fonts, 12)


def write(sheet: Sheet, paths: Sequence[str], on_picture: Callable[[int], None] = lambda done: None) -> Written:
    """Write a sheet of the pictures at `paths`, as far as they can be read.

    Raises InputError if there is no picture, UsageError for too many pictures, and what `outputs.write` raises.
    """
    from sdcli.making.sheets import drawing, page

    if not paths:
        raise InputError("there are no pictures", "give PNG, JPEG or WebP files, or a directory that has some")
    pages = [path for path in sheet.files if path.lower().endswith(PAGE)]
    drawn = [path for path in sheet.files if path not in pages]
    sides = Sides(
        drawing.side_for(len(paths), sheet.thumbnail) if drawn else None, page.side_for(len(paths)) if pages else None
    )
    found = list(read_all(paths, sides, on_picture))
    entries = [each for each in found if isinstance(each, Entry)]
    errors = tuple(each for each in found if isinstance(each, SdcliError))
    if not entries:
        raise errors[0]
    arranged = arrange([each.values for each in entries])
    data, missing = _png(entries, arranged, sheet.fonts) if drawn else (b"", "")
    for path in pages:
        content = b"".join(page.page(entries, arranged, path))
        outputs.write(sheet.destination(path), content)
    for path in drawn:
        if path != STDOUT:
            outputs.write(sheet.destination(path), data)
    files = tuple(path for path in sheet.files if path != STDOUT)
    return Written(files, len(entries), arranged.axes, errors, missing, data if STDOUT in sheet.files else b"")


def report(written: Written) -> None:
    """Print the errors of pictures that are not on a sheet, and a warning about missing characters."""
    for error in written.errors:
        streams.complain(error.message, error.hint)
    if written.missing:
        few = " ".join(written.missing[:10]) + (" …" if len(written.missing) > 10 else "")
        streams.warn(f"no font has {few}; give one that has them with --font, or write a page with --html")


def _png(entries: Sequence[Entry], arranged: Arrangement, fonts: Sequence[str]) -> tuple[bytes, str]:
    """Return the bytes of a PNG, and the characters that no font had."""
    from PIL.PngImagePlugin import PngInfo

    from sdcli.making.sheets.drawing import Style, draw
    from sdcli.making.sheets.fonts import Lettering

    style = Style(Lettering(fonts, 14), Lettering(fonts, 19))
    captions = [caption or PurePath(each.path).name for each, caption in zip(entries, arranged.captions, strict=True)]
    drawn = draw(arranged, [each.image for each in entries if each.image is not None], captions, style)
    buffer = BytesIO()
    chunks = PngInfo()
    chunks.add_text("Software", GENERATOR)
    drawn.save(buffer, "PNG", pnginfo=chunks)
    return buffer.getvalue(), "".join(sorted(style.small.missing | style.large.missing))
