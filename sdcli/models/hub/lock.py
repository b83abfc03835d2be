"""The lock file: the commit of each downloaded repository, and the size and sha256 of its files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from sdcli.errors import ModelCorrupt
from sdcli.files.user_files import rewrite, user_folder

VERSION = 1
CHUNK = 1 << 20


@dataclass(frozen=True)
class LockedFile:
    """A downloaded file: its size in bytes and its sha256 in hex."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Pin:
    """A repository at one commit; `asked` is the requested branch, tag or commit, and `files` are by path."""

    revision: str
    asked: str
    files: Mapping[str, LockedFile]

    @property
    def size(self) -> int:
        """The size of all files in bytes."""
        return sum(each.size for each in self.files.values())


def lock_path() -> Path:
    """The path of the lock file, whether it exists or not."""
    return user_folder("XDG_DATA_HOME", ".local/share") / "lock.json"


def cache_folder(repo: str) -> Path:
    """The folder of a repository in the hub cache (`HF_HUB_CACHE`, `HF_HOME`), with blobs/, snapshots/ and refs/."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"


def read() -> Mapping[str, Pin]:
    """Return the pins by repository. Raises ModelCorrupt if the lock file cannot be read."""
    path = lock_path()
    try:
        status = path.stat()
    except OSError:
        return {}
    return _read(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=1)
def _read(path: Path, modified: int, size: int) -> Mapping[str, Pin]:
    try:
        return _parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelCorrupt(
            f"the lock file {path} cannot be read: {error}",
            "delete it and pull the models again; present files are kept",
        ) from error


def write(repo: str, pin: Pin | None) -> None:
    """Set or remove the pin of a repository. Raises OutputError, or ModelCorrupt if the lock file cannot be read."""

    def change(text: str) -> str:
        pins = dict(_parse(text)) if text else {}
        pins.pop(repo, None)
        if pin is not None:
            pins[repo] = pin
        models = {name: asdict(each) for name, each in sorted(pins.items())}
        return json.dumps({"version": VERSION, "models": models}, indent=1) + "\n"

    read()
    rewrite(lock_path(), change)


def _parse(text: str) -> Mapping[str, Pin]:
    document: Any = json.loads(text)
    if document["version"] != VERSION:
        raise ValueError(f"it has version {document['version']}, and this sdcli reads version {VERSION}")
    return {
        repo: Pin(
            str(each["revision"]),
            str(each["asked"]),
            {str(path): LockedFile(int(file["size"]), str(file["sha256"])) for path, file in each["files"].items()},
        )
        for repo, each in document["models"].items()
    }


def check(
    pin: Pin, snapshot: Path, on_bytes: Callable[[str, int], None] = lambda path, count: None
) -> Iterator[tuple[str, str]]:
    """Compare each file of a pin with `snapshot`: "ok", "missing" or "changed". Reads every byte."""
    for path, locked in pin.files.items():
        file = snapshot / path
        try:
            same = file.stat().st_size == locked.size and sha256(file, partial(on_bytes, path)) == locked.sha256
            yield path, "ok" if same else "changed"
        except FileNotFoundError:
            yield path, "missing"
        except OSError:  # a disk error, or a directory instead of a file
            yield path, "changed"


def sha256(file: Path, on_bytes: Callable[[int], None] = lambda count: None) -> str:
    """Return the sha256 of a file in hex; `on_bytes` is called with the number of bytes read so far."""
    digest, count = hashlib.sha256(), 0
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
            count += len(chunk)
            on_bytes(count)
    return digest.hexdigest()
