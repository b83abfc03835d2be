"""Output files: their names, and writing them completely or not at all. Knows nothing of their content.

Names are kept as given (`./fox.png` is printed as `./fox.png`), so they are strings and not Paths.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import shlex
import stat
import string
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath

from sdcli.errors import OutputError, OutputExists, UsageError
from sdcli.files import atomic
from sdcli.recipe.recipe import Recipe

FIELDS = ("seed", "index", "prompt", "model")
MAX_SLUG_BYTES = 80
FALLBACK_SLUG = "picture"


@dataclass(frozen=True)
class Kind:
    """A kind of output: its option, and the suffix of generated names."""

    option: str
    suffix: str


PICTURES, LATENTS = Kind("-o", ".png"), Kind("--save-latents", ".safetensors")

_OTHER_FORMATS = re.compile(
    r"\.(apng|avif|bmp|gif|hei[cf]|ico|jfif|jp2|jpe|jpe?g|jxl|pdf|ppm|svg|tga|tiff?|webp)", re.IGNORECASE
)
_NO_HARD_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV})
_TEMPLATE_HINT = "the fields are {seed} {index} {prompt} {model}; write {{ and }} for braces"


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


def slug(text: str) -> str:
    """Return the words of `text` in lower case, joined by `-`: a file name that needs no quotes in a shell.

    Accents of Latin letters are removed; letters of other scripts are kept with their marks. The result has at most
    MAX_SLUG_BYTES bytes of UTF-8, cut between words if possible, and only letters, digits and single hyphens. It is
    FALLBACK_SLUG if `text` has no letters or digits.
    """
    words = "".join(_plain(unicodedata.normalize("NFKC", text).lower())).split() or [FALLBACK_SLUG]
    kept = words[0].encode()[:MAX_SLUG_BYTES].decode(errors="ignore")
    for word in words[1:]:
        if len(f"{kept}-{word}".encode()) > MAX_SLUG_BYTES:
            break
        kept = f"{kept}-{word}"
    return kept


def default_name(recipe: Recipe, suffix: str = PICTURES.suffix) -> str:
    """Return the generated name of a picture or of its latents."""
    return f"{slug(recipe.condition.words)}-{recipe.seed}{suffix}"


def plan(
    output: str | None, recipes: Sequence[Recipe], *, force: bool = False, kind: Kind = PICTURES
) -> tuple[Destination, ...]:
    """Return one destination per recipe, after checking that it can be written and does not exist.

    `output` (the option of this `kind`, except `-o -`) is

    - None: `<slug of the prompt or label>-<seed>.png` in the current directory, with `-2`, `-3` and so on if it exists;
    - an existing directory, or a path that ends in a slash, which is created with its parents: the same name inside it;
    - otherwise a file name, which must not exist unless `force` is given. It can have the fields `{seed}`, `{index}`
      (from 1), `{prompt}` (the slug) and `{model}`, and numbers can have a width (`{index:03}`).

    Raises UsageError for an invalid name, and OutputExists or OutputError if it cannot be written. Creates nothing
    except directories with a slash.
    """
    found = tuple(_destination(output, recipe, index, force, kind) for index, recipe in enumerate(recipes, start=1))
    _check_distinct(output, found)
    for directory in dict.fromkeys(each.final.parent for each in found):
        _check_writable(directory, make=output is not None and output.endswith("/"), option=kind.option)
    for each in found:
        if not each.unique:
            _check_free(each)
    return found


def check(path: str, *, force: bool) -> None:
    """Raise OutputExists or OutputError if a file cannot be written to `path`."""
    destination = Destination(path, force=force)
    _check_writable(destination.final.parent, make=False)
    _check_free(destination)


def foresee(output: str | None, recipes: Sequence[Recipe], *, force: bool = False, kind: Kind = PICTURES) -> list[str]:
    """Return the names that `plan` and `write` would give, and raise their errors, without writing anything.

    Only the permissions of a directory are checked.
    """
    found = tuple(_destination(output, recipe, index, force, kind) for index, recipe in enumerate(recipes, start=1))
    _check_distinct(output, found)
    names: list[str] = []
    for each in found:
        check_directory(each.final.parent, make=output is not None and output.endswith("/"), option=kind.option)
        if not each.unique:
            _check_free(each)
        names.append(_next_name(each.path, names, kind.suffix) if each.unique else each.path)
    return names


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
    `unique`, the next name. On file systems without hard links an empty file reserves the name for a moment. `force`
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
                _link(temporary, destination.final)
        atomic.sync_name(directory)
    except FileExistsError as error:
        raise _exists(path, kind.option) from error
    except OSError as error:
        raise cannot_write(path, directory, error, kind.option) from error
    return path


def _plain(text: str) -> Iterator[str]:
    """Yield `text` letter by letter: ASCII for Latin letters, and a space for anything but letters and digits."""
    takes_marks = False
    for letter in text:
        base = unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()
        if base.isalnum():
            takes_marks = False
            yield base
        elif letter.isalnum():
            takes_marks = True
            yield letter
        elif unicodedata.category(letter) in ("Mn", "Mc"):
            if takes_marks:  # otherwise it is an accent of an ASCII letter
                yield letter
        elif letter not in "'’":  # fox's is one word
            takes_marks = False
            yield " "


def _destination(output: str | None, recipe: Recipe, index: int, force: bool, kind: Kind) -> Destination:
    name = default_name(recipe, kind.suffix)
    if output is None:
        return Destination(name, unique=True, kind=kind)
    if not output or "\0" in output or not _encodable(output):
        hint = f"give a file{kind.suffix}, a directory or a template"
        raise UsageError(f"{kind.option} {output!r} is not a file name", hint)
    path = output if _is_directory(output) else fill(output, recipe, index, kind.option)
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


def fill(template: str, recipe: Recipe, index: int, option: str = "-o") -> str:
    """Fill in the fields of `template`; numbers can have a width, as in `{index:03}`.

    Raises UsageError, with `option`, for an invalid template.
    """
    values = {
        "seed": recipe.seed,
        "index": index,
        "prompt": slug(recipe.condition.words),
        "model": slug(PurePath(recipe.model).name.removesuffix(".safetensors")),
    }
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UsageError(f"{option} {template}: {str(error).lower()}", _TEMPLATE_HINT) from error
    filled = []
    for literal, name, width, conversion in parts:
        filled.append(literal)
        if name is None:
            continue
        if name not in values:
            raise UsageError(f"{option} {template}: unknown field {{{name}}}", _TEMPLATE_HINT)
        value = values[name]
        if conversion or (width and not (isinstance(value, int) and re.fullmatch(r"0?[0-9]{1,2}", width))):
            raise UsageError(
                f"{option} {template}: {{{name}}} has an invalid format",
                "only {seed} and {index} can have a width, such as {index:03}",
            )
        filled.append(format(value, width or ""))
    return "".join(filled)


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
            directory.mkdir(parents=True, exist_ok=True)
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


def numbered(path: str, suffix: str) -> Iterator[str]:
    """Yield `path`, which may end in `suffix`, and then the same with -2, -3 … before the suffix, without end."""
    yield path
    stem = path.removesuffix(suffix)
    yield from (f"{stem}-{number}{suffix}" for number in itertools.count(2))


def _first_free(temporary: Path, path: str, suffix: str) -> str:
    for candidate in numbered(path, suffix):
        with suppress(FileExistsError):
            _link(temporary, Path(candidate))
            return candidate
    raise AssertionError("names do not run out")


def _next_name(path: str, taken: Sequence[str], suffix: str) -> str:
    """Return the name that `_first_free` will use, unless another process writes it first."""
    return next(name for name in numbered(path, suffix) if name not in taken and not os.path.lexists(name))


def _link(temporary: Path, path: Path) -> None:
    """Rename the file without overwriting; raises FileExistsError if the name exists."""
    try:
        path.hardlink_to(temporary)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        path.open("xb").close()
        try:
            temporary.replace(path)
        except BaseException:
            path.unlink()
            raise


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
