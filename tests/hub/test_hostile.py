"""A hub whose answers are broken or hostile: exit 3, and nothing outside the cache is written or deleted."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.hub.conftest import REPO, model_files
from tests.hub.test_pull import cache, files, lock_file, two_lines

Change = Callable[[dict[str, Any], dict[str, Any]], None]
INDEX = "model_index.json"


def changed(change: Change | bytes) -> Callable[[bytes], bytes]:
    """Change a listing and its entry of INDEX, or replace it."""

    def relist(data: bytes) -> bytes:
        if isinstance(change, bytes):
            return change
        content = json.loads(data)
        change(content, next(each for each in content["siblings"] if each["rfilename"] == INDEX))
        return json.dumps(content).encode()

    return relist


def to(key: str, value: Any, *, inside: bool = False) -> Change:
    return lambda content, entry: (entry if inside else content).update({key: value})


ANSWERS: dict[str, Change | bytes] = {
    "a login page": b"<html>log in to the wifi</html>",
    "nothing": b"",
    "a list": b"[]",
    "other JSON": b"{}",
    "deep JSON": b"[" * 100_000,
    "no commit": lambda content, entry: content.pop("sha") and None,
    "commit is a path": to("sha", "../../../victim"),
    "commit is a number": to("sha", 5),
    "no files": to("siblings", None),
    "files are texts": to("siblings", ["model_index.json"]),
    "no file": to("siblings", []),
    "name is a number": to("rfilename", 5, inside=True),
    "size is a text": to("size", "x", inside=True),
    "size is negative": to("size", -1, inside=True),
    "size is a float": to("size", 1e9, inside=True),
    "size is endless": to("size", 10**30, inside=True),
    "digest is a path": to("blobId", "../../../../victim", inside=True),
    "digest is absolute": to("blobId", "/tmp/victim", inside=True),
    "digest is a number": to("blobId", 5, inside=True),
    "digest has a line break": to("blobId", "a" * 40 + "\n", inside=True),
    "digest has capitals": to("blobId", "A" * 40, inside=True),
    "lfs is a list": to("lfs", [1], inside=True),
    "lfs has a short digest": to("lfs", {"sha256": "a" * 40, "size": 9}, inside=True),
    "lfs digest is a path": to("lfs", {"sha256": "../" * 20 + "victim", "size": 9}, inside=True),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_that_cannot_be_used(hub, models, tmp_path, name):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    hub.put(REPO, model_files())
    before = files(tmp_path)
    hub.relist = changed(ANSWERS[name])
    error, _ = two_lines(models("pull", REPO), 3)
    assert re.search("invalid|not JSON|not a JSON object|did not list|cannot be used", error)
    assert victim.read_text() == "mine"
    assert files(tmp_path) == before
    assert not lock_file(tmp_path).exists()


def test_an_etag_is_never_a_path(hub, models, tmp_path):
    hub.put(REPO, model_files())
    hub.etag = f'"{tmp_path / "planted"}"'
    assert models("pull", REPO).status == 0
    assert not (tmp_path / "planted").exists()


def test_a_body_longer_than_listed_is_not_read_to_its_end(hub, models, tmp_path):
    hub.put(REPO, model_files())
    hub.endless = INDEX
    error, _ = two_lines(models("pull", REPO), 3)
    assert f"{INDEX} is longer than the" in error
    assert sum(each.stat().st_size for each in cache(tmp_path).rglob("*") if each.is_file()) < 1_000_000


def test_a_listing_without_end_is_not_read_to_its_end(hub, models):
    hub.put(REPO, model_files())
    hub.relist = changed(b" " * (2**25 + 1))
    assert "is larger than" in two_lines(models("pull", REPO), 3)[0]


def test_a_branch_whose_name_is_a_path_is_not_recorded(hub, models, tmp_path):
    hub.put(REPO, model_files(), branch="../../x")
    models("pull", REPO, "--revision", "../../x")
    assert not list(Path(tmp_path).rglob("x"))
