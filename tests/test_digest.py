"""The digest of a model, against sha256sum, and its cache."""

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from sdcli.errors import ModelCorrupt, ModelNotFound
from sdcli.models import digest
from sdcli.models.digest import file_sha256
from sdcli.models.source import Source

HOUR_AGO = 3600


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "sdcli" / "digests"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    for name in ("unet/config.json", "unet/model.safetensors", "vae/config.json", "tokenizer/merges.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"this is {name}")
    (folder / "model_index.json").write_text("{}")
    return folder


def old(path: Path, data: bytes) -> Path:
    """A file that was written a while ago."""
    path.write_bytes(data)
    then = path.stat().st_mtime - HOUR_AGO
    os.utime(path, (then, then))
    return path


def test_of_a_folder_it_is_what_sha256sum_says(model):
    command = "find . -type f -printf '%P\\n' | LC_ALL=C sort | xargs sha256sum | sha256sum"
    done = subprocess.run(["sh", "-c", command], cwd=model, capture_output=True, text=True, check=True)
    assert Source(model).sha256 == done.stdout.split()[0]


def test_of_a_file_it_is_the_file_s(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    assert Source(file).sha256 == hashlib.sha256(b"weights").hexdigest()


def test_it_changes_with_a_weight_a_config_and_a_name_and_with_nothing_else(model, tmp_path):
    first = Source(model).sha256
    (model / "README.md").write_text("words")
    (model / "unet" / "old.bin").write_text("a pickle")
    (model / "safety_checker").mkdir()
    (model / "safety_checker" / "model.safetensors").write_text("not in use")
    moved = model.rename(tmp_path / "elsewhere")
    assert Source(moved).sha256 == first
    seen = {first}
    (moved / "unet" / "model.safetensors").write_text("other weights")
    seen.add(Source(moved).sha256)
    (moved / "unet" / "config.json").write_text("other config")
    seen.add(Source(moved).sha256)
    (moved / "unet" / "config.json").rename(moved / "unet" / "other.json")
    seen.add(Source(moved).sha256)
    assert len(seen) == 4


def test_a_large_file_is_hashed_once_and_again_when_it_changes(tmp_path, monkeypatch):
    hashed = []
    really = digest._hash
    monkeypatch.setattr(digest, "_hash", lambda path: hashed.append(path) or really(path))
    data = bytes(digest.WORTH_REMEMBERING)
    file = old(tmp_path / "large.safetensors", data)
    assert file_sha256(file) == file_sha256(file) == hashlib.sha256(data).hexdigest()
    assert len(hashed) == 1
    stamp = file.stat().st_mtime + 1
    file.write_bytes(b"x" + data[1:])  # of the same size
    os.utime(file, (stamp, stamp))
    assert file_sha256(file) == hashlib.sha256(b"x" + data[1:]).hexdigest()
    assert len(hashed) == 2


def test_a_file_that_may_change_unseen_is_not_remembered(tmp_path, cache):
    (tmp_path / "new.safetensors").write_bytes(bytes(digest.WORTH_REMEMBERING))
    file_sha256(tmp_path / "new.safetensors")
    assert not cache.exists()


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe", b"nonsense", b"0" * 64, b"g" * 64 + b" {stamp}"])
def test_a_damaged_note_is_not_believed(tmp_path, cache, damage):
    data = bytes(digest.WORTH_REMEMBERING)
    file = old(tmp_path / "large.safetensors", data)
    file_sha256(file)
    (note,) = cache.iterdir()
    note.write_bytes(damage.replace(b"{stamp}", note.read_bytes().split(b" ", 1)[1]))
    assert file_sha256(file) == hashlib.sha256(data).hexdigest()


def test_without_a_place_for_the_cache_it_works_all_the_same(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    data = bytes(digest.WORTH_REMEMBERING)
    assert file_sha256(old(tmp_path / "large.safetensors", data)) == hashlib.sha256(data).hexdigest()


def test_what_is_not_there_and_what_cannot_be_read(model, monkeypatch):
    with pytest.raises(ModelNotFound):
        _ = Source(model / "nothing").sha256

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(digest, "_hash", refuse)
    with pytest.raises(ModelCorrupt, match="Permission denied"):
        _ = Source(model).sha256
