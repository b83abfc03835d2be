"""Wildcards in prompts, and products of a matrix."""

import hashlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdcli.errors import UsageError
from sdcli.jobs.expand import (
    MAX_NESTING,
    UnclosedBrace,
    check_number,
    choose,
    drawing,
    multiply,
    parse_matrix,
    parse_template,
)
from sdcli.jobs.job import Fault, Job


def chosen(text: str, *draws: int) -> str:
    numbers = iter(draws)
    return choose(parse_template(text), lambda below: next(numbers) % below)


@pytest.mark.parametrize(
    ("text", "draws", "expected"),
    [
        ("a {red|blue} fox", [0], "a red fox"),
        ("a {red|blue} fox", [1], "a blue fox"),
        ("{a|b}{c|d}", [1, 0], "bc"),
        ("{a|{b|c} d}", [1, 1], "c d"),
        ("{a|{b|c} d}", [0], "a"),
        ("a{|very} b", [0], "a b"),
        ("{fox}", [], "{fox}"),
        ("{fox {a|b}}", [1], "{fox b}"),
        ("{}", [], "{}"),
        ("a|b", [], "a|b"),
        (r"\{a\|b\}", [], "{a|b}"),
        (r"{a\|b|c\}}", [0], "a|b"),
        (r"{a\|b|c\}}", [1], "c}"),
        (r"(a\)b:1.2) \\", [], r"(a\)b:1.2) \\"),
    ],
)
def test_wildcards(text, draws, expected):
    assert chosen(text, *draws) == expected


@pytest.mark.parametrize(
    ("text", "index"), [("a {b", 2), ("a } b", 2), ("{a|{b}", 0), ("{a}}", 3), ("{" * 100_000, MAX_NESTING)]
)
def test_a_brace_without_its_other_half_is_told(text, index):
    with pytest.raises(UnclosedBrace) as caught:
        parse_template(text)
    assert caught.value.index == index


@given(st.text(st.characters(exclude_characters="{}\\")))
def test_text_without_braces_is_itself(text):
    assert chosen(text) == text


@given(st.text("{}|\\ab", max_size=30))
def test_a_template_is_refused_or_gives_text_of_its_letters(text):
    try:
        template = parse_template(text)
    except UnclosedBrace:
        return
    assert set(choose(template, drawing(text))) <= set(text)


def test_draws_are_what_their_key_says_and_spread_evenly():
    draw = drawing("key")
    expected = [int.from_bytes(hashlib.sha256(f"key {n}".encode()).digest()[:16], "big") % 10 for n in range(1000)]
    drawn = [draw(10) for _ in range(1000)]
    assert drawn == expected
    assert all(60 < drawn.count(number) < 140 for number in range(10))


def test_a_matrix_is_every_combination_the_last_fastest():
    axes = parse_matrix(["seed=1,2,3", "scheduler=ddim,euler"])
    made = list(multiply([Job(1, {"prompt": "a"}), Job(2, {"prompt": "b"}, id="x")], axes))
    expected = list(itertools.product([1, 2, 3], ["ddim", "euler"]))
    assert [(job.values["seed"], job.values["scheduler"]) for job in made] == expected * 2
    assert [job.values["prompt"] for job in made] == ["a"] * 6 + ["b"] * 6
    assert [job.id for job in made] == [None] * 6 + [f"x-{number}" for number in range(1, 7)]


def test_a_matrix_takes_values_of_the_key_s_type():
    assert parse_matrix(["guidance_scale=7,1.5"]) == [("guidance_scale", [7.0, 1.5])]
    assert parse_matrix(["prompt_weights=true,false"]) == [("prompt_weights", [True, False])]
    assert parse_matrix(['negative_prompt=,"blurry, dark"']) == [("negative_prompt", ["", "blurry, dark"])]
    assert parse_matrix(["negative_prompt="]) == [("negative_prompt", [""])]
    assert parse_matrix([]) == []


def test_a_matrix_takes_ranges_prompts_and_names_of_other_tools():
    assert parse_matrix(["seed=1..4,9"]) == [("seed", [1, 2, 3, 4, 9])]
    assert parse_matrix(["steps=10..30..10"]) == [("steps", [10, 20, 30])]
    assert parse_matrix(["prompt=1..3"]) == [("prompt", ["1..3"])]
    axes = parse_matrix(['prompt=a fox,"a red, red owl"', "sampler=DPM++ 2M Karras,Euler a", "size=64x128,128x64"])
    made = list(multiply([Job(1, {})], axes))
    assert [job.values["prompt"] for job in made] == ["a fox"] * 4 + ["a red, red owl"] * 4
    assert made[0].values == {
        "prompt": "a fox", "scheduler": "dpm++-2m", "sigmas": "karras", "width": 64, "height": 128,
    }  # fmt: skip
    assert made[3].values == {"prompt": "a fox", "scheduler": "euler-a", "width": 128, "height": 64}


def test_too_many_jobs_are_refused_before_they_are_made():
    with pytest.raises(UsageError, match="2,000,000 jobs"):
        check_number(20, parse_matrix(["seed=1..100000"]))


def test_one_value_leaves_the_id_alone():
    (job,) = multiply([Job(1, {"prompt": "a"}, id="x")], parse_matrix(["seed=1"]))
    assert (job.id, job.values["seed"]) == ("x", 1)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("seed", "has no ="),
        ("sede=1", "unknown key 'sede'"),
        ("output=a,b", "unknown key 'output'"),
        ("seed=5..1", "5..1 is empty"),
        ("seed=1..5..0", "is empty"),
        ("seed=0..4294967295", "at most 100,000"),
        ("steps=1..2000", "steps is 1001"),
        ("size=512", "size is '512'"),
        ("seed=1,x", "seed is 'x'"),
        ("seed=", "seed is ''"),
        ("seed=-2", "seed is -2"),
        ("guidance_scale=nan", "guidance_scale is nan"),
        ("scheduler=ddmi", "unknown scheduler"),
        ('scheduler="ddim', "cannot be read"),
        ("seed=1\n2", "cannot be read"),
    ],
)
def test_a_matrix_that_cannot_be_is_refused(option, words):
    with pytest.raises(UsageError, match=words):
        parse_matrix([option])
    with pytest.raises(UsageError, match="twice"):
        parse_matrix(["steps=1", "steps=2"])


def test_what_job_and_matrix_both_set_is_a_fault_and_faults_stay():
    fault = Fault(1, "broken")
    both = Job(2, {"prompt": "a", "seed": 1}, id="x", columns={"seed": 9})
    first, second = multiply([fault, both], parse_matrix(["seed=1,2"]))
    assert first is fault
    assert (second.line, second.column, second.field, second.id) == (2, 9, "seed", "x")
