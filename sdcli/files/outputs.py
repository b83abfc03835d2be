"""Output files: their names, and writing them completely or not at all. Knows nothing of their content.

Names are kept as given (`./fox.png` is printed as `./fox.png`), so they are strings and not Paths.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
import stat
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath

from sdcli.errors import OutputError, OutputExists, UsageError
from sdcli.files import atomic, names
from sdcli.recipe.recipe import Recipe


@dataclass(frozen=True)
class Kind:
    """A kind of output: its option, and the suffix of generated names."""

    option: str
    suffix: str


PICTURES, LATENTS = Kind("-o", ".png"), Kind("--save-latents", ".safetensors")

_OTHER_FORMATS = re.compile(
    r"\.(apng|avif|bmp|gif|hei[cf]|ico|jfif|jp2|jpe|jpe?g|jxl|pdf|ppm|svg|tga|tiff?|webp)", re.IGNORECASE
)


@dataclass(frozen=True)
class Destination:
    """The file of one picture. `unique`: the first free one of name, name-2, name-3 and so on; `force`: overwrite."""

    path: str
    unique: bool = False
    force: bool = False
    kind: Kind = PICTURES

    @property
    def final(self) -> Path:
        """The file itself; with `force`, symbolic links are followed."""
        return Path(os.path.realpath(self.path)) if self.force else Path(self.path)


def plan(
    output: str | None, recipes: Sequence[Recipe], *, force: bool = False, kind: Kind = PICTURES
) -> tuple[Destination, ...]:
    """Return one destination per recipe, after checking that it can be written and does not exist.

    `output` (the option of this `kind`, except `-o -`) is

    - None: `<slug of the prompt or label>-<seed>.png` in the current directory, with `-2`, `-3` and so on if it exists;
    - an existing directory, or a path that ends in a slash, which is created with its parents: the same name inside it;
    - otherwise a file name, which must not exist unless `force` is given. It can have the fields `{seed}`, `{index}`
      (from 1), `{prompt}` (the slug), `{model}` and any other key of a recipe, and whole numbers can have a width
      (`{index:03}`). Directories whose names have fields are created.

    Raises UsageError for an invalid name, and OutputExists or OutputError if it cannot be written. Creates nothing
    except these directories.
    """
    found = tuple(_destination(output, recipe, index, force, kind) for index, recipe in enumerate(recipes, start=1))
    _check_plan(output, found)
    return found


def _check_plan(output: str | None, found: Sequence[Destination]) -> None:
    _check_distinct(output, found)
    for directory in dict.fromkeys(each.final.parent for each in found):
        _check_writable(directory, make=_makes_directories(output), option=found[0].kind.option)
    for each in found:
        if not each.unique:
            _check_free(each)


def plan_enlarged(
    output: str | None, stems: Sequence[str], ending: str, *, force: bool = False
) -> tuple[Destination, ...]:
    """Return one destination for each of the pictures of these `stems`, like `plan`; generated names get `ending`.

    The fields of a file name are `{name}`, the stem, and `{index}`.
    """
    found = [
        _placed(
            output,
            f"{stem}{ending}{PICTURES.suffix}",
            partial(names.fill_fields, flat={"name": stem, "index": index}),
            force,
            PICTURES,
        )
        for index, stem in enumerate(stems, start=1)
    ]
    _check_plan(output, found)
    return tuple(found)


def _makes_directories(output: str | None) -> bool:
    """Whether missing directories are created: those of `-o DIR/`, and of a template with fields before a slash."""
    return output is not None and (output.endswith("/") or "{" in output.rpartition("/")[0])


def directory_of(output: str | None) -> str:
    """Return the directory, with a slash, of the files that an option's value names."""
    if output is None:
        return "./"
    if output.endswith("/") or Path(output).is_dir():
        return output.rstrip("/") + "/"
    return str(PurePath(output).parent) + "/"


def check_stdout(*, json: bool, what: str = "a PNG") -> None:
    """Raise UsageError if a file cannot be written to stdout: with JSON lines, or if stdout is a terminal."""
    if json:
        raise UsageError("-o - and --json both write to stdout", "give -o a file, or omit --json")
    if sys.stdout.isatty():
        raise UsageError(f"-o - would write {what} to the terminal", "redirect or pipe stdout, or give -o a file")


def check(path: str, *, force: bool, kind: Kind = PICTURES) -> None:
    """Raise OutputExists or OutputError if a file cannot be written to `path`."""
    destination = Destination(path, force=force, kind=kind)
    _check_writable(destination.final.parent, make=False, option=kind.option)
    _check_free(destination)


def foresee(output: str | None, recipes: Sequence[Recipe], *, force: bool = False, kind: Kind = PICTURES) -> list[str]:
    """Return the names that `plan` and `write` would give, and raise their errors, without writing anything.

    Only the permissions of a directory are checked.
    """
    found = tuple(_destination(output, recipe, index, force, kind) for index, recipe in enumerate(recipes, start=1))
    _check_distinct(output, found)
    foreseen: list[str] = []
    for each in found:
        check_directory(each.final.parent, make=_makes_directories(output), option=kind.option)
        if not each.unique:
            _check_free(each)
        foreseen.append(_next_name(each.path, foreseen, kind.suffix) if each.unique else each.path)
    return foreseen


def check_directory(directory: Path, *, make: bool, option: str = PICTURES.option) -> None:
    """Raise OutputError if pictures could not be written to `directory`, or `make` could not create it.

    Only checks permissions, and writes nothing.
    """
    while make and not os.path.lexists(directory):
        directory = directory.parent
    problem = None
    if not directory.exists():
        problem = errno.ENOENT
    elif not directory.is_dir():
        problem = errno.ENOTDIR
    elif not os.access(directory, os.W_OK | os.X_OK):
        problem = errno.EACCES
    if problem is not None:
        raise cannot_write(str(directory), directory, OSError(problem, os.strerror(problem)), option)


def write(destination: Destination, data: bytes, *, staging: str | None = None) -> str:
    """Write `data` to `destination` atomically and return its name, which can have a `-2`, `-3` and so on.

    The data is written to a hidden file in the same directory, synced and renamed, so that a reader, a crash or a full
    disk never leaves a partial file. If two processes write the same name, the second one gets OutputExists or, with
    `unique`, the next name. `force`
    follows symbolic links. `staging` is the name of the hidden file, for a caller that deletes the files of a killed
    process. Raises OutputError if writing fails.
    """
    path, directory, kind = destination.path, destination.final.parent, destination.kind
    try:
        with atomic.staged(directory, data, staging) as temporary:
            if destination.unique:
                path = _first_free(temporary, path, kind.suffix)
            elif destination.force:
                _check_free(destination)
                temporary.replace(destination.final)
            else:
                atomic.link(temporary, destination.final)
        atomic.sync_name(directory)
    except FileExistsError as error:
        raise _exists(path, kind.option) from error
    except OSError as error:
        raise cannot_write(path, directory, error, kind.option) from error
    return path


def _destination(output: str | None, recipe: Recipe, index: int, force: bool, kind: Kind) -> Destination:
    name = names.default_name(recipe, kind.suffix)
    return _placed(output, name, lambda template: names.fill(template, recipe, index, kind.option), force, kind)


def _placed(output: str | None, name: str, fill: Callable[[str], str], force: bool, kind: Kind) -> Destination:
    """Return the destination of a picture with the generated `name`; `fill` fills in the fields of a template."""
    if output is None:
        return Destination(name, unique=True, kind=kind)
    if not output or "\0" in output or not _encodable(output):
        hint = f"give a file{kind.suffix}, a directory or a template"
        raise UsageError(f"{kind.option} {output!r} is not a file name", hint)
    path = output if _is_directory(output) else fill(output)
    if path.endswith("/"):
        return Destination(path + name, unique=True, kind=kind)
    if _is_directory(path):
        return Destination(f"{path}/{name}", unique=True, kind=kind)
    if kind == PICTURES:
        check_suffix(output, path)
    elif PurePath(path).suffix != kind.suffix:
        raise UsageError(
            f"{kind.option} {output}: latents are written as {kind.suffix}",
            f"name it {output.removesuffix(PurePath(path).suffix)}{kind.suffix}, or give a directory",
        )
    return Destination(path, force=force, kind=kind)


def check_suffix(output: str, path: str, option: str = "-o") -> None:
    """Raise UsageError if `path`, given as `output`, has the suffix of another image format."""
    suffix = PurePath(path).suffix
    if _OTHER_FORMATS.fullmatch(suffix):
        raise UsageError(
            f"{option} {output}: sdcli writes PNG, not {suffix}",
            f"name it {output.removesuffix(suffix)}.png, and convert it",
        )


def _is_directory(path: str) -> bool:
    try:
        return Path(path).is_dir()
    except OSError:  # such as a name that is too long, which later checks report
        return False


def _encodable(output: str) -> bool:
    try:
        os.fsencode(output)
    except UnicodeEncodeError:
        return False
    return True


def _check_distinct(output: str | None, found: Sequence[Destination]) -> None:
    named = [each.path for each in found if not each.unique]
    if len(set(named)) < len(named):
        assert output is not None
        kind = found[0].kind
        cut = len(output) - len(kind.suffix) if output.lower().endswith(kind.suffix) else len(output)
        raise UsageError(
            f"{kind.option} {output} is the same name for {len(named)} pictures",
            f"add the index or the seed of the picture: {kind.option} '{output[:cut]}-{{index}}{output[cut:]}'",
        )


def _check_writable(directory: Path, *, make: bool, option: str = PICTURES.option) -> None:
    """Write a temporary file: permissions do not show whether a file system is read-only, full or virtual."""
    try:
        if make:
            atomic.make_directories(directory)
        with atomic.staged(directory, b""):
            pass
    except OSError as error:
        raise cannot_write(str(directory), directory, error, option) from error


def _check_free(destination: Destination) -> None:
    path, option = destination.path, destination.kind.option
    try:
        mode = os.lstat(destination.final).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise cannot_write(path, destination.final.parent, error, option) from error
    if stat.S_ISDIR(mode):
        raise OutputExists(f"{path} is a directory", f"write {path}/ for a picture inside it, or choose another name")
    if not destination.force:
        raise _exists(path, option)
    if not stat.S_ISREG(mode):
        raise OutputExists(f"{path} is not a regular file", "use -o - for stdout, or choose another name")


def _first_free(temporary: Path, path: str, suffix: str) -> str:
    for candidate in names.numbered(path, suffix):
        with suppress(FileExistsError):
            atomic.link(temporary, Path(candidate))
            return candidate
    raise AssertionError("names do not run out")


def _next_name(path: str, taken: Sequence[str], suffix: str) -> str:
    """Return the name that `_first_free` will use, unless another process writes it first."""
    return next(name for name in names.numbered(path, suffix) if name not in taken and not os.path.lexists(name))


def _exists(path: str, option: str) -> OutputExists:
    return OutputExists(f"{path} already exists", f"choose another name with {option}, or replace it with --force")


def cannot_write(path: str, directory: Path, error: OSError, option: str = PICTURES.option) -> OutputError:
    """Return the error for a failed write of `path` in `directory`."""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            hint = f"free some space, or choose another disk with {option}"
        case errno.ENOENT:
            hint = f"create the directory first: mkdir -p {shlex.quote(str(directory))}"
        case errno.ENAMETOOLONG:
            hint = f"choose a shorter name with {option}"
        case _:
            hint = f"choose a directory you can write to with {option}"
    return OutputError(f"cannot write {path}: {error.strerror}", hint)
