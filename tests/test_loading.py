import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from sdcli.errors import ExitStatus, ModelCorrupt, ModelError, ModelNotFound, ModelUnsafe
from sdcli.models import loading
from sdcli.models.source import Source
from tests import tiny

CPU = torch.device("cpu")
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tiny folder of every family, to be read only."""
    root = tmp_path_factory.mktemp("families")
    return {family: tiny.make_folder(family, root / family) for family in tiny.FAMILIES}


@pytest.fixture
def folder(folders, tmp_path):
    """A tiny SD 1.5 folder of the test's own."""
    return shutil.copytree(folders["sd15"], tmp_path / "model")


def load(path, dtype=torch.float32, **options):
    return loading.load(Source(path, **options), name="tiny", device=CPU, dtype=dtype)


def modules(model):
    parts = {"unet": model.network, "vae": model.vae}
    names = ("text_encoder", "text_encoder_2")
    return parts | {name: each.model for name, each in zip(names, model.text_encoders, strict=False)}


def plain(state):
    return {key.removeprefix("text_model."): value for key, value in state.items()}


def stored(path, part):
    return plain(load_file(next((path / part).glob("*.safetensors"))))


def assert_same_weights(model, path, dtype=torch.float32):
    for part, module in modules(model).items():
        found, wanted = plain(module.state_dict()), stored(path, part)
        assert found.keys() == wanted.keys()
        for key in wanted:
            assert found[key].dtype == dtype
            assert torch.equal(found[key], wanted[key].to(dtype)), (part, key)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_tensor_of_every_family(folders, family):
    model = load(folders[family])
    assert_same_weights(model, folders[family])
    assert len(model.text_encoders) == (2 if family == "sdxl" else 1)
    assert model.facts.knows_sizes == (family == "sdxl")
    assert model.facts.guidance_distilled == (family == "lcm")
    assert model.force_zeros_for_empty_prompt == (family == "sdxl")
    assert (model.vae_scale_factor, model.latent_channels, model.concat_channels) == (8, 4, 0)
    assert model.scheduler_config["prediction_type"] == ("v_prediction" if family == "sd21-v" else "epsilon")
    for module in modules(model).values():
        assert not module.training
        assert not any(each.requires_grad for each in module.parameters())
        assert not any(each.is_meta for each in (*module.parameters(), *module.buffers()))


def test_modules_compute_what_the_libraries_load(folders):
    """The buffers that no file holds, and the settings, are right too."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

    model = load(folders["sd15"])
    ids = torch.arange(77)[None]
    theirs = CLIPTextModel.from_pretrained(folders["sd15"] / "text_encoder")(ids).last_hidden_state
    ours = model.text_encoders[0].model(ids).last_hidden_state
    assert_close(ours, theirs, rtol=0, atol=1e-6)  # the last bits depend on where tensors lie in memory
    unet = UNet2DConditionModel.from_pretrained(folders["sd15"] / "unet")
    assert dict(model.network.config) == {key: unet.config[key] for key in model.network.config}
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert_close(model.network(noise, 7, ours).sample, unet(noise, 7, theirs).sample, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_take_the_type_asked_for(folders, dtype):
    assert_same_weights(load(folders["sd15"], dtype), folders["sd15"], dtype)


def test_a_vae_that_overflows_stays_in_float32(folders):
    model = load(folders["sdxl"], torch.float16)
    assert model.network.dtype == torch.float16
    assert model.vae.dtype == torch.float32
    assert load(folders["sdxl"], torch.bfloat16).vae.dtype == torch.bfloat16
    assert load(folders["sd15"], torch.float16).vae.dtype == torch.float16


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_text_encoders_with_and_without_their_prefix(folder, prefix):
    file = folder / "text_encoder" / "model.safetensors"
    state = {prefix + key: value for key, value in plain(load_file(file)).items()}
    state |= {f"{prefix}embeddings.position_ids": torch.arange(77)[None], "logit_scale": torch.ones(())}
    save_file(state, file)
    found = plain(load(folder).text_encoders[0].model.state_dict())
    assert all(torch.equal(value, state[prefix + key]) for key, value in found.items())


def test_words_for_attention_before_diffusers_0_17(folder):
    file = folder / "vae" / WEIGHTS
    words = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = load_file(file)
    kept = dict(state)
    for new, old in words.items():
        state = {key.replace(new, old): value for key, value in state.items()}
    assert state.keys() != kept.keys()
    save_file(state, file)
    found = load(folder).vae.state_dict()
    assert all(torch.equal(found[key], value) for key, value in kept.items())


def add_variant(folder):
    """fp16 files beside the plain ones, told apart by their values; returns the plain ones."""
    files = list(folder.glob("*/*.safetensors"))
    for file in files:
        state = {key: (value + 1).half() for key, value in load_file(file).items()}
        save_file(state, file.with_name(f"{file.stem}.fp16.safetensors"))
    return files


def conv_in(model):
    return model.network.conv_in.bias


def test_fp16_files_where_asked_for_or_alone(folder):
    plain_bias = conv_in(load(folder))
    plain_files = add_variant(folder)
    assert torch.equal(conv_in(load(folder)), plain_bias)
    assert torch.equal(conv_in(load(folder, variant="fp16")), (plain_bias + 1).half().float())
    for file in plain_files:
        file.unlink()
    assert torch.equal(conv_in(load(folder)), (plain_bias + 1).half().float())


def test_a_variant_that_is_not_there_gives_the_plain_files(folder):
    assert torch.equal(conv_in(load(folder, variant="fp16")), conv_in(load(folder)))


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards(folders, tmp_path, variant):
    model = load(folders["sd15"])
    folder = shutil.copytree(folders["sd15"], tmp_path / "model")
    (folder / "unet" / WEIGHTS).unlink()
    model.network.save_pretrained(folder / "unet", max_shard_size="1MB", variant=variant)
    assert len(list((folder / "unet").glob("*.safetensors"))) > 1
    found = load(folder).network.state_dict()
    assert all(torch.equal(found[key], value) for key, value in model.network.state_dict().items())
    shard = next((folder / "unet").glob("*00002-of*"))
    shard.unlink()
    with pytest.raises(ModelCorrupt, match="00002"):
        load(folder)


def test_shards_stay_in_their_folder(folder):
    (folder / "unet" / WEIGHTS).rename(folder / "elsewhere.safetensors")
    index = {"weight_map": {"conv_in.weight": "../elsewhere.safetensors"}}
    tiny.write_json(folder / "unet" / f"{WEIGHTS}.index.json", index)
    with pytest.raises(ModelUnsafe, match="outside"):
        load(folder)


def test_a_hub_snapshot_is_links_into_blobs(folders, tmp_path):
    snapshot = tmp_path / "snapshots" / "abc"
    for number, file in enumerate(file for file in folders["sd15"].rglob("*") if file.is_file()):
        blob = tmp_path / "blobs" / str(number)
        blob.parent.mkdir(exist_ok=True)
        shutil.copy(file, blob)
        link = snapshot / file.relative_to(folders["sd15"])
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    assert_same_weights(load(snapshot), folders["sd15"])


def test_the_safety_checker_is_left_alone(folder):
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "pytorch_model.bin").write_bytes(b"\x80\x04")
    index = json.loads((folder / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    tiny.write_json(folder / "model_index.json", index)
    load(folder)


def test_a_tiny_autoencoder(folder):
    from diffusers import AutoencoderTiny

    shutil.rmtree(folder / "vae")
    vae = AutoencoderTiny(encoder_block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8))
    vae.save_pretrained(folder / "vae")
    index = json.loads((folder / "model_index.json").read_text())
    tiny.write_json(folder / "model_index.json", {**index, "vae": ["diffusers", "AutoencoderTiny"]})
    model = load(folder)
    assert model.vae_scale_factor == 8
    assert all(torch.equal(model.vae.state_dict()[key], value) for key, value in vae.state_dict().items())


def rewrite(folder, part, change):
    file = next((folder / part).glob("*.safetensors"))
    state = load_file(file)
    change(state)
    save_file(state, file)


def drop(folder):
    rewrite(folder, "unet", lambda state: state.pop("mid_block.resnets.0.conv1.weight"))


def reshape(folder):
    rewrite(folder, "vae", lambda state: state.update({"decoder.conv_in.bias": torch.zeros(7)}))


def add(folder):
    rewrite(folder, "unet", lambda state: state.update({"to_q.lora.up": torch.zeros(7)}))


def truncate(folder):
    file = folder / "unet" / WEIGHTS
    file.write_bytes(file.read_bytes()[:-100])


def scramble(folder):
    (folder / "vae" / WEIGHTS).write_bytes(b"version https://git-lfs.github.com/spec/v1\n")


def remove_weights(folder):
    (folder / "text_encoder" / "model.safetensors").unlink()


def remove_config(folder):
    (folder / "vae" / "config.json").unlink()


def break_config(folder):
    (folder / "unet" / "config.json").write_text("{")


def wrong_config(folder):
    tiny.write_json(folder / "unet" / "config.json", {"block_out_channels": "many"})


def remove_index(folder):
    (folder / "model_index.json").unlink()


def remove_tokenizer(folder):
    shutil.rmtree(folder / "tokenizer")


def other_text_encoder(folder):
    """A text encoder of its own right, of another width than the U-Net takes."""
    shutil.rmtree(folder / "text_encoder")
    tiny.make_text_encoders("sdxl")[1].save_pretrained(folder / "text_encoder")
    rewrite(folder, "text_encoder", lambda state: state.pop("text_projection.weight"))


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (drop, r"unet.*mid_block\.resnets\.0\.conv1\.weight"),
        (reshape, r"vae.*decoder\.conv_in\.bias has the shape \[7\].*\[32\]"),
        (add, r"unet.*to_q\.lora\.up"),
        (truncate, r"unet.diffusion_pytorch_model\.safetensors"),
        (scramble, r"vae.diffusion_pytorch_model\.safetensors"),
        (remove_weights, "text_encoder"),
        (remove_config, r"vae.config\.json is missing"),
        (break_config, r"unet.config\.json"),
        (wrong_config, r"unet.config\.json: block_out_channels is .many., and must be a list of"),
        (remove_index, r"model_index\.json is missing"),
        (remove_tokenizer, "tokenizer"),
        (other_text_encoder, "give 48 features per token, its U-Net takes 32"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_damage_is_found_and_named(folder, damage, named):
    damage(folder)
    with pytest.raises(ModelCorrupt, match=named) as caught:
        load(folder)
    assert caught.value.hint
    assert caught.value.exit_status == ExitStatus.MODEL
    assert "\n" not in caught.value.message


def test_pickles_are_never_opened(folder, tmp_path):
    (folder / "unet" / WEIGHTS).rename(folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(ModelUnsafe, match=r"diffusion_pytorch_model\.bin") as caught:
        load(folder)
    assert "safetensors" in caught.value.hint
    (tmp_path / "model.ckpt").write_bytes(b"\x80\x04")
    with pytest.raises(ModelUnsafe):
        load(tmp_path / "model.ckpt")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"_class_name": "WanPipeline"}, "WanPipeline"),
        ({"unet": ["diffusers", "UNet3DConditionModel"]}, "UNet3DConditionModel"),
        ({"vae": ["diffusers", "AutoencoderKLWan"]}, "AutoencoderKLWan"),
        ({"text_encoder": ["transformers", "BertModel"]}, "BertModel"),
    ],
)
def test_other_pipelines_are_refused_by_name(folder, change, words):
    index = json.loads((folder / "model_index.json").read_text())
    tiny.write_json(folder / "model_index.json", {**index, **change})
    with pytest.raises(ModelError, match=words) as caught:
        load(folder)
    assert "Stable Diffusion 1.x" in caught.value.hint


def test_a_part_of_another_family_is_refused(folder):
    index = json.loads((folder / "model_index.json").read_text())
    tiny.write_json(folder / "model_index.json", {**index, "text_encoder": ["transformers", "T5EncoderModel"]})
    with pytest.raises(ModelError, match="T5EncoderModel, and the text_encoder of this model must be a CLIPTextModel"):
        load(folder)


@pytest.mark.parametrize("change", [{"unet": None}, {"unet": "UNet2DConditionModel"}, {"vae": [None, None]}])
def test_an_index_without_its_parts_is_corrupt(folder, change):
    index = json.loads((folder / "model_index.json").read_text())
    tiny.write_json(folder / "model_index.json", {**index, **change})
    with pytest.raises(ModelCorrupt, match=r"unet|vae"):
        load(folder)


def test_quantised_weights_are_refused(folder):
    rewrite(folder, "unet", lambda state: state.update({"conv_in.bias": torch.zeros(32, dtype=torch.int8)}))
    with pytest.raises(ModelError, match=r"conv_in\.bias has the dtype I8"):
        load(folder)


def test_nothing_at_the_path(tmp_path):
    with pytest.raises(ModelNotFound, match="nothing"):
        load(tmp_path / "nothing")


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="only on Linux")
def test_the_disk_reads_ahead_where_weights_are_converted(folder, monkeypatch):
    """Once per part before its module is made, and again, from the start, while its tensors are converted."""
    asked = []
    monkeypatch.setattr(os, "posix_fadvise", lambda file, start, count, advice: asked.append((start, count > 0)))
    plain = load(folder).network.state_dict()
    assert asked == [(0, True)] * 3
    half = load(folder, torch.bfloat16).network.state_dict()
    assert asked == [(0, True)] * 9
    assert [name for name in plain if not torch.equal(plain[name].bfloat16(), half[name])] == []
