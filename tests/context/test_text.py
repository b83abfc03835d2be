"""Text as context, against diffusers' `encode_prompt` and by numpy."""

from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from sdcli.diffusion.context import Context, text
from sdcli.diffusion.context.chunks import MAX_CHUNKS
from sdcli.errors import InvalidRecipe

EXACT = 1e-6
GUIDED = ("sd15", "sd21-v", "sdxl")
WINDOW = 77


def encode(pair, prompt: str, negative_prompt: str = "", **options: Any) -> Context:
    defaults = {"guidance": True, "clip_skip": 1, "prompt_weights": True, "width": 128, "height": 64}
    return text.encode(pair.model, prompt, negative_prompt, **{"guidance_scale": 5.0, **defaults, **options})


def diffusers_embeds(pair, prompt: str, negative_prompt: str | None = None, clip_skip: int | None = None) -> list[Any]:
    """Prompt, negative prompt and, for SDXL, the pooled ones, as the pipeline encodes them."""
    options = {"negative_prompt": negative_prompt, "clip_skip": clip_skip, "do_classifier_free_guidance": True}
    with torch.inference_mode():
        return list(pair.pipe.encode_prompt(prompt, device="cpu", num_images_per_prompt=1, **options))


def our_embeds(context: Context) -> list[Any]:
    pooled = [context.pooled_prompt_embeds, context.negative_pooled_prompt_embeds]
    return [context.prompt_embeds, context.negative_prompt_embeds, *(each for each in pooled if each is not None)]


def assert_same(ours: list[Any], theirs: list[Any]) -> None:
    assert len(ours) == len(theirs)
    for our, their in zip(ours, theirs, strict=True):
        assert our.shape == their.shape
        assert (our - their).abs().max() <= EXACT


PROMPTS = [
    "an arctic fox in the snow",
    "",
    "   Arctic\n\tFOX's  den, 1999!! \n",
    "лиса в снегу, 北極狐, renard arctique, 🦊",
    "a fox <|endoftext|> in the snow",
    "fox " * 75,
]


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("family", GUIDED)
def test_a_prompt_without_weights_is_encoded_as_diffusers_does(pair, family, prompt):
    made = pair(family)
    assert_same(our_embeds(encode(made, prompt)), diffusers_embeds(made, prompt))


@pytest.mark.parametrize("clip_skip", [1, 2])
@pytest.mark.parametrize("family", GUIDED)
def test_negative_prompt_and_clip_skip(pair, family, clip_skip):
    made = pair(family)
    ours = encode(made, "an arctic fox", "the snow", clip_skip=clip_skip)
    theirs = diffusers_embeds(made, "an arctic fox", "the snow", clip_skip - 1 if clip_skip > 1 else None)
    assert_same(our_embeds(ours), theirs)


@pytest.mark.parametrize("prompt", ["a (fox) in [the] snow:1.3) BREAK", r"a \(fox\)"])
def test_weights_switched_off(pair, prompt):
    made = pair("sd15")
    assert_same(our_embeds(encode(made, prompt, prompt_weights=False)), diffusers_embeds(made, prompt))


def test_escaped_brackets_are_letters(pair):
    made = pair("sd15")
    assert_same(our_embeds(encode(made, r"a \(fox\) in \[the\] snow")), diffusers_embeds(made, "a (fox) in [the] snow"))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=60))
def test_tokens_are_transformers_tokens(pair, prompt):
    """A chunk is what transformers' tokenizer puts between the special tokens, for any text."""
    made = pair("sd15")
    theirs = made.pipe.tokenizer(prompt, add_special_tokens=False).input_ids
    chunks = text.chunks(made.model.text_encoders[0].tokenizer, prompt, prompt_weights=False)
    assert [token for chunk in chunks for token, _ in chunk] == theirs


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=60), st.integers(1, 9), st.booleans())
def test_chunks_hold_every_token_once(pair, prompt, room, prompt_weights):
    tokenizer = pair("sd15").model.text_encoders[0].tokenizer
    whole = text.chunks(replace(tokenizer, max_length=100_000), prompt, prompt_weights)
    assume(sum(map(len, whole)) <= MAX_CHUNKS // 2 * room)  # more are refused; a chunk can be half empty
    chunks = text.chunks(replace(tokenizer, max_length=room + 2), prompt, prompt_weights)
    assert chunks
    assert all(len(chunk) <= room for chunk in chunks)
    assert list(chain(*chunks)) == list(chain(*whole))


@pytest.mark.parametrize("family", GUIDED)
def test_a_long_prompt_is_encoded_in_chunks(pair, family):
    """Each chunk is a prompt of its own, side by side; the other half is filled up with empty ones."""
    made = pair(family)
    context = encode(made, "fox " * 75 + "snow " * 40, "the den")
    first, second = diffusers_embeds(made, "fox " * 75, "the den"), diffusers_embeds(made, "snow " * 40, "")
    assert_same(
        [context.prompt_embeds, context.negative_prompt_embeds],
        [torch.cat([first[0], second[0]], dim=1), torch.cat([first[1], second[1]], dim=1)],
    )
    if family == "sdxl":
        assert_same([context.pooled_prompt_embeds, context.negative_pooled_prompt_embeds], first[2:])


def test_a_long_negative_prompt_lengthens_both_halves(pair):
    made = pair("sd15")
    context = encode(made, "fox", "snow " * 80)
    whole = diffusers_embeds(made, "fox")[0], diffusers_embeds(made, "")[0]
    assert_same([context.prompt_embeds], [torch.cat(whole, dim=1)])
    assert context.negative_prompt_embeds.shape == (1, 2 * WINDOW, 32)


def test_break_starts_a_chunk(pair):
    made = pair("sd15")
    parts = [diffusers_embeds(made, prompt)[0] for prompt in ("fox", "", "snow")]
    assert_same([encode(made, "fox BREAK BREAK snow").prompt_embeds], [torch.cat(parts, dim=1)])
    assert_same([encode(made, "fox BREAK").prompt_embeds], parts[:1])


def test_a_word_is_kept_whole_where_it_can_be(pair):
    tokenizer = pair("sd15").model.text_encoders[0].tokenizer
    lengths = [len(chunk) for chunk in text.chunks(tokenizer, "fox " * 73 + "qqqqq fox")]
    assert lengths == [73, 6]
    assert [len(chunk) for chunk in text.chunks(tokenizer, "fox " + "q" * 100)] == [75, 26]


@pytest.mark.parametrize("family", GUIDED)
def test_weights_scale_tokens_and_keep_the_mean(pair, family):
    """By numpy from unweighted states: token times weight, then the chunk's mean as before, for each encoder."""
    made = pair(family)
    prompt = "an (arctic:1.5) [fox] BREAK the snow"
    plain = [diffusers_embeds(made, part)[0].double().numpy()[0] for part in ("an arctic fox", "the snow")]
    token_weights = np.ones(WINDOW)
    token_weights[3] = 1.5  # <bos> a n arctic fox: the tiny vocabulary has no word "an"
    token_weights[4] = 1 / 1.1
    assert len(made.model.text_encoders[0].tokenizer.encode("an arctic fox")) == 4

    columns = np.split(plain[0], [32], axis=1) if family == "sdxl" else [plain[0]]
    weighted = [states * token_weights[:, None] for states in columns]
    restored = [after * (before.mean() / after.mean()) for before, after in zip(columns, weighted, strict=True)]
    expected = np.concatenate([np.concatenate(restored, axis=1), plain[1]])

    ours = encode(made, prompt).prompt_embeds[0].double().numpy()
    scale = max(1.0, np.abs(expected).max())
    assert np.abs(ours - expected).max() <= 1e-5 * scale
    assert np.abs(ours[:WINDOW] - plain[0]).max() > 1e-2


def test_weights_leave_the_pooled_embedding(pair):
    made = pair("sdxl")
    assert_same(
        [encode(made, "an (arctic:1.5) fox").pooled_prompt_embeds], [encode(made, "an arctic fox").pooled_prompt_embeds]
    )


def test_an_empty_negative_prompt_is_zeros_where_the_model_says_so(pair):
    made = pair("sdxl")
    context = encode(made, "fox")
    assert made.model.force_zeros_for_empty_prompt
    assert not context.negative_prompt_embeds.any()
    assert not context.negative_pooled_prompt_embeds.any()
    without = replace(made, model=replace(made.model, force_zeros_for_empty_prompt=False))
    encoded = encode(without, "fox")
    assert_same(our_embeds(encoded), diffusers_embeds(made, "fox", ""))


def test_time_ids_are_height_and_width_twice(pair):
    assert encode(pair("sdxl"), "fox", width=128, height=64).add_time_ids.tolist() == [[64, 128, 0, 0, 64, 128]]
    assert encode(pair("sd15"), "fox").add_time_ids is None


@pytest.mark.parametrize("family", GUIDED)
def test_without_guidance_there_is_no_negative(pair, family):
    context = encode(pair(family), "fox", "snow", guidance=False)
    assert context.negative_prompt_embeds is None
    assert context.negative_pooled_prompt_embeds is None
    assert_same([context.prompt_embeds], diffusers_embeds(pair(family), "fox")[:1])


@pytest.mark.parametrize("guidance_scale", [1.0, 1.5, 8.0, 99.0])
def test_embedded_guidance(pair, guidance_scale):
    made = pair("lcm")
    context = encode(made, "fox", "snow", guidance_scale=guidance_scale)
    scale = torch.tensor([guidance_scale - 1])
    assert_same([context.timestep_cond], [made.pipe.get_guidance_scale_embedding(scale, embedding_dim=16)])
    assert context.negative_prompt_embeds is None
    odd = made.pipe.get_guidance_scale_embedding(scale, embedding_dim=33)
    assert_same([text.guidance_embedding(guidance_scale, 33)], [odd])


@pytest.mark.parametrize(("family", "most"), [("sd15", 3), ("sdxl", 2)])
def test_skipping_more_layers_than_there_are(pair, family, most):
    encode(pair(family), "fox", clip_skip=most)
    with pytest.raises(InvalidRecipe, match="3 layers") as caught:
        encode(pair(family), "fox", clip_skip=most + 1)
    assert caught.value.field == "clip_skip"
    assert caught.value.hint == f"clip_skip must be between 1 and {most}"


def test_more_chunks_than_memory_is_spent_on_are_refused(pair):
    tokenizer = pair("sd15").model.text_encoders[0].tokenizer
    assert len(text.chunks(tokenizer, "a BREAK " * 100)) == 100
    for prompt in ("a BREAK " * 101, "fox " * (75 * 100 + 1)):
        with pytest.raises(InvalidRecipe, match="101 chunks"):
            text.chunks(tokenizer, prompt)
