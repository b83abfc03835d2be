"""Syntax of other tools in a prompt: found, and named where it is taken as words."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdcli.recipe import prompt_syntax
from sdcli.recipe.prompt_syntax import ALTERNATION, AND, SCHEDULE, TAG, WILDCARD
from tests import tiny


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a fox", []),
        ("a (fox:1.2) and [cat], :D", []),
        ("a [fox:cat:0.5] in snow", [("[fox:cat:0.5]", SCHEDULE)]),
        ("[fox:5] [fox::0.5]", [("[fox:5]", SCHEDULE), ("[fox::0.5]", SCHEDULE)]),
        ("[(fox:1.2):cat: 10 ]", [("[(fox:1.2):cat: 10 ]", SCHEDULE)]),
        ("[[a:b:0.2]:c:0.5]", [("[a:b:0.2]", SCHEDULE)]),
        ("a [fox|cat] in snow", [("[fox|cat]", ALTERNATION)]),
        (r"a \[fox|cat\] and \[a:b:1\]", []),
        ("a fox :1.2 AND a castle :0.8", [("AND", AND)]),
        ("SAND and LAND", []),
        ("{fox|cat} {2$$a|b}", [("{fox|cat}", WILDCARD), ("{2$$a|b}", WILDCARD)]),
        ("2$$a", [("2$$", WILDCARD)]),
        ("{fox} costs 2$", []),
        ("fox <lora:furry:0.8><hypernet:x>", [("<lora:furry:0.8>", TAG), ("<hypernet:x>", TAG)]),
        ("5 < 6 > 4", []),
    ],
)
def test_what_is_found(prompt, expected):
    assert list(prompt_syntax.find(prompt)) == expected


@pytest.mark.parametrize(
    ("prompt", "bracket"),
    [
        ("a (fox)", None),
        ("(a [fox)]", None),
        (r"\(fox :\)", None),
        ("(fox", "("),
        ("[fox", "["),
        ("fox)", ")"),
        ("a]", "]"),
    ],
)
def test_brackets_that_do_not_match(prompt, bracket):
    assert prompt_syntax.unbalanced(prompt) == bracket


@given(st.text(alphabet="[]{}()<>|:\\0.5 aAND$lora", max_size=60))
def test_any_prompt_is_searched(prompt):
    assert all(each.text in prompt for each in prompt_syntax.find(prompt))
    prompt_syntax.unbalanced(prompt)


@pytest.mark.parametrize("piece", ["[", "[a:", "[a|", "{a|", "\\", "<lora:", "1", "[a:1", ": ", "[a\\|"])
def test_long_prompts_take_linear_time(piece):
    started = time.process_time()
    list(prompt_syntax.find(piece * 200_000))
    assert time.process_time() - started < 5


def warned(done):
    return json.loads(done.stdout.splitlines()[-1])["warnings"]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("fox [fox:cat:0.5]", "'[fox:cat:0.5]' in prompt is taken as words; in other tools it is a schedule"),
        ("fox [fox|cat]", "alternation"),
        ("fox AND castle", "several prompts"),
        ("fox {2$$a|b}", "a wildcard"),
        ("fox <hypernet:a:1>", "a network"),
        ("fox (cat", "prompt has a ( that is never closed"),
        ("fox cat)", "prompt has a ) that is never opened"),
    ],
)
def test_generate_and_batch_name_what_they_take_as_words(run, sd15, prompt, words):
    at = ("-m", sd15, "-W", "64", "-H", "64")
    planned = run("generate", prompt, *at, "--seed", "1", "--dry-run", "--json")
    assert any(words in each for each in warned(planned))
    refused = run("generate", prompt, *at, "--seed", "1", "--dry-run", "--strict")
    assert refused.status == 2
    literal = run("generate", prompt, *at, "--seed", "1", "--dry-run", "--json", "--no-prompt-weights")
    assert any(words in each for each in warned(literal)) == ("wildcard" in words or "network" in words)


def test_a_batch_names_it_too(run, sd15):
    jobs = json.dumps({"prompt": "fox [a|b]", "seed": 1, "steps": 1, "width": 64, "height": 64}).encode()
    done = run("batch", "-", "-m", sd15, "-o", "out", stdin=jobs)
    assert any("alternation" in each for each in warned(done))


def a1111(folder, prompt, rest="Seed: 5, Size: 64x64, RNG: CPU", **chunks):
    info = PngInfo()
    info.add_text("parameters", f"{prompt}\nSteps: 1, Sampler: DDIM, CFG scale: 7, {rest}")
    for key, value in chunks.items():
        info.add_text(key, value)
    Image.new("RGB", (64, 64)).save(folder / "a.png", pnginfo=info)


def replayed(run, model):
    done = run("replay", "a.png", "-m", model, "-o", "r.png", "--json", "-q", "--force", "--dtype", "float32")
    assert done.status == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a [fox:cat:0.5]", "Prompt: [fox:cat:0.5] is a schedule in A1111"),
        ("fox\nNegative prompt: [a|b]", "Negative prompt: [a|b] is alternation in A1111"),
        ("fox AND cat", "Prompt: AND is several prompts"),
        ("fox, " * 60, "prompt: it takes several chunks, and A1111 may divide it at other places"),
    ],
)
def test_a_replay_names_what_its_writer_does_otherwise(run, sd15, tmp_path, prompt, words):
    a1111(tmp_path, prompt)
    assert any(each.startswith(words) for each in replayed(run, sd15)["warnings"])


def test_clip_skip_is_for_both_prompts_elsewhere(run, sd15, tmp_path):
    a1111(tmp_path, "fox\nNegative prompt: cat", "Seed: 5, Size: 64x64, RNG: CPU, Clip skip: 2")
    assert any("skips layers for the negative prompt too" in each for each in replayed(run, sd15)["warnings"])


def test_clip_skip_of_sdxl_is_what_its_writer_did(run, tmp_path):
    model = tiny.make_folder("sdxl", tmp_path / "sdxl")
    pixels = {}
    rest = "Seed: 5, Size: 64x64, RNG: CPU"
    for name, more in {"plain": "", "A1111": ", Clip skip: 2", "SD.Next": ", Clip skip: 2, App: SD.Next"}.items():
        a1111(tmp_path, "fox", rest + more)
        made = replayed(run, model)
        pixels[name] = made["pixels_sha256"]
        assert bool(made["warnings"]) == (name == "SD.Next")
    assert pixels["plain"] == pixels["A1111"] != pixels["SD.Next"]


@pytest.mark.parametrize("seed", [5_000_000_000, 5441180189181032878])
def test_a_seed_that_is_too_large_is_not_absent(run, sd15, tmp_path, seed):
    a1111(tmp_path, "fox", f"Seed: {seed}, Size: 64x64, RNG: CPU")
    done = run("replay", "a.png", "-m", sd15, "-o", "r.png")
    assert (done.status, f"has the seed {seed}, and the largest one is 4294967295" in done.stderr) == (4, True)


def test_a_picture_of_comfyui_is_named(run, sd15, tmp_path):
    info = PngInfo()
    info.add_text("prompt", json.dumps({"3": {"class_type": "KSampler", "inputs": {"seed": 123}}}))
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png", pnginfo=info)
    done = run("replay", "a.png", "-m", sd15, "-o", "r.png")
    assert (done.status, "was made by ComfyUI, whose metadata cannot be replayed" in done.stderr) == (4, True)
    shown = run("info", "a.png").stdout.decode()
    assert "metadata: ComfyUI's, read in part" in shown
    assert "Seed:     123" in shown
