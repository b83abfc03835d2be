"""How much memory Z-Image takes at its real size: a transformer of 6.15 B parameters, and Qwen3 with 4 B.

Writes 21 GB of random weights to the directory for temporary files, and deletes them.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_z_image import ZImageTransformer2DModel
from transformers.models.qwen3.configuration_qwen3 import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3Model

from tests import tiny, tiny_flow
from tests.big import weights

ROOT = Path(__file__).parent.parent.parent
NEEDED = 24 * 10**9
"""Bytes of free disk space."""
INDEX = {
    "_class_name": "ZImagePipeline",
    "transformer": ["diffusers", "ZImageTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "Qwen3Model"],
    "tokenizer": ["transformers", "Qwen2Tokenizer"],
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
}
FOUR_BITS = 8 * 10**9
"""The bytes that the model may take at most with weights of 4 bits."""

# The peak of the process itself, the pages of mapped files included; the children of this one are others' too.
MEASURED = """
import json, resource, sys
from sdcli.cli import run
status = run(sys.argv[1:])
print(json.dumps({"status": int(status), "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
"""


def parts() -> dict[str, tuple[torch.nn.Module, str]]:
    """The parts at their real sizes, on the meta device, and the stems of their files."""
    text = {"hidden_size": 2560, "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8}
    text |= {"head_dim": 128, "intermediate_size": 9728, "vocab_size": 151_936, "tie_word_embeddings": True}
    vae = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 16}
    vae |= {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae |= {"scaling_factor": 0.3611, "shift_factor": 0.1159, "sample_size": 1024, "force_upcast": True}
    with torch.device("meta"):
        return {
            "transformer": (ZImageTransformer2DModel(), "diffusion_pytorch_model"),
            "vae": (AutoencoderKL(**vae, use_quant_conv=False, use_post_quant_conv=False), "diffusion_pytorch_model"),
            "text_encoder": (Qwen3Model(Qwen3Config(**text)), "model"),
        }


def save_config(module: torch.nn.Module, folder: Path) -> None:
    if hasattr(module, "save_config"):
        module.save_config(folder)
    else:
        module.config.save_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("real") / "z-image"
    free = shutil.disk_usage(path.parent).free
    if free < NEEDED:
        pytest.skip(f"{free / 1e9:.0f} GB of disk space are free, and {NEEDED / 1e9:.0f} are needed")
    try:
        path.mkdir()
        for part, (module, stem) in parts().items():
            save_config(module, path / part)
            weights.write(module, path / part, stem)
        tiny_flow.write_qwen_tokenizer(path / "tokenizer")
        (path / "scheduler").mkdir()
        scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
        tiny.write_json(path / "scheduler" / "scheduler_config.json", scheduler)
        tiny.write_json(path / "model_index.json", INDEX)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def command(directory: Path, *words: str) -> dict:
    """Run sdcli in a process of its own, and return its peak, its seconds, and its lines."""
    environment = {key: each for key, each in os.environ.items() if key != "OMP_NUM_THREADS"}  # all threads
    environment |= {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(directory / "cache")}
    started = time.perf_counter()
    words = (sys.executable, "-c", MEASURED, *words)
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment, cwd=directory)
    seconds = time.perf_counter() - started
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    found = json.loads(last)
    assert found["status"] == 0, done.stderr
    return {"peak": found["peak"], "seconds": round(seconds, 1), "lines": lines}


def measure(folder: Path, directory: Path, *options: str) -> dict:
    """Draw 512×512 pixels in 2 steps, and return what `command` does, and the picture's line."""
    words = ("generate", "arctic fox", "-m", str(folder), "-W", "512", "-H", "512", "--steps", "2", "--seed", "7")
    found = command(directory, *words, "--json", "-o", f"{directory}/fox.png", *options)
    return {**found, "line": json.loads(found["lines"][-1])}


def sizes() -> dict[str, int]:
    return {part: sum(2 * each.numel() for each in module.parameters()) for part, (module, _) in parts().items()}


def report(case: str, found: dict) -> None:
    print(f"\n{case}: peak {found['peak'] / 1e9:.2f} GB, {found['peak'] / 2**30:.2f} GiB, {found['seconds']} s")
    print(found["line"])


@pytest.mark.slow
def test_a_picture_takes_little_more_than_the_larger_part(folder, tmp_path):
    transformer = sizes()["transformer"]
    assert round(transformer / 2e9, 2) == 6.15
    found = measure(folder, tmp_path, "--memory", "low", "--dtype", "bfloat16")
    report(f"bfloat16, transformer {transformer / 2**30:.2f} GiB", found)
    assert found["line"]["memory"] == {"staged": True, "offload": "none", "tiling": "off"}
    assert found["peak"] / transformer <= 1.15


@pytest.mark.slow
def test_four_bits_on_loading(folder, tmp_path):
    found = measure(folder, tmp_path, "--memory", "low", "--dtype", "bfloat16", "--quantize", "int4")
    report("int4 on loading", found)
    assert found["peak"] <= FOUR_BITS


@pytest.mark.slow
def test_four_bits_in_files(folder, tmp_path):
    quantised = tmp_path / "z-image-q4"
    made = command(tmp_path, "models", "quantize", str(folder), str(quantised), "--quantize", "int4")
    report("models quantize", {"line": "", **made})
    try:
        found = measure(quantised, tmp_path, "--memory", "low", "--dtype", "bfloat16")
    finally:
        shutil.rmtree(quantised)
    report("int4 in files", found)
    assert max(found["peak"], made["peak"]) <= FOUR_BITS
