"""Segmentation maps: the classes in a model's folder, and what a U-Net gets of a map."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdcli.diffusion.context import segmentation
from sdcli.errors import ModelCorrupt
from sdcli.files import palette
from sdcli.files.palette import Class

CLASSES = (Class(0, "sky", (120, 180, 240)), Class(1, "sand", (240, 214, 154)), Class(2, "Füchse", (255, 128, 0)))


def test_classes_make_the_round_trip(tmp_path: Path):
    palette.write(tmp_path, CLASSES)
    assert palette.read(tmp_path) == CLASSES
    assert json.loads((tmp_path / "classes.json").read_text(encoding="utf-8"))[0] == {
        "index": 0,
        "name": "sky",
        "color": [120, 180, 240],
    }


def test_a_folder_without_the_file_has_no_classes(tmp_path: Path):
    assert palette.read(tmp_path) == ()
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert palette.read(tmp_path / "model.safetensors") == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[", "Expecting"),
        ("[]", "0 classes"),
        ("3", "not a class"),
        ('{"sky": [1, 2, 3]}', "not a class"),
        ('[{"index": 0, "name": "sky"}]', "color"),
        ('[{"index": 0, "name": "", "color": [1, 2, 3]}]', "no name"),
        ('[{"index": 0, "name": "sky", "color": [1, 2, 256]}]', "256"),
        ('[{"index": 0, "name": "sky", "color": [1, 2]}]', "color of sky"),
        ('[{"index": 1, "name": "sky", "color": [1, 2, 3]}]', "0 to 0"),
        (
            '[{"index": 0, "name": "a", "color": [1, 2, 3]}, {"index": 1, "name": "a", "color": [1, 2, 4]}]',
            "have the name a",
        ),
    ],
)
def test_a_file_that_is_wrong_says_how(tmp_path: Path, text: str, said: str):
    (tmp_path / "classes.json").write_text(text)
    with pytest.raises(ModelCorrupt) as refused:
        palette.read(tmp_path)
    assert said in refused.value.message
    assert "classes.json" in refused.value.message


def test_what_read_would_refuse_is_not_written(tmp_path: Path):
    with pytest.raises(ValueError, match="0 to 1"):
        palette.write(tmp_path, (CLASSES[0], CLASSES[2]))
    assert not list(tmp_path.iterdir())


@given(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 20), st.sampled_from([1, 4, 8]), st.data()
)
def test_a_cell_holds_the_share_of_each_class(batch, rows, columns, classes, cell, data):
    seed = data.draw(st.integers(0, 2**31))
    shape = batch, rows * cell, columns * cell
    indices = torch.randint(0, classes, shape, generator=torch.Generator().manual_seed(seed))
    one_hot = torch.nn.functional.one_hot(indices, classes).permute(0, 3, 1, 2).float()
    expected = torch.nn.functional.interpolate(one_hot, scale_factor=1 / cell, mode="area")
    made = segmentation.encode(indices.to(torch.uint8), classes, cell)
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-6)
    assert made.dtype == torch.float32
    torch.testing.assert_close(made.sum(1), torch.ones(batch, rows, columns))


def test_cells_and_classes_are_checked():
    with pytest.raises(ValueError, match="12×8"):
        segmentation.encode(torch.zeros(1, 8, 12), 2, 8)
    with pytest.raises(RuntimeError):
        segmentation.encode(torch.full((1, 8, 8), 2), 2, 8)
