"""The notation of weights, by hand and by chance."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdcli.diffusion.context.weights import Weighted, parse

# A prompt, and the stretches it is to be; the first nine are Automatic1111's own examples and readings.
EXAMPLES = [
    ("normal text", [("normal text", 1.0)]),
    ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
    ("(unbalanced", [("unbalanced", 1.1)]),
    (r"\(literal\]", [("(literal]", 1.0)]),
    ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
    (
        "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
        [
            ("a ", 1.0),
            ("house", 1.3 * 1.1 * 1.1),
            (" ", 1.1),
            ("on", 1.0),
            (" a ", 1.1),
            ("hill", 0.5 * 1.1),
            (", sun, ", 1.1),
            ("sky", 1.1**4),
            (".", 1.1),
        ],
    ),
    ("[calm]", [("calm", 1 / 1.1)]),
    ("(a:-0.5)", [("a", -0.5)]),
    ("(a : .5 )", [("a ", 0.5)]),
    ("", []),
    ("()", []),
    ("(fox:1.3)", [("fox", 1.3)]),
    ("((fox))", [("fox", 1.1 * 1.1)]),
    ("((fox:2):3)", [("fox", 6.0)]),
    ("([fox])", [("fox", 1.1 / 1.1)]),
    ("fox) den]", [("fox) den]", 1.0)]),
    ("[fox", [("fox", 1 / 1.1)]),
    ("fox:1.3", [("fox:1.3", 1.0)]),
    ("fox:1.3)", [("fox:1.3)", 1.0)]),
    ("[fox:1.3]", [("fox:1.3", 1 / 1.1)]),
    ("(fox:red)", [("fox:red", 1.1)]),
    ("(fox:1.2.3)", [("fox:1.2.3", 1.1)]),
    ("(fox:)", [("fox:", 1.1)]),
    ("(fox:1e3)", [("fox:1e3", 1.1)]),
    (f"(fox:{'9' * 400})", [(f"fox:{'9' * 400})", 1.1)]),
    (r"\(fox\), \[den\], \\", [("(fox), [den], \\", 1.0)]),
    (r"a\b \n", [(r"a\b \n", 1.0)]),
    (r"(\(fox\):1.2)", [("(fox)", 1.2)]),
    ("(a [b) c]", [("a ", 1.1), ("b", 1.1 / 1.1), (" c", 1 / 1.1)]),
]


@pytest.mark.parametrize(("prompt", "expected"), EXAMPLES)
def test_examples(prompt, expected):
    (part,) = parse(prompt)
    assert [stretch.text for stretch in part] == [text for text, _ in expected]
    assert [stretch.weight for stretch in part] == pytest.approx([weight for _, weight in expected], rel=1e-12)


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("a fox BREAK snow", [[("a fox", 1.0)], [("snow", 1.0)]]),
        ("a fox,\n BREAK\nsnow", [[("a fox,", 1.0)], [("snow", 1.0)]]),
        ("BREAK", [[], []]),
        ("a BREAK BREAK b", [[("a", 1.0)], [], [("b", 1.0)]]),
        ("BREAKFAST and aBREAK, break", [[("BREAKFAST and aBREAK, break", 1.0)]]),
        ("(a BREAK b:1.2)", [[("a", 1.2)], [("b", 1.2)]]),
        ("(a) BREAK [b]", [[("a", 1.1)], [("b", 1 / 1.1)]]),
    ],
)
def test_break(prompt, parts):
    assert parse(prompt) == parts


def without_break(text: str) -> bool:
    return not re.search(r"\bBREAK\b", text)


def escaped(text: str) -> str:
    return re.sub(r"([()\[\]\\])", r"\\\1", text)


marked = st.text(st.sampled_from("ab (:1.5)[]\\-+,"), max_size=40) | st.text(max_size=40)


@given(marked)
def test_nothing_raises(prompt):
    for part in parse(prompt):
        for stretch in part:
            assert stretch.text
            assert isinstance(stretch.weight, float)


@given(st.text(max_size=40).filter(without_break))
def test_escaped_text_is_itself(text):
    assert parse(escaped(text)) == [[Weighted(text, 1.0)] if text else []]


@given(st.text(max_size=40).filter(without_break).filter(lambda text: not set(text) & set("()[]\\")))
def test_text_without_marks_is_itself(text):
    assert parse(text) == [[Weighted(text, 1.0)] if text else []]


stretches = st.tuples(
    st.text(st.characters(categories=["L", "P", "N"]), min_size=1, max_size=8).filter(without_break),
    st.floats(0.01, 9).map(lambda weight: round(weight, 2)),
)


@given(st.lists(st.lists(stretches, min_size=1, max_size=4), min_size=1, max_size=3))
def test_what_is_written_out_is_read_back(parts):
    prompt = " BREAK ".join("".join(f"({escaped(text)}:{weight})" for text, weight in part) for part in parts)
    merged = []
    for part in parts:
        merged.append([])
        for text, weight in part:
            if merged[-1] and merged[-1][-1][1] == weight:
                merged[-1][-1] = (merged[-1][-1][0] + text, weight)
            else:
                merged[-1].append((text, weight))
    assert parse(prompt) == merged


@given(marked)
def test_every_letter_is_kept(prompt):
    """Parsing takes out marks and nothing else: the letters a and b, which are no marks, stay in order."""
    texts = "".join(stretch.text for part in parse(prompt) for stretch in part)
    assert [letter for letter in texts if letter in "ab"] == [letter for letter in prompt if letter in "ab"]


@pytest.mark.parametrize(
    "piece", ["(", "[", " ", "(a", "b c ", ": ", "a BREAK ", "\n \t", ":1", "((a:1.3) ", "\\", "1", "BREAK"]
)
def test_a_long_prompt_is_read_in_little_time(piece):
    """32,768 characters, the most that a recipe takes; reading them was quadratic in brackets and blanks."""
    prompt = (piece * 32_768)[:32_768]
    brackets = prompt.count("(") + prompt.count("[")
    if brackets > 1000:
        prompt = prompt[: 1000 * len(piece)]
    for text in (prompt, f":{prompt}"):
        begun = time.process_time()
        parse(text)
        assert time.process_time() - begun < 0.5


def test_blanks_before_a_break_belong_to_it():
    assert parse("a (b \n BREAK  c) d") == [
        [Weighted("a ", 1.0), Weighted("b", 1.1)], [Weighted("c", 1.1), Weighted(" d", 1.0)]
    ]  # fmt: skip
