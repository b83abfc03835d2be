"""Tables at every width: whole lines for programs, wrapped ones for a terminal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdcli.terminal import columns

ROWS = [
    ("NAME", "STATE", "KIND", "DESCRIPTION"),
    ("kit", "here", "model", "a small model that is always here, with few words"),
    ("canny-sd15", "absent", "controlnet", "edges"),
]
words = st.text("abc -", max_size=12)


def test_programs_get_one_line_each():
    assert list(columns.lines(ROWS, None))[1:] == [
        "kit         here    model       a small model that is always here, with few words",
        "canny-sd15  absent  controlnet  edges",
    ]


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (60, ["kit         here    model       a small model that is always", " " * 32 + "here, with few words"]),
        (40, ["kit         here    model", "  a small model that is always here,", "  with few words"]),
        (20, ["kit         here", "  model  a small model", "  that is always here,", "  with few words"]),
    ],
)
def test_descriptions_are_wrapped(width, expected):
    found = list(columns.lines(ROWS, width))
    assert [found[place : place + len(expected)] for place, line in enumerate(found) if line.startswith("kit")] == [
        expected
    ]


@given(st.lists(st.tuples(words, words, words), min_size=1, max_size=4), st.integers(30, 90))
def test_no_line_is_longer_than_the_terminal_and_no_word_is_lost(rows, width):
    found = list(columns.lines(rows, width))
    assert all(len(line) <= width for line in found)
    assert "".join("".join(found).split()) == "".join("".join("".join(row) for row in rows).split())
