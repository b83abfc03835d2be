"""Packed weights, heads apart, and halves of guidance computed once: less work for the same predictions."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import nn

from sdcli.diffusion import deepcache, halves, packed, pipeline
from sdcli.models import assemble, located
from sdcli.models.source import Source
from sdcli.models.weights import Addon, Asked, Weights
from sdcli.recipe.cache import Cache
from sdcli.recipe.recipe import Recipe
from tests import pairs
from tests.lora import files

FLAT = {**pairs.DEFAULTS, "model": "tiny", "dtype": "bfloat16", "steps": 2}


@pytest.fixture(autouse=True)
def _small_weights_are_packed_on_every_processor(monkeypatch):
    monkeypatch.setattr(packed, "_LEAST", 2000)
    monkeypatch.setattr(packed, "is_measured", lambda: True)


def load(folder, **keys):
    return assemble.load(Weights(Source(folder)), Recipe.from_dict({**FLAT, **keys}))


def of_kit(**keys):
    recipe = Recipe.from_dict({**FLAT, "model": "kit", **keys})
    return assemble.load(Weights(located.find("kit").source), recipe), recipe


def layers_of(network: nn.Module) -> list[nn.Module]:
    return [each for each in network.modules() if packed.is_packed(each)]


def latents(model, recipe):
    return pipeline.sample(model, [recipe])


@pytest.mark.skipif(not packed.is_measured(), reason="another processor may round otherwise")
def test_all_bits_are_those_of_unpacked_weights(monkeypatch):
    monkeypatch.setattr(packed, "_LEAST", 1 << 16)  # a smaller layer of kit has tokens that are not contiguous
    model, recipe = of_kit(width=256, height=256)
    assert {type(each) for each in layers_of(model.network)} == {packed._PackedLinear, packed._PackedConv2d}
    with torch.inference_mode():
        found = latents(model, recipe)
        packed.undo(model.network)
        assert not layers_of(model.network)
        assert not any(each.is_meta for each in model.network.parameters())
        assert torch.equal(found, latents(model, recipe))


def test_a_packed_weight_is_in_memory_once_and_comes_back_as_it_was():
    model, recipe = of_kit()
    for each in layers_of(model.network):
        assert each.weight.is_meta
    packed.undo(model.network)
    plain = copy.deepcopy(dict(model.network.named_parameters()))
    packed.prepare(model, recipe)
    assert len(layers_of(model.network)) > 100
    packed.undo(model.network)
    for name, each in model.network.named_parameters():
        assert torch.equal(each, plain[name]), name


@pytest.mark.parametrize("keys", [{"dtype": "float32"}, {"compile": True}, {"engine": "openvino"}])
def test_other_dtypes_compilers_and_engines_get_plain_weights(sd15, keys):
    model = assemble.load(Weights(Source(sd15)), Recipe.from_dict({**FLAT}))
    assert layers_of(model.network)
    packed.undo(model.network)
    recipe = Recipe.from_dict({**FLAT, **keys})
    model.network.to(getattr(torch, recipe.execution.dtype))
    assert not layers_of(packed.prepare(model, recipe).network)


def test_weights_that_change_are_packed_again(sd15, tmp_path):
    plain = Weights(Source(sd15))
    recipe = Recipe.from_dict({**FLAT})
    model = assemble.load(plain, recipe)
    made = files.changes(assemble.load(plain, recipe.replace(dtype="float32")))
    path = files.write(tmp_path / "x.safetensors", files.kohya(made, model))
    with_lora = Weights(Source(sd15), (Addon("lora", Asked(path.name, 1.0, 1.0), Source(path)),))
    with torch.inference_mode():
        before = latents(model, recipe)
        model = assemble.change(model, plain, with_lora, recipe)
        changed = latents(model, recipe)
        assert not torch.equal(before, changed)
        assert torch.equal(changed, latents(assemble.load(with_lora, recipe), recipe))
        model = assemble.change(model, with_lora, plain, recipe)
        assert torch.equal(before, latents(model, recipe))


def test_only_plain_attention_has_its_heads_apart(sd15):
    model = load(sd15)
    attention = [each for each in model.network.modules() if isinstance(each, Attention)]
    assert {type(each.processor) for each in attention} == {packed._HeadsApart}
    states, others = (torch.randn(2, count, 32).bfloat16() for count in (16, 7))
    mask = torch.zeros(2, 16, 7, dtype=torch.bfloat16)
    with torch.inference_mode():
        for layer in attention:
            for others_of, mask_of in ((None, None), (others, None), (others, mask)):
                if layer.to_q.in_features != 32 or (others_of is None) == layer.is_cross_attention:
                    continue
                made = layer(states, encoder_hidden_states=others_of, attention_mask=mask_of)
                theirs = AttnProcessor2_0()(layer, states, others_of, attention_mask=mask_of)
                assert torch.equal(made, theirs)
    packed.undo(model.network)
    assert {type(each.processor) for each in attention} == {AttnProcessor2_0}


def counted(network):
    """Return the sizes of the batches that reach convolutions and attention, in order, in a list that grows."""
    seen = []
    for each in network.modules():
        if isinstance(each, nn.Conv2d | Attention):
            forward = each.forward

            def watched(*inputs, of=forward, **named):
                seen.append(len(inputs[0]))
                return of(*inputs, **named)

            each.forward = watched
    return seen


@pytest.mark.parametrize(("dtype", "once"), [("bfloat16", 5), ("float32", 0)])
def test_layers_before_the_context_see_one_half(sd15, dtype, once):
    """The first convolution, two of the first block, one and the self-attention of its transformer."""
    model, recipe = load(sd15, dtype=dtype), Recipe.from_dict({**FLAT, "dtype": dtype, "steps": 1})
    seen = counted(model.network)
    with torch.inference_mode():
        latents(model, recipe)
    assert seen[:once] == [1] * once
    assert set(seen[once:]) == {2}


def test_time_embeddings_that_differ_are_computed_for_both_halves(pair):
    model = replace(pair("sdxl").model, network=copy.deepcopy(pair("sdxl").model.network).bfloat16())
    seen = counted(model.network)
    with torch.inference_mode():
        latents(model, Recipe.from_dict({**FLAT, "model": "sdxl", "steps": 1}))
    assert set(seen) == {2}


@pytest.mark.parametrize("keys", [{}, {"token_merging": 0.5}, {"cache": "deepcache:2"}])
def test_predictions_are_those_of_both_halves(sd15, monkeypatch, keys):
    keys |= {"steps": 4, "width": 128, "height": 128}
    model, recipe = load(sd15), Recipe.from_dict({**FLAT, **keys})
    exact = latents(load(sd15, dtype="float32"), Recipe.from_dict({**FLAT, **keys, "dtype": "float32"}))
    found = latents(model, recipe)
    monkeypatch.setattr(halves, "before_the_context", lambda network: ())
    both = latents(model, recipe)
    assert (found - exact).std() < 1.5 * (both - exact).std()
    assert "forward" not in vars(model.network.conv_in)


def test_blocks_without_context_are_computed_once_whole():
    model, _ = of_kit()
    names = [type(each).__name__ for each in halves.before_the_context(model.network)]
    blocks = [type(each).__name__ for each in model.network.down_blocks]
    first = next(place for place, each in enumerate(blocks) if each.startswith("CrossAttn"))
    assert names == ["Conv2d", *blocks[:first], "ResnetBlock2D", "GroupNorm", *names[-3:]]


def test_what_is_cached_or_not_torch_s_is_left_alone(sd15):
    model = load(sd15)
    shallow = deepcache.Shallow(model.network, Cache.parse("deepcache:2"))
    with halves.computed_once(shallow):
        assert "forward" not in vars(model.network.conv_in)
    with halves.computed_once(model.network):
        assert "forward" in vars(model.network.conv_in)
    model.network.forward = SimpleNamespace()
    with halves.computed_once(model.network):
        assert "forward" not in vars(model.network.conv_in)
