"""Getting a model from the Hugging Face hub into its local cache. All of sdcli that reaches for a network.

Files lie in the cache as huggingface_hub puts them there, so that other tools find them too. The bytes of each go to
a partial file first, which a later pull goes on with: huggingface_hub itself begins an interrupted file anew.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, get_token, hf_hub_download, hf_hub_url, scan_cache_dir
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
from sdcli.models.hub.files import CONFIG, INDEX, needed
from sdcli.terminal.display import OnBytes, format_size

_AGAIN = "run the same command again; what has arrived is kept"


@dataclass(frozen=True)
class RemoteFile:
    """A file as the hub lists it. `digest` is its blob's name in the cache: a sha256 for files in LFS, else git's."""

    path: str
    size: int
    digest: str

    @property
    def in_lfs(self) -> bool:
        """Whether git keeps but a pointer to it."""
        return len(self.digest) == 64

    def is_whole(self, file: Path) -> bool:
        """Whether `file` holds these very bytes."""
        if not file.is_file() or file.stat().st_size != self.size:
            return False
        if self.in_lfs:
            return lock.sha256(file) == self.digest
        data = file.read_bytes()  # git keeps small files only
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() == self.digest


def pull(repo: str, variant: str | None, revision: str, start: Callable[[int], OnBytes]) -> lock.Pin:
    """Get the needed files of `repo` at `revision`, and pin its commit with their hashes in the lock file.

    What is here already is checked and kept. `start` is told the bytes in all, and gives what to call as they arrive.

    Raises ModelNotFound for a repository, revision or hub that cannot be reached, ModelError for one that is gated,
    ModelCorrupt for bytes that are not what the hub promised, OutputError where the cache cannot be written.
    """
    disable_progress_bars()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    with _explained(repo, revision):
        commit, listed = _list(repo, revision)
        files = [listed[path] for path in _needed(repo, listed, variant)]
        with locked(lock.cache_folder(repo)):
            _check_space(repo, commit, files)
            on_bytes = start(sum(file.size for file in files))
            got = {file.path: lock.LockedFile(file.size, _fetch(repo, commit, file, on_bytes)) for file in files}
        before = lock.read().get(repo)
        if before is not None and before.revision == commit:  # another variant of it, under another name
            got = {**before.files, **got}
        pin = lock.Pin(commit, revision, got)
        lock.write(repo, pin)
        hf_hub_download(
            repo, INDEX if INDEX in got else CONFIG, revision=revision
        )  # notes which commit the branch stands for, as other tools do
    return pin


def free(repo: str, revision: str) -> None:
    """Remove a commit of `repo` from the hub cache, but for what other commits share with it."""
    if (lock.cache_folder(repo) / "snapshots" / revision).is_dir():
        try:
            scan_cache_dir(constants.HF_HUB_CACHE).delete_revisions(revision).execute()
        except OSError as error:
            raise OutputError(f"cannot remove {repo} from the cache: {error}", "check its permissions") from error


def _list(repo: str, revision: str) -> tuple[str, Mapping[str, RemoteFile]]:
    """The commit that `revision` stands for now, and its files by path."""
    info = HfApi().model_info(repo, revision=revision, files_metadata=True)
    listed = {}
    for each in info.siblings or ():
        size = each.lfs.size if each.lfs else each.size
        digest = each.lfs.sha256 if each.lfs else each.blob_id
        if size is not None and digest is not None:
            listed[each.rfilename] = RemoteFile(each.rfilename, size, digest)
    assert info.sha is not None
    return info.sha, listed


def _needed(repo: str, listed: Mapping[str, RemoteFile], variant: str | None) -> Sequence[str]:
    try:
        return needed(listed, variant)
    except ModelError as error:
        raise type(error)(f"{repo} cannot be used: {error.message}", error.hint) from error


def _check_space(repo: str, commit: str, files: Sequence[RemoteFile]) -> None:
    folder = lock.cache_folder(repo)
    missing = 0
    for file in files:
        here = [folder / "blobs" / file.digest, folder / "snapshots" / commit / file.path, _partial(folder, file)]
        missing += max(0, file.size - max((each.stat().st_size for each in here if each.is_file()), default=0))
    there = shutil.disk_usage(folder).free
    if missing > there:
        raise OutputError(
            f"{repo} needs {format_size(missing)}, and {constants.HF_HUB_CACHE} has {format_size(there)} left",
            "free some space, or set HF_HUB_CACHE to a place that has it",
        )


def _fetch(repo: str, commit: str, file: RemoteFile, on_bytes: OnBytes) -> str:
    """Bring one file into the snapshot of `commit`, whole and checked; its sha256."""
    folder = lock.cache_folder(repo)
    final = folder / "snapshots" / commit / file.path
    if not file.is_whole(final):
        final.unlink(missing_ok=True)
        blob = folder / "blobs" / file.digest
        if not file.is_whole(blob):
            blob.unlink(missing_ok=True)
            _download(repo, commit, file, blob, on_bytes)
        hf_hub_download(repo, file.path, revision=commit)  # the blob is there: this gives it its name
    on_bytes(file.path, file.size)
    return file.digest if file.in_lfs else lock.sha256(final)


def _download(repo: str, commit: str, file: RemoteFile, blob: Path, on_bytes: OnBytes) -> None:
    partial = _partial(blob.parent.parent, file)
    partial.parent.mkdir(parents=True, exist_ok=True)
    if partial.is_file() and partial.stat().st_size > file.size:
        partial.unlink()
    with _Counted(partial, lambda count: on_bytes(file.path, count)) as out:
        http_get(
            hf_hub_url(repo, file.path, revision=commit),
            out,
            resume_size=out.tell(),
            expected_size=file.size,
            headers={**build_hf_headers(), "Accept-Encoding": "identity"},
        )
        out.flush()
        os.fsync(out.fileno())
    if not file.is_whole(partial):
        partial.unlink()
        raise ModelCorrupt(f"{repo}: {file.path} arrived damaged", "run the same command again, to get it anew")
    partial.replace(blob)


def _partial(folder: Path, file: RemoteFile) -> Path:
    return folder / "blobs" / f"{file.digest}.sdcli-partial"


class _Counted(io.BufferedWriter):
    """A file to append to, which tells how many bytes it holds."""

    def __init__(self, path: Path, on_bytes: Callable[[int], None]) -> None:
        super().__init__(io.FileIO(path, "ab"))
        self._on_bytes = on_bytes

    def write(self, data: Any) -> int:
        count = super().write(data)
        self._on_bytes(self.tell())
        return count


@contextmanager
def _explained(repo: str, revision: str) -> Iterator[None]:
    """Turn what huggingface_hub and the system raise into errors with a way out."""
    try:
        yield
    except SdcliError:
        raise
    except HFValidationError as error:
        raise UsageError(f"{repo!r} is no name of a repository", "a repository is OWNER/NAME") from error
    except (HfHubHTTPError, HTTPError, OSError) as error:
        raise _explanation(error, repo, revision) from error


def _explanation(error: Exception, repo: str, revision: str) -> SdcliError:
    page = f"{constants.ENDPOINT}/{repo}"
    match error:
        case OfflineModeIsEnabled():
            return ModelNotFound("HF_HUB_OFFLINE forbids the network", f"unset it to pull {repo}")
        case GatedRepoError():
            token = "with the account of your token" if get_token() else "then set HF_TOKEN to a token of your account"
            return ModelError(f"{repo} is gated: its owner asks you to accept terms first", f"do so at {page}, {token}")
        case RepositoryNotFoundError():
            return ModelNotFound(
                f"there is no repository {repo} on {constants.ENDPOINT}, or it is private",
                "check the name; for a private one set HF_TOKEN to a token that may read it",
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
    if error.errno is None:  # of huggingface_hub's own making: cut short, or it could not find out
        return _unreachable(error)
    where = error.filename or constants.HF_HUB_CACHE
    return OutputError(f"cannot write {where}: {error.strerror}", f"see to {constants.HF_HUB_CACHE}; {_AGAIN[4:]}")


def _answered(status: int, repo: str) -> SdcliError:
    if status in (401, 403):
        return ModelError(
            f"{constants.ENDPOINT} refuses {repo} to you ({status})", "check that HF_TOKEN is valid and may read it"
        )
    return ModelNotFound(f"{constants.ENDPOINT} answers with an error ({status})", f"wait a while, and {_AGAIN}")


def _unreachable(error: Exception) -> SdcliError:
    what = str(error).partition("\n")[0] or type(error).__name__
    return ModelNotFound(
        f"{constants.ENDPOINT} cannot be reached, or broke off: {what}", f"check the network, and {_AGAIN}"
    )
