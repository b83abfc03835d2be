import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file

from sdcli.training.export import export
from sdcli.training.sampling import Sampling, generate, load_pipeline
from sdcli.training.text_to_image import SCHEDULER, build_text_encoder
from sdcli.training.tokenizer import load_tokenizer, write_tokenizer
from tests.training.test_autoencoder import TINY as TINY_AUTOENCODER
from tests.training.test_text_to_image import TINY as TINY_UNET


def write(folder):
    torch.manual_seed(0)
    write_tokenizer(folder / "tokenizer", ["an arctic fox"])
    text_encoder = build_text_encoder(load_tokenizer(folder / "tokenizer"))
    vae, unet = AutoencoderKL(**TINY_AUTOENCODER), UNet2DConditionModel(**TINY_UNET)
    before = {
        part: {name: value.clone() for name, value in model.state_dict().items()}
        for part, model in (("vae", vae), ("unet", unet), ("text_encoder", text_encoder))
    }
    export(vae, unet, text_encoder, DDIMScheduler(**SCHEDULER), folder)
    return before


def test_the_folder_is_the_model_in_half_precision(tmp_path):
    before = write(tmp_path)
    pipeline = load_pipeline(tmp_path)
    for part, tensors in before.items():
        loaded = getattr(pipeline, part).state_dict()
        for name, value in tensors.items():
            assert torch.equal(loaded[name], value.half().float()), f"{part} {name}"
    assert {k: pipeline.scheduler.config[k] for k in SCHEDULER} == SCHEDULER
    assert pipeline.safety_checker is None


def test_text_encoder_keys_are_those_of_transformers_4(tmp_path):
    write(tmp_path)
    tensors = load_file(tmp_path / "text_encoder" / "model.safetensors")
    assert "text_model.embeddings.token_embedding.weight" in tensors
    assert all(name.startswith("text_model.") for name in tensors)
    assert all(value.dtype == torch.float16 for value in tensors.values())


def test_writing_again_leaves_no_old_shards(tmp_path):
    write(tmp_path)
    stale = tmp_path / "unet" / "diffusion_pytorch_model-00009-of-00009.safetensors"
    stale.write_bytes(b"old")
    write(tmp_path)
    assert not stale.exists()


def test_the_folder_draws_the_same_picture_twice(tmp_path):
    write(tmp_path)
    pipeline = load_pipeline(tmp_path)
    one, other = (generate(pipeline, ["a fox"], [3], Sampling("dpm++-2m", 2)) for _ in range(2))
    assert one.shape == (1, 256, 256, 3)
    assert (one == other).all()
