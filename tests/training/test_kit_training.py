"""Training kit: its phases in one process, and a whole run from nothing to the exported folder, all of it tiny."""

import copy
import json
import threading
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from sdcli.commands import train_kit as command
from sdcli.diffusion.context import masked_image, segmentation
from sdcli.errors import ModelNotFound, UsageError
from sdcli.files import palette
from sdcli.training import autoencoder, checkpoint, judge, kit, learners, parts, session, sheets, stream
from sdcli.training.kit import Clock, DevicePool, Feeder, Phase, PhaseRun, Settings, rate_at, share_out
from sdcli.training.learners import CaptionLearner, Runtime, UnetLearner, own_unet, shared_unet, slots_of
from sdcli.training.loop import Stop
from sdcli.training.optimizers import MatrixOptimizer
from sdcli.training.places import CLASSES
from sdcli.training.stream import ChunkSettings
from sdcli.training.team import Team
from sdcli.training.world import FEW
from tests.shell import call
from tests.training.conftest import SPRITES, TINY_TEXT_ENCODER, TINY_UNET
from tests.training.test_autoencoder import TINY as TINY_AUTOENCODER

EXACT = Team(torch.device("cpu"), autocasts=False)
LATENTS, KINDS = parts.LATENT_CHANNELS, len(CLASSES)
OWN_CHANNELS = {"text-to-image": LATENTS, "inpaint": 2 * LATENTS + 1, "semantic": LATENTS + KINDS}


def here():
    return Runtime(EXACT, torch.Generator().manual_seed(1))


# The parts of a run, one by one.


def test_the_command_lists_all_phases():
    assert tuple(kit.PHASES) == command.KIT_PHASES


def test_minutes_are_split_by_the_phases_shares():
    seconds = share_out(10)
    assert sum(seconds.values()) == pytest.approx(600)
    assert seconds["text-to-image"] / seconds["judge"] == pytest.approx(0.45 / 0.06)
    assert share_out(3, ["inpaint", "semantic"]) == pytest.approx({"inpaint": 90, "semantic": 90})
    assert sum(kit.PHASES[name].share for name in kit.WHOLE) == pytest.approx(1)


def test_scale_changes_only_batch_and_pool_sizes(tmp_path):
    small = Settings(tmp_path, SPRITES, {}, scale=1 / 16).phase("inpaint")
    assert (small.batch, small.pool, small.first, small.fresh) == (32, 6250, 128, 4)
    assert replace(small, batch=512, pool=100_000, first=2048, fresh=64) == kit.PHASES["inpaint"]
    tiny = Settings(tmp_path, SPRITES, {}, scale=0.0001).phase("autoencoder")
    assert (tiny.batch, tiny.pool, tiny.first, tiny.fresh) == (2, 2, 2, 2)


def test_a_clock_includes_earlier_slices_and_uses_the_larger_share(monkeypatch):
    now = 100.0
    monkeypatch.setattr(kit.time, "monotonic", lambda: now)
    clock = Clock(seconds=200, steps=10, before=30, started=now)
    now = 120.0
    assert clock.elapsed() == 50
    assert clock.fraction(1) == 0.25
    assert clock.fraction(7) == 0.7
    assert clock.fraction(11) == 1
    assert replace(clock, steps=None).fraction(7) == 0.25
    assert replace(clock, seconds=None, steps=None).fraction(7) == 0
    now = 900.0
    assert clock.fraction(1) == 1


@pytest.mark.parametrize(
    ("step", "fraction", "expected"),
    [(0, 0, 0.1), (4, 0.1, 0.5), (50, 0.5, 1), (50, 0.6, 1), (50, 0.9, 0.25), (9, 1, 0)],
)
def test_the_rate_rises_stays_and_falls_to_zero(step, fraction, expected):
    phase = Phase("pictures", 1, 1, lr=3.0, cooldown=0.4, pool=1, first=1, fresh=1, warmup=10)
    assert rate_at(phase, step, fraction) == pytest.approx(3 * expected)


def test_a_feeder_returns_chunks_in_order_and_raises_their_errors():
    def chunks():
        yield {"x": torch.tensor([1])}
        yield {"x": torch.tensor([2])}
        raise ValueError("no such sprite")

    feeder = Feeder(chunks(), ahead=2)
    assert [feeder.take(wait=True)["x"].item() for _ in range(2)] == [1, 2]
    with pytest.raises(ValueError, match="no such sprite"):
        feeder.take(wait=True)
    feeder.stop()


def test_a_feeder_waits_only_if_requested():
    go = threading.Event()

    def chunks():
        for number in count():
            go.wait()
            yield {"x": torch.tensor([number])}

    feeder = Feeder(chunks(), ahead=3)
    assert feeder.take(wait=False) is None
    go.set()
    assert feeder.take(wait=True)["x"].item() == 0
    feeder.stop()


def test_a_full_pool_replaces_its_oldest_rows():
    pool = DevicePool(5, torch.Generator().manual_seed(0))
    for rows in ([0, 1, 2], [3, 4, 5], [6, 7]):
        pool.add({"x": torch.tensor(rows), "y": -torch.tensor(rows)[:, None]})
    assert (pool.size, pool.added) == (5, 8)
    assert sorted(pool.tensors["x"].tolist()) == [3, 4, 5, 6, 7]
    drawn = pool.sample(400)
    assert torch.equal(drawn["x"], -drawn["y"][:, 0])
    assert np.bincount(drawn["x"], minlength=8)[3:].min() > 40


def test_a_pool_that_is_not_full_samples_only_added_rows():
    pool = DevicePool(1000, torch.Generator().manual_seed(0))
    pool.add({"x": torch.tensor([7, 8])})
    assert set(pool.sample(50)["x"].tolist()) == {7, 8}


class Line:
    """A learner of real parts: a line through points on y = 2x."""

    def __init__(self):
        torch.manual_seed(0)
        self.modules = {"line": nn.Linear(1, 1)}
        self.exported, self.steps = [], []

    def rows(self, chunk):
        return chunk

    def loss(self, rows, step):
        self.steps.append(step)
        return (self.modules["line"](rows["x"]) - 2 * rows["x"]).square().mean()

    def export(self, folder):
        self.exported.append([each.item() for each in self.modules["line"].parameters()])
        return {"good": 1.5}

    def sheet(self, path):
        """Do nothing."""


def chunks(size=8):
    generator = torch.Generator().manual_seed(3)
    while True:
        yield {"x": torch.randn(size, 1, generator=generator)}


class Ready:
    """A feeder whose chunks are ready at once, unless `empty` is set."""

    def __init__(self):
        self.chunks, self.empty = chunks(), False

    def take(self, *, wait):
        return None if self.empty and not wait else next(self.chunks)


def a_run(tmp_path, steps=6, seconds=None, learner=None):
    """The phase "captions" with 4 rows a step, 32 at first and 4 more a step, whatever it learns."""
    settings = Settings(tmp_path, SPRITES, {"captions": seconds}, steps, scale=1 / 256)
    return PhaseRun("captions", settings, learner or Line(), here())


def test_each_step_adds_a_number_of_scenes_and_catches_up_on_missing_ones(tmp_path):
    run, feeder = a_run(tmp_path), Ready()
    sizes = []
    for _ in range(10):
        run.fill(feeder)
        sizes.append(run.pool.added)
    assert sizes == [40, 40, 48, 48, 56, 56, 64, 64, 72, 72]  # 32, then chunks of 8 at 4 a step
    feeder.empty = True
    for _ in range(10):
        run.fill(feeder)
    assert run.pool.added == 72
    feeder.empty = False
    run.fill(feeder)
    assert run.pool.added == 32 + 8 * -(-21 * 4 // 8)


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_stopped_phase_continues_from_its_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(kit, "LOG_SECONDS", 0.0)
    learner = Line()
    first = a_run(tmp_path, learner=learner)
    told = []

    class AfterThree(Stop):
        def wanted(self, team):
            return first.step == 3

    assert not first.run(Ready(), AfterThree(), lambda *entry: told.append(entry))
    assert learner.steps == [0, 1, 2]
    assert not learner.exported
    assert [entry["step"] for entry in log_of(tmp_path / "captions")] == [1, 2, 3]
    assert told[-1][0] == "captions"
    assert told[-1][2] == 0.5
    with (tmp_path / "captions" / "log.jsonl").open("a") as log:  # a line of a step that no checkpoint has
        log.write('{"step": 4}\n')

    again = a_run(tmp_path)
    again.resume()
    assert (again.step, again.clock.before >= 0) == (3, True)
    for name, value in learner.modules["line"].state_dict().items():
        assert torch.equal(again.learner.modules["line"].state_dict()[name], value)
    assert again.average.updates == 3
    for one, other in zip(again.average.averages, first.average.averages, strict=True):
        assert torch.equal(one, other)
    before, after = (each.optimizer.adamw.state_dict()["state"] for each in (first, again))
    for index, state in before.items():
        assert all(torch.equal(value, after[index][name]) for name, value in state.items())
    assert not torch.equal(torch.rand(3, generator=again.runtime.generator), torch.rand(3, generator=here().generator))

    second = a_run(tmp_path)
    assert second.run(Ready(), Stop(), lambda *entry: told.append(entry))
    assert second.learner.steps == [3, 4, 5]
    assert [entry["step"] for entry in log_of(tmp_path / "captions")] == [1, 2, 3, 4, 5, 6, 6]
    assert log_of(tmp_path / "captions")[-1]["good"] == 1.5
    assert sorted(file.name for file in (tmp_path / "captions").iterdir()) == ["done", "log.jsonl"]


def test_earlier_slices_count_towards_the_time(tmp_path):
    first = a_run(tmp_path, steps=None, seconds=1e6)
    first.clock.started -= 4e5
    first.save()
    second = a_run(tmp_path, steps=None, seconds=1e6)
    second.resume()
    second.clock.started -= 2e5
    assert second.clock.fraction(second.step) == pytest.approx(0.6, abs=1e-3)


def test_the_average_is_exported_and_the_trained_weights_are_restored(tmp_path):
    run = a_run(tmp_path, steps=4)
    assert run.run(Ready(), Stop(), lambda *entry: None)
    assert run.learner.exported == [[each.item() for each in run.average.averages]]
    assert run.learner.exported != [[each.item() for each in run.average.parameters]]


def test_a_resumed_phase_uses_new_scenes(tmp_path, monkeypatch):
    recipes = []
    monkeypatch.setattr(stream, "stream", lambda recipe, workers, chunk: recipes.append(recipe) or chunks())
    settings = Settings(tmp_path, SPRITES, {}, vocabulary=FEW, scale=0.01)
    for name in kit.PHASES:
        kit.feeder_of(name, settings).stop()
    checkpoint.save(tmp_path / "inpaint" / "checkpoint.pt", {"step": 7})
    kit.feeder_of("inpaint", settings).stop()
    assert len({recipe.seed for recipe in recipes}) == 8
    assert [recipe.kind for recipe in recipes[:7]] == [phase.kind for phase in kit.PHASES.values()]
    assert [recipe.vocabulary.mixed for recipe in recipes] == [0, 0, 0, 0, 0.5, 0.25, 0, 0]
    assert [recipe.vocabulary.on for recipe in recipes] == [FEW.on] * 5 + [0.18, FEW.on, FEW.on]
    assert [recipe.held_out for recipe in recipes] == [False] * 5 + [True, False, False]


def test_a_missing_base_model_is_an_error(tmp_path):
    with pytest.raises(ModelNotFound, match=r"no model_index\.json"):
        kit.check(Settings(tmp_path, SPRITES, {}, base=tmp_path / "nowhere"))


def test_a_phase_needs_the_parts_of_earlier_ones(tmp_path):
    """From earlier phases of the same command, of an earlier run in this folder, or from a base."""

    def check(*phases, out="new", base=None):
        kit.check(Settings(tmp_path / out, SPRITES, dict.fromkeys(phases), base=base))

    check(*kit.WHOLE)
    check("judge")
    check("autoencoder", "captions", "text-to-image", "inpaint")
    check("semantic", base=Path("sdcli/kit").resolve())
    with pytest.raises(UsageError, match="--phase semantic needs kit's unet"):
        check("autoencoder", "captions", "semantic")
    with pytest.raises(UsageError, match="--phase text-to-image needs kit's vae"):
        check("captions", "text-to-image", "autoencoder")
    for part in ("vae", "text_encoder"):
        (tmp_path / "before" / "kit" / part).mkdir(parents=True)
    check("text-to-image", "inpaint", out="before")
    with pytest.raises(UsageError, match="--phase inpaint needs kit's unet"):
        check("inpaint", out="before")
    assert not (tmp_path / "new").exists()


def test_a_checkpoint_of_another_world_is_an_error(tmp_path):
    run = a_run(tmp_path, steps=4)
    run.folder.mkdir()
    run.save()
    other = a_run(tmp_path, steps=4)
    other.learner.modules["line"] = nn.Linear(7, 7)
    with pytest.raises(UsageError, match="is of a run with other words or networks"):
        other.resume()


@pytest.mark.parametrize(("is_gpu", "minutes", "scale"), [(True, 20, 1), (False, 900, 1 / 16)])
def test_defaults_depend_on_the_device(is_gpu, minutes, scale, tmp_path):
    found = session.kit_settings(session.KitRun(tmp_path, SPRITES), is_gpu=is_gpu)
    assert sum(found.phases.values()) == pytest.approx(60 * minutes)
    assert (found.scale, found.steps) == (scale, None)
    chosen = session.kit_settings(
        session.KitRun(tmp_path, SPRITES, phases=("judge",), steps=5, workers=0, scale=0.5, world="few"), is_gpu=is_gpu
    )
    assert (chosen.phases, chosen.steps, chosen.workers, chosen.scale) == ({"judge": None}, 5, 0, 0.5)
    assert chosen.vocabulary is FEW
    both = session.kit_settings(session.KitRun(tmp_path, SPRITES, minutes=1, steps=5), is_gpu=is_gpu)
    assert (sum(both.phases.values()), both.steps) == (pytest.approx(60), 5)


# U-Nets that share weights.


def test_each_context_has_its_own_slots():
    """Latents, then mask and masked latents, then the classes."""
    assert slots_of("text-to-image", 8) == list(range(8))
    assert slots_of("inpaint", 8) == [*range(8), *range(8, 17)]
    assert slots_of("semantic", 8) == [*range(8), *range(17, 17 + KINDS)]


@pytest.mark.parametrize("kind", OWN_CHANNELS)
@torch.no_grad()
def test_shared_and_own_unets_have_the_same_output(kind):
    torch.manual_seed(0)
    channels = OWN_CHANNELS[kind]
    narrow = UNet2DConditionModel(**{**TINY_UNET, "in_channels": channels}).eval()
    sample, states = torch.randn(1, channels, 8, 8), torch.randn(1, 5, 64)
    before = narrow(sample, 500, states).sample
    shared = shared_unet(copy.deepcopy(narrow), kind)
    assert shared.config.in_channels == shared.conv_in.in_channels == 3 * LATENTS - LATENTS + 1 + KINDS
    # Whatever the channels of other contexts hold, it does not matter.
    context = {"text-to-image": (), "inpaint": (0, 9), "semantic": (9, 9 + KINDS)}[kind]
    wide = torch.randn(1, 9 + KINDS, 8, 8)
    if context:
        wide[:, slice(*context)] = sample[:, LATENTS:]
    torch.testing.assert_close(shared(torch.cat([sample[:, :LATENTS], wide], 1), 500, states).sample, before)
    own = own_unet(shared, kind)
    assert own.config.in_channels == own.conv_in.in_channels == channels
    assert torch.equal(own(sample, 500, states).sample, before)
    assert shared.conv_in.in_channels > channels or kind == "all"  # the shared one is as it was


@torch.no_grad()
def test_new_context_channels_have_no_effect_at_first():
    torch.manual_seed(0)
    narrow = UNet2DConditionModel(**TINY_UNET).eval()
    sample, states = torch.randn(1, LATENTS, 8, 8), torch.randn(1, 5, 64)
    own = own_unet(shared_unet(copy.deepcopy(narrow), "inpaint"), "inpaint")
    context = torch.randn(1, 1 + LATENTS, 8, 8)
    torch.testing.assert_close(own(torch.cat([sample, context], 1), 3, states).sample, narrow(sample, 3, states).sample)


# A whole run.


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a run of every phase, two steps each, by the command; what it printed."""
    home = tmp_path_factory.mktemp("kit")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autoencoder, "ARCHITECTURE", TINY_AUTOENCODER)
        patch.setattr(parts, "UNET", TINY_UNET)
        patch.setattr(parts, "TEXT_ENCODER", TINY_TEXT_ENCODER)
        patch.setattr(learners, "PROMPTS", ("arctic fox", "a car"))
        patch.setattr(sheets, "STEPS", 2)
        for name, value in {"CAPTIONS": 400, "VOCABULARY_SIZE": 800, "UNSEEN": 6, "FITTED": 2, "AHEAD": 2}.items():
            patch.setattr(kit, name, value)
        done = call(*COMMAND, home=home)
    assert done.status == 0, done.stderr
    return home / "runs", done


COMMAND = ("train", "kit", "--out", "runs", "--world", "few", "--sprites", SPRITES, "--steps", "2", "--scale", "0.001",
           "--workers", "0", "--device", "cpu", "--json")  # fmt: skip


def test_a_run_of_all_phases_writes_the_model_logs_and_sheets(made):
    folder, done = made
    told = [json.loads(line) for line in done.lines]
    assert told[-1] == {"status": "done", "model": "runs/kit"}
    assert done.stderr == ""
    for name in kit.WHOLE:
        log = log_of(folder / name)
        assert [entry for entry in told if entry.get("phase") == name] == [{"phase": name, **entry} for entry in log]
        assert (log[0]["step"], log[-1]["step"], log[-1]["done"]) == (1, 2, True)
        files = {file.name for file in (folder / name).iterdir()}
        has_sheet = name in ("autoencoder", "text-to-image")
        assert files == {"done", "log.jsonl", *(("sheet.png",) if has_sheet else ())}
    assert 0 < log_of(folder / "autoencoder")[-1]["psnr"] < 30
    assert 0 <= log_of(folder / "captions")[-1]["read"] <= 1
    for name, size in {"autoencoder": (6 * 160, 2 * 160), "text-to-image": (8 * 160, 160)}.items():
        with Image.open(folder / name / "sheet.png") as sheet:
            assert sheet.size == size


def test_diffusers_and_the_command_load_the_folder(made, run):
    model = made[0] / "kit"
    pipe = StableDiffusionPipeline.from_pretrained(model, local_files_only=True)
    assert pipe.unet.config.in_channels == pipe.vae.config.latent_channels == LATENTS
    assert pipe.text_encoder.config.vocab_size == len(pipe.tokenizer)
    assert pipe.tokenizer("fox").input_ids != pipe.tokenizer("car").input_ids
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    drawn = run("generate", "a fox", "-m", model, "--steps", "1", "-o", "fox.png")
    assert (drawn.status, drawn.lines) == (0, ["fox.png"]), drawn.stderr


def test_exported_unets_have_their_own_channels_in_float16_shards(made):
    model = made[0] / "kit"
    for kind, folder in {"text-to-image": "unet", "inpaint": "unet-inpaint", "semantic": "unet-semantic"}.items():
        unet = UNet2DConditionModel.from_pretrained(model / folder, torch_dtype=torch.float16)
        assert unet.config.in_channels == unet.conv_in.in_channels == OWN_CHANNELS[kind]
        for shard in (model / folder).glob("*.safetensors"):
            assert shard.stat().st_size < 16e6
            assert all(value.dtype == torch.float16 for value in load_file(shard).values())
        assert str(made[0]) not in (model / folder / "config.json").read_text()
        if kind != "text-to-image":  # what was trained on a context reads it
            assert unet.conv_in.weight[:, LATENTS:].abs().sum() > 0
    assert [(each.name, each.color) for each in palette.read(model / "unet-semantic")] == list(CLASSES.items())


def test_the_judge_of_a_run_loads(made):
    found, segmenter = judge.load(made[0] / "judge.pt", FEW)
    assert found(torch.zeros(1, 3, 96, 96))["subject"].shape == (1, 5)
    assert segmenter(torch.zeros(1, 3, 64, 64), torch.zeros(1, judge.FEATURES)).shape == (1, KINDS, 64, 64)


def test_a_judge_from_another_is_the_mean_of_both(made, tmp_path):
    learner = learners.JudgeLearner(here(), FEW, made[0] / "kit")
    before = copy.deepcopy(learner.modules["judge"].state_dict())
    with torch.no_grad():
        for each in learner.modules["judge"].parameters():
            each += 1.0
    learner.export(tmp_path / "kit")
    after = checkpoint.load(tmp_path / "judge.pt")["judge"]
    for name, value in before.items():
        torch.testing.assert_close(after[name].float(), value + 0.5, atol=1e-3, rtol=1e-3)
    assert (learners.JudgeLearner(here(), FEW).began, len(after)) == ({}, len(before))


def test_the_decoder_alone_is_trained_for_the_same_latents(made, tmp_path, monkeypatch):
    for name, value in {"UNSEEN": 2, "FITTED": 2, "AHEAD": 1}.items():
        monkeypatch.setattr(kit, name, value)
    base = made[0] / "kit"
    done = call(*COMMAND, "--phase", "decoder", "--from", str(base), home=tmp_path)
    assert done.status == 0, done.stderr
    before, after = (each / "vae" / "diffusion_pytorch_model.safetensors" for each in (base, tmp_path / "runs" / "kit"))
    old, new = load_file(before), load_file(after)
    changed = {name.partition(".")[0] for name in old if not torch.equal(old[name], new[name])}
    assert changed == {"decoder", "post_quant_conv"}
    assert before.with_name("config.json").read_text() == after.with_name("config.json").read_text()


def test_a_phase_that_is_done_is_not_repeated(made):
    folder, _ = made
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    again = call(*COMMAND[:-1], home=folder.parent)
    assert (again.status, again.lines) == (0, ["runs/kit"])
    notes = [
        f"note: {name} is finished, and is not trained again; to repeat it, delete runs/{name}" for name in kit.WHOLE
    ]
    assert again.stderr.splitlines() == notes
    judged = call(*COMMAND, "--phase", "judge", home=folder.parent)
    assert json.loads(judged.lines[-1]) == {"status": "done", "judge": "runs/judge.pt"}
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before


def test_a_slice_stops_at_a_checkpoint_with_a_note(made):
    folder, _ = made
    (folder / "captions" / "done").rename(folder / "was-done")
    try:
        stopped = call(*COMMAND[:-1], "--phase", "captions", "--slice", "0.00001", home=folder.parent)
        assert (stopped.status, stopped.lines) == (0, [])
        assert stopped.stderr == "note: stopped at a checkpoint; the same command continues\n"
        assert checkpoint.load(folder / "captions" / "checkpoint.pt")["step"] == 1
    finally:
        (folder / "captions" / "checkpoint.pt").unlink(missing_ok=True)
        (folder / "was-done").rename(folder / "captions" / "done")


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--phase", "x"], 2, "--phase is x"),
        (["--world", "x"], 2, "--world is x"),
        (["--phase", "decoder"], 2, "--phase decoder needs --from"),
        (["--processes", "2"], 2, "runs in one process"),
        (["--from", "nowhere"], 3, "no model_index.json in nowhere"),
        (["--sprites", "nowhere.zip"], 4, "nowhere.zip"),
        (["--phase", "semantic"], 2, "--phase semantic needs kit's vae"),
        (["--out", "file"], 2, "--out is file, which is a file"),
    ],
)
def test_invalid_options_of_train_kit_are_errors_of_two_lines(run, tmp_path, words, status, said):
    (tmp_path / "file").touch()
    done = run("train", "kit", "--out", "x", "--world", "few", "--sprites", SPRITES, "--workers", "0", *words)
    assert (done.status, done.stdout) == (status, b"")
    error, hint = done.stderr.splitlines()
    assert said in error
    assert hint.startswith("hint: ")


# What U-Nets learn from.


@pytest.fixture(scope="module")
def learner(made):
    """A learner on the parts of the made folder, and the rows and the chunk of two scenes."""

    def begin(kind):
        model = made[0] / "kit"
        recipe = ChunkSettings(SPRITES, kind, replace(FEW, mixed=0.0, background=0.0), model / "tokenizer", seed=8)
        chunk = next(stream.stream(recipe, 0, 2))
        learning = UnetLearner(here(), model, kind, base=model)
        return learning, learning.rows(chunk), chunk

    return begin


def means_of(vae, pixels):
    """Scaled means of the latents, by the autoencoder itself."""
    with torch.no_grad():
        return vae.encode(pixels).latent_dist.mean * vae.config.scaling_factor


@pytest.mark.parametrize("kind", OWN_CHANNELS)
def test_rows_and_contexts_equal_those_of_inference(kind, learner):
    learning, rows, chunk = learner(kind)
    vae = learning.parts.vae
    pixels = chunk["images"].float() / 127.5 - 1
    torch.testing.assert_close(rows["latents"].float(), means_of(vae, pixels), atol=2e-3, rtol=2e-3)
    assert torch.equal(rows["ids"], chunk["ids"])
    context = learning.context(rows)
    expected = torch.zeros(2, 1 + LATENTS + KINDS, 32, 32)
    if kind == "inpaint":
        masks = chunk["masks"][:, None].float()

        class Model:
            device, vae_scale_factor = torch.device("cpu"), 8

        expected[:, 0] = torch.cat([masked_image.mask_latents(Model, mask[None]) for mask in masks])[:, 0]
        expected[:, 1 : 1 + LATENTS] = means_of(vae, pixels * (masks < 0.5))
    elif kind == "semantic":
        expected[:, 1 + LATENTS :] = segmentation.encode(chunk["maps"], KINDS, 8)
    torch.testing.assert_close(context, expected, atol=2e-3, rtol=2e-3)
    assert all(len(tensor) == 2 for tensor in rows.values())


@pytest.mark.parametrize("kind", OWN_CHANNELS)
def test_the_loss_is_the_weighted_error_of_v_and_unused_channels_are_not_trained(kind, learner, monkeypatch):
    """The error of a U-Net that returns zeros is v = sqrt(a) noise - sqrt(1 - a) latents."""
    learning, rows, _ = learner(kind)
    seen = []
    original = learners.target_of

    def target_of(*given):
        seen.append(given)
        return original(*given)

    monkeypatch.setattr(learners, "target_of", target_of)
    samples = []

    def nothing(sample, *given, **options):
        samples.append(sample)
        return (torch.zeros(2, LATENTS, 32, 32),)

    predict, learning.predict = learning.predict, nothing
    loss = learning.loss(rows, 0)
    _, latents, noise, timesteps = seen[0]
    assert torch.equal(latents, rows["latents"].float())
    cumulative = DDIMScheduler(**parts.SCHEDULER).alphas_cumprod[timesteps].view(2, 1, 1, 1)
    noisy = cumulative.sqrt() * latents + (1 - cumulative).sqrt() * noise
    torch.testing.assert_close(samples[0], torch.cat([noisy, learning.context(rows)], 1))
    errors = (cumulative.sqrt() * noise - (1 - cumulative).sqrt() * latents).square()
    weights = torch.ones(2, 1, 32, 32)
    if kind == "inpaint":
        weights = torch.where(rows["mask"] == 1, 1.0, 0.3)
    expected = (errors * weights).sum() / (LATENTS * weights.sum())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)

    learning.predict = predict
    learning.loss(rows, 0).backward()
    used = learning.parts.unet.conv_in.weight.grad.abs().sum((0, 2, 3)) > 0
    own = torch.zeros(LATENTS + 9 + KINDS, dtype=torch.bool)
    own[slots_of(kind, LATENTS)] = True
    assert not used[~own].any()
    assert used[:LATENTS].all()
    assert used[own][LATENTS:].any() or kind == "text-to-image"
    trained = {name for name, each in learning.parts.text_encoder.named_parameters() if each.grad is not None}
    assert bool(trained) is (kind == "text-to-image")


def test_most_timesteps_are_noisy_and_some_prompts_are_empty(learner):
    learning, rows, _ = learner("text-to-image")
    timesteps = learning.draw(4000)
    assert 0 <= timesteps.min() <= timesteps.max() < 1000
    # Half of a logit-normal distribution lies above the sigmoid of its shift.
    assert (timesteps > 1000 / (1 + np.exp(-0.4))).float().mean().item() == pytest.approx(0.5, abs=0.04)
    read = []

    def encode(ids):
        read.append(ids)
        return SimpleNamespace(last_hidden_state=torch.zeros(len(ids), 77, 64))

    learning.parts = replace(learning.parts, text_encoder=encode)
    learning.predict = lambda sample, *given, **options: (sample[:, :LATENTS],)
    many = {name: tensor.repeat_interleave(300, 0)[:600] for name, tensor in rows.items()}
    many["latents"] = many["latents"][..., :2, :2]
    learning.loss(many, 0)
    empty = parts.tokenize(learning.parts.tokenizer, [""])
    is_empty = (read[0] == empty).all(1)
    assert 0.06 < is_empty.float().mean() < 0.14
    captions = {tuple(ids) for ids in read[0][~is_empty].tolist()}
    assert captions == {tuple(ids) for scene in rows["ids"].tolist() for ids in scene}


def test_a_text_encoder_learns_to_read_captions(made, monkeypatch):
    monkeypatch.setattr(parts, "TEXT_ENCODER", TINY_TEXT_ENCODER)
    model = made[0] / "kit"
    learning = CaptionLearner(here(), model, FEW)
    chunks = stream.stream(ChunkSettings(SPRITES, "captions", FEW, model / "tokenizer"), 0, 48)
    optimizer = MatrixOptimizer(learning.modules.values(), 4e-3, weight_decay=0.0)
    losses = []
    for chunk in islice(chunks, 40):
        rows = learning.rows(chunk)
        assert rows["ids"].shape == (48, learners.CAPTION_TOKENS)
        ends = (chunk["ids"] == learning.modules["text_encoder"].config.eos_token_id).int().argmax(1)
        assert ends.max() < learners.CAPTION_TOKENS  # no caption is cut off
        loss = learning.loss(rows, 0)
        loss.backward()
        optimizer.step(4e-3)
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:3])
    assert learning.right > 0.5


def test_a_base_autoencoder_is_trained_without_the_teacher(made, monkeypatch):
    monkeypatch.setattr(autoencoder, "ARCHITECTURE", TINY_AUTOENCODER)
    pictures = torch.rand(2, 3, 64, 64) * 2 - 1
    fresh = learners.AutoencoderLearner(here(), pictures, pictures)
    again = learners.AutoencoderLearner(here(), pictures, pictures, base=made[0] / "kit")
    assert (fresh.teacher_steps, again.teacher_steps) == (200, 0)
    stored = load_file(made[0] / "kit" / "vae" / "diffusion_pytorch_model.safetensors")
    for name, value in again.vae.state_dict().items():
        assert torch.equal(value, stored[name].float()), name
    assert all(each.requires_grad for each in again.vae.parameters())
