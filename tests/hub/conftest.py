"""A hub on loopback with one model, and the command that pulls from it."""

import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from sdcli.models import families
from tests.conftest import Finished, Run
from tests.hub.server import Hub, serving

REPO = "somebody/some-model"


def noise(seed: str, size: int = 200_000) -> bytes:
    return random.Random(seed).randbytes(size)


def model_files() -> dict[str, bytes]:
    """A repository like Stable Diffusion 1.5's: the configs are real, the weights are noise, and much is not needed."""
    folder = families.config_folder("sd15")
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.json")}
    files |= {f"tokenizer/{name}.json": b"{}" for name in ("vocab", "tokenizer_config", "special_tokens_map")}
    files["tokenizer/merges.txt"] = b"#version: 0.2\n"
    for stem in ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"):
        files |= {f"{stem}{variant}": noise(stem + variant) for variant in (".safetensors", ".fp16.safetensors")}
        files[f"{stem}.bin"] = noise("pickle", 1000)
    return files | {
        "README.md": b"a model",
        "v1-5-pruned.safetensors": noise("single", 1000),
        "v1-5-pruned.ckpt": noise("single pickle", 1000),
        "safety_checker/model.safetensors": noise("checker", 1000),
        "safety_checker/config.json": b"{}",
        "unet/model.onnx": noise("onnx", 1000),
        "vae/diffusion_flax_model.msgpack": noise("flax", 1000),
    }


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as hub:
        yield hub


@pytest.fixture
def around(hub: Hub) -> Mapping[str, str]:
    """The environment that leads to the hub on loopback."""
    return {"HF_ENDPOINT": hub.url, "NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}


@pytest.fixture
def models(run: Run, around: Mapping[str, str]) -> Callable[..., Finished]:
    """`models("pull", NAME, …)` runs `sdcli models pull NAME …` against the hub."""

    def run_models(*arguments: str | Path, env: Mapping[str, str] | None = None, stdin: bytes = b"") -> Finished:
        return run("models", *arguments, env={**around, **(env or {})}, stdin=stdin)

    return run_models
