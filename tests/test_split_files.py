"""Models whose parts are files of their own: every family, in the layouts in which the files are published."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sdcli.diffusion.context import language_model
from sdcli.errors import InvalidRecipe, ModelCorrupt, ModelError, ModelNotFound
from sdcli.models import export, families, language_tokenizer, loading, located, registry, tokenizer_folder
from sdcli.models.families import flow
from sdcli.models.source import Source
from tests import original, split_files, tiny, tiny_flow
from tests.test_generate import FAST, two_lines

CPU = torch.device("cpu")
PARAMETERS = {
    "z-image": 6.155,
    "z-image-turbo": 6.155,
    "flux2-klein": 3.876,
    "flux2-klein-9b": 9.079,
    "flux-dev": 11.901,
    "flux-schnell": 11.891,
    "sd3-medium": 2.028,
    "sd35-medium": 2.243,
    "sd35-large": 8.057,
    "qwen-image": 20.430,
    "chroma": 8.9,
    "lumina2": 2.6,
    "sana": 1.6,
    "pixart-sigma": 0.6,
    "krea2": 12.8,
}
"""Of the transformers, in billions, without the tables of positions."""


TEXT = "An arctic fox, 3 metres away;\nLÜCKE 北极狐 🦊 don't <|im_start|>"
IDS = [
    *(2082, 796, 25555, 38835, 11, 220, 18, 36256, 3123, 280, 43, 52491, 3021, 36, 94305, 245, 99226, 100324, 11162),
    *(99, 232, 1513, 944, 220, 151644),
]
CHAT_IDS = [151644, 872, 198, 15011, 151645, 198, 151644, 77091, 198, 151667, 271, 151668, 271]


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("folders")
    made = {}

    def folder(family):
        if family not in made:
            made[family] = tiny_flow.make_folder(family, root / family)
        return made[family]

    return folder


def load(source):
    return loading.load(source, name="", device=CPU, dtype=torch.float32)


def states(model):
    modules = [model.network, model.vae, *(each.model for each in model.text_encoders)]
    return [each.state_dict() for each in modules]


def assert_same(model, other):
    for ours, theirs in zip(states(model), states(other), strict=True):
        assert ours.keys() == theirs.keys()
        assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.parametrize("family", tiny_flow.FAMILIES)
def test_files_have_the_weights_of_the_folder(folders, tmp_path, family):
    folder = folders(family)
    files = split_files.write(family, folder, tmp_path)
    assert_same(load(Source(folder, parts=tuple(files.items()))), load(Source(folder)))


def split(family, folder, target):
    """A model in files, each in a folder with its config, which tiny models need; returns -m and the parts."""
    files = split_files.write(family, folder, target / "flat")
    for part, file in files.items():
        (target / part).mkdir()
        file.rename(target / part / "model.safetensors")
        (target / part / "config.json").write_text((folder / part / "config.json").read_text())
    name = {"qwen-image-edit": "qwen-image-edit-2509"}.get(family, family)
    named = target / "transformer" / f"{name}.safetensors"
    (target / "transformer" / "model.safetensors").rename(named)
    parts = {part: str(target / part / "model.safetensors") for part in files if part != "transformer"}
    folders = (*folder.glob("tokenizer*"), *folder.glob("processor"), folder / "scheduler")
    others = {each.name: str(each) for each in folders}
    return str(named), {**parts, **others}


def options(parts):
    return [word for part, place in parts.items() for word in ("--part", f"{part}={place}")]


OLDER = ("z-image", "flux-dev", "flux2-klein", "sd3-without-t5", "qwen-image", "qwen-image-edit")


@pytest.mark.parametrize("family", [*OLDER, *tiny_flow.NEWER])
def test_a_transformer_is_a_model_with_its_parts(folders, tmp_path, family):
    folder = folders(family)
    model, parts = split(family, folder, tmp_path)
    source = located.find(model, {"part": [f"{part}={place}" for part, place in parts.items()]}).source
    assert source.detected == {"qwen-image-edit": "qwen-image-edit-2509"}.get(family, source.detected)
    assert_same(load(source), load(Source(folder)))


def test_editing_needs_a_text_encoder_that_sees(folders, tmp_path):
    """Files of text encoders can be without vision, as those of llama.cpp are."""
    folder = folders("qwen-image-edit")
    state = {key: each for key, each in split_files.state_of(folder, "text_encoder").items() if "visual." not in key}
    file = split_files.save(state, tmp_path / "qwen.safetensors")
    with pytest.raises(ModelError, match="without vision"):
        load(Source(folder, parts=(("text_encoder", file),)))


@pytest.mark.parametrize("layout", ["original", "diffusers"])
@pytest.mark.parametrize("family", ["chroma", "lumina2", "sana", "pixart-alpha", "pixart-sigma", "krea2"])
def test_families_are_told_in_both_layouts(folders, family, layout):
    state = split_files.state_of(folders(family), "transformer")
    names = split_files.TRANSFORMERS[family](state) if layout == "original" else state
    for prefix in ("", "model.diffusion_model."):
        shapes = {prefix + name: tuple(each.shape) for name, each in names.items()}
        assert flow.detect("some.safetensors", shapes) == family


def test_versions_of_qwen_image_edit():
    """ComfyUI's files of 2511 have a mark; the first version takes other prompts, and its tensors are the same."""
    shapes = {"txt_norm.weight": (3584,)}
    marked = shapes | {"model.diffusion_model.__index_timestep_zero__": (0,)}
    assert flow.detect("Qwen-Image-Edit-2509-Q4_K_M.gguf", shapes) == "qwen-image-edit-2509"
    assert flow.detect("qwen_image_edit_2511_bf16.safetensors", shapes) == "qwen-image-edit"
    assert flow.detect("my-edit.safetensors", marked) == "qwen-image-edit"
    with pytest.raises(ModelError, match="first Qwen-Image-Edit"):
        flow.detect("qwen_image_edit_bf16.safetensors", shapes)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"t_block.1.weight": (), "y_embedder.y_proj.fc1.weight": (), "pos_embed": (1, 1024, 1152)}, "512 pixels"),
        ({"attention_y_norm.weight": (1,), "cfg_embedder.mlp.0.weight": (1, 1)}, "Sana Sprint"),
        ({"distilled_guidance_layer.in_proj.weight": (1, 1), "nerf_blocks.0.x": (1,)}, "Radiance"),
    ],
)
def test_transformers_that_are_not_supported(shapes, words):
    with pytest.raises(ModelError, match=words):
        flow.detect("some.safetensors", shapes)


@pytest.mark.parametrize("family", ["z-image", "flux-dev", "sd3-without-t5", "qwen-image"])
def test_an_export_of_files_is_a_folder(folders, tmp_path, family):
    folder = folders(family)
    model, parts = split(family, folder, tmp_path / "files")
    source = located.find(model, {"part": [f"{part}={place}" for part, place in parts.items()]}).source
    (tmp_path / "out").mkdir()
    export.export(source, tmp_path / "out", lambda part, count: None)
    assert_same(load(Source(tmp_path / "out")), load(Source(folder)))
    assert tiny_flow.pipeline_of(tmp_path / "out").text_encoder is not None


def test_a_picture_of_files(folders, run, tmp_path):
    """The same as the folder's; its metadata have the parts, and its replay is identical."""
    folder = folders("z-image")
    model, parts = split("z-image", folder, tmp_path / "files")
    size = ("-W", 64, "-H", 64, "--seed", 1, "--guidance-scale", 0, *FAST)
    done = run("generate", "fox", "-m", model, *options(parts), "-o", "split.png", *size)
    assert (done.status, done.stdout) == (0, b"split.png\n")
    assert run("generate", "fox", "-m", folder, "-o", "whole.png", *size).status == 0
    info = [json.loads(run("info", f"{name}.png", "--json").stdout) for name in ("split", "whole")]
    assert info[0]["pixels_sha256"] == info[1]["pixels_sha256"]
    recorded = [f"{part}={place.replace(str(tmp_path), '~')}" for part, place in parts.items()]
    assert info[0]["recipe"]["part"] == recorded
    replayed = run("replay", "--verify", "split.png")
    assert (replayed.status, replayed.stdout) == (0, b"split.png\n")


def test_an_entry_with_files(folders, run, tmp_path, monkeypatch):
    model, parts = split("flux-schnell", folders("flux-schnell"), tmp_path / "files")
    added = run("models", "add", "mine", model, *options(parts))
    assert (added.status, added.stderr) == (0, "")
    shown = json.loads(run("models", "show", "mine", "--json").stdout)
    assert (shown["present"], shown["takes"]) == (True, "text")


@pytest.mark.parametrize(
    ("family", "missing"),
    [("z-image", ["text_encoder", "vae"]), ("sd3", ["text_encoder", "text_encoder_2", "vae"]), ("flux-dev", ["vae"])],
)
def test_missing_parts_are_named_before_anything_is_read(folders, run, tmp_path, family, missing):
    model, parts = split(family, folders(family), tmp_path / "files")
    given = {part: place for part, place in parts.items() if part not in missing}
    done = run("generate", "fox", "-m", model, *options(given))
    error, hint = two_lines(done)
    assert done.status == 3
    assert f"its {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing" in error
    assert all(f"--part {part}=" in hint for part in missing)


@pytest.mark.parametrize("family", ["sd3", "flux-dev"])
def test_one_file_with_all_parts(folders, tmp_path, family):
    folder = folders(family)
    names = {"text_encoder": "clip_l", "text_encoder_2": "clip_g" if family == "sd3" else "t5xxl"}
    names |= {"text_encoder_3": "t5xxl"}
    state = {f"model.diffusion_model.{key}": each for key, each in split_files.transformer(family, folder).items()}
    state |= {f"first_stage_model.{key}": each for key, each in split_files.vae(family, folder).items()}
    for part, own in split_files.encoders(folder).items():
        state |= {f"text_encoders.{names[part]}.transformer.{key}": each for key, each in own.items()}
    file = split_files.save(state, tmp_path / "whole.safetensors")
    assert_same(load(Source(file, configs=folder)), load(Source(folder)))
    Source(file).check()  # nothing is missing
    assert Source(file).index().get("text_encoder_3") == (
        ["transformers", "T5EncoderModel"] if family == "sd3" else None
    )


def test_sd3_without_t5_is_a_model(folders, tmp_path):
    model, parts = split("sd3-without-t5", folders("sd3-without-t5"), tmp_path)
    source = located.find(model, {"part": [f"{part}={place}" for part, place in parts.items()]}).source
    assert source.index()["text_encoder_3"] == [None, None]
    assert len(load(source).text_encoders) == 2


def test_clip_l_without_a_projection_has_the_identity(folders, tmp_path):
    """As ComfyUI's file for SD 3."""
    folder = folders("sd3")
    state = split_files.state_of(folder, "text_encoder")
    del state["text_projection.weight"]
    file = split_files.save(state, tmp_path / "clip_l.safetensors")
    model = load(Source(folder, parts=(("text_encoder", file),))).text_encoders[0].model
    assert torch.equal(model.text_projection.weight, torch.eye(8))


@pytest.mark.parametrize("prefix", ["", "first_stage_model.", "vae."])
@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_one_vae_file_for_stable_diffusion(sd15, tmp_path, prefix, layout):
    other = load_file(next((tiny.make_folder("sd15", tmp_path / "other", seed=5) / "vae").glob("*.safetensors")))
    state = original.vae(other) if layout == "original" else other
    file = split_files.save({prefix + key: each for key, each in state.items()}, tmp_path / "ft.safetensors")
    vae = load(Source(sd15, parts=(("vae", file),))).vae.state_dict()
    assert [name for name in other if not torch.equal(vae[name], other[name])] == []


@pytest.mark.parametrize("layout", ["sd1", "sdxl"])
def test_a_single_file_with_another_vae(tmp_path, layout):
    folder = tiny.make_folder({"sd1": "sd15"}.get(layout, layout), tmp_path / "model")
    file = original.write_single_file(folder, tmp_path / "model.safetensors", layout)
    vae = split_files.save(original.vae(split_files.state_of(folder, "vae")), tmp_path / "vae.safetensors")
    assert_same(load(Source(file, configs=folder, parts=(("vae", vae),))), load(Source(folder)))


def broken(state, how):
    match how:
        case "missing":
            del state["layers.0.attention.qkv.weight"]
        case "unknown":
            state["layers.0.attention.extra.weight"] = torch.zeros(3)
        case "shape":
            state["layers.0.feed_forward.w1.weight"] = torch.zeros(3, 3)
    return state


@pytest.mark.parametrize(
    ("how", "name"),
    [
        ("missing", "layers.0.attention.to_q.weight"),
        ("unknown", "layers.0.attention.extra.weight"),
        ("shape", "layers.0.feed_forward.w1.weight"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(folders, run, tmp_path, how, name):
    folder = folders("z-image")
    file = split_files.save(broken(split_files.transformer("z-image", folder), how), tmp_path / "t.safetensors")
    done = run("generate", "fox", "-m", folder, "--part", f"transformer={file}", "-W", 64, "-H", 64, *FAST)
    error, _ = [line for line in done.stderr.splitlines() if not line.startswith("warning: ")]
    assert (done.status, done.stdout, name in error) == (3, b"", True)


@pytest.mark.parametrize("tensor", ["double_blocks.0.img_attn.qkv.weight", "final_layer.linear.weight", "txt_in.bias"])
def test_a_flux_file_without_a_tensor(folders, tmp_path, tensor):
    state = split_files.transformer("flux-dev", folders("flux-dev"))
    del state[tensor]
    file = split_files.save(state, tmp_path / "flux.safetensors")
    with pytest.raises(ModelCorrupt, match=tensor):
        load(Source(folders("flux-dev"), parts=(("transformer", file),)))


def test_parts_of_other_families_are_refused(folders, tmp_path):
    folder = folders("z-image")
    parts = {
        "vae": split_files.save(split_files.vae("flux2-klein", folders("flux2-klein")), tmp_path / "vae.safetensors"),
        "text_encoder": folders("qwen-image") / "text_encoder" / "model.safetensors",
    }
    for part, file in parts.items():
        with pytest.raises(ModelError):
            load(Source(folder, parts=((part, file),)))


def test_a_vae_with_other_channels_is_named(folders, run):
    vae = folders("qwen-image") / "vae"
    done = run("generate", "fox", "-m", folders("z-image"), "--part", f"vae={vae}", "-W", 64, "-H", 64)
    assert (done.status, "takes latents of 16 channels, and its VAE has 4" in two_lines(done)[0]) == (2, True)
    flux2 = folders("flux2-klein") / "vae"
    done = run("generate", "fox", "-m", folders("flux-dev"), "--part", f"vae={flux2}", "-W", 64, "-H", 64)
    assert (done.status, "takes latents of 16 channels, and its VAE has 32" in two_lines(done)[0]) == (2, True)
    sana = folders("sana") / "vae"
    done = run("generate", "fox", "-m", folders("sd3"), "--part", f"vae={sana}", "-W", 64, "-H", 64)
    assert (done.status, "takes latents of 16 channels, and its VAE has 8" in two_lines(done)[0]) == (2, True)


def test_a_text_encoder_of_the_wrong_width(folders, tmp_path):
    state = {
        key: torch.zeros(3, *each.shape[1:])
        for key, each in split_files.encoders(folders("z-image"))["text_encoder"].items()
    }
    file = split_files.save(state, tmp_path / "qwen.safetensors")
    with pytest.raises(ModelCorrupt, match="has the shape"):
        load(Source(folders("z-image"), parts=(("text_encoder", file),)))


@pytest.mark.parametrize("family", flow.FAMILIES)
def test_families_are_told_by_tensors_and_names(family):
    """The shapes are those of the real configs, in diffusers' layout; the parameters are counted too."""
    folder = families.config_folder(family)
    index = families.read_json(folder / "model_index.json")
    module = loading.build(folder / "transformer", "transformer", index["transformer"][1])
    shapes = {name: tuple(each.shape) for name, each in module.state_dict().items()}
    word = flow.FAMILIES[family].word
    assert flow.detect(f"my-{word}-model.safetensors", shapes) == family
    if family in PARAMETERS:
        count = sum(each.numel() for each in module.parameters()) / 1e9
        assert round(count, len(str(PARAMETERS[family]).split(".")[1])) == PARAMETERS[family]
    prefixed = {f"model.diffusion_model.{name}": shape for name, shape in shapes.items()}
    assert flow.detect(f"{word}.gguf", prefixed) == family


def test_a_family_has_the_values_of_its_entry(folders, tmp_path):
    model, parts = split("z-image", folders("z-image"), tmp_path)
    turbo = Path(model).with_name("z_image_turbo_bf16.safetensors")
    Path(model).rename(turbo)
    given = {"part": [f"{part}={place}" for part, place in parts.items()]}
    facts = located.find(str(turbo), given).facts
    assert (facts.defaults["steps"], facts.defaults["guidance_scale"]) == (9, 0.0)
    base = turbo.rename(turbo.with_name("z_image_bf16.safetensors"))
    facts = located.find(str(base), given).facts
    assert (facts.defaults["steps"], facts.defaults["guidance_scale"]) == (50, 4.0)


def test_invalid_parts(run, sd15, tmp_path):
    for part, words in (("vea=x", "did you mean --part vae"), ("vae", "the parts are")):
        done = run("generate", "fox", "-m", sd15, "--part", part)
        assert (done.status, words in two_lines(done)[1]) == (2, True)
    done = run("generate", "fox", "-m", sd15, "--part", "vae=nowhere.safetensors")
    assert (done.status, "nowhere.safetensors, which does not exist" in done.stderr) == (3, True)
    with pytest.raises(InvalidRecipe, match="twice"):
        located.find(str(sd15), {"part": ["vae=a", "vae=b"]})


def test_gemma_s_tokenizer_comes_from_the_hub_cache(folders, tmp_path, monkeypatch):
    model, parts = split("lumina2", folders("lumina2"), tmp_path / "files")
    del parts["tokenizer"]
    source = located.find(model, {"part": [f"{part}={place}" for part, place in parts.items()]}).source
    with pytest.raises(ModelNotFound, match="no model with Gemma 2 is in the hub cache"):
        tokenizer_folder.find(source, "tokenizer", "gemma")
    pulled = {"Efficient-Large-Model/SANA1.5_1.6B_1024px_diffusers": folders("sana")}
    monkeypatch.setattr(registry, "cached_snapshot", pulled.get)
    assert tokenizer_folder.find(source, "tokenizer", "gemma") == folders("sana") / "tokenizer"


def test_t5_s_tokenizer_comes_from_the_hub_cache(folders, tmp_path, monkeypatch):
    model, parts = split("flux-schnell", folders("flux-schnell"), tmp_path / "files")
    del parts["tokenizer_2"]
    source = located.find(model, {"part": [f"{part}={place}" for part, place in parts.items()]}).source
    with pytest.raises(ModelNotFound, match="has no tokenizer_2") as caught:
        tokenizer_folder.find(source, "tokenizer_2", "t5")
    assert "--part tokenizer_2=FOLDER" in caught.value.hint
    pulled = {"black-forest-labs/FLUX.1-dev": folders("flux-schnell")}
    monkeypatch.setattr(registry, "cached_snapshot", pulled.get)
    assert tokenizer_folder.find(source, "tokenizer_2", "t5") == folders("flux-schnell") / "tokenizer_2"


def test_qwen_s_tokenizer_is_part_of_sdcli(folders, tmp_path):
    """The ids are those of Qwen/Qwen3-4B's tokenizer."""
    model, parts = split("z-image", folders("z-image"), tmp_path)
    del parts["tokenizer"]
    source = located.find(model, {"part": [f"{part}={place}" for part, place in parts.items()]}).source
    folder = tokenizer_folder.find(source, "tokenizer", "qwen")
    rows = torch.nn.Embedding(151_936, 1, device="meta")
    encoder = type("Encoder", (), {"get_input_embeddings": lambda self: rows})()
    tokenizer = language_tokenizer.read(folder, "qwen", encoder)
    assert tokenizer(TEXT).input_ids == IDS
    assert tokenizer.decode(IDS) == TEXT
    framed = language_model.as_chat(tokenizer, "fox", enable_thinking=False)
    assert framed == "<|im_start|>user\nfox<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert tokenizer(framed).input_ids == CHAT_IDS
    assert tokenizer.pad_token_id == 151_643
