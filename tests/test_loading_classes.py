"""Models of classes: LDM's file in its original layout and as a folder, DiT's folder, and what is wrong with either."""

import json
import math
import struct

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from sdcli.errors import ModelCorrupt, ModelError
from sdcli.models import export, families, loading, located, registry
from sdcli.models.loading import find, weights
from sdcli.models.registry import ModelEntry
from sdcli.models.source import Source
from tests import openaimodel, original, tiny

CPU = torch.device("cpu")

# The numbers of configs/latent-diffusion/cin256-v2.yaml, as they stand there.
UNET = {
    "in_channels": 3,
    "out_channels": 3,
    "model_channels": 192,
    "attention_resolutions": [8, 4, 2],
    "num_res_blocks": 2,
    "channel_mult": [1, 2, 3, 5],
    "context_dim": 512,
}
FIRST_STAGE = {
    "embed_dim": 3,
    "n_embed": 8192,
    "z_channels": 3,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": [1, 2, 4],
    "num_res_blocks": 2,
}
SD15 = {**UNET, "in_channels": 4, "out_channels": 4, "model_channels": 320, "attention_resolutions": [4, 2, 1]}
SD15 |= {"channel_mult": [1, 2, 4, 4], "context_dim": 768}


def cin256() -> openaimodel.Shapes:
    shapes = {f"model.diffusion_model.{name}": shape for name, shape in openaimodel.unet(**UNET).items()}
    shapes |= {f"first_stage_model.{name}": shape for name, shape in openaimodel.vq_model(**FIRST_STAGE).items()}
    return shapes | {"cond_stage_model.embedding.weight": (1001, 512)}


def write_sparse(path, shapes):
    """A `.safetensors` file of these names and shapes, in float16, with a hole for its data."""
    listed, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        listed[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [start, end]}
    raw = json.dumps(listed).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + end)
    return path


def load(source, **options):
    return loading.load(source, name="tiny", device=CPU, dtype=torch.float32, **options)


@pytest.fixture(scope="module")
def ldm(tmp_path_factory):
    return tiny.make_ldm(tmp_path_factory.mktemp("ldm") / "folder")


def write_original(folder, file):
    parts = {part: load_file(next((folder / part).glob("*.safetensors"))) for part in ("unet", "vae", "class_embedder")}
    keys = {f"model.diffusion_model.{key}": value for key, value in original.unet(parts["unet"], "ldm").items()}
    keys |= {f"first_stage_model.{key}": value for key, value in original.vae(parts["vae"]).items()}
    keys["cond_stage_model.embedding.weight"] = parts["class_embedder"]["weight"]
    save_file({key: value.contiguous() for key, value in keys.items()}, file)
    return file


def test_the_reference_lays_out_a_known_unet_as_well():
    """Stable Diffusion 1.x's, the code of which latent diffusion's is, and whose every name is known from elsewhere."""
    folder = families.config_folder("sd15")
    module = loading.build(folder / "unet", "unet", "UNet2DConditionModel")
    known = {name: tuple(tensor.shape) for name, tensor in original.unet(module.state_dict(), "sd1").items()}
    assert openaimodel.unet(**SD15) == known


def test_every_tensor_of_cin256_is_known_at_its_real_size(tmp_path):
    path = write_sparse(tmp_path / "model.safetensors", cin256())
    assert families.detect(path) == "ldm-imagenet"
    folder = families.config_folder("ldm-imagenet")
    stored, used = weights.read_headers([path]), set()
    for part in ("unet", "vae", "class_embedder"):
        module = loading.build(folder / part, part, families.read_json(folder / "model_index.json")[part][1])
        found = find.find_in_file(path, stored, folder, part, module)
        for name, parameter in module.state_dict().items():
            weights.check_shape(found[name], tuple(parameter.shape))
        used |= {each.key for each in found.values()}
    assert used == stored.keys()


def test_cin256_is_of_the_size_that_its_paper_gives():
    """Rombach et al. 2022, table 3: LDM-4 of ImageNet's classes has 400 M parameters."""
    assert round(sum(map(math.prod, openaimodel.unet(**UNET).values())) / 1e8) == 4


def test_cin256_attends_with_one_head():
    """`num_heads: 1` in its config; the weights would fit any number of them."""
    folder = families.config_folder("ldm-imagenet")
    unet = loading.build(folder / "unet", "unet", "UNet2DConditionModel")
    heads = {module.heads for name, module in unet.named_modules() if name.endswith(("attn1", "attn2"))}
    assert heads == {1}


def test_facts_are_those_of_the_file(tmp_path):
    path = write_sparse(tmp_path / "model.safetensors", cin256())
    facts = registry.read_facts(Source(path))
    assert (facts.native_size, facts.size_multiple, facts.in_channels, facts.latent_space.channels) == (256, 4, 3, 3)
    assert facts.labels is not None
    assert facts.labels.names[279] == ("Arctic fox", "white fox", "Alopex lagopus")
    assert not facts.square_only


def test_a_file_gives_the_weights_of_its_folder(ldm, tmp_path):
    file = write_original(ldm, tmp_path / "model.safetensors")
    from_file, from_folder = load(Source(file, configs=ldm)), load(Source(ldm))
    for part in ("network", "vae", "class_embedder"):
        found, wanted = (getattr(model, part).state_dict() for model in (from_file, from_folder))
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert from_file.text_encoders == ()
    assert from_file.labels == from_folder.labels
    assert from_file.vae.config["scaling_factor"] == 1


@pytest.mark.parametrize(
    ("missing", "named"),
    [
        ("cond_stage_model.embedding.weight", "cond_stage_model.embedding.weight"),
        ("first_stage_model.quantize.embedding.weight", "first_stage_model.quantize.embedding.weight"),
    ],
)
def test_a_missing_tensor_is_named(ldm, tmp_path, missing, named):
    file = write_original(ldm, tmp_path / "model.safetensors")
    save_file({key: value for key, value in load_file(file).items() if key != missing}, file)
    with pytest.raises(ModelCorrupt, match=named):
        load(Source(file, configs=ldm))


def test_the_codebook_stays_in_float32(ldm):
    model = loading.load(Source(ldm), name="tiny", device=CPU, dtype=torch.bfloat16)
    assert (model.network.dtype, model.vae.dtype) == (torch.bfloat16, torch.float32)
    assert model.class_embedder.weight.dtype == torch.bfloat16


def change(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("make", "file", "values", "words"),
    [
        (tiny.make_ldm, "class_embedder/config.json", {"num_embeddings": 11}, "does not fit 10 classes"),
        (
            tiny.make_ldm,
            "class_embedder/config.json",
            {"embedding_dim": 8},
            r"shape \[1001, 16\].* requires \[1001, 8\]",
        ),
        (tiny.make_ldm, "model_index.json", {"class_embedder": [None, None]}, "has no class_embedder"),
        (tiny.make_ldm, "model_index.json", {"id2label": {"x": "fox"}}, "id2label does not fit"),
        (tiny.make_ldm, "model_index.json", {"id2label": {"1": 3}}, "id2label does not fit"),
        (tiny.make_ldm, "model_index.json", {"id2label": {"-1": "fox"}}, "it has class -1"),
        (tiny.make_dit, "model_index.json", {"transformer": [None, None]}, "has no transformer"),
        (tiny.make_dit, "transformer/config.json", {"out_channels": 6}, r"proj_out_2.weight has the shape \[32, 24\]"),
        (
            tiny.make_dit,
            "transformer/config.json",
            {"norm_type": "layer_norm"},
            "is not a config of a DiTTransformer2D",
        ),
    ],
)
def test_configs_that_do_not_fit_are_an_error(tmp_path, make, file, values, words):
    folder = make(tmp_path / "model")
    change(folder / file, **values)
    with pytest.raises(ModelCorrupt, match=words):
        load(Source(folder))


def test_another_transformer_is_refused(tmp_path):
    folder = tiny.make_dit(tmp_path / "model")
    change(folder / "model_index.json", _class_name="HunyuanDiTPipeline")
    with pytest.raises(ModelError, match="is a HunyuanDiTPipeline"):
        load(Source(folder))


def test_dit_without_names_has_its_classes_by_number(tmp_path):
    folder = tiny.make_dit(tmp_path / "model")
    index = json.loads((folder / "model_index.json").read_text())
    del index["id2label"]
    (folder / "model_index.json").write_text(json.dumps(index))
    labels = located.locate(ModelEntry("tiny", folder=str(folder))).facts.labels
    assert labels is not None
    assert (labels.find("279"), labels.name(279), len(labels.names)) == (279, "279", 1000)


def test_a_file_is_exported_as_its_folder(ldm, tmp_path):
    file = write_original(ldm, tmp_path / "model.safetensors")
    (tmp_path / "exported").mkdir()
    assert export.export(Source(file, configs=ldm), tmp_path / "exported", lambda part, count: None) == (
        "LDMClassToImagePipeline"
    )
    exported, folder = load(Source(tmp_path / "exported")), load(Source(ldm))
    for part in ("network", "vae", "class_embedder"):
        found, wanted = (getattr(model, part).state_dict() for model in (exported, folder))
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert exported.labels == folder.labels


def test_an_exported_dit_is_diffusers_own(tmp_path):
    folder = tiny.make_dit(tmp_path / "model")
    (tmp_path / "exported").mkdir()
    assert export.export(Source(folder), tmp_path / "exported", lambda part, count: None) == "DiTPipeline"
    pipe = diffusers.DiTPipeline.from_pretrained(tmp_path / "exported", local_files_only=True)
    assert pipe.labels["Arctic fox"] == 279
