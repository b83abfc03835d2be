"""How pictures are arranged by what differs between their recipes."""

from itertools import product

import pytest

from sdcli.making.sheets.axes import MAX_ROW, arrange, label


def recipes(**axes):
    return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]


def grid(block):
    return [
        [block.cells.get((row, column), ()) for column in range(len(block.columns))] for row in range(len(block.rows))
    ]


def test_one_key_is_a_row_by_value():
    arranged = arrange(recipes(prompt=["a fox"], steps=[12, 4, 8]))
    (block,) = arranged.blocks
    assert (arranged.axes, block.rows, block.columns) == (("steps",), ("",), ("steps 4", "steps 8", "steps 12"))
    assert grid(block) == [[(1,), (2,), (0,)]]


def test_two_keys_are_rows_and_columns_whatever_the_order_and_seeds_drawn_for_each_are_no_axis():
    flat = [
        {**each, "seed": number} for number, each in enumerate(recipes(guidance_scale=[3.0, 1.0], steps=[4, 8, 12]))
    ]
    arranged = arrange(flat)
    (block,) = arranged.blocks
    assert arranged.axes == ("steps", "guidance_scale")
    assert arranged.differing == ("steps", "guidance_scale", "seed")
    assert block.rows == ("guidance scale 1", "guidance scale 3")
    assert block.columns == ("steps 4", "steps 8", "steps 12")
    assert grid(block) == [[(3,), (4,), (5,)], [(0,), (1,), (2,)]]


def test_texts_are_rows_and_further_keys_headings():
    arranged = arrange(recipes(prompt=["a fox", "an owl"], steps=[4, 8], scheduler=["ddim", "euler"], seed=[1, 2, 3]))
    assert [block.heading for block in arranged.blocks] == [f"a fox · {each}" for each in ("steps 4", "steps 8")] + [
        f"an owl · {each}" for each in ("steps 4", "steps 8")
    ]
    first = arranged.blocks[0]
    assert (first.rows, first.columns) == (("ddim", "euler"), ("seed 1", "seed 2", "seed 3"))
    two = arrange(recipes(seed=[1, 2], prompt=["b", "a"]))
    assert [(block.rows, block.columns) for block in two.blocks] == [(("b", "a"), ("seed 1", "seed 2"))]


def test_keys_that_change_together_are_one_axis():
    flat = [
        {"model": model, "steps": steps, "seed": seed} for model, steps in (("a/x", 4), ("a/y", 9)) for seed in (1, 2)
    ]
    (block,) = arrange(flat).blocks
    assert (block.rows, block.columns) == (("x, steps 4", "y, steps 9"), ("seed 1", "seed 2"))
    sizes = [{"width": side, "height": side, "prompt": "a"} for side in (256, 512)]
    assert arrange(sizes).blocks[0].columns == ("256×256", "512×512")


def test_pictures_that_only_differ_in_their_own_seeds_share_a_cell():
    flat = [{"steps": steps, "seed": 10 * steps + number} for steps in (4, 8) for number in (2, 1, 0)]
    (block,) = arrange(flat).blocks
    assert grid(block) == [[(2, 1, 0), (5, 4, 3)]]


@pytest.mark.parametrize(
    "flat",
    [
        [{"prompt": str(number), "seed": number} for number in range(MAX_ROW + 1)],
        [{"prompt": str(number), "steps": number % 5, "guidance_scale": number % 7} for number in range(30)],
        [{"steps": number % 6, "guidance_scale": (number * number) % 11} for number in range(12)],
        [{}, {}],
    ],
    ids=["long row", "prompts", "sparse", "nothing known"],
)
def test_what_is_no_product_has_captions(flat):
    arranged = arrange(flat)
    assert arranged.blocks == ()
    assert len(arranged.captions) == len(flat)
    if "prompt" in flat[0]:
        assert arranged.captions[5].split(", ")[0] == "5"


def test_a_missing_cell_is_empty():
    (block,) = arrange(recipes(steps=[4, 8], guidance_scale=[1.0, 3.0])[:3]).blocks
    assert sorted(map(len, block.cells.values())) == [1, 1, 1]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("guidance_scale", 7.0, "guidance scale 7"),
        ("lora", ["a:0.5", "b"], "a:0.5, b"),
        ("lora", None, "no lora"),
        ("negative_prompt", "", "no negative prompt"),
        ("snap", True, "snap on"),
        ("scheduler", "euler", "euler"),
        ("model", "models/x.safetensors", "x.safetensors"),
        ("image", "a/b.png", "b.png"),
    ],
)
def test_values_in_words(key, value, words):
    assert label(key, value) == words
