"""Downloads models from the Hugging Face hub to its local cache. The only module of sdcli that uses the network.

The cache has huggingface_hub's layout, so that other tools find the files too. Each file is downloaded to a partial
file, which a later pull resumes: huggingface_hub itself restarts an interrupted file.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_token, hf_hub_url, scan_cache_dir
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is httpx's or httpx2's, whichever it uses
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers, disable_progress_bars, logging  # type: ignore[attr-defined]

from sdcli.errors import ModelCorrupt, ModelError, ModelNotFound, OutputError, SdcliError, UsageError
from sdcli.files.user_files import locked
from sdcli.models.hub import lock
from sdcli.models.hub.files import needed
from sdcli.models.hub.listing import RemoteFile, list_files
from sdcli.terminal.display import OnBytes, format_size

_AGAIN = "run the same command again; it resumes the download"


def pull(
    repo: str, variant: str | None, revision: str, start: Callable[[int], OnBytes], file: str | None = None
) -> lock.Pin:
    """Download the needed files of `repo` at `revision`, and pin the commit and their hashes in the lock file.

    With `file` it is only that file.

    Files that are present are verified and kept. `start` is called with the total number of bytes, and returns the
    progress callback.

    Raises ModelNotFound if the repository, revision or hub cannot be reached, ModelError for a gated repository,
    ModelCorrupt for a file whose hash differs, and OutputError if the cache cannot be written.
    """
    disable_progress_bars()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    with _explained(repo, revision):
        commit, listed = list_files(repo, revision)
        files = [listed[path] for path in _needed(repo, listed, variant, file)]
        with locked(lock.cache_folder(repo)):
            _check_space(repo, commit, files)
            on_bytes = start(sum(file.size for file in files))
            got = {file.path: lock.LockedFile(file.size, _fetch(repo, commit, file, on_bytes)) for file in files}
        before = lock.read().get(repo)
        if before is not None and before.revision == commit:  # another variant of the same commit
            got = {**before.files, **got}
        pin = lock.Pin(commit, revision, got)
        lock.write(repo, pin)
        _record(lock.cache_folder(repo), revision, commit)
    return pin


def free(repo: str, revision: str) -> None:
    """Delete a commit of `repo` from the hub cache, except files that other commits share."""
    if (lock.cache_folder(repo) / "snapshots" / revision).is_dir():
        try:
            scan_cache_dir(constants.HF_HUB_CACHE).delete_revisions(revision).execute()
        except OSError as error:
            raise OutputError(f"cannot delete {repo} from the cache: {error}", "check its permissions") from error


def _needed(repo: str, listed: Mapping[str, RemoteFile], variant: str | None, file: str | None) -> Sequence[str]:
    try:
        return needed(listed, variant, file)
    except ModelError as error:
        raise type(error)(f"{repo} cannot be used: {error.message}", error.hint) from error


def _check_space(repo: str, commit: str, files: Sequence[RemoteFile]) -> None:
    folder = lock.cache_folder(repo)
    missing = 0
    for file in files:
        candidates = [folder / "blobs" / file.digest, folder / "snapshots" / commit / file.path, _partial(folder, file)]
        missing += max(0, file.size - max((each.stat().st_size for each in candidates if each.is_file()), default=0))
    available = shutil.disk_usage(folder).free
    if missing > available:
        raise OutputError(
            f"{repo} needs {format_size(missing)}, and {constants.HF_HUB_CACHE} has {format_size(available)} free",
            "free some space, or set HF_HUB_CACHE to another disk",
        )


def _fetch(repo: str, commit: str, file: RemoteFile, on_bytes: OnBytes) -> str:
    """Download one file to the snapshot of `commit`, verify it, and return its sha256."""
    folder = lock.cache_folder(repo)
    final = folder / "snapshots" / commit / file.path
    if not file.is_whole(final):
        final.unlink(missing_ok=True)
        blob = folder / "blobs" / file.digest
        if not file.is_whole(blob):
            blob.unlink(missing_ok=True)
            _download(repo, commit, file, blob, on_bytes)
        _link(blob, final)
    on_bytes(file.path, file.size)
    return file.digest if file.in_lfs else lock.sha256(final)


def _link(blob: Path, final: Path) -> None:
    """Put a blob into a snapshot, as huggingface_hub does: as a relative link, or a copy where there are none."""
    final.parent.mkdir(parents=True, exist_ok=True)
    try:
        final.symlink_to(os.path.relpath(blob, final.parent))
    except (NotImplementedError, PermissionError):
        shutil.copyfile(blob, final)


def _record(folder: Path, revision: str, commit: str) -> None:
    """Record the commit of a branch or tag, which other tools read."""
    if revision != commit and ".." not in Path(revision).parts and not Path(revision).is_absolute():
        file = folder / "refs" / revision
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(commit, encoding="ascii")


def _download(repo: str, commit: str, file: RemoteFile, blob: Path, on_bytes: OnBytes) -> None:
    partial = _partial(blob.parent.parent, file)
    partial.parent.mkdir(parents=True, exist_ok=True)
    if partial.is_file() and partial.stat().st_size > file.size:
        partial.unlink()
    with _Counted(partial, file.size, lambda count: on_bytes(file.path, count)) as out:
        try:
            http_get(
                hf_hub_url(repo, file.path, revision=commit),
                out,
                resume_size=out.tell(),
                expected_size=file.size,
                headers={**build_hf_headers(), "Accept-Encoding": "identity"},
            )
        except _TooLong:
            pass  # the file is not whole
        except ValueError as error:  # an answer with invalid headers
            what = " ".join(str(error).split())
            raise ModelCorrupt(f"{repo}: {file.path} cannot be downloaded: {what}", _AGAIN) from error
        out.flush()
        os.fsync(out.fileno())
    if out.too_long or not file.is_whole(partial):
        partial.unlink()
        what = f"is longer than the {file.size:,} bytes that were listed" if out.too_long else "was damaged"
        raise ModelCorrupt(
            f"{repo}: {file.path} {what} during the download", "run the same command again to download it again"
        )
    partial.replace(blob)


def _partial(folder: Path, file: RemoteFile) -> Path:
    return folder / "blobs" / f"{file.digest}.sdcli-partial"


class _TooLong(Exception):
    """More bytes arrived than were listed."""


class _Counted(io.BufferedWriter):
    """A file to append to, up to `size` bytes, which reports its size after each write."""

    def __init__(self, path: Path, size: int, on_bytes: Callable[[int], None]) -> None:
        super().__init__(io.FileIO(path, "ab"))
        self._size, self._on_bytes = size, on_bytes
        self.too_long = False

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > self._size:
            self.too_long = True
            raise _TooLong
        count = super().write(data)
        self._on_bytes(self.tell())
        return count


@contextmanager
def _explained(repo: str, revision: str) -> Iterator[None]:
    """Turn exceptions of huggingface_hub and the system into errors with a hint."""
    try:
        yield
    except SdcliError:
        raise
    except HFValidationError as error:
        raise UsageError(f"{repo!r} is not the name of a repository", "a repository is OWNER/NAME") from error
    except (HfHubHTTPError, HTTPError, OSError) as error:
        raise _explanation(error, repo, revision) from error


def _explanation(error: Exception, repo: str, revision: str) -> SdcliError:
    page = f"{constants.ENDPOINT}/{repo}"
    match error:
        case OfflineModeIsEnabled():
            return ModelNotFound("HF_HUB_OFFLINE is set, which disables the network", f"unset it to pull {repo}")
        case GatedRepoError():
            token = "with the account of your token" if get_token() else "then set HF_TOKEN to a token of your account"
            return ModelError(f"{repo} is gated: its terms must be accepted first", f"accept them at {page}, {token}")
        case RepositoryNotFoundError():
            return ModelNotFound(
                f"there is no repository {repo} on {constants.ENDPOINT}, or it is private",
                "check the name; for a private repository set HF_TOKEN to a token with access",
            )
        case RevisionNotFoundError():
            return ModelNotFound(
                f"{repo} has no revision {revision!r}", f"its branches and tags are at {page}/tree/main"
            )
        case HfHubHTTPError():
            return _answered(error.response.status_code, repo)
        case HTTPError():
            return _unreachable(error)
    assert isinstance(error, OSError)
    if error.errno is None:  # raised by huggingface_hub: an incomplete download, or no response
        return _unreachable(error)
    where = error.filename or constants.HF_HUB_CACHE
    return OutputError(f"cannot write {where}: {error.strerror}", f"check {constants.HF_HUB_CACHE}, then {_AGAIN}")


def _answered(status: int, repo: str) -> SdcliError:
    if status in (401, 403):
        return ModelError(
            f"{constants.ENDPOINT} denies access to {repo} ({status})", "check that HF_TOKEN is valid and has access"
        )
    return ModelNotFound(f"{constants.ENDPOINT} returned an error ({status})", f"wait, then {_AGAIN}")


def _unreachable(error: Exception) -> SdcliError:
    what = str(error).partition("\n")[0] or type(error).__name__
    return ModelNotFound(
        f"{constants.ENDPOINT} cannot be reached, or the connection broke: {what}", f"check the network, then {_AGAIN}"
    )
