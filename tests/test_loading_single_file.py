import json
import math
import struct

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sdcli.diffusion import pipeline
from sdcli.errors import InvalidRecipe, ModelCorrupt, ModelError
from sdcli.files.canvas import InitialImage
from sdcli.files.inputs import Inputs
from sdcli.models import families, loading, registry
from sdcli.models.loading import find, weights
from sdcli.models.source import Source
from sdcli.recipe.recipe import Recipe
from tests import original, tiny

CPU = torch.device("cpu")
LAYOUTS = {"sd15": "sd1", "sd21-v": "sd2", "sd-turbo": "sd2", "sdxl": "sdxl"}
REAL_LAYOUTS = {"sd15": "sd1", "sd21-v": "sd2", "sdxl": "sdxl"}
REAL_LAYOUTS |= {"sd15-inpaint": "sd1", "sd2-inpaint": "sd2", "sdxl-inpaint": "sdxl"}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Of each family a tiny diffusers folder and ONE file of the same weights."""
    root = tmp_path_factory.mktemp("single")
    folders = {family: tiny.make_folder(family, root / family) for family in LAYOUTS}
    return {
        family: (folder, original.write_single_file(folder, root / f"{family}.safetensors", LAYOUTS[family]))
        for family, folder in folders.items()
    }


@pytest.fixture(params=LAYOUTS)
def pair(request, pairs):
    return pairs[request.param]


def load(path, **options):
    return loading.load(Source(path, **options), name="tiny", device=CPU, dtype=torch.float32)


def modules(model):
    return [model.network, model.vae, *(each.model for each in model.text_encoders)]


def test_a_single_file_gives_the_weights_of_its_folder(pair):
    folder, file = pair
    from_file, from_folder = load(file, configs=folder), load(folder)
    assert from_file.scheduler_config == from_folder.scheduler_config
    assert from_file.text_encoders[0].tokenizer.pad_id == from_folder.text_encoders[0].tokenizer.pad_id
    for one, other in zip(modules(from_file), modules(from_folder), strict=True):
        assert type(one) is type(other)
        found, wanted = one.state_dict(), other.state_dict()
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_what_files_carry_beside_the_model_is_left_alone(pair, tmp_path):
    folder, file = pair
    beside = {
        "model_ema.decay": torch.zeros(()),
        "betas": torch.zeros(1000),
        "first_stage_model.loss.logvar": torch.zeros(()),
        "cond_stage_model.logit_scale": torch.zeros(()),
        "conditioner.embedders.1.model.logit_scale": torch.zeros(()),
    }
    save_file({**load_file(file), **beside}, tmp_path / "more.safetensors")
    load(tmp_path / "more.safetensors", configs=folder)


@pytest.mark.parametrize(
    ("family", "missing", "named"),
    [
        ("sd15", "model.diffusion_model.middle_block.0.in_layers.2.weight", "middle_block.0.in_layers.2.weight"),
        ("sd15", "first_stage_model.decoder.conv_in.weight", "first_stage_model.decoder.conv_in.weight"),
        ("sd15", "first_stage_model.", "first_stage_model."),
        ("sd15", "cond_stage_model.", "no text_encoder"),
        ("sd21-v", "cond_stage_model.model.transformer.resblocks.1.attn.in_proj_bias", "attn.in_proj_bias"),
        ("sdxl", "conditioner.embedders.1.", "no text_encoder_2"),
    ],
)
def test_missing_tensors_are_named_as_the_file_names_them(pairs, tmp_path, family, missing, named):
    folder, file = pairs[family]
    kept = {key: value for key, value in load_file(file).items() if not key.startswith(missing)}
    save_file(kept, tmp_path / "less.safetensors")
    with pytest.raises(ModelCorrupt) as caught:
        load(tmp_path / "less.safetensors", configs=folder)
    assert named in caught.value.message


def test_a_unet_with_more_in_it_than_its_family_has_is_refused(pair, tmp_path):
    folder, file = pair
    more = {"model.diffusion_model.time_embed.cond_proj.weight": torch.zeros(3)}
    save_file({**load_file(file), **more}, tmp_path / "more.safetensors")
    with pytest.raises(ModelCorrupt, match=r"time_embed\.cond_proj\.weight"):
        load(tmp_path / "more.safetensors", configs=folder)


def test_a_tiny_file_is_of_no_known_family(pair):
    with pytest.raises(ModelError, match="not a supported model"):
        load(pair[1])


# Parameters of the real models, as their model cards and papers give them or as counted in diffusers'.
SIZES = {
    "sd15": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "sd21-v": {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
    "sdxl": {
        "unet": 2_567_463_684,
        "vae": 83_653_863,
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
    },
}
INPAINTING = {"sd15-inpaint": "sd15", "sd2-inpaint": "sd21-v", "sdxl-inpaint": "sdxl"}
MORE = 5 * 9 * 320  # weights of a 3×3 convolution from a mask and a masked image's latents to 320 channels
SIZES |= {name: {**SIZES[base], "unet": SIZES[base]["unet"] + MORE} for name, base in INPAINTING.items()}
WELL_KNOWN = {
    "sd15": {
        "model.diffusion_model.output_blocks.11.0.skip_connection.weight": (320, 640, 1, 1),
        "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight": (77, 768),
    },
    "sd21-v": {
        "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight": (320, 1024),
        "cond_stage_model.model.transformer.resblocks.22.attn.in_proj_weight": (3072, 1024),
    },
    "sdxl": {
        "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias": (1280,),
        "model.diffusion_model.label_emb.0.0.weight": (1280, 2816),
        "model.diffusion_model.middle_block.1.transformer_blocks.9.attn2.to_k.weight": (1280, 2048),
    },
}
CONV_IN = {"model.diffusion_model.input_blocks.0.0.weight": (320, 9, 3, 3)}
WELL_KNOWN |= {name: {**WELL_KNOWN[base], **CONV_IN} for name, base in INPAINTING.items()}


@pytest.fixture(scope="module", params=REAL_LAYOUTS)
def real(request):
    """The modules of a family at their real size, without weights."""
    folder = families.config_folder(request.param)
    index = json.loads((folder / "model_index.json").read_text())
    parts = [part for part in index if part.startswith(("unet", "vae", "text_encoder"))]
    return request.param, {part: loading.build(folder / part, part, index[part][1]) for part in parts}


def write_sparse(path, tensors):
    """A `.safetensors` file of these names and shapes, in float16, with a hole for its data."""
    listed, end = {}, 0
    for name, tensor in tensors.items():
        start, end = end, end + 2 * math.prod(tensor.shape)
        listed[name] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [start, end]}
    raw = json.dumps(listed).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + end)


def test_configs_describe_the_real_models(real):
    family, parts = real
    found = {part: sum(each.numel() for each in module.parameters()) for part, module in parts.items()}
    assert found == SIZES[family]


def test_every_key_of_a_real_file_is_known(real, tmp_path):
    family, parts = real
    keys = original.to_original({part: module.state_dict() for part, module in parts.items()}, REAL_LAYOUTS[family])
    for key, shape in WELL_KNOWN[family].items():
        assert tuple(keys[key].shape) == shape
    path = tmp_path / "real.safetensors"
    write_sparse(path, keys)
    assert families.detect(path) == family
    used = set()
    stored = weights.read_headers([path])
    for part, module in parts.items():
        found = find.find_in_file(path, stored, families.config_folder(family), part, module)
        for name, parameter in module.state_dict().items():
            weights.check_shape(found[name], tuple(parameter.shape))
        used |= {each.key for each in found.values()}
    assert used == keys.keys()


@pytest.mark.parametrize("family", INPAINTING)
def test_an_inpainting_file_is_taken_to_inpaint_and_for_nothing_else(family, tmp_path):
    """Without a name that says so: what it takes is read from its configs."""
    folder = families.config_folder(family)
    index = json.loads((folder / "model_index.json").read_text())
    parts = {
        part: loading.build(folder / part, part, index[part][1]) for part in index if part.startswith(("unet", "text"))
    }
    parts["vae"] = loading.build(folder / "vae", "vae", "AutoencoderKL")
    state = {part: module.state_dict() for part, module in parts.items()}
    write_sparse(tmp_path / "model.safetensors", original.to_original(state, REAL_LAYOUTS[family]))
    Image.new("RGB", (512, 512), "gold").save(tmp_path / "photo.png")
    Image.new("L", (512, 512), "white").save(tmp_path / "mask.png")
    entry = registry.find(str(tmp_path / "model.safetensors"))
    inputs = {"image": str(tmp_path / "photo.png"), "mask_image": str(tmp_path / "mask.png")}
    made = tiny.recipe_for(entry, {"model": entry.name, "prompt": "a fox", **inputs})
    assert (made.width, made.height) == ((1024, 1024) if family == "sdxl-inpaint" else (512, 512))
    with pytest.raises(InvalidRecipe, match="it can only inpaint"):
        tiny.recipe_for(entry, {"model": entry.name, "prompt": "a fox"})


def test_an_inpainting_file_inpaints_as_its_folder_does(tmp_path):
    folder = tiny.make_folder("sd15", tmp_path / "folder", in_channels=9)
    file = original.write_single_file(folder, tmp_path / "model.safetensors", "sd1")
    image, mask = Image.effect_noise((64, 64), 60).convert("RGB"), Image.new("L", (64, 64))
    mask.paste(255, (8, 8, 40, 56))
    said = {"model": "", "prompt": "a fox", "image": "given", "strength": 1.0, "steps": 2, "guidance_scale": 5.0}
    recipe = Recipe.from_dict({**said, "scheduler": "ddim", "width": 64, "height": 64, "seed": 1})
    inputs = Inputs(InitialImage(image, mask, mask))
    from_file, from_folder = (
        pipeline.sample(model, [recipe], inputs=inputs) for model in (load(file, configs=folder), load(folder))
    )
    assert torch.equal(from_file, from_folder)
    assert from_file.isfinite().all()


def test_diffusers_conversion_agrees_at_real_size(real):
    """The names under which diffusers' own conversion would look for the U-Net's and the VAE's tensors."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

    family, parts = real
    state = {part: module.state_dict() for part, module in parts.items()}
    keys = original.to_original(state, REAL_LAYOUTS[family])
    unet = convert_ldm_unet_checkpoint(dict(keys), parts["unet"].config)
    assert {key: value.shape for key, value in unet.items()} == {
        key: value.shape for key, value in state["unet"].items()
    }
    vae = convert_ldm_vae_checkpoint(dict(keys), parts["vae"].config)
    assert {key: value.shape for key, value in vae.items()} == {key: value.shape for key, value in state["vae"].items()}
