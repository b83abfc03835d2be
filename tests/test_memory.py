"""Memory that fits: the plan as a pure function, and that no plan but tiling changes a picture."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sdcli import cli
from sdcli.diffusion import autoencode, device, layout, offload, pipeline, room, tiling
from sdcli.errors import ModelError, NotDecoded
from sdcli.making import maker as making
from sdcli.making import warm
from sdcli.making.maker import LocalMaker, Task
from sdcli.models import assemble, loading, located
from sdcli.models.loading import weights as stored
from sdcli.models.source import Source
from sdcli.models.weights import Weights
from sdcli.planning import dry_run, memory, resolve
from sdcli.planning.memory import MemoryPlan, Sizes
from sdcli.recipe.recipe import Recipe
from tests import cases, tiny, tiny_flow
from tests.lora import files as lora_files

GIB = 2**30
FAST = {"steps": 2, "seed": 7, "dtype": "float32", "threads": 1, "width": 128, "height": 128}
Z_IMAGE = Sizes(
    text=8 * GIB, network=12 * GIB, vae=GIB // 6, denoising=GIB // 4, decoding={"off": 3 * GIB, "tiles": GIB}
)


def recipe(**options) -> Recipe:
    base = {"prompt": "a fox", "model": "m", "scheduler": "euler", "guidance_scale": 1.0, **FAST}
    return Recipe.from_dict({**base, **options})


def plan(sizes: Sizes, gibibytes: float | None, device: str = "cpu", host: float | None = 64, **options) -> MemoryPlan:
    found = [None if each is None else round(each * GIB) for each in (gibibytes, host)]
    return memory.plan(sizes, recipe(**options), device, room=found[0], host=found[1])


@pytest.mark.parametrize(
    ("device", "room", "host", "expected"),
    [
        ("cpu", 21, 21, (True, "none", "off")),
        ("cpu", 64, 64, (False, "none", "off")),
        ("cpu", 18, 18, (True, "none", "tiles")),
        ("cpu", None, None, (False, "none", "off")),
        ("cuda", 80, 64, (False, "none", "off")),
        ("cuda", 24, 64, (False, "model", "off")),
        ("cuda", 24, 16, (True, "none", "off")),
        ("cuda", 14, 64, (False, "model", "off")),
        ("cuda", 8, 64, (False, "group", "off")),
        ("cuda", 2, 64, (False, "group", "tiles")),
    ],
)
def test_z_image_on_machines_of_several_sizes(device, room, host, expected):
    found = plan(Z_IMAGE, room, device, host)
    assert (found.staged, found.offload, found.tiling) == expected


numbers = st.integers(0, 40 * GIB)
sizes = st.builds(
    lambda text, network, vae, denoising, tile, more: Sizes(
        text, network, vae, denoising, {"off": tile + more, "tiles": tile}
    ),
    *[numbers] * 6,
)


@given(sizes, st.integers(0, 120), st.integers(0, 120), st.sampled_from(["cpu", "cuda", "mps"]))
def test_more_memory_is_only_used_where_it_is(of, room, host, device):
    low, auto, high = (plan(of, room, device, host, memory=each) for each in ("low", "auto", "high"))
    assert low.peak <= auto.peak <= high.peak
    assert (high.staged, high.offload, high.tiling) == (False, "none", "off")
    assert low.tiling == "tiles"
    usable = memory.usable(room * GIB, device)
    if high.peak <= usable:
        assert auto == high
    if auto.peak > usable and device != "cuda":
        assert auto == low


@given(sizes, st.sampled_from(["off", "slices", "tiles"]), st.sampled_from(["auto", "low", "high"]))
def test_the_way_of_decoding_that_is_asked_for_is_kept_if_it_fits(of, way, how):
    found = plan(of, None, memory=how, tiling=way)
    assert found.tiling == ("tiles" if (way, how) == ("off", "low") else way)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            place = tmp_path_factory.mktemp(family) / "model"
            is_flow = family in tiny_flow.FAMILIES
            made[family] = (tiny_flow if is_flow else tiny).make_folder(family, place)
        return made[family]

    return folder


def task(folder: Path, **options) -> Task:
    flat = {"prompt": "a fox", "model": str(folder), **FAST, **options}
    found = resolve.resolve(located.find(str(folder)), flat, user=False)
    return Task(found.weights, [found.recipe], found.inputs)


@pytest.fixture
def stages(monkeypatch):
    """The stages of models as they are loaded."""
    seen = []
    load = loading.load

    def noted(*args, stage=None, **more):
        seen.append(stage)
        return load(*args, stage=stage, **more)

    monkeypatch.setattr(loading, "load", noted)
    return seen


@pytest.mark.parametrize("family", cases.product(["sdxl", "flux-dev", "flux2-klein", "sd3", "qwen-image"], every=2))
def test_a_staged_model_makes_the_same_pictures(folders, stages, family):
    whole, staged = LocalMaker(), LocalMaker()
    for prompt in ("a fox", "a fox", "an owl"):
        (expected,) = whole.make(task(folders(family), prompt=prompt, memory="high"))
        (made,) = staged.make(task(folders(family), prompt=prompt, memory="low"))
        assert made.pixels_sha256 == expected.pixels_sha256
        assert (made.memory["staged"], expected.memory["staged"]) == (True, False)
    assert stages == [None, "text", "picture", "text", "picture"]


def test_quantised_parts_are_loaded_in_stages_too(folders):
    made = [LocalMaker().make(task(folders("flux-dev"), memory=each, quantize="q8_0"))[0] for each in ("high", "low")]
    assert made[0].pixels_sha256 == made[1].pixels_sha256
    assert made[1].memory["staged"]


def test_all_prompts_to_come_are_encoded_at_once(folders, stages):
    tasks = [task(folders("z-image"), prompt=f"{count} foxes", memory="low") for count in range(4)]
    maker = LocalMaker()
    maker.load(tasks[0].weights, [each.recipes[0] for each in tasks])
    pictures = [maker.make(each)[0].pixels_sha256 for each in tasks]
    assert stages == ["text", "picture"]
    assert len(set(pictures)) == 4


def test_a_condition_that_cannot_be_encoded_fails_alone(folders, stages):
    tasks = [task(folders("sdxl"), clip_skip=each, memory="low") for each in (12, 1)]
    maker = LocalMaker()
    maker.load(tasks[0].weights, [each.recipes[0] for each in tasks])
    with pytest.raises(Exception, match="clip_skip"):
        maker.make(tasks[0])
    assert len(maker.make(tasks[1])) == 1


def mapped(folder: Path) -> set[str]:
    """The parts of a model whose files are mapped into this process."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {Path(line.split()[-1]).parent.name for line in lines if str(folder) in line}


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells")
def test_text_encoders_that_were_used_leave_no_page_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "_LARGE", 0)  # small tensors would be copied
    folder = tiny_flow.make_folder("flux-dev", tmp_path / "model")
    maker = LocalMaker()
    maker.make(task(folder, memory="low"))
    assert mapped(folder) == {"transformer", "vae"}
    maker.make(task(folder, memory="high"))
    assert mapped(folder) == {"transformer", "vae"} | {"text_encoder", "text_encoder_2"}
    maker._unload()
    assert mapped(folder) == set()


def write_lora(folder: Path, file: Path, factor: float = 1.0) -> str:
    """A LoRA for the U-Net and the text encoders of a model."""
    model = loading.load(Source(folder), name="m", device=torch.device("cpu"), dtype=torch.float32)
    tensors = lora_files.kohya(lora_files.changes(model), model)
    lora_files.write(file, {key: each if "alpha" in key else factor * each for key, each in tensors.items()})
    return str(file)


def test_loras_are_merged_into_staged_text_encoders(folders, tmp_path, stages):
    named = {"lora": [write_lora(folders("sdxl"), tmp_path / "ink.safetensors")]}
    expected = [LocalMaker().make(task(folders("sdxl"), memory="high", **each))[0] for each in ({}, named)]
    staged = LocalMaker()
    made = [staged.make(task(folders("sdxl"), memory="low", **each))[0] for each in ({}, named, {})]
    assert [each.pixels_sha256 for each in made] == [expected[each].pixels_sha256 for each in (0, 1, 0)]
    assert expected[0].pixels_sha256 != expected[1].pixels_sha256


def starve(monkeypatch, most: int) -> list[tuple[int, ...]]:
    """Let decoding run out of memory for more than `most` latents; returns the shapes that were decoded."""
    forward, seen = layout._Decoder.forward, []

    def starved(self, sample, *args, **more):
        seen.append(tuple(sample.shape))
        if sample.shape[0] * sample.shape[-1] * sample.shape[-2] > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, sample, *args, **more)

    monkeypatch.setattr(layout._Decoder, "forward", starved)
    return seen


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(tiling, "TILE", 64)


def test_a_picture_that_cannot_be_decoded_whole_is_decoded_in_tiles(folders, monkeypatch, small_tiles):
    asked = task(folders("z-image"))
    maker = LocalMaker()
    (whole,) = maker.make(asked)
    with monkeypatch.context() as patch:
        seen = starve(patch, 64)
        (made,) = maker.make(asked)
    assert seen[0][2:] == (16, 16)
    assert max(shape[2:] for shape in seen[1:]) == (8, 8)
    assert made.recipe.execution.tiling == made.memory["tiling"] == "tiles"
    assert tiling.NOTES["tiles"] in made.warnings
    assert made.pixels_sha256 != whole.pixels_sha256
    (again,) = maker.make(Task(asked.weights, [made.recipe], asked.inputs))
    assert (again.pixels_sha256, again.recipe) == (made.pixels_sha256, made.recipe)
    assert again.warnings == whole.warnings == ()
    assert maker.make(asked)[0].pixels_sha256 == whole.pixels_sha256  # nothing of it stays


def test_a_batch_is_decoded_one_at_a_time_before_in_tiles(folders, monkeypatch, small_tiles):
    asked = task(folders("z-image"))
    first = asked.recipes[0]
    recipes = [first.replace(seed=seed, batch_size=2) for seed in (7, 8)]
    starve(monkeypatch, 256)
    made = LocalMaker().make(Task(asked.weights, recipes, asked.inputs))
    assert {each.recipe.execution.tiling for each in made} == {"slices"}
    assert all(tiling.NOTES["slices"] in each.warnings for each in made)


def test_a_plan_for_tiles_is_a_warning_unless_less_memory_is_asked_for(folders, monkeypatch, small_tiles):
    monkeypatch.setattr(device, "room_for", lambda device: 1)
    (made,) = LocalMaker().make(task(folders("z-image")))
    assert made.memory == {"staged": True, "offload": "none", "tiling": "tiles"}
    assert made.warnings == (tiling.NOTES["tiles"],)
    (low,) = LocalMaker().make(task(folders("z-image"), memory="low"))
    assert (low.pixels_sha256, low.warnings) == (made.pixels_sha256, ())
    (high,) = LocalMaker().make(task(folders("z-image"), memory="high"))
    assert high.recipe.execution.tiling == "off"


@pytest.mark.parametrize("family", ["z-image", "flux2-klein", "qwen-image", "sd15"])
def test_tiles_are_diffusers_own(folders, family, monkeypatch, small_tiles):
    weights = Weights(Source(folders(family)))
    model = assemble.load(weights, device.resolve_execution(task(folders(family)).recipes[0]))
    shape = model.latent_space.shape(160, 128)
    latents = torch.randn((1, *shape), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours = autoencode.decode(model, latents, "tiles")
        whole = autoencode.decode(model, latents)
        vae, z = model.vae, model.latent_space.denormalize(latents)
        if family == "qwen-image":
            vae.enable_tiling(64, 64, 48, 48)
        else:
            factor = model.vae_scale_factor // model.latent_space.patch
            vae.tile_sample_min_size, vae.tile_latent_min_size = 64, 64 // factor
            vae.enable_tiling()
        theirs = vae.decode(z).sample
    assert torch.equal(ours, theirs.squeeze(2) if theirs.ndim == 5 else theirs)
    assert not torch.equal(ours, whole)


def test_a_sampled_picture_is_not_lost_where_it_cannot_be_decoded(folders, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    folder = folders("z-image")
    words = ["generate", "a fox", "-m", str(folder), "--steps", "2", "-s", "7", "--dtype", "float32", "-W", "128"]
    words += ["-H", "128", "--json", "--threads", "1"]
    with monkeypatch.context() as patch:
        starve(patch, 0)
        assert cli.run([*words, "-o", "out/"]) == 5
    out, err = capfd.readouterr()
    assert "not enough memory for 128×128" in json.loads(out)["error"]
    assert "the latents are in out/a-fox-7.safetensors" in err
    assert f"sdcli decode out/a-fox-7.safetensors -m {folder}" in err
    assert cli.run([*words, "-o", "fox.png"]) == 0
    assert (
        cli.run(["decode", "out/a-fox-7.safetensors", "-m", str(folder), "-o", "again.png", "--dtype", "float32"]) == 0
    )

    assert Image.open("again.png").tobytes() == Image.open("fox.png").tobytes()


def test_decode_makes_the_tiles_of_the_picture(folders, tmp_path, monkeypatch, small_tiles, capfd):
    monkeypatch.chdir(tmp_path)
    shared = ["-m", str(folders("z-image")), "--dtype", "float32", "--threads", "1"]
    drawn = ["generate", "a fox", *shared, "-W", "128", "-H", "128", "--steps", "2", "-o", "fox.png"]
    assert cli.run([*drawn, "--tiling", "tiles", "--save-latents", "z.safetensors"]) == 0
    assert cli.run(["decode", "z.safetensors", *shared, "--tiling", "tiles", "-o", "same.png"]) == 0
    assert "tiles" not in capfd.readouterr().err
    monkeypatch.setattr(device, "room_for", lambda device: 1)
    assert cli.run(["decode", "z.safetensors", *shared, "-o", "small.png"]) == 0
    assert tiling.NOTES["tiles"] in capfd.readouterr().err
    assert cli.run(["replay", "fox.png", "--verify"]) == 0
    pixels = [Image.open(each).tobytes() for each in ("fox.png", "same.png", "small.png")]
    assert pixels[0] == pixels[1] == pixels[2]


def test_latents_are_decoded_again_when_other_models_are_unloaded(folders, monkeypatch):
    maker = LocalMaker(2)
    maker.make(task(folders("sdxl")))
    monkeypatch.setattr(making, "plan_for", lambda *given: (MemoryPlan(), Z_IMAGE, None))
    decode, tries = autoencode.decode, []

    def starved(model, latents, way="off"):
        tries.append(len(maker._kept))
        if len(maker._kept) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(model, latents, way)

    steps = []
    monkeypatch.setattr(autoencode, "decode", starved)
    assert len(maker.make(task(folders("z-image")), steps.append)) == 1
    assert (tries, len(steps)) == ([2, 1], 2)


def test_the_latents_of_the_warm_process_come_home():
    error = NotDecoded("m", "h", [b"one", b"two"])
    found = warm.error_from_wire(json.loads(json.dumps(warm.to_wire(error)))["error"], "here", "there")
    assert isinstance(found, NotDecoded)
    assert found.latents == (b"one", b"two")


@pytest.mark.parametrize("family", ["z-image", "flux-dev", "sd15"])
@pytest.mark.parametrize("how", ["model", "group"])
def test_weights_that_wait_elsewhere_make_the_same_picture(folders, family, how):
    asked = task(folders(family))
    resolved = device.resolve_execution(asked.recipes[0])
    plain, moved = (assemble.load(asked.weights, resolved, offload=each) for each in ("none", how))
    first, second = (pipeline.run(each, [resolved])[0] for each in (plain, moved))
    assert torch.equal(first.latents, second.latents)
    assert first.image.tobytes() == second.image.tobytes()


def test_parts_are_on_the_device_while_they_are_used(folders):
    asked = task(folders("z-image"))
    model = assemble.load(asked.weights, device.resolve_execution(asked.recipes[0]), offload="model")
    before = [each.data_ptr() for each in model.network.parameters()]
    with torch.inference_mode(), offload.on_device(model, model.network):
        assert not {each.data_ptr() for each in model.network.parameters()} - set(before)
    elsewhere = replace(model, device=torch.device("meta"))
    assert elsewhere.storage == torch.device("cpu")
    with pytest.raises(RuntimeError), offload.on_device(elsewhere, model.network):
        pass  # tensors of the CPU cannot become those of the meta device
    assert [each.data_ptr() for each in model.network.parameters()] == before


@pytest.mark.parametrize(
    ("words", "warning"),
    [
        (["--tiling", "slices"], "tiling slices has no effect: there is one picture in a batch"),
        (["--tiling", "tiles"], "tiling tiles has no effect: the picture is no larger than a tile, 512×512"),
        (["--tiling", "slices", "-n", "2", "--batch-size", "2"], None),
        (["--tiling", "tiles", "-n", "2", "--batch-size", "2"], None),
        (["--tiling", "tiles", "-W", "1024", "-H", "256"], None),
    ],
)
def test_tiling_without_effect_is_a_warning(folders, capfd, words, warning):
    small = ["generate", "a fox", "-m", str(folders("z-image")), "-W", "64", "-H", "64", "--dry-run", "--json"]
    assert cli.run([*small, *words]) == 0
    found = [each for each in json.loads(capfd.readouterr().out)["warnings"] if "tiling" in each]
    assert found == ([] if warning is None else [warning])


def test_models_that_do_not_fit_beside_each_other_are_unloaded(folders, monkeypatch):
    maker = LocalMaker(4)
    monkeypatch.setattr(making, "plan_for", lambda *given: (MemoryPlan(peak=8), Sizes(0, 6, 0, 2, {"off": 2}), 15))
    for family in ("sd15", "sdxl", "z-image"):
        maker.make(task(folders(family)))
    assert len(maker._kept) == 2


def test_the_dry_run_tells_the_plan(folders, monkeypatch, capfd):
    monkeypatch.setattr(room, "room", lambda device: 1)
    words = ["generate", "a fox", "-m", str(folders("z-image")), "-W", "1024", "-H", "1024", "--dry-run"]
    words += ["--device", "cpu", "--dtype", "float32"]
    assert cli.run([*words, "--json"]) == 0
    found = json.loads(capfd.readouterr().out)["memory"]
    assert found["plan"] == {"staged": True, "offload": "none", "tiling": "tiles"}
    assert cli.run(words) == 0
    said = capfd.readouterr().out
    assert "the text encoders are dropped before the network is loaded" in said
    assert "pictures are decoded in tiles" in said
    assert cli.run([*words, "--json", "--memory", "high"]) == 0
    high = json.loads(capfd.readouterr().out)["memory"]
    assert high["plan"] == {"staged": False, "offload": "none", "tiling": "off"}
    assert high["peak"] > found["peak"]


def test_the_plan_of_a_dry_run_is_that_of_the_run(folders, monkeypatch):
    asked = task(folders("flux-dev"), width=1024, height=768)
    resolved = device.resolve_execution(asked.recipes[0])
    for bytes_free in (1, 10**6, 10**7, 10**9):
        monkeypatch.setattr(room, "of_host", lambda free=bytes_free: free)
        planned, _, _ = making.plan_for(asked.weights, resolved)
        parts = dry_run.find_parts(asked.weights)
        told = dry_run.estimate_memory(parts, resolved, {"device": "cpu", "dtype": "float32"})
        assert told["plan"] == planned.to_dict()
        assert told["peak"] == planned.peak


def test_room_is_what_the_system_and_the_container_leave(tmp_path):
    assert (room.of_host() or 0) > 2**20
    assert room._of_container(tmp_path) is None
    for name, text in (
        ("memory.max", "max\n"),
        ("memory.current", "70\n"),
        ("memory.stat", "anon 1\ninactive_file 20"),
    ):
        (tmp_path / name).write_text(text)
    assert room._of_container(tmp_path) is None
    (tmp_path / "memory.max").write_text("100\n")
    assert room._of_container(tmp_path) == 50


def test_a_lora_without_effect_is_an_error_in_stages_too(folders, tmp_path):
    idle = write_lora(folders("sdxl"), tmp_path / "idle.safetensors", 0.0)
    with pytest.raises(ModelError, match="has no effect"):
        LocalMaker().make(task(folders("sdxl"), memory="low", lora=[idle]))
