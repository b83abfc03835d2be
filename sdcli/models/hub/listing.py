"""Asks the hub which files a repository has, and checks the answer before anything becomes a path or a size."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from huggingface_hub import constants
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    build_hf_headers,
    get_session,
    hf_raise_for_status,
    validate_repo_id,
)

from sdcli.errors import ModelCorrupt, ModelNotFound
from sdcli.files.json_files import parse_json
from sdcli.models.hub import lock

MAX_ANSWER = 2**25
MAX_SIZE = 2**40
"""The largest file that is downloaded, 1 TiB."""
_GIT, _SHA256 = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")
_HINT = "check HF_ENDPOINT, and whether the network shows a login page in a browser"


@dataclass(frozen=True)
class RemoteFile:
    """A file as the hub lists it. `digest` is its blob's name in the cache: a sha256 for LFS files, otherwise git's."""

    path: str
    size: int
    digest: str

    @property
    def in_lfs(self) -> bool:
        """Whether the file is stored in LFS."""
        return len(self.digest) == 64

    def is_whole(self, file: Path) -> bool:
        """Whether `file` has exactly this content."""
        if not file.is_file() or file.stat().st_size != self.size:
            return False
        if self.in_lfs:
            return lock.sha256(file) == self.digest
        digest = hashlib.sha1(b"blob %d\0" % self.size)
        with file.open("rb") as opened:
            while chunk := opened.read(lock.CHUNK):
                digest.update(chunk)
        return digest.hexdigest() == self.digest


def list_files(repo: str, revision: str) -> tuple[str, Mapping[str, RemoteFile]]:
    """Return the commit of `revision` and its files by path.

    Raises what huggingface_hub raises if the hub cannot be reached, ModelNotFound for an answer that is not the hub's,
    and ModelCorrupt for commits, sizes and digests that cannot be used.
    """
    validate_repo_id(repo)
    answer = _ask(f"{constants.ENDPOINT}/api/models/{repo}/revision/{quote(revision, safe='')}")
    commit, siblings = answer.get("sha"), answer.get("siblings")
    if not isinstance(siblings, list) or not all(isinstance(each, dict) for each in siblings):
        raise ModelNotFound(f"{constants.ENDPOINT} did not list the files of {repo}", _HINT)
    if not isinstance(commit, str) or not _GIT.fullmatch(commit):
        raise _invalid(repo, "sha", commit)
    files = (_file(repo, each) for each in siblings)
    return commit, {each.path: each for each in files if each is not None}


def _ask(url: str) -> dict[str, Any]:
    """Return the JSON object at a URL of the hub."""
    with get_session().stream("GET", url, params={"blobs": True}, headers=build_hf_headers()) as response:
        hf_raise_for_status(response)
        data = b""
        for chunk in response.iter_bytes():
            data += chunk
            if len(data) > MAX_ANSWER:
                raise ModelCorrupt(f"the answer of {url} is larger than {MAX_ANSWER:,} bytes", _HINT)
    try:
        answer = parse_json(data)
    except ValueError as error:
        raise ModelNotFound(f"the answer of {url} is not JSON", _HINT) from error
    if not isinstance(answer, dict):
        raise ModelNotFound(f"the answer of {url} is not a JSON object", _HINT)
    return answer


def _file(repo: str, listed: Mapping[str, Any]) -> RemoteFile | None:
    """Return a checked entry; None for one without size or digest."""
    path, lfs = listed.get("rfilename"), listed.get("lfs")
    if not isinstance(path, str):
        raise _invalid(repo, "rfilename", path)
    if not isinstance(lfs, dict | None):
        raise _invalid(repo, f"lfs of {path}", lfs)
    size = lfs.get("size") if lfs else listed.get("size")
    digest = lfs.get("sha256") if lfs else listed.get("blobId")
    if size is None or digest is None:
        return None
    if type(size) is not int or not 0 <= size <= MAX_SIZE:
        raise _invalid(repo, f"size of {path}", size)
    if not isinstance(digest, str) or not (_SHA256 if lfs else _GIT).fullmatch(digest):
        raise _invalid(repo, f"digest of {path}", digest)
    return RemoteFile(path, size, digest)


def _invalid(repo: str, what: str, value: object) -> ModelCorrupt:
    shown = ascii(value)
    shown = shown if len(shown) <= 80 else f"{shown[:77]}…"
    return ModelCorrupt(f"{constants.ENDPOINT} lists {repo} with an invalid {what}: {shown}", _HINT)
