"""LoRAs for transformers: names in the layouts of several tools, and rows of fused layers."""

from pathlib import Path

import pytest
import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.models.transformers.transformer_z_image import ZImageTransformer2DModel
from safetensors.torch import save_file
from torch import Generator, Tensor, nn
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel
from transformers.models.t5.configuration_t5 import T5Config
from transformers.models.t5.modeling_t5 import T5EncoderModel

from sdcli.diffusion import pipeline
from sdcli.diffusion.model import LatentDiffusionModel
from sdcli.errors import ModelError
from sdcli.models import loading, located, lora_file, registry
from sdcli.models.addons import lora
from sdcli.models.loading.lora import merge
from sdcli.models.loading.lora_change import Misfit, changed, of_rows
from sdcli.models.loading.lora_names import places, plain
from sdcli.models.source import Source
from sdcli.models.weights import Addon, Asked
from tests import tiny, tiny_flow

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("flow")
    families = ("flux-dev", "sd3", "z-image", "qwen-image", "flux2-klein")
    return {family: tiny_flow.make_folder(family, root / family) for family in families}


def load(folder: Path) -> LatentDiffusionModel:
    return loading.load(Source(folder), name="", device=CPU, dtype=torch.float32)


def merged(folder: Path, path: Path, scale: float) -> LatentDiffusionModel:
    return merge(load(folder), Source(folder), [Addon("lora", Asked(path.name, scale, scale), Source(path))])


def low_rank(out: int, width: int, seed: int) -> dict[str, Tensor]:
    generator = Generator().manual_seed(seed)
    down, up = torch.randn(2, width, generator=generator), torch.randn(out, 2, generator=generator)
    return {"lora_down.weight": 0.3 * down, "lora_up.weight": 0.3 * up, "alpha": torch.tensor(1.0)}


FUSED = {
    "flux-dev": {
        "double_blocks.0.img_attn.qkv": [f"transformer_blocks.0.attn.to_{each}" for each in "qkv"],
        "double_blocks.0.txt_attn.qkv": [f"transformer_blocks.0.attn.add_{each}_proj" for each in "qkv"],
        "double_blocks.0.img_mlp.0": ["transformer_blocks.0.ff.net.0.proj"],
        "double_blocks.0.img_mod.lin": ["transformer_blocks.0.norm1.linear"],
        "single_blocks.0.linear1": [
            *(f"single_transformer_blocks.0.attn.to_{each}" for each in "qkv"),
            "single_transformer_blocks.0.proj_mlp",
        ],
        "single_blocks.0.linear2": ["single_transformer_blocks.0.proj_out"],
    },
    "sd3": {
        "joint_blocks.0.x_block.attn.qkv": [f"transformer_blocks.0.attn.to_{each}" for each in "qkv"],
        "joint_blocks.0.context_block.attn.qkv": [f"transformer_blocks.0.attn.add_{each}_proj" for each in "qkv"],
        "joint_blocks.0.x_block.mlp.fc1": ["transformer_blocks.0.ff.net.0.proj"],
    },
    "z-image": {
        "layers.0.attention.qkv": [f"layers.0.attention.to_{each}" for each in "qkv"],
        "layers.0.attention.out": ["layers.0.attention.to_out.0"],
        "noise_refiner.0.feed_forward.w1": ["noise_refiner.0.feed_forward.w1"],
    },
    "flux2-klein": {
        "double_blocks.0.img_attn.qkv": [f"transformer_blocks.0.attn.to_{each}" for each in "qkv"],
        "single_blocks.0.linear1": ["single_transformer_blocks.0.attn.to_qkv_mlp_proj"],
        "double_stream_modulation_img.lin": ["double_stream_modulation_img.linear"],
    },
    "qwen-image": {
        "transformer_blocks.0.attn.to_q": ["transformer_blocks.0.attn.to_q"],
        "transformer_blocks.0.img_mlp.net.0.proj": ["transformer_blocks.0.img_mlp.net.0.proj"],
    },
}


def prefixed(layout: str, layer: str, leaf: str) -> str:
    if layout == "kohya":
        return f"lora_unet_{layer.replace('.', '_')}.{leaf}"
    ends = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight", "alpha": "alpha"}
    return f"{layout}{layer}.{ends[leaf]}"


@pytest.mark.parametrize("layout", ["kohya", "diffusion_model.", "transformer.", ""])
@pytest.mark.parametrize("family", FUSED)
def test_each_module_gets_its_rows(folders, tmp_path, family, layout):
    """W + scale · alpha / rank · up · down, divided among the modules in order."""
    plain_weights = dict(load(folders[family]).network.named_parameters())
    tensors, expected = {}, {}
    for seed, (layer, names) in enumerate(FUSED[family].items()):
        weights = [plain_weights[f"{name}.weight"] for name in names]
        made = low_rank(sum(len(each) for each in weights), weights[0].shape[1], seed)
        tensors |= {prefixed(layout, layer, leaf): each for leaf, each in made.items()}
        difference = 0.7 * 0.5 * made["lora_up.weight"] @ made["lora_down.weight"]
        for name, part in zip(names, difference.split([len(each) for each in weights]), strict=True):
            expected[f"{name}.weight"] = plain_weights[f"{name}.weight"] + part
    path = tmp_path / "a.safetensors"
    save_file({key: each.contiguous() for key, each in tensors.items()}, path)
    after = dict(merged(folders[family], path, 0.7).network.named_parameters())
    for name, weight in plain_weights.items():
        torch.testing.assert_close(after[name], expected.get(name, weight), atol=1e-6, rtol=0)


def test_the_last_modulation_has_its_halves_swapped(folders, tmp_path):
    weight = dict(load(folders["flux-dev"]).network.named_parameters())["norm_out.linear.weight"]
    made = low_rank(*weight.shape, 1)
    save_file(
        {f"lora_unet_final_layer_adaLN_modulation_1.{leaf}": made[leaf] for leaf in made}, tmp_path / "a.safetensors"
    )
    shift, scale = (0.5 * made["lora_up.weight"] @ made["lora_down.weight"]).chunk(2)
    after = dict(merged(folders["flux-dev"], tmp_path / "a.safetensors", 1.0).network.named_parameters())
    torch.testing.assert_close(after["norm_out.linear.weight"], weight + torch.cat([scale, shift]), atol=1e-6, rtol=0)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
@pytest.mark.parametrize("layout", ["kohya", "transformer."])
def test_latents_are_those_of_diffusers(folders, tmp_path, layout):
    """Its loader of FLUX.1's LoRAs divides fused layers too, in kohya's layout; `linear1` only of the real size."""
    folder = folders["flux-dev"]
    network = load(folder).network
    tensors = {}
    named = {layer: names for layer, names in FUSED["flux-dev"].items() if layer != "single_blocks.0.linear1"}
    if layout != "kohya":
        named = {name: [name] for names in FUSED["flux-dev"].values() for name in names}
    weights = dict(network.named_parameters())
    for seed, (layer, names) in enumerate(named.items()):
        shapes = [weights[f"{name}.weight"].shape for name in names]
        made = low_rank(sum(shape[0] for shape in shapes), shapes[0][1], seed)
        if layout != "kohya":
            del made["alpha"]
        tensors |= {prefixed(layout, layer, leaf): each for leaf, each in made.items()}
    path = tmp_path / "a.safetensors"
    save_file(tensors, path)
    given = {"model": str(folder), "prompt": "fox", "steps": 2, "seed": 7, "width": 64, "height": 64}
    recipe = tiny.recipe_for(registry.find(str(folder)), given)
    ours = pipeline.sample(merged(folder, path, 0.7), [recipe])
    pipe = tiny_flow.pipeline_of(folder)
    try:
        pipe.load_lora_weights(path, adapter_name="a")
        pipe.set_adapters("a", 0.7)
        theirs = pipe(
            prompt="fox", num_inference_steps=2, width=64, height=64, guidance_scale=3.5,
            generator=Generator().manual_seed(7), output_type="latent",
        ).images  # fmt: skip
    finally:
        pipe.unload_lora_weights()
    from sdcli.diffusion import packing

    assert (packing.pack(ours) - theirs).abs().max() <= 1e-4
    assert (ours - pipeline.sample(load(folder), [recipe])).abs().max() > 0.01


KINDS = {
    "loha": {"hada_w1_a": (6, 2), "hada_w1_b": (2, 4), "hada_w2_a": (6, 2), "hada_w2_b": (2, 4)},
    "lokr": {"lokr_w1": (2, 2), "lokr_w2": (3, 2)},
    "lokr of factors": {"lokr_w1": (2, 2), "lokr_w2_a": (3, 1), "lokr_w2_b": (1, 2), "alpha": ()},
    "whole difference": {"diff": (6, 4)},
    "dora by rows": {"up": (6, 2), "down": (2, 4), "dora_scale": (6, 1)},
    "(IA)³ of outputs": {"weight": (6,), "on_input": ()},
    "(IA)³ of inputs": {"weight": (4,), "on_input": ()},
}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_every_kind(kind):
    """Rows of the changed layer are the changed rows."""
    generator = Generator().manual_seed(1)
    weight = torch.randn(6, 4, generator=generator)
    tensors = {role: torch.rand(shape, generator=generator) for role, shape in KINDS[kind].items()}
    if "on_input" in tensors:
        tensors["on_input"] = torch.tensor(float(kind.endswith("inputs")))
    options = {"scale": 0.7, "alpha": None, "rank_stabilized": False}
    whole = changed(weight, tensors, **options)
    rows = ((4, 6), (0, 1))
    part = changed(torch.cat([weight[4:6], weight[:1]]), of_rows(tensors, rows, 6), **options)
    torch.testing.assert_close(part, torch.cat([whole[4:6], whole[:1]]))


def test_norms_of_columns_cannot_be_divided():
    tensors = {"up": torch.rand(6, 2), "down": torch.rand(2, 4), "dora_scale": torch.rand(1, 4)}
    with pytest.raises(Misfit, match="norms of columns"):
        of_rows(tensors, ((0, 2),), 6)


@pytest.mark.parametrize(
    ("layer", "words"),
    [("double_blocks.7.img_attn.qkv", "no place"), ("single_blocks.0.linear3", "no place")],
)
def test_layers_without_a_place_are_named(folders, tmp_path, layer, words):
    made = low_rank(24, 24, 1)
    save_file({prefixed("kohya", layer, leaf): each for leaf, each in made.items()}, tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match=words) as raised:
        merged(folders["flux-dev"], tmp_path / "a.safetensors", 1.0)
    assert plain(layer) in raised.value.message


def test_a_lora_of_another_family_is_refused(folders, tmp_path):
    made = low_rank(24, 24, 1)
    path = tmp_path / "z.safetensors"
    save_file({f"lora_unet_noise_refiner_0_attention_qkv.{leaf}": each for leaf, each in made.items()}, path)
    with pytest.raises(ModelError, match="made for Z-Image") as raised:
        lora.check_fit("z", Source(path), located.find(str(folders["flux-dev"])))
    assert "FLUX.1" in str(raised.value.hint)


def real_flux() -> dict[str, nn.Module]:
    with torch.device("meta"):
        return {
            "transformer": FluxTransformer2DModel(guidance_embeds=True),
            "text_encoder": CLIPTextModel(
                CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12)
            ),
            "text_encoder_2": T5EncoderModel(
                T5Config(d_model=4096, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu")
            ),
        }


BFL = [
    *(f"double_blocks.{n}.{half}_{layer}" for n in (0, 18) for half in ("img", "txt") for layer in
      ("attn.qkv", "attn.proj", "mlp.0", "mlp.2", "mod.lin")),
    *(f"single_blocks.{n}.{layer}" for n in (0, 37) for layer in ("linear1", "linear2", "modulation.lin")),
    *("img_in", "txt_in", "time_in.in_layer", "vector_in.out_layer", "guidance_in.in_layer", "final_layer.linear"),
    "final_layer.adaLN_modulation.1",
]  # fmt: skip
_CLIP_L, _T5 = "lora_te1_text_model_encoder_layers_11", "lora_te2_encoder_block_23_layer"
ONE_TRAINER = [
    *(f"{_CLIP_L}_{each}" for each in ("mlp_fc1", "self_attn_k_proj", "self_attn_out_proj")),
    *(f"{_T5}_{each}" for each in ("0_SelfAttention_q", "1_DenseReluDense_wi_0", "1_DenseReluDense_wo")),
    "lora_transformer_single_transformer_blocks_37_attn_to_k",
    "lora_transformer_transformer_blocks_18_attn_to_out_0",
    "lora_transformer_transformer_blocks_0_attn_add_q_proj",
]


def test_names_in_files_for_flux_of_its_real_size():
    """Layers of files of Black Forest Labs, kohya's scripts, ComfyUI, XLabs and OneTrainer."""
    known = places(real_flux(), "flux")
    layers = [
        *BFL,
        *(f"diffusion_model.{each}" for each in BFL),
        *(f"lora_unet_{each.replace('.', '_')}" for each in BFL),
    ]
    layers += [*ONE_TRAINER, "double_blocks.18.processor.qkv_lora1", "double_blocks.0.processor.proj_lora2"]
    assert [layer for layer in layers if plain(layer) not in known] == []
    (place,) = known["img_in"]
    assert (place.module, place.rows) == ("x_embedder", None)
    assert [each.rows for each in known["single_blocks_37_linear1"]] == [
        ((0, 3072),), ((3072, 6144),), ((6144, 9216),), ((9216, 21504),)
    ]  # fmt: skip


def test_every_layer_of_the_transformers_has_a_name():
    tiny_ones = {
        "flux2": Flux2Transformer2DModel, "sd3": SD3Transformer2DModel, "qwen_image": QwenImageTransformer2DModel,
        "z_image": ZImageTransformer2DModel,
    }  # fmt: skip
    for architecture, kind in tiny_ones.items():
        with torch.device("meta"):
            options = {"num_layers": 1} if architecture != "z_image" else {"n_layers": 1, "n_refiner_layers": 1}
            network = kind(**options)
        known = places({"transformer": network}, architecture)
        linear = [name for name, layer in network.named_modules() if isinstance(layer, nn.Linear)]
        assert all(plain(f"transformer.{name}") in known for name in linear)


def test_xlabs_tensors_are_told_by_their_number(tmp_path):
    layers = [f"double_blocks.0.processor.{kind}_lora{n}" for kind in ("qkv", "proj") for n in (1, 2)]
    names = [f"{layer}.{half}.weight" for layer in layers for half in ("down", "up")]
    save_file({name: torch.zeros(2, 2) for name in names}, tmp_path / "x.safetensors")
    found = lora_file.read(tmp_path / "x.safetensors")
    assert {layer: sorted(roles) for layer, roles in found.groups.items()} == {each: ["down", "up"] for each in layers}
    assert (found.made_for, found.unknown) == ("FLUX.1", ())
