"""Upsampling and the convolution after it are computed on the small image: the same numbers, except for rounding."""

import pytest
import torch
from diffusers.models.upsampling import Upsample2D

from sdcli.diffusion import openvino_engine, packed, subpixel
from sdcli.models import assemble
from sdcli.models.source import Source
from sdcli.models.weights import Weights
from sdcli.recipe.recipe import Recipe
from tests import pairs

FLAT = {**pairs.DEFAULTS, "model": "tiny"}


@pytest.mark.parametrize("size", [(1, 1), (5, 8)])
def test_a_transposed_convolution_is_that_of_the_large_image(size):
    upsample, image = Upsample2D(3, use_conv=True, out_channels=5), torch.randn(2, 3, *size)
    with torch.no_grad():
        torch.testing.assert_close(subpixel._transposed(upsample.conv)(image), upsample(image), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (5, 8)])
def test_four_convolutions_of_openvino_are_that_of_the_large_image(size):

    upsample, image = Upsample2D(3, use_conv=True, out_channels=5), torch.randn(2, 3, *size)
    model = openvino_engine._convert(openvino_engine._Call(upsample.forward, (image,), {}, shares=False))
    model.reshape({0: list(image.shape)})
    subpixel.shorten(model)
    kinds = [each.get_type_name() for each in model.get_ordered_ops()]
    assert kinds.count("Convolution") == 4
    assert "Interpolate" not in kinds
    ours = openvino_engine._core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([image.numpy()])[0]
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(ours), upsample(image), atol=1e-5, rtol=0)


def vae(folder, **keys):
    return assemble.load(Weights(Source(folder)), Recipe.from_dict({**FLAT, **keys})).vae


def shortened(vae) -> bool:
    (found,) = {each.use_conv_transpose for each in vae.decoder.modules() if isinstance(each, Upsample2D)}
    return found


def test_the_decoder_rounds_as_before(sd15, monkeypatch):
    """In bfloat16, on the processors where it was measured."""
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    found = {}
    for dtype, measured in (("float32", True), ("bfloat16", False), ("bfloat16", True)):
        monkeypatch.setattr(packed, "is_measured", lambda known=measured: known)
        loaded = vae(sd15, dtype=dtype)
        assert shortened(loaded) == ((dtype, measured) == ("bfloat16", True))
        with torch.inference_mode():
            found[dtype, measured] = loaded.decode(latents.to(loaded.dtype), return_dict=False)[0].float()
    exact, plain, ours = found.values()
    assert (ours - exact).norm() < 1.2 * (plain - exact).norm()


@pytest.mark.parametrize("keys", [{"compile": True}, {"engine": "openvino"}])
def test_another_engine_gets_the_decoder_as_it_is(sd15, monkeypatch, keys):
    monkeypatch.setattr(packed, "is_measured", lambda: True)
    assert not shortened(vae(sd15, dtype="bfloat16", device="cpu", **keys))
