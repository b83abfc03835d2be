"""`sdcli models pull`, `verify` and `rm` against a hub on loopback: what it is asked, and what lies on disk after."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sdcli.files.metadata import read
from sdcli.models import assemble
from sdcli.models.source import Source
from tests.conftest import Finished, clean_environment
from tests.hub.conftest import REPO, model_files, noise
from tests.hub.server import sha256

ROOT = Path(__file__).parent.parent.parent
UNET = "unet/diffusion_pytorch_model.safetensors"
NEEDED = {
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/tokenizer_config.json",
    "tokenizer/special_tokens_map.json",
    "tokenizer/vocab.json",
    "unet/config.json",
    UNET,
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
}


def two_lines(done: Finished, status: int) -> tuple[str, str]:
    assert done.status == status, done.stderr
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: ")
    assert hint.startswith("hint: ")
    return error, hint


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def cache(tmp_path: Path) -> Path:
    return tmp_path / ".cache" / "huggingface" / "hub" / "models--somebody--some-model"


def lock_file(tmp_path: Path) -> Path:
    return tmp_path / ".local" / "share" / "sdcli" / "lock.json"


def test_pull_gets_what_is_needed_pins_it_and_says_where_it_is(hub, models, run, tmp_path):
    commit = hub.put(REPO, model_files())
    done = models("pull", REPO)
    assert (done.status, done.stderr) == (0, "")
    snapshot = Path(done.lines[0])
    assert files(snapshot) == NEEDED
    for path in NEEDED:
        assert (snapshot / path).read_bytes() == model_files()[path]
    pinned = json.loads(lock_file(tmp_path).read_text())["models"][REPO]
    assert (pinned["revision"], pinned["asked"]) == (commit, "main")
    assert pinned["files"] == {
        path: {"size": len(model_files()[path]), "sha256": sha256(model_files()[path])} for path in NEEDED
    }
    assert not list(cache(tmp_path).rglob("*partial*"))

    hub.put(REPO, {**model_files(), UNET: noise("newer")})  # the branch moves on; the model stays
    hub.asked.clear()
    shown = json.loads(run("models", "show", REPO, "--json").stdout)
    assert (shown["revision"], shown["path"], shown["native_size"]) == (commit, str(snapshot), 512)
    assert hub.asked == []
    assert models("verify", REPO).status == 0
    assert hub.asked == []


def test_a_second_pull_fetches_nothing_and_follows_the_branch(hub, models, tmp_path):
    first = hub.put(REPO, model_files())
    models("pull", REPO)
    hub.asked.clear()
    assert models("pull", REPO).status == 0
    assert not [path for method, path, _ in hub.asked if method == "GET" and not path.startswith("/api/")]
    second = hub.put(REPO, {**model_files(), UNET: noise("newer")})
    hub.asked.clear()
    done = models("pull", REPO, "--json")
    line = json.loads(done.stdout)
    assert (line["revision"], line["repo"]) == (second, REPO)
    assert line["path"].endswith(second)
    stores = {path for method, path, _ in hub.asked if method == "GET" and path.startswith("/store/")}
    assert stores == {f"/store/{sha256(noise('newer'))}"}
    back = json.loads(models("pull", REPO, "--revision", first, "--json").stdout)
    assert back["revision"] == first
    assert back["path"].endswith(first)  # although the branch stands for the second by now


def test_a_variant_is_got_where_the_entry_names_it(hub, models, run, tmp_path):
    hub.put(REPO, model_files())
    config = tmp_path / "config.toml"
    config.write_text(f'[models.half]\nrepo = "{REPO}"\nvariant = "fp16"\n')
    done = models("pull", "half", env={"SDCLI_CONFIG": str(config)})
    assert done.status == 0, done.stderr
    weights = {path for path in files(Path(done.lines[0])) if path.endswith(".safetensors")}
    assert weights == {path.replace(".safetensors", ".fp16.safetensors") for path in NEEDED if path.endswith("tensors")}


CHUNK = 10 * 1024 * 1024  # huggingface_hub hands a file on in pieces of this size
BIG = noise("big", 24_000_000)


def test_a_download_that_breaks_off_goes_on_by_itself(hub, models):
    hub.put(REPO, {**model_files(), UNET: BIG})
    hub.cut[sha256(BIG)] = [CHUNK + 1000]
    done = models("pull", REPO)
    assert done.status == 0, done.stderr
    assert hub.downloads(sha256(BIG)) == [None, f"bytes={CHUNK}-"]


def test_a_pull_that_was_killed_or_interrupted_resumes_later(hub, models, around, tmp_path):
    hub.put(REPO, {**model_files(), UNET: BIG})
    partial = cache(tmp_path) / "blobs" / f"{sha256(BIG)}.sdcli-partial"
    hub.stall = threading.Event()
    for chunks, how, status in ((1, signal.SIGKILL, -9), (2, signal.SIGINT, 130)):
        hub.cut[sha256(BIG)] = [chunks * CHUNK + 1000]
        with subprocess.Popen(
            [sys.executable, "-m", "sdcli", "models", "pull", REPO],
            stderr=subprocess.PIPE,
            cwd=tmp_path,
            env=clean_environment(tmp_path) | {"PYTHONPATH": str(ROOT)} | dict(around),
        ) as process:
            deadline = time.monotonic() + 60
            while not partial.exists() or partial.stat().st_size < chunks * CHUNK:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            process.send_signal(how)
            _, stderr = process.communicate(timeout=60)
        assert process.returncode == status
        assert (b"resumes the download" in stderr) == (how == signal.SIGINT)
        assert b"Traceback" not in stderr
        assert not lock_file(tmp_path).exists()
    hub.stall.set()
    done = models("pull", REPO)
    assert done.status == 0, done.stderr
    assert hub.downloads(sha256(BIG)) == [None, f"bytes={CHUNK}-", f"bytes={2 * CHUNK}-"]
    assert (Path(done.lines[0]) / UNET).read_bytes() == BIG
    assert not partial.exists()


def test_verify_names_each_bad_file_and_pull_mends_them(hub, models, tmp_path):
    commit = hub.put(REPO, model_files())
    snapshot = Path(models("pull", REPO).lines[0])
    blob = (snapshot / UNET).resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"\0")
    (snapshot / "vae" / "config.json").resolve().unlink()
    done = models("verify", REPO)
    said = dict(reversed(line.split()) for line in done.lines)
    assert said == dict.fromkeys(NEEDED, "ok") | {UNET: "changed", "vae/config.json": "missing"}
    assert f"--revision {commit}" in done.stderr
    assert done.status == 3
    bad = [json.loads(line) for line in models("verify", REPO, "--json").lines if "ok" not in line]
    assert bad == [{"file": UNET, "status": "changed"}, {"file": "vae/config.json", "status": "missing"}]
    assert models("pull", REPO).status == 0
    assert models("verify", REPO).status == 0


def test_bytes_that_are_not_what_the_hub_promised_are_refused(hub, models, tmp_path):
    hub.put(REPO, model_files())
    hub.spoil.add(sha256(model_files()[UNET]))
    error, _ = two_lines(models("pull", REPO), 3)
    assert f"{UNET} was damaged during the download" in error
    assert not lock_file(tmp_path).exists()
    hub.spoil.clear()
    assert models("pull", REPO).status == 0


def test_a_gated_model_needs_a_token(hub, models):
    hub.put(REPO, model_files(), token="hf_secret")
    error, hint = two_lines(models("pull", REPO), 3)
    assert "gated" in error
    assert f"{hub.url}/{REPO}" in hint
    assert "HF_TOKEN" in hint
    assert models("pull", REPO, env={"HF_TOKEN": "hf_secret"}).status == 0
    assert hub.tokens_at_store == []


def test_what_is_not_there_is_said(hub, models, tmp_path):
    error, hint = two_lines(models("pull", "nobody/nothing"), 3)
    assert "nobody/nothing" in error
    assert "HF_TOKEN" in hint
    hub.put(REPO, model_files())
    error, hint = two_lines(models("pull", REPO, "--revision", "v9"), 3)
    assert "'v9'" in error
    assert not cache(tmp_path).exists()


def test_a_hub_that_cannot_be_reached_or_fails(hub, models, tmp_path):
    error, hint = two_lines(models("pull", REPO, env={"HF_ENDPOINT": "http://127.0.0.1:9"}), 3)
    assert "http://127.0.0.1:9 cannot be reached" in error
    assert "network" in hint
    error, hint = two_lines(models("pull", REPO, env={"HF_HUB_OFFLINE": "1"}), 3)
    assert "HF_HUB_OFFLINE" in error
    hub.status = 403
    error, hint = two_lines(models("pull", REPO), 3)
    assert "403" in error
    assert "HF_TOKEN" in hint


@pytest.mark.parametrize(
    ("without", "status", "said"),
    [("model_index.json", 3, "diffusers' layout"), (UNET, 3, "only has pickled weights"), ("vae/", 3, "vae has no")],
)
def test_a_repository_that_is_no_model_is_refused_before_anything_is_got(hub, models, without, status, said):
    hub.put(
        REPO,
        {path: data for path, data in model_files().items() if not path.startswith(without) and "fp16" not in path},
    )
    error, _ = two_lines(models("pull", REPO), status)
    assert said in error
    assert [method for method, _, _ in hub.asked] == ["GET"]


def test_a_full_disk_leaves_no_half_model(hub, models, tmp_path):
    hub.put(REPO, model_files())
    blobs = cache(tmp_path) / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{sha256(model_files()[UNET])}.sdcli-partial").symlink_to("/dev/full")
    error, _ = two_lines(models("pull", REPO), 8)
    assert "No space left" in error
    assert not lock_file(tmp_path).exists()
    assert json.loads(models("show", REPO, "--json").stdout)["present"] is False


def test_too_little_space_is_said_before_it_is_filled(hub, monkeypatch, tmp_path):
    from sdcli.errors import OutputError
    from sdcli.models.hub import lock, pull

    folder = tmp_path / "models--a--b"
    (folder / "blobs").mkdir(parents=True)
    monkeypatch.setattr(lock, "cache_folder", lambda repo: folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 1500, 1500))
    remote = [pull.RemoteFile("unet/x", 1000, "d1"), pull.RemoteFile("vae/x", 1000, "d2")]
    with pytest.raises(OutputError) as caught:
        pull._check_space("a/b", "c0ffee", remote)
    assert "needs 2.0 KB" in caught.value.message
    (folder / "blobs" / "d1.sdcli-partial").write_bytes(bytes(500))
    pull._check_space("a/b", "c0ffee", remote)


def test_rm_asks_and_frees_the_files(hub, models, run, tmp_path):
    hub.put(REPO, model_files())
    models("pull", REPO)
    _, hint = two_lines(models("rm", REPO), 2)
    assert "--yes" in hint
    assert cache(tmp_path).exists()
    done = models("rm", REPO, "--yes")
    assert (done.status, done.stdout, done.stderr) == (0, b"", "")
    assert not cache(tmp_path).exists()
    assert json.loads(lock_file(tmp_path).read_text())["models"] == {}
    _, hint = two_lines(run("generate", "x", "-m", REPO), 3)
    assert f"sdcli models pull {REPO}" in hint
    two_lines(models("rm", REPO), 3)


def test_rm_of_one_of_two_names_keeps_the_files(hub, models, tmp_path):
    hub.put(REPO, model_files())
    for name in ("one", "two"):
        assert models("add", name, REPO).status == 0
    models("pull", "one")
    assert models("rm", "one").status == 0
    assert models("verify", "two").status == 0
    assert models("rm", "two", "--yes").status == 0
    assert not cache(tmp_path).exists()
    assert "one" not in (tmp_path / ".config" / "sdcli" / "models.toml").read_text()


def test_a_terminal_is_asked(hub, models, around, tmp_path):
    hub.put(REPO, model_files())
    models("pull", REPO)
    environment = clean_environment(tmp_path) | {"PYTHONPATH": str(ROOT)} | dict(around)
    for answer, status in ((b"n\n", 130), (b"y\n", 0)):
        primary, secondary = os.openpty()
        os.write(primary, answer)
        done = subprocess.run(
            [sys.executable, "-m", "sdcli", "models", "rm", REPO],
            stdin=secondary, capture_output=True, env=environment, cwd=tmp_path, timeout=60, check=False,
        )  # fmt: skip
        os.close(primary)
        os.close(secondary)
        assert done.returncode == status, done.stderr
        assert b"12 files, 60" in done.stderr
        assert done.stdout == b""
        assert cache(tmp_path).exists() == (status != 0)


@pytest.mark.parametrize("command", ["pull", "verify", "rm"])
def test_the_shipped_model_needs_none_of_it(models, command):
    error, _ = two_lines(models(command, "kit"), 2)
    assert "comes with sdcli" in error


def test_a_model_that_another_tool_put_there_is_not_touched(models, tmp_path):
    (cache(tmp_path) / "snapshots" / "0123abcd").mkdir(parents=True)
    (cache(tmp_path) / "refs").mkdir()
    (cache(tmp_path) / "refs" / "main").write_text("0123abcd")
    assert "hf cache rm" in two_lines(models("rm", REPO, "--yes"), 2)[1]
    assert "sdcli models pull" in two_lines(models("verify", REPO), 3)[1]


def test_a_pulled_model_draws(hub, models, around, run, sd15, tmp_path):
    hub.put(REPO, {str(path.relative_to(sd15)): path.read_bytes() for path in sd15.rglob("*") if path.is_file()})
    assert models("pull", REPO).status == 0
    hub.asked.clear()
    done = run("generate", "x", "-s", 1, "-m", REPO, "--steps", 1, "--threads", 1, env=around)
    assert (done.status, done.lines) == (0, ["x-1.png"]), done.stderr
    assert hub.asked == []


def test_a_picture_names_the_files_it_was_made_with_though_others_are_pulled_meanwhile(
    hub, models, around, command, run, sd15, tmp_path, monkeypatch
):
    parts = {str(path.relative_to(sd15)): path.read_bytes() for path in sd15.rglob("*") if path.is_file()}
    hub.put(REPO, parts)
    before = Source(Path(models("pull", REPO).lines[0]))
    hub.put(REPO, parts | {"model_index.json": parts["model_index.json"] + b"\n"})
    load, pulled = assemble.load, []

    def load_and_pull(*arguments, **options):
        loaded = load(*arguments, **options)
        pulled.append(command("models", "pull", REPO, env=around).status)
        return loaded

    monkeypatch.setattr(assemble, "load", load_and_pull)
    done = run("generate", "x", "-s", 1, "-m", REPO, "--steps", 1, "--threads", 1, "-o", "x.png", env=around)
    assert (done.status, pulled) == (0, [0]), done.stderr
    after = Source(Path(json.loads(models("show", REPO, "--json").stdout)["path"]))
    assert after.path != before.path
    assert after.sha256 != before.sha256
    assert read(tmp_path / "x.png").chunk["model_digest"] == before.sha256


def test_a_controlnet_is_pulled_and_found(hub, models, run, tmp_path):
    config = b'{"_class_name": "ControlNetModel", "cross_attention_dim": 768}'
    kept = {"config.json": config, "diffusion_pytorch_model.safetensors": noise("net")}
    hub.put(REPO, {**kept, "README.md": b"edges", "diffusion_pytorch_model.bin": noise("pickle", 1000)})
    done = models("pull", REPO)
    assert (done.status, done.stderr) == (0, "")
    assert files(Path(done.lines[0])) == set(kept)
    shown = json.loads(models("show", REPO, "--json").stdout)
    assert (shown["kind"], shown["cross_attention_dim"]) == ("controlnet", 768)
    assert models("verify", REPO).status == 0
    refused = run("generate", "x", "--control", f"{REPO}=x.png")
    assert "does not fit this model: it is made for text with 768 features per token" in two_lines(refused, 2)[0]
