"""Enlarging pictures: by networks in tiles, by a filter, with transparency and 16 bits, and in a second pass."""

import json
import sys
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from safetensors.torch import load_file, save_file

from sdcli.diffusion import upscale
from sdcli.diffusion.upscale import sizes, spans
from sdcli.files import raster
from sdcli.files.images import pixels_sha256
from sdcli.files.raster import Raster
from sdcli.models.imports import stand_ins
from sdcli.models.loading import upscaler as loading

pytestmark = pytest.mark.skipif(find_spec("spandrel") is None, reason=loading.INSTALL)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network of Real-ESRGAN's compact kind, ×2, whose pixels depend on those up to 4 away."""
    loading._spandrel()
    from spandrel.architectures.Compact.__arch.SRVGG import SRVGGNetCompact

    torch.manual_seed(0)
    made = SRVGGNetCompact(num_feat=8, num_conv=2, upscale=2)
    path = tmp_path_factory.mktemp("upscalers") / "tiny2x.safetensors"
    save_file({name: each.contiguous() for name, each in made.state_dict().items()}, path)
    return path


@pytest.fixture(scope="module")
def upscaler(network: Path) -> upscale.Upscaler:
    return loading.load(network, device=torch.device("cpu"))


def noise(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)


def write(path: Path, pixels: np.ndarray, **texts: str) -> Path:
    path.write_bytes(raster.png(Raster(pixels), texts))
    return path


def read(path: Path) -> np.ndarray:
    return raster.decode(path.read_bytes(), str(path)).pixels


@given(length=st.integers(1, 700), tile=st.integers(64, 256))
def test_tiles_cover_everything_once(length, tile):
    found, shares = spans(length, tile), torch.zeros(2 * length)
    for each in found:
        assert 0 <= each.start <= each.low < each.high <= each.end <= length
        assert each.end - each.start == min(tile, length)
        # what is used is far enough from where the network misses its surroundings
        assert each.low == 0 or each.low - each.start >= (upscale.OVERLAP - upscale.BLEND) // 2
        assert each.high == length or each.end - each.high >= (upscale.OVERLAP - upscale.BLEND) // 2
        shares[2 * each.low : 2 * each.high] += each.weights(2)
    assert torch.allclose(shares, torch.ones(2 * length))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
def test_tiles_leave_no_seams(upscaler, dtype, channels):
    """Where the network sees no further than the overlap, tiles give the pixels of the whole picture."""
    pixels = noise(150, 203, channels, dtype=dtype)
    whole = upscale.enlarge(upscaler, pixels, 0)
    done: list[int] = []
    tiled = upscale.enlarge(upscaler, pixels, 64, done.append)
    assert whole.shape == (300, 406, channels)
    assert sum(done) == upscale.count_tiles((203, 150), 64) == 24
    difference = np.abs(whole.astype(np.int64) - tiled)
    assert difference.max() <= (1 if dtype == np.uint8 else 2)
    assert np.ptp(whole) > np.iinfo(dtype).max / 20


def test_the_network_is_that_of_the_file(upscaler, network):
    pixels = noise(20, 30, 3)
    made = upscale.enlarge(upscaler, pixels)
    x = torch.from_numpy(pixels.astype(np.float32) / 255).permute(2, 0, 1)[None]
    with torch.inference_mode():
        wanted = upscaler.network.model(x).clamp(0, 1)[0].permute(1, 2, 0)
    assert np.array_equal(made, (wanted * 255).round().numpy())
    assert torch.equal(upscaler.network.model.state_dict()["body.0.weight"], load_file(network)["body.0.weight"])


def test_a_network_is_used_as_often_as_needed():
    assert sizes((100, 50), (200, 100), 2) == ((100, 50),)
    assert sizes((100, 50), (110, 55), 4) == ((100, 50),)
    assert sizes((100, 50), (800, 400), 2) == ((100, 50), (200, 100), (400, 200))
    assert sizes((100, 50), (500, 250), 4) == ((100, 50), (125, 63))  # not 1600 × 800, to be reduced to a tenth
    assert sizes((100, 50), (200, 150), 2) == ((100, 50), (150, 75))


@given(
    arrays.arrays(
        st.sampled_from([np.uint8, np.uint16]), st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4))
    )
)
def test_pixels_survive_a_png(pixels):
    data = raster.png(Raster(pixels), {"key": "text"})
    found = raster.decode(data, "x.png")
    assert found.pixels.dtype == pixels.dtype
    assert np.array_equal(found.pixels, pixels)
    with Image.open(BytesIO(data)) as image:
        image.load()
        assert image.info["key"] == "text"
        assert pixels_sha256(image) == Raster(pixels).pixels_sha256


def test_sixteen_bits_turn_with_the_picture_and_keep_their_profile():
    pixels = noise(6, 4, 3, dtype=np.uint16)
    data = raster.png(Raster(pixels, profile=b"profile"), {})
    exif = Image.Exif()
    exif[0x0112] = 6
    body = exif.tobytes().removeprefix(b"Exif\0\0")
    import struct
    import zlib

    chunk = struct.pack(">I", len(body)) + b"eXIf" + body + struct.pack(">I", zlib.crc32(b"eXIf" + body))
    found = raster.decode(data[:33] + chunk + data[33:], "x.png")
    assert np.array_equal(found.pixels, np.rot90(pixels, -1))
    assert found.profile == b"profile"


def test_hidden_colours_do_not_bleed_into_edges(upscaler):
    """A red square on transparent green: nothing that is visible becomes green."""
    pixels = np.zeros((40, 40, 4), np.uint8)
    pixels[...] = (0, 255, 0, 0)
    pixels[10:30, 10:30] = (255, 0, 0, 255)
    filtered = raster.resized(pixels[..., :3], (80, 80), pixels[..., 3:])
    alpha = raster.resized(pixels[..., 3:], (80, 80))
    assert filtered[alpha[..., 0] > 0][:, 1].max() == 0
    shown = raster.shown(pixels[..., :3], pixels[..., 3:])
    assert shown[9, 20].tolist() == [255, 0, 0]
    assert np.array_equal(shown[10:30, 10:30], pixels[10:30, 10:30, :3])


@pytest.mark.parametrize(("channels", "dtype"), [(1, np.uint8), (2, np.uint16), (3, np.uint16), (4, np.uint8)])
def test_every_kind_of_picture_keeps_its_kind(run, network, tmp_path, channels, dtype):
    write(tmp_path / "a.png", noise(30, 21, channels, dtype=dtype))
    done = run("upscale", "a.png", "-m", network, "--scale", "3", "--json")
    line = json.loads(done.lines[0])
    assert (line["path"], line["width"], line["height"]) == ("a-upscaled.png", 63, 90)
    made = read(tmp_path / "a-upscaled.png")
    assert made.shape == (90, 63, channels)
    assert made.dtype == dtype
    if channels in (2, 4):  # transparency is enlarged by the filter
        assert np.array_equal(made[..., -1:], raster.resized(read(tmp_path / "a.png")[..., -1:], (63, 90)))
    assert done.stderr == ""


def test_the_filter_is_pillow_s(run, tmp_path):
    Image.fromarray(noise(20, 30, 3)).save(tmp_path / "a.png")
    done = run("upscale", "a.png", "-o", "b.png")
    assert done.lines == ["b.png"]
    assert "Lanczos's filter, which adds no detail" in done.stderr
    with Image.open(tmp_path / "a.png") as image, Image.open(tmp_path / "b.png") as made:
        assert np.array_equal(made, image.resize((60, 40), Image.Resampling.LANCZOS))
    assert run("upscale", "a.png", "-m", "lanczos", "-o", "c.png").stderr == ""
    assert b"Postprocess upscale by: 2, Postprocess upscaler: Lanczos" in (tmp_path / "c.png").read_bytes()
    assert "Postprocess upscaler: Lanczos" in run("info", "c.png").stdout.decode()


def test_the_recipe_is_kept(run, sd15, network, tmp_path):
    run("generate", "a fox", "-m", sd15, "--seed", "1", "--steps", "2", "-W", "64", "-H", "64", "-o", "a.png")
    assert run("upscale", "a.png", "-m", network, "-o", "b.png").status == 0
    with Image.open(tmp_path / "a.png") as before, Image.open(tmp_path / "b.png") as after:
        old, new = (json.loads(each.info["sdcli"]) for each in (before, after))
        fields = "Postprocess upscale by: 2, Postprocess upscaler: tiny2x"
        assert after.info["parameters"] == f"{before.info['parameters']}, {fields}"
        assert new["pixels_sha256"] == pixels_sha256(after)
    assert new["recipe"] == old["recipe"]
    (how,) = new["upscaled"]
    assert (how["upscaler"], how["from"], how["to"], how["device"]) == ("tiny2x", [64, 64], [128, 128], "cpu")
    assert how["pixels_sha256"] == old["pixels_sha256"]
    told = run("info", "b.png").stdout.decode()
    assert "64x64 to 128x128 by tiny2x" in told
    assert "changed since" not in told
    replayed = run("replay", "--verify", "b.png")
    assert replayed.status == 0
    assert "was enlarged after it was made" in replayed.stderr
    Image.new("RGB", (64, 64)).save(tmp_path / "c.png", pnginfo=_texts(tmp_path / "a.png"))
    run("upscale", "c.png", "-o", "d.png")
    assert run("replay", "--verify", "d.png").status == 9  # other pixels than those of the recipe were enlarged


def _texts(path: Path):
    from PIL.PngImagePlugin import PngInfo

    found = PngInfo()
    with Image.open(path) as image:
        for key, text in image.info.items():
            found.add_text(key, text)
    return found


def test_names_and_streams(run, tmp_path):
    for name in ("a.png", "b.png"):
        write(tmp_path / name, noise(8, 8, 3))
    (tmp_path / "out").mkdir()
    done = run("upscale", "a.png", "b.png", "-o", "out/{name}-{index:02}.png", "-q")
    assert done.lines == ["out/a-01.png", "out/b-02.png"]
    assert run("upscale", "a.png", "-q").lines == ["a-upscaled.png"]
    assert run("upscale", "a.png", "-q").lines == ["a-upscaled-2.png"]
    assert run("upscale", "a.png", "-q", "-o", "a-upscaled.png").status == 8
    assert run("upscale", "a.png", "-q", "-o", "a-upscaled.png", "--force").status == 0
    piped = run("upscale", "-", "-q", "-o", "-", stdin=(tmp_path / "a.png").read_bytes())
    assert piped.stdout == (tmp_path / "a-upscaled.png").read_bytes()
    assert run("upscale", "-", "-q", stdin=(tmp_path / "a.png").read_bytes()).lines == ["stdin-upscaled.png"]
    assert run("upscale", "a.png", "b.png", "-o", "x.png").status == 2


def test_a_picture_that_fails_does_not_stop_the_others(run, tmp_path):
    write(tmp_path / "a.png", noise(8, 8, 3))
    (tmp_path / "b.png").write_bytes(b"no picture")
    done = run("upscale", "b.png", "a.png", "-q", "--json")
    assert done.status == 7
    assert [json.loads(line)["status"] for line in done.lines] == ["failed", "done"]
    assert run("upscale", "b.png").status == 4


@pytest.mark.parametrize(
    ("words", "status", "error"),
    [
        (["--scale", "1"], 2, "--scale is 1"),
        (["--scale", "nan"], 2, "--scale is nan"),
        (["--scale", "2", "--size", "64x64"], 2, "both given"),
        (["--size", "7x64"], 2, "does not enlarge"),
        (["--size", "20000x20000"], 2, "400 megapixels"),
        (["--size", "large"], 2, "large"),
        (["--tile", "10"], 2, "--tile is 10"),
        (["-m", "kit"], 3, "kit is a model, not an upscaler"),
        (["-m", "a.png"], 3, "not a safetensors file"),
        (["-m", "no-such"], 3, "no upscaler 'no-such'"),
        (["-m", "vae.safetensors"], 3, "no upscaler of a known architecture"),
        (["-m", "nan.safetensors"], 3, "not finite"),
        (["-m", "half.safetensors"], 3, "not a whole upscaler"),
        (["-m", "tiny.safetensors", "--dtype", "float8"], 2, "float8"),
    ],
)
def test_what_is_refused(run, network, tmp_path, words, status, error):
    write(tmp_path / "a.png", noise(8, 8, 3))
    tensors = load_file(network)
    save_file(tensors, tmp_path / "tiny.safetensors")
    save_file({"decoder.conv_in.weight": torch.zeros(2)}, tmp_path / "vae.safetensors")
    save_file({**tensors, "body.0.weight": tensors["body.0.weight"] * torch.nan}, tmp_path / "nan.safetensors")
    save_file({**tensors, "body.2.weight": torch.zeros(3, 3)}, tmp_path / "half.safetensors")
    before = sorted(tmp_path.iterdir())
    done = run("upscale", "a.png", *words)
    assert done.status == status, done.stderr
    assert error in done.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_a_picture_that_would_be_too_large(run, network, tmp_path):
    Image.new("L", (4000, 3000)).save(tmp_path / "a.png")
    assert "108 megapixels" in run("upscale", "a.png", "--scale", "3").stderr


def test_without_the_package_the_error_says_how_to_install_it(run, network, tmp_path, monkeypatch):
    write(tmp_path / "a.png", noise(8, 8, 3))
    monkeypatch.setitem(sys.modules, "spandrel", None)
    done = run("upscale", "a.png", "-m", network)
    assert done.status == 3
    assert "pip install --no-deps spandrel einops" in done.stderr
    assert run("upscale", "a.png").status == 0


def test_stand_ins_are_gone_afterwards():
    with stand_ins("missing", "missing.part"):
        from missing.part import anything

        assert anything is None
    assert "missing.part" not in sys.modules
    with pytest.raises(ImportError):
        import missing  # noqa: F401


def test_an_upscaler_has_a_name(run, network, tmp_path):
    write(tmp_path / "a.png", noise(8, 8, 3))
    assert run("models", "add", "tiny", network).status == 0
    assert '"kind": "upscaler"' in run("models", "show", "tiny", "--json").stdout.decode()
    assert json.loads(run("upscale", "a.png", "-m", "tiny", "--json").lines[0])["upscaler"] == "tiny"
    refused = run("generate", "a fox", "-m", "tiny")
    assert (refused.status, "tiny is an upscaler, not a model" in refused.stderr) == (3, True)
    assert "an upscaler, not a LoRA" in run("generate", "a fox", "--lora", "tiny").stderr
    folder = {"SDCLI_UPSCALER_DIR": str(network.parent)}
    assert run("upscale", "a.png", "-m", "tiny2x", env=folder).status == 0


def test_a_second_pass_starts_from_what_a_network_enlarged(run, sd15, network, tmp_path):
    words = ("a fox", "-m", sd15, "-W", "64", "-H", "64", "--steps", "2", "--seed", "1", "--hires", "2")
    done = run("generate", *words, "--hires-upscaler", network, "-o", "a.png")
    assert done.status == 0, done.stderr
    run("generate", *words, "--hires-upscaler", "lanczos", "-o", "b.png")
    with Image.open(tmp_path / "a.png") as image, Image.open(tmp_path / "b.png") as other:
        assert image.size == (128, 128)
        assert not np.array_equal(image, other)
        chunk = json.loads(image.info["sdcli"])
        assert "Hires upscaler: tiny2x" in image.info["parameters"]
    (addon,) = chunk["addons"]
    assert (addon["kind"], chunk["recipe"]["hires_upscaler"]) == ("upscaler", str(network))
    assert run("replay", "--verify", "a.png").status == 0
    missing = run("generate", *words, "--hires-upscaler", "bicubic")
    assert (missing.status, "no upscaler 'bicubic'" in missing.stderr) == (3, True)
    plan = run("generate", *words, "--hires-upscaler", network, "--dry-run", "--json")
    assert str(network) in plan.stdout.decode()
