"""Downloads single files of models from https addresses, such as those of Civitai, and resumes what was interrupted.

A file is written next to its place, and renamed when it has the expected size and sha256. `CIVITAI_TOKEN` is sent to
Civitai only, and not to the store that it redirects to.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is httpx's or httpx2's, whichever it uses
    HTTPError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

from sdcli.errors import ModelCorrupt, ModelError, ModelNotFound, OutputError, SdcliError, UsageError
from sdcli.files.json_files import parse_json
from sdcli.files.user_files import locked
from sdcli.models.hub import lock
from sdcli.models.hub.listing import MAX_ANSWER, MAX_SIZE
from sdcli.terminal.display import OnBytes

SUFFIXES = (".safetensors", ".gguf")
_CIVITAI = re.compile(r"/api/download/models/(\d+)/?")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_HEX = re.compile(r"[0-9a-f]{64}")
_AGAIN = "run the same command again; it resumes the download"


@dataclass(frozen=True)
class Downloaded:
    """A downloaded file, and the sha256 of its content."""

    path: Path
    size: int
    sha256: str


@dataclass(frozen=True)
class _Answer:
    """What an address answers: the file's name and, where they are known, size and sha256."""

    name: str
    size: int | None
    sha256: str | None
    resumed: bool


def is_address(text: str) -> bool:
    """Whether `text` is an address rather than a name."""
    return text.startswith(("https://", "http://"))


def pull(
    url: str, folder: Path, start: Callable[[int], OnBytes], sha256: str | None = None, *, force: bool = False
) -> Downloaded:
    """Download the file at `url` to `folder`; `sha256` is what it must have.

    A file of that name with the expected content is kept. Raises UsageError for an address that is not https,
    ModelNotFound if it cannot be reached, ModelError if access is denied, ModelCorrupt for another content than
    expected, and OutputError if the file exists or cannot be written.
    """
    parts = urlsplit(url)
    if parts.scheme != "https" and parts.hostname not in _LOOPBACK:
        raise UsageError(f"{url} is not an https address", "use https://")
    if sha256 is not None and not _HEX.fullmatch(sha256.lower()):
        raise UsageError(f"{sha256!r} is not a sha256", "give 64 hex digits")
    listed = _civitai(url)
    expected = sha256.lower() if sha256 else listed
    with _explained(url, folder):
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            return _fetch(url, folder, start, expected, force=force)


def _fetch(url: str, folder: Path, start: Callable[[int], OnBytes], expected: str | None, *, force: bool) -> Downloaded:
    partial = folder / f".{hashlib.sha256(url.encode()).hexdigest()[:16]}.sdcli-partial"
    validator = partial.with_suffix(".etag")
    etag = validator.read_text(encoding="utf-8") if validator.is_file() else ""
    have = partial.stat().st_size if partial.is_file() and etag else 0
    headers = _headers(url) | {"Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": etag}
    with get_session().stream("GET", url, headers=headers, follow_redirects=True) as response:
        answer = _read(url, response)
        expected = expected or answer.sha256
        final = folder / answer.name
        if final.exists():
            return _existing(final, expected, force=force) or _fetch(url, folder, start, expected, force=False)
        etag = response.headers.get("ETag", "")
        validator.write_text("" if etag.startswith("W/") else etag, encoding="utf-8")
        before = have if answer.resumed else 0
        on_bytes = start(answer.size or 0)
        with partial.open("ab" if before else "wb") as file:
            for chunk in response.iter_bytes():
                file.write(chunk)
                if file.tell() > (answer.size or MAX_SIZE):
                    raise ModelCorrupt(f"{url} sends more than the {answer.size:,} bytes that it announced", _AGAIN)
                on_bytes(answer.name, file.tell())
            file.flush()
            os.fsync(file.fileno())
    return _finished(url, partial, validator, final, answer.size, expected)


def _finished(
    url: str, partial: Path, validator: Path, final: Path, size: int | None, expected: str | None
) -> Downloaded:
    """Check a whole file and give it its name."""
    count = partial.stat().st_size
    if size is not None and count < size:
        raise ModelNotFound(f"the connection to {url} broke at {count:,} of {size:,} bytes", _AGAIN)
    found = lock.sha256(partial)
    validator.unlink(missing_ok=True)
    if expected is not None and found != expected:
        partial.unlink()
        raise ModelCorrupt(f"{url} has the sha256 {found}, and {expected} is expected", "check the address")
    partial.replace(final)
    return Downloaded(final, count, found)


def _existing(final: Path, expected: str | None, *, force: bool) -> Downloaded | None:
    """Return a file that is there if it has the expected content, or delete it with `force`. Raises OutputError."""
    found = lock.sha256(final) if expected else None
    if found is not None and found == expected:
        return Downloaded(final, final.stat().st_size, found)
    if not force:
        what = "has another content" if found else "exists"
        raise OutputError(f"{final} {what}", "replace it with --force, or download to another directory with -o")
    final.unlink()
    return None


def _read(url: str, response: Any) -> _Answer:
    """Check the status and headers of an answer. Raises ModelError and ModelNotFound."""
    if response.status_code in (401, 403):
        hint = (
            "set CIVITAI_TOKEN to a key of your account" if _CIVITAI.fullmatch(urlsplit(url).path) else "check access"
        )
        raise ModelError(f"{url} denies access ({response.status_code})", hint)
    if response.status_code not in (200, 206):
        raise ModelNotFound(f"{url} returned an error ({response.status_code})", f"check the address, or {_AGAIN}")
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise ModelNotFound(f"{url} is a web page, not a file", "use the address of the file's download link")
    name = _name(url, response)
    total = response.headers.get("Content-Range", "").rpartition("/")[2] or response.headers.get("Content-Length", "")
    size = int(total) if total.isascii() and total.isdigit() else None
    if size is not None and size > MAX_SIZE:
        raise ModelCorrupt(f"{url} announces {size:,} bytes", "check the address")
    linked = (each.headers.get("X-Linked-Etag", "").strip('"') for each in (*response.history, response))
    sha256 = next((each for each in linked if _HEX.fullmatch(each)), None)
    return _Answer(name, size, sha256, response.status_code == 206)


def _name(url: str, response: Any) -> str:
    """Return the name of the file: that of the answer, or the last part of the address. Raises ModelError."""
    message = Message()
    message["Content-Disposition"] = response.headers.get("Content-Disposition", "")
    given = message.get_filename() or unquote(PurePosixPath(urlsplit(url).path).name)
    name = PurePosixPath(given.replace("\\", "/")).name
    if not name.lower().endswith(SUFFIXES) or name.startswith(".") or not name.isprintable() or len(name) > 200:
        what = f"{url} is the file {ascii(name)[1:-1][:80] or '(without a name)'}"
        raise ModelError(f"{what}, which is not supported", f"use a file that ends in {' or '.join(SUFFIXES)}")
    return name


def _headers(url: str) -> dict[str, str]:
    token, parts = os.environ.get("CIVITAI_TOKEN"), urlsplit(url)
    host = parts.hostname or ""
    is_civitai = host == "civitai.com" or host.endswith(".civitai.com") or host in _LOOPBACK
    return {"Authorization": f"Bearer {token}"} if token and is_civitai and _CIVITAI.fullmatch(parts.path) else {}


def _civitai(url: str) -> str | None:
    """Return the sha256 that Civitai lists for a download address, or None."""
    parts = urlsplit(url)
    version = _CIVITAI.fullmatch(parts.path)
    if version is None:
        return None
    asked = f"{parts.scheme}://{parts.netloc}/api/v1/model-versions/{version[1]}"
    try:
        response = get_session().get(asked, headers=_headers(url), follow_redirects=True)
        answer = parse_json(response.content) if len(response.content) <= MAX_ANSWER else {}
    except (HTTPError, ValueError, OSError):
        return None  # the download itself tells what is wrong
    return _listed(answer, parts.query) if isinstance(answer, Mapping) else None


def _listed(answer: Mapping[str, Any], query: str) -> str | None:
    """Return the sha256 of the primary file of a version; None if the address selects another one."""
    files = answer.get("files")
    for each in files if isinstance(files, list) and not query else ():
        hashes = each.get("hashes") if isinstance(each, Mapping) else None
        sha256 = str(hashes.get("SHA256", "")).lower() if isinstance(hashes, Mapping) else ""
        if each.get("primary") is True and _HEX.fullmatch(sha256):
            return sha256
    return None


@contextmanager
def _explained(url: str, folder: Path) -> Iterator[None]:
    try:
        yield
    except SdcliError:
        raise
    except OfflineModeIsEnabled as error:
        raise ModelNotFound("HF_HUB_OFFLINE is set, which disables the network", "unset it to download") from error
    except HTTPError as error:
        what = str(error).partition("\n")[0] or type(error).__name__
        raise ModelNotFound(f"{url} cannot be reached, or the connection broke: {what}", _AGAIN) from error
    except OSError as error:
        raise OutputError(f"cannot write {error.filename or folder}: {error.strerror}", "check the disk") from error
