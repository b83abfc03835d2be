"""`sdcli models pull URL`: a file from an https address, from a server on loopback."""

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sdcli.errors import ModelCorrupt, ModelError, ModelNotFound, OutputError, UsageError
from sdcli.models.hub import address
from tests.hub.conftest import noise
from tests.shell import Run

DATA = noise("file", 300_000)
SHA256 = hashlib.sha256(DATA).hexdigest()


@dataclass
class Site:
    """Files by path, and how the server misbehaves."""

    url: str = ""
    listed: dict[str, Any] = field(default_factory=dict)
    """Answers of the API, by path."""
    cut: list[int] = field(default_factory=list)
    """Bytes at which the next answers break off."""
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str = "application/octet-stream"
    announced: int | None = None
    status: int = 200
    asked: list[tuple[str, str | None, str | None]] = field(default_factory=list)
    """Path, Range and Authorization of each request."""


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            site.asked.append((self.path, asked, self.headers.get("Authorization")))
            if self.path in site.listed:
                return self._send(200, json.dumps(site.listed[self.path]).encode(), {})
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked else 0  # type: ignore[index]
            headers = {"ETag": '"one"', "Content-Type": site.content_type, **site.headers}
            if asked:
                headers["Content-Range"] = f"bytes {start}-{len(DATA) - 1}/{len(DATA)}"
            return self._send(206 if asked else site.status, DATA[start:], headers)

        def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(site.announced or len(data)))
            self.send_header("Connection", "close")
            for key, value in headers.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(data[: site.cut.pop(0)] if site.cut and "ETag" in headers else data)
            self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    site.url = f"http://127.0.0.1:{server.server_port}"
    yield site
    server.shutdown()
    server.server_close()


def start(total: int) -> Callable[[str, int], None]:
    return lambda name, count: None


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_file_is_downloaded_and_kept(site, tmp_path):
    done = address.pull(f"{site.url}/x/ink.safetensors?a=b", tmp_path, start)
    assert (done.path, done.size, done.sha256) == (tmp_path / "ink.safetensors", len(DATA), SHA256)
    assert done.path.read_bytes() == DATA
    assert files(tmp_path) == {"ink.safetensors"}
    again = address.pull(f"{site.url}/x/ink.safetensors?a=b", tmp_path, start, SHA256.upper())
    assert again == done
    with pytest.raises(OutputError, match="exists"):
        address.pull(f"{site.url}/x/ink.safetensors?a=b", tmp_path, start)


def test_a_broken_download_is_resumed(site, tmp_path):
    site.cut = [100_000]
    with pytest.raises(ModelNotFound, match="broke"):
        address.pull(f"{site.url}/ink.safetensors", tmp_path, start)
    assert "ink.safetensors" not in files(tmp_path)
    assert address.pull(f"{site.url}/ink.safetensors", tmp_path, start).sha256 == SHA256
    assert [asked for _, asked, _ in site.asked] == [None, "bytes=100000-"]
    assert files(tmp_path) == {"ink.safetensors"}


def test_the_name_of_the_answer_cannot_leave_the_folder(site, tmp_path):
    site.headers = {"Content-Disposition": 'attachment; filename="../../ink v2.safetensors"'}
    folder = tmp_path / "a" / "b"
    assert address.pull(f"{site.url}/api/x", folder, start).path == folder / "ink v2.safetensors"
    assert files(tmp_path) == {"a"}


def test_civitai_lists_the_sha256_and_gets_the_token(site, tmp_path, monkeypatch):
    monkeypatch.setenv("CIVITAI_TOKEN", "secret")
    site.headers = {"Content-Disposition": 'attachment; filename="ink.safetensors"'}
    listed = {"files": [{"primary": True, "hashes": {"SHA256": SHA256.upper()}}]}
    site.listed = {"/api/v1/model-versions/12": listed}
    assert address.pull(f"{site.url}/api/download/models/12", tmp_path, start).sha256 == SHA256
    assert {token for _, _, token in site.asked} == {"Bearer secret"}
    listed["files"][0]["hashes"]["SHA256"] = "0" * 64
    with pytest.raises(OutputError, match="another content"):
        address.pull(f"{site.url}/api/download/models/12", tmp_path, start)
    with pytest.raises(ModelCorrupt, match="0000 is expected"):
        address.pull(f"{site.url}/api/download/models/12", tmp_path, start, force=True)
    address.pull(f"{site.url}/other.safetensors", tmp_path / "b", start)
    assert site.asked[-1][2] is None


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"headers": {"Content-Disposition": 'filename="ink.ckpt"'}}, ModelError, "ink.ckpt, which is not supported"),
        ({"headers": {"Content-Disposition": 'filename=".safetensors"'}}, ModelError, "not supported"),
        ({"content_type": "text/html; charset=utf-8"}, ModelNotFound, "a web page"),
        ({"status": 404}, ModelNotFound, "404"),
        ({"status": 401}, ModelError, "denies access"),
        ({"announced": 2**45}, ModelCorrupt, "announces"),
        ({"headers": {"X-Linked-Etag": f'"{"1" * 64}"'}}, ModelCorrupt, "1111 is expected"),
    ],
)
def test_answers_that_cannot_be_used(site, tmp_path, change, error, words):
    for key, value in change.items():
        setattr(site, key, value)
    with pytest.raises(error, match=words) as raised:
        address.pull(f"{site.url}/ink.safetensors", tmp_path, start)
    assert raised.value.hint
    assert not [name for name in files(tmp_path) if name.endswith((".safetensors", ".ckpt"))]


def test_addresses_and_digests_are_checked(tmp_path):
    with pytest.raises(UsageError, match="https"):
        address.pull("http://example.org/ink.safetensors", tmp_path, start)
    with pytest.raises(UsageError, match="sha256"):
        address.pull("https://example.org/ink.safetensors", tmp_path, start, "12")
    with pytest.raises(ModelNotFound, match="cannot be reached"):
        address.pull("http://127.0.0.1:9/ink.safetensors", tmp_path, start)


def test_the_command(site, run: Run, tmp_path):
    done = run("models", "pull", f"{site.url}/ink.safetensors", "--json", env={"no_proxy": "127.0.0.1"})
    there = tmp_path / ".local" / "share" / "sdcli" / "models" / "ink.safetensors"
    assert (done.status, done.stderr) == (0, "")
    assert json.loads(done.stdout)["path"] == str(there)
    assert there.read_bytes() == DATA
    refused = run("models", "pull", "sd15", "-o", "x")
    assert refused.status == 2
    assert "--output is for a URL" in refused.stderr
