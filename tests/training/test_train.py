"""`sdcli train` as a shell sees it, on tiny models and pictures."""

import json
import os
import shutil
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file

from sdcli.files import palette
from sdcli.files.palette import Class
from sdcli.training import measure as measuring
from sdcli.training import parts, session, stages
from sdcli.training.autoencoder import AutoencoderRun
from sdcli.training.diffusion import DiffusionRun
from sdcli.training.imagefolder import read_rows
from sdcli.training.judge import Judge, Segmenter
from sdcli.training.world import FEW as FEW_WORLD
from tests.conftest import clean_environment
from tests.training.conftest import SPRITES, TINY_TEXT_ENCODER, TINY_UNET
from tests.training.test_autoencoder import TINY as TINY_AUTOENCODER

ROOT = Path(__file__).parents[2]
SHORT = ["--steps", "6", "--batch", "2", "--warmup", "1", "--cooldown", "1", "--log-every", "1", "--save-every", "2"]
FEW = ["--scenes", "4", "--fresh", "1", "--sheet-every", "0"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Ten pictures of 80×64 with texts and maps of two classes."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    lines = []
    for index in range(10):
        Image.fromarray(rng.integers(0, 255, (64, 80, 3), dtype=np.uint8)).save(folder / f"{index}.png")
        Image.fromarray(rng.integers(0, 2, (64, 80), dtype=np.uint8)).save(folder / f"map{index}.png")
        entry = {"file_name": f"{index}.png", "text": f"arctic fox {index}", "map_file_name": f"map{index}.png"}
        lines.append(json.dumps(entry) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines))
    palette.write(folder, [Class(0, "sky", (0, 0, 255)), Class(1, "fox", (255, 128, 0))])
    return folder


def log_of(folder, *, without=("seconds",)):
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in entry.items() if key not in without} for entry in entries]


def test_a_model_trained_on_own_pictures_is_loaded_by_diffusers(run, sd15, data, tmp_path):
    begin = ["train", "text-to-image", "--from", sd15, "--data", data, "--out", "run"]
    done = run(*begin, *SHORT, *FEW, "--sheet-every", "6")
    assert done.status == 0, done.stderr
    assert done.lines == ["run/model"]
    assert done.stderr == ""
    log = log_of(tmp_path / "run")
    assert [entry["step"] for entry in log] == [1, 2, 3, 4, 5, 6]
    assert log[-1]["samples"] == 12
    assert log[-1]["scenes"] == 9
    assert (tmp_path / "run" / "sheets" / "000006.png").exists()
    model = tmp_path / "run" / "model"
    pipe = StableDiffusionPipeline.from_pretrained(model, local_files_only=True, dtype=torch.float32)
    before = StableDiffusionPipeline.from_pretrained(sd15, local_files_only=True)
    moved = [
        not torch.equal(one, other.half().float())
        for one, other in zip(pipe.unet.parameters(), before.unet.parameters(), strict=True)
    ]
    assert sum(moved) > 0.9 * len(moved)
    assert (model / "scheduler" / "scheduler_config.json").read_bytes() == (
        sd15 / "scheduler" / "scheduler_config.json"
    ).read_bytes()
    drawn = run("generate", "arctic fox", "-m", "run/model", "--steps", "2", "-o", "fox.png", "--seed", "1")
    assert drawn.status == 0, drawn.stderr


def test_inpainting_is_trained_and_its_unet_is_exported_alone(run, sd15, data, tmp_path):
    done = run("train", "inpaint", "--from", sd15, "--data", data, "--out", "run", "--json", *SHORT, *FEW)
    assert done.status == 0, done.stderr
    said = [json.loads(line) for line in done.lines]
    assert said[-1] == {"status": "done", "step": 6, "model": "run/model"}
    assert [entry["loss"] for entry in said[:-1]] == [entry["loss"] for entry in log_of(tmp_path / "run")]
    pipe = StableDiffusionInpaintPipeline.from_pretrained(tmp_path / "run" / "model", local_files_only=True)
    assert pipe.unet.config.in_channels == 9
    assert str(sd15) not in (tmp_path / "run" / "model" / "unet" / "config.json").read_text()
    exported = run("train", "export", "run", "--to", "alone", "--unet-only", "--shard", "1")
    assert exported.lines == ["alone"], exported.stderr
    shards = list((tmp_path / "alone").glob("*.safetensors"))
    assert len(shards) > 1
    assert max(file.stat().st_size for file in shards) < 1_100_000
    assert all(value.dtype == torch.float16 for file in shards for value in load_file(file).values())
    alone = UNet2DConditionModel.from_pretrained(tmp_path / "alone", torch_dtype=torch.float16)
    for name, value in pipe.unet.half().state_dict().items():
        assert torch.equal(value, alone.state_dict()[name]), name


def test_a_model_trained_on_own_maps_keeps_their_classes(run, sd15, data, tmp_path):
    done = run("train", "semantic", "--from", sd15, "--data", data, "--out", "run", *SHORT, *FEW)
    assert done.status == 0, done.stderr
    assert palette.read(tmp_path / "run" / "model") == palette.read(data)
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "run" / "model" / "unet", torch_dtype=torch.float16)
    assert unet.config.in_channels == 4 + 2
    assert unet.conv_in.weight[:, 4:].abs().sum() > 0


def test_a_killed_run_continues_with_the_same_losses(run, forked, sd15, data, tmp_path):
    begin = ["train", "inpaint", "--from", sd15, "--data", data, *FEW, *SHORT, "--steps", "7", "--save-every", "3"]
    unbroken = run(*begin, "--out", "unbroken")
    assert unbroken.status == 0, unbroken.stderr
    command = [*forked, *map(str, begin), "--out", "killed", "--json"]
    environment = clean_environment(tmp_path)
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if json.loads(line).get("step") == 5:  # two steps after a checkpoint
                process.kill()
                break
        process.stdout.close()
    assert process.returncode == -signal.SIGKILL
    assert [entry["step"] for entry in log_of(tmp_path / "killed")][-1] >= 5
    rest = run("train", "inpaint", "--out", "killed", "--json")
    assert rest.status == 0, rest.stderr
    assert json.loads(rest.lines[0])["step"] == 4
    assert log_of(tmp_path / "killed") == log_of(tmp_path / "unbroken")
    for file in ("unet/diffusion_pytorch_model.safetensors", "model_index.json"):
        one, other = (tmp_path / each / "model" / file for each in ("killed", "unbroken"))
        assert one.read_bytes() == other.read_bytes()


def test_a_slice_stops_the_next_continues_and_a_finished_run_is_unchanged(run, sd15, data, tmp_path):
    begin = ["train", "inpaint", "--from", sd15, "--data", data, "--out", "run", *FEW, *SHORT]
    first = run(*begin, "--slice", "0.0001")
    assert (first.status, first.lines) == (0, [])
    assert first.stderr == "note: inpaint: stopped after step 0 of 6; the same command continues\n"
    second = run("train", "inpaint", "--out", "run")
    assert (second.status, second.lines) == (0, ["run/model"])
    before = (tmp_path / "run" / "model" / "model_index.json").stat().st_mtime_ns
    third = run("train", "inpaint", "--out", "run", "--slice", "0.0001")
    assert (third.status, third.lines) == (0, ["run/model"])
    assert (tmp_path / "run" / "model" / "model_index.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_run_at_a_checkpoint(run, sd15, data, tmp_path, monkeypatch, number, status):
    steps, step = iter((False, False, True)), DiffusionRun.train_step

    def train_step(self):
        loss = step(self)
        if next(steps):
            os.kill(os.getpid(), number)
        return loss

    monkeypatch.setattr(DiffusionRun, "train_step", train_step)
    begin = ["train", "inpaint", "--from", sd15, "--data", data, "--out", "run", *FEW, *SHORT, "--steps", "9999"]
    done = run(*begin, "--json")
    assert done.status == status
    assert json.loads(done.lines[-1]) == {"status": "stopped", "step": 3}
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] == 3
    assert not (tmp_path / "run" / "model").exists()


def test_two_processes_split_a_batch_and_agree(run, forked, sd15, data, tmp_path):
    begin = ["train", "inpaint", "--from", sd15, "--data", data, "--out", "run", *FEW, *SHORT, "--steps", "2"]
    words = [*forked, *map(str, begin), "--processes", "2", "--device", "cpu"]
    environment = clean_environment(tmp_path) | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == b"run/model\n"
    assert [entry["step"] for entry in log_of(tmp_path / "run")] == [1, 2]
    assert {file.name[:8] for file in (tmp_path / "run" / "latents").iterdir()} == {"process0", "process1"}
    refused = run(*begin[:-2], "--out", "other", "--batch", "3", "--processes", "2")
    assert refused.status == 2
    assert "cannot be split between 2 processes" in refused.stderr


def test_a_dry_run_prints_the_cost_and_writes_nothing(run, sd15, data, tmp_path):
    done = run("train", "inpaint", "--from", sd15, "--data", data, "--out", "run", "--dry-run", "--json", *SHORT)
    assert done.status == 0, done.stderr
    facts = json.loads(done.lines[0])
    unet = UNet2DConditionModel.from_pretrained(sd15 / "unet")
    widened = 5 * unet.conv_in.weight[:, 0].numel()
    assert facts["parameters_trained"] == sum(p.numel() for p in unet.parameters()) + widened
    assert facts["samples"] == 12
    assert facts["pictures_encoded"] == 10
    assert facts["seconds_per_step"] > 0
    assert facts["memory"].endswith("B")
    assert not (tmp_path / "run").exists()


def test_an_autoencoder_and_a_new_model_are_trained_on_the_world(run, tmp_path, monkeypatch):
    monkeypatch.setattr(AutoencoderRun.__init__, "__defaults__", (TINY_AUTOENCODER,))
    monkeypatch.setattr(parts, "UNET", TINY_UNET)
    monkeypatch.setattr(parts, "TEXT_ENCODER", TINY_TEXT_ENCODER)
    monkeypatch.setattr(stages, "CAPTIONS", 300)
    small = ["--crop", "32", "--teacher-steps", "1", "--teacher-scenes", "4", "--sheet-every", "0"]
    few = ["--world", "few", "--sprites", SPRITES]
    first = run("train", "autoencoder", *few, "--out", "vae", *SHORT, "--steps", "2", *small)
    assert first.lines == ["vae/model"], first.stderr
    begin = ["train", "text-to-image", "--vae", "vae/model", *few, "--out", "text"]
    second = run(*begin, *SHORT, *FEW, "--steps", "1", "--sheet-every", "0")
    assert second.lines == ["text/model"], second.stderr
    drawn = run("generate", "a fox", "-m", "text/model", "--steps", "1", "--scheduler", "ddim", "-o", "fox.png")
    assert drawn.status == 0, drawn.stderr
    keys = load_file(tmp_path / "text" / "model" / "text_encoder" / "model.safetensors")
    assert all(name.startswith("text_model.") for name in keys)
    refused = run("train", "inpaint", "--from", "text/model", "--out", "x", "--sprites", "no-such.zip")
    assert refused.status == 4
    assert "npm pack" in refused.stderr


def test_an_unreadable_picture_is_an_error_of_two_lines(run, sd15, data, tmp_path):
    for file in data.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "3.png").write_bytes(b"no picture")
    assert len(read_rows(tmp_path)) == 10
    done = run("train", "inpaint", "--from", sd15, "--data", ".", "--out", "run", *SHORT, "--scenes", "10")
    assert done.status == 4
    assert done.stdout == b""
    error, hint = done.stderr.splitlines()
    assert "metadata.jsonl line 4: cannot read the image 3.png" in error
    assert hint.startswith("hint: ")


def test_progress_is_shown_only_on_terminals(forked, sd15, data, tmp_path):
    import pty

    leader, follower = pty.openpty()
    command = [*forked, "train", "inpaint", "--from", str(sd15), "--data", str(data), "--out", "run"]
    environment = clean_environment(tmp_path) | {"TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(
        [*command, *SHORT, *FEW],
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=follower, start_new_session=True,
    ) as process:  # fmt: skip
        os.close(follower)
        seen = b""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                part = os.read(leader, 4096)
            except OSError:
                break
            if not part:
                break
            seen += part
        out = process.stdout.read()
    os.close(leader)
    assert out == b"run/model\n"
    text = seen.decode()
    assert "inpaint, loss 0." in text or "inpaint, loss 1." in text
    assert "steps/s" in text or "s/step" in text
    assert "left" in text


def test_a_table_has_a_row_for_the_judge_and_those_of_each_model(run, tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "judge_itself", partial(measuring.judge_itself, count=4))
    unlearnt = {"judge": Judge(FEW_WORLD).state_dict(), "segmenter": Segmenter().state_dict()}
    torch.save(unlearnt, tmp_path / "judge.pt")
    few = ["--judge", "judge.pt", "--world", "few", "--sprites", SPRITES, "--masks", "1", "--maps", "1", "--steps", "1"]
    done = run("train", "measure", "kit-inpaint", "kit-semantic", *few)
    assert done.status == 0, done.stderr
    assert done.stderr == ""
    heading, *rows = done.lines
    assert [row.split()[:3] for row in rows] == [
        ["judge", "renderings", "4"],
        ["kit-inpaint", "masks", "1"],
        ["kit-semantic", "maps", "1"],
        ["kit-semantic", "mixed_maps", "1"],
    ]
    assert {len(row) for row in rows} == {len(heading)}
    told = run("train", "measure", "kit-semantic", *few, "--scheduler", "ddim", "--guidance-scale", "2", "--json")
    last = json.loads(told.lines[-1])
    assert (last["model"], last["trials"], last["pictures"]) == ("kit-semantic", "mixed_maps", 1)
    assert 0 <= last["mean_iou"] < 0.5


def test_a_row_has_the_shares_of_its_trials():
    row = {"model": "kit", "trials": "riding", "pictures": 50, "place": 0.98, "stack": 0.916, "seconds": 1.2}
    heading, line = session.heading(5), session.line_of(row, 5)
    cells = dict(zip(heading.split()[3:], line.replace(" %", "%").split()[3:], strict=True))
    assert cells == {
        "subject": "-", "colour": "-", "place": "98.0%", "count": "-", "order": "-", "stack": "91.6%",
        "IoU": "-", "dB": "-", "seconds": "1.20",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["kit", "--world", "nowhere"], 2, "--world is nowhere"),
        (["kit", "no-such-model"], 3, "no-such-model"),
        (["kit", "--scheduler", "foo"], 2, "foo"),
        (["kit", "--guidance-scale", "nan"], 2, "guidance_scale"),
        (["kit", "--judge", "no.pt"], 3, "no.pt is not a judge of this world"),
        (["kit", "--judge", "other.pt"], 3, "is not a judge of this world"),
        (["kit", "--judge", "none.pt"], 3, "there is no judge none.pt"),
    ],
)
def test_invalid_options_of_measure_are_errors_before_anything_is_generated(run, tmp_path, words, status, said):
    (tmp_path / "no.pt").write_text("no judge")
    torch.save({"step": 1}, tmp_path / "other.pt")
    done = run("train", "measure", "--judge", "judge.pt", "--world", "few", "--sprites", SPRITES, *words)
    assert (done.status, done.stdout) == (status, b"")
    error, hint = done.stderr.splitlines()
    assert said in error
    assert hint.startswith("hint: ")


def test_only_the_text_encoder_of_a_model_is_trained(run, tmp_path):
    """On kit's own weights, which read well: a few steps leave the log and the model, and pictures are refused."""
    kit_folder = ROOT / "sdcli" / "kit"
    short = [*SHORT, "--batch", "16"]
    done = run("train", "text-encoder", "--from", kit_folder, "--world", "kit-rows", "--out", "run", *short)
    assert done.status == 0, done.stderr
    assert done.lines == ["run/model"]
    log = log_of(tmp_path / "run")
    assert [entry["step"] for entry in log] == [1, 2, 3, 4, 5, 6]
    assert set(log[0]) == {"step", "loss", "samples", "read"}
    model = tmp_path / "run" / "model"
    for part in ("unet", "vae", "tokenizer", "scheduler"):
        for file in (kit_folder / part).iterdir():
            assert (model / part / file.name).read_bytes() == file.read_bytes()
    before, after = (load_file(folder / "text_encoder" / "model.safetensors") for folder in (kit_folder, model))
    assert str(ROOT) not in (model / "text_encoder" / "config.json").read_text()
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(moved) > 0.9 * len(before)
    for option, said in (("--unet-only", "does not train a U-Net"), ("--average", "keeps no average")):
        refused = run("train", "export", "run", "--to", "alone", option)
        assert (refused.status, said in refused.stderr) == (2, True)
        assert not (tmp_path / "alone").exists()


def test_a_base_model_can_be_given_by_name(run, tmp_path):
    dry = run("train", "text-encoder", "--from", "kit", "--out", "run", *SHORT, "--dry-run", "--json")
    assert dry.status == 0, dry.stderr
    assert json.loads(dry.lines[0])["samples"] == 12
    refused = run("train", "inpaint", "--from", "kit-inpaint", "--out", "run")
    assert refused.status == 2
    assert "sdcli models export kit-inpaint FOLDER" in refused.stderr
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_of_another_model_is_an_error(run, sd15, tmp_path):
    shutil.copytree(sd15, tmp_path / "mixed")
    config = tmp_path / "mixed" / "text_encoder" / "config.json"
    assert len(json.loads((sd15 / "tokenizer" / "vocab.json").read_text())) < 49408
    shutil.rmtree(tmp_path / "mixed" / "tokenizer")
    shutil.copytree(ROOT / "sdcli" / "kit" / "tokenizer", tmp_path / "mixed" / "tokenizer")
    known = json.loads(config.read_text())["vocab_size"]
    done = run("train", "text-encoder", "--from", "mixed", "--out", "run", *SHORT)
    tokens = len(json.loads((tmp_path / "mixed" / "tokenizer" / "vocab.json").read_text()))
    assert known < tokens
    assert done.status == 3
    assert f"has {tokens} tokens, but its text encoder has {known}" in done.stderr


def test_an_export_replaces_a_model_only_with_force(run, sd15, data, tmp_path):
    done = run("train", "inpaint", "--from", sd15, "--data", data, "--out", "run", *SHORT, *FEW)
    assert done.status == 0, done.stderr
    for _ in range(2):
        exported = run("train", "export", "run", "--to", "model", "--force")
        assert exported.lines == ["model"], exported.stderr
    refused = run("train", "export", "run", "--to", "model")
    assert refused.status == 8
    assert "--force" in refused.stderr
    (tmp_path / "model" / "letter.txt").write_text("dear")
    kept = run("train", "export", "run", "--to", "model", "--force")
    assert kept.status == 8
    assert "letter.txt" in kept.stderr
    nowhere = run("train", "export", "run", "--to", "no/such/folder")
    assert nowhere.status == 8
    assert len(nowhere.stderr.splitlines()) == 2
