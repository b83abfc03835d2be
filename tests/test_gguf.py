"""GGUF files that the `gguf` package writes: transformers in the original layout, text encoders as in llama.cpp."""

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from sdcli.errors import ModelCorrupt, ModelError
from sdcli.files.images import pixels_sha256
from sdcli.models import families, loading, located
from sdcli.models.families import gguf_header
from sdcli.models.loading import quantised
from sdcli.models.source import Source
from tests import split_files
from tests.test_generate import FAST
from tests.test_split_files import folders as folders
from tests.test_split_files import split

CPU = torch.device("cpu")
FORMATS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")


def random_blocks(kind, rows, columns):
    """Valid weights of any format: random bytes with small scales."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    raw = np.random.default_rng(0).integers(0, 256, (rows, columns // block * size), dtype=np.uint8)
    blocks = raw.reshape(-1, size)
    places = {Kind.Q2_K: (80, 82), Kind.Q3_K: (108,), Kind.Q6_K: (208,), Kind.Q4_K: (0, 2), Kind.Q5_K: (0, 2)}
    two = (Kind.Q4_1, Kind.Q5_1)
    for place in places.get(kind, (0, 2) if kind in two else (0,)):
        blocks[:, place : place + 2] = np.frombuffer(np.float16(0.01).tobytes(), dtype=np.uint8)
    return raw


def write(file, architecture, state, kind=Kind.F32, keep=lambda key, value: value.ndim != 2):
    """Write a state; `kind` is the format of what `keep` does not keep in float32."""
    file.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_array("tokenizer.ggml.tokens", ["a", "bc", "def"])
    writer.add_array("numbers", [1, 2, 3])
    for key, value in state.items():
        data = value.float().numpy()
        if keep(key, value) or (kind in gguf.GGML_QUANT_SIZES and data.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]):
            writer.add_tensor(key, data)
        else:
            writer.add_tensor(key, gguf.quants.quantize(data, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def load(source, dtype=torch.float32):
    return loading.load(source, name="", device=CPU, dtype=dtype)


@pytest.mark.parametrize("name", FORMATS)
def test_formats_are_dequantised_as_by_gguf(tmp_path, name):
    """Read back from a file too: the header's sizes and offsets are those of the format."""
    kind = Kind[name]
    raw = random_blocks(kind, 6, 512)
    expected = torch.from_numpy(gguf.quants.dequantize(raw, kind))
    writer = gguf.GGUFWriter(tmp_path / "t.gguf", "test")
    writer.add_tensor("first", np.ones(3, dtype=np.float32))
    writer.add_tensor("weights", raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    entry = families.read_header(tmp_path / "t.gguf").tensors["weights"]
    assert (entry.dtype, entry.shape) == (name, (6, 512))
    content = (tmp_path / "t.gguf").read_bytes()
    assert content[entry.start : entry.start + raw.nbytes] == raw.tobytes()
    ours = quantised.dequantise(torch.from_numpy(raw).view(torch.int8), name, torch.float32)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)
    half = quantised.dequantise(torch.from_numpy(raw).view(torch.int8), name, torch.bfloat16).float()
    torch.testing.assert_close(half, expected, rtol=2**-7, atol=2e-3)


ARCHITECTURES = {
    "z-image": "lumina2",
    "flux-dev": "flux",
    "flux2-klein": "flux",
    "sd3": "sd3",
    "qwen-image": "qwen_image",
    "chroma": "flux",
    "lumina2": "lumina2",
    "pixart-sigma": "pixart",
    "krea2": "krea2",
}


@pytest.mark.parametrize("family", ARCHITECTURES)
@pytest.mark.parametrize("kind", [Kind.F16, Kind.Q8_0])
def test_transformers(folders, tmp_path, family, kind):
    """F16 gives the folder's weights, here rounded to float16; of Q8_0, layers have gguf's own dequantised values."""
    folder = folders(family)
    state = {key: value.half().float() for key, value in split_files.transformer(family, folder).items()}
    plain = split_files.save(state, tmp_path / "plain.safetensors")
    file = write(tmp_path / "t.gguf", ARCHITECTURES[family], state, kind)
    expected = load(Source(folder, parts=(("transformer", plain),))).network
    network = load(Source(folder, parts=(("transformer", file),))).network
    if kind == Kind.F16:
        ours, theirs = network.state_dict(), expected.state_dict()
        assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
        return
    layers = {name: each for name, each in network.named_modules() if isinstance(each, quantised.QuantisedLinear)}
    assert layers
    for name, layer in layers.items():
        weight = expected.get_submodule(name).weight
        found = quantised.dequantise(layer.weight, layer.dtype_name, torch.float32)
        assert (found - weight).abs().max() <= weight.abs().max() / 127
        inputs = torch.randn(2, layer.in_features)
        wanted = torch.nn.functional.linear(inputs, found, layer.bias)
        torch.testing.assert_close(layer(inputs), wanted)


@pytest.mark.parametrize(("family", "tensor"), [("z-image", "cap_pad_token"), ("sd3", "pos_embed")])
def test_first_dimensions_of_one_can_be_missing(folders, tmp_path, family, tensor):
    """As in files that llama.cpp's own tools have quantised."""
    state = split_files.transformer(family, folders(family))
    assert state[tensor].shape[0] == 1
    file = write(tmp_path / "t.gguf", "test", {**state, tensor: state[tensor][0]})
    ours = load(Source(folders(family), parts=(("transformer", file),))).network.state_dict()
    theirs = load(Source(folders(family))).network.state_dict()
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


def gguf_names(part, state):
    """The names of llama.cpp, from the names in its documentation; it stores the norms of Gemma with one added."""
    of_t5 = {
        "shared.weight": "token_embd.weight",
        "encoder.final_layer_norm.weight": "enc.output_norm.weight",
        "layer.0.SelfAttention.relative_attention_bias": "attn_rel_b",
        "layer.0.SelfAttention.q": "attn_q",
        "layer.0.SelfAttention.k": "attn_k",
        "layer.0.SelfAttention.v": "attn_v",
        "layer.0.SelfAttention.o": "attn_o",
        "layer.0.layer_norm": "attn_norm",
        "layer.1.DenseReluDense.wi_0": "ffn_gate",
        "layer.1.DenseReluDense.wi_1": "ffn_up",
        "layer.1.DenseReluDense.wo": "ffn_down",
        "layer.1.layer_norm": "ffn_norm",
        "encoder.block.": "enc.blk.",
    }
    of_qwen = {
        "embed_tokens.weight": "token_embd.weight",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "self_attn.q_norm": "attn_q_norm",
        "self_attn.k_norm": "attn_k_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "norm.weight": "output_norm.weight",
        "layers.": "blk.",
        "lm_head": "output",
    }
    of_gemma = {
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    }
    names = {"t5": of_t5, "gemma": of_gemma | of_qwen | of_gemma, "qwen": of_qwen}[part]
    found = {}
    for key, value in state.items():
        new = key.removeprefix("model.").removeprefix("language_model.")
        if "visual." in key or new == "encoder.embed_tokens.weight":
            continue
        for here, there in names.items():
            if new.startswith(here) or f".{here}" in f".{new}":
                new = new.replace(here, there)
        found[new] = value + 1 if part == "gemma" and "norm" in new else value
    return found


TEXT = [
    ("z-image", "text_encoder", "qwen3"),
    ("flux2-klein", "text_encoder", "qwen3"),
    ("qwen-image", "text_encoder", "qwen2vl"),
    ("krea2", "text_encoder", "qwen3vl"),
    ("lumina2", "text_encoder", "gemma2"),
    ("flux-dev", "text_encoder_2", "t5encoder"),
]


@pytest.mark.parametrize(("family", "part", "architecture"), TEXT)
def test_text_encoders(folders, tmp_path, family, part, architecture):
    folder = folders(family)
    kind = next(each for each in ("t5", "gemma", "qwen") if architecture.startswith(each))
    named = gguf_names(kind, split_files.state_of(folder, part))
    file = write(tmp_path / "text.gguf", architecture, named)
    place = int(part.endswith("_2"))
    ours = load(Source(folder, parts=((part, file),))).text_encoders[place].model.state_dict()
    theirs = load(Source(folder)).text_encoders[place].model.state_dict()
    assert {name for name in theirs if name not in ours} == {name for name in theirs if name.startswith("visual.")}
    exact = (name for name in ours if kind != "gemma" or "norm" not in name)
    assert [name for name in exact if not torch.equal(ours[name], theirs[name])] == []
    assert [name for name in ours if not torch.allclose(ours[name], theirs[name], atol=1e-6)] == []


def test_a_quantised_text_encoder_and_its_embedding(folders, tmp_path):
    """Rows of 32 numbers: the tiny encoders are narrower, so this is only of T5's hidden layers and of an embedding."""
    raw = gguf.quants.quantize(np.random.default_rng(0).normal(size=(10, 64)).astype(np.float32), Kind.Q8_0)
    like = torch.nn.Embedding(10, 64, device="meta")
    module = torch.nn.Sequential(like)
    assert quantised.replace(module, "0.weight", torch.from_numpy(raw).view(torch.int8), "Q8_0", torch.float32)
    module.load_state_dict({"0.weight": torch.from_numpy(raw).view(torch.int8)}, assign=True)
    rows = torch.from_numpy(gguf.quants.dequantize(raw, Kind.Q8_0))
    assert torch.equal(module(torch.tensor([[3, 1]])), rows[[3, 1]][None])


def test_a_picture_of_a_gguf_file(folders, run, tmp_path):
    """A float32 file gives the pixels of the folder; a file cut short is refused before sampling."""
    folder = folders("z-image")
    file = write(tmp_path / "t.gguf", "lumina2", split_files.transformer("z-image", folder))
    size = ("-W", 64, "-H", 64, "--seed", 1, *FAST)
    assert run("generate", "fox", "-m", folder, "--part", f"transformer={file}", "-o", "a.png", *size).status == 0
    assert run("generate", "fox", "-m", folder, "-o", "b.png", *size).status == 0
    from PIL import Image

    assert pixels_sha256(Image.open(tmp_path / "a.png")) == pixels_sha256(Image.open(tmp_path / "b.png"))
    content = file.read_bytes()
    for length in (len(content) - 40, 300, 10):
        file.write_bytes(content[:length])
        done = run("generate", "fox", "-m", folder, "--part", f"transformer={file}", "-o", "c.png", *size)
        lines = [line for line in done.stderr.splitlines() if not line.startswith("warning: ")]
        assert (done.status, len(lines), "t.gguf: the file ends inside of" in lines[0]) == (3, 2, True)


def test_a_gguf_file_is_a_model_with_its_parts(folders, run, tmp_path):
    folder = folders("flux-dev")
    model, parts = split("flux-dev", folder, tmp_path / "files")
    file = Path(model).with_suffix(".gguf")
    write(file, "flux", split_files.transformer("flux-dev", folder), Kind.Q8_0)
    found = located.find(str(file), {"part": [f"{part}={place}" for part, place in parts.items()]})
    assert found.source.detected == "flux-dev"
    assert quantised.QuantisedLinear in {type(each) for each in load(found.source).network.modules()}
    done = run("generate", "fox", "-m", file)
    assert (done.status, "its text_encoder and text_encoder_2 and vae are missing" in done.stderr) == (3, True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data[:4] + struct.pack("<I", 9) + data[8:], "version 9"),
        (lambda data: data[:8] + struct.pack("<Q", 2**40) + data[16:], "tensors"),
        (lambda data: data[:24] + struct.pack("<Q", 2**40) + data[32:], "a name in its header is too long"),
    ],
)
def test_invalid_headers(tmp_path, change, words):
    file = write(tmp_path / "t.gguf", "flux", {"weight": torch.ones(4)})
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(ModelCorrupt, match=words):
        families.read_header(file)


def test_a_text_encoder_of_another_architecture(folders, tmp_path):
    file = write(tmp_path / "t.gguf", "gemma3", {f"blk.{n}.attn_q.weight": torch.ones(4) for n in range(9)})
    with pytest.raises(ModelError, match="architecture gemma3"):
        load(Source(folders("z-image"), parts=(("text_encoder", file),)))


def test_every_format_of_the_header_is_dequantised():
    assert set(gguf_header.QUANTISED) == set(FORMATS)
    sizes = {name: gguf.GGML_QUANT_SIZES[Kind[name]] for name in FORMATS}
    assert dict(gguf_header.QUANTISED) == sizes


def test_sd15_takes_a_gguf_part(sd15, tmp_path):
    file = write(Path(tmp_path / "vae.gguf"), "vae", split_files.state_of(sd15, "vae"))
    assert load(Source(sd15, parts=(("vae", file),))).vae.config.latent_channels == 4
