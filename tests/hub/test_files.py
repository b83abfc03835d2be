"""What is pulled is what is loaded: the choice of files against the loader's own, on layouts of every kind."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdcli.errors import ModelCorrupt, ModelError, ModelUnsafe
from sdcli.models.families import component_files
from sdcli.models.hub.files import needed
from tests import tiny_flow

BASE = ["model_index.json", "unet/config.json", "unet/model.safetensors", "vae/config.json", "vae/model.safetensors"]
BASE += ["text_encoder/config.json", "scheduler/scheduler_config.json", "tokenizer/vocab.json", "tokenizer/merges.txt"]

SHARDS = ["-00001-of-00002", "-00002-of-00002"]
WEIGHTS = [f"{stem}{dot}.safetensors" for stem in ("diffusion_pytorch_model", "model") for dot in ("", ".fp16", ".ema")]
WEIGHTS += ["pytorch_model.bin", "model.ckpt", "flax_model.msgpack", "model.onnx", "openvino_model.xml"]
SETS = [[name] for name in WEIGHTS]
SETS += [
    [f"{stem}.safetensors.index{dot}.json", *(f"{stem}{dot}{shard}.safetensors" for shard in SHARDS)]
    for stem in ("diffusion_pytorch_model", "model")
    for dot in ("", ".fp16")
]


def index_of(name: str) -> str:
    stem, dot = name.split(".")[0], ".fp16" if ".fp16" in name else ""
    shards = [f"{stem}{dot}{shard}.safetensors" for shard in SHARDS]
    return json.dumps({"weight_map": dict(zip("ab", shards, strict=True))})


@given(sets=st.lists(st.sampled_from(SETS), max_size=6), variant=st.sampled_from([None, "fp16", "ema"]))
def test_the_weights_pulled_are_those_loaded(tmp_path_factory, sets, variant):
    names = {name for each in sets for name in each}
    folder = tmp_path_factory.mktemp("component")
    for name in names:
        (folder / name).write_text(index_of(name) if ".index" in name else "")
    try:
        loaded = {path.name for path in component_files(folder, variant)}
    except ModelError as error:
        with pytest.raises(type(error)):
            needed([*BASE, *(f"text_encoder/{name}" for name in names)], variant)
        return
    got = needed([*BASE, *(f"text_encoder/{name}" for name in names)], variant)
    weights = {path.removeprefix("text_encoder/") for path in got if path.startswith("text_encoder/")} - {"config.json"}
    assert {name for name in weights if ".index" not in name} == loaded
    assert all(name.endswith((".safetensors", ".json")) for name in weights)


def test_second_encoders_come_where_there_are_some_and_nothing_else_does():
    more = ["text_encoder_2/config.json", "text_encoder_2/model.safetensors", "tokenizer_2/merges.txt"]
    others = ["safety_checker/model.safetensors", "image_encoder/model.safetensors", "vae_1_0/model.safetensors"]
    others += [
        "sd_xl_base_1.0.safetensors",
        "README.md",
        "unet/README.md",
        "tokenizer/vocab.bin",
        "unet/sub/config.json",
    ]
    files = [*BASE, "text_encoder/model.safetensors"]
    assert needed([*files, *more, *others]) == sorted([*files, *more])
    assert needed([*files, *others]) == sorted(files)


def test_of_a_controlnet_its_config_and_one_set_of_weights_are_needed():
    """The files of lllyasviel/control_v11p_sd15_seg."""
    weights = [f"diffusion_pytorch_model{dot}" for dot in (".bin", ".fp16.bin", ".fp16.safetensors", ".safetensors")]
    paths = [".gitattributes", "README.md", "config.json", "control_net_seg.py", "images/bag.png", *weights]
    assert needed(paths, "fp16") == ["config.json", "diffusion_pytorch_model.fp16.safetensors"]
    assert needed(paths) == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert needed([*paths, "classes.json"])[0] == "classes.json"
    with pytest.raises(ModelUnsafe):
        needed(["config.json", "diffusion_pytorch_model.bin"])


def test_the_classes_of_a_model_come_with_it():
    assert "classes.json" in needed([*BASE, "text_encoder/model.safetensors", "classes.json"])


@pytest.mark.parametrize(
    ("paths", "error"),
    [
        (["config.json", "model.safetensors"], ModelError),
        (["README.md", "model.safetensors"], ModelError),
        ([*BASE, "text_encoder/pytorch_model.bin"], ModelUnsafe),
        (BASE, ModelCorrupt),
        ([*BASE, "text_encoder/model.safetensors", "text_encoder_2/config.json"], ModelCorrupt),
    ],
)
def test_a_repository_without_usable_weights_is_refused(paths, error):
    with pytest.raises(error) as caught:
        needed(paths)
    assert type(caught.value) is error


FILES = ("config.json", "diffusion_pytorch_model.safetensors")
DIT = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    *(f"{part}/{name}" for part in ("transformer", "vae") for name in FILES),
]
LDM = [
    *("model_index.json", "scheduler/scheduler_config.json"),
    *(f"{part}/{name}" for part in ("class_embedder", "unet", "vae") for name in FILES),
]


@pytest.mark.parametrize("paths", [DIT, LDM])
def test_models_of_classes_need_no_text_encoder(paths):
    assert needed([*paths, "README.md", "vae/diffusion_pytorch_model.bin"]) == sorted(paths)


def test_a_model_of_classes_that_is_pickled_is_unsafe():
    with pytest.raises(ModelUnsafe, match="its transformer only has pickled weights"):
        needed([path.replace("transformer/diffusion_pytorch_model.safetensors", "transformer/x.bin") for path in DIT])


@pytest.mark.parametrize("family", ["z-image", "sd3", "qwen-image-edit", "flux-dev", "qwen-image-21"])
def test_all_of_a_transformer_s_folder_is_needed(family, tmp_path):
    folder = tiny_flow.make_folder(family, tmp_path)
    paths = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    others = {"README.md", "flux1-dev.safetensors", "text_encoder/model.fp16.safetensors", "transformer/x.bin"}
    unused = {"text_encoder/generation_config.json"}
    assert needed(paths | others) == sorted(paths - unused)
