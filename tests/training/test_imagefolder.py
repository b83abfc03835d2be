import json

import numpy as np
import pytest
from PIL import Image

from sdcli.errors import ExitStatus, InputError
from sdcli.training.imagefolder import read_rows
from sdcli.training.sources import ImageFolder


@pytest.fixture
def folder(tmp_path):
    """Three pictures, 96×64, of three upright stripes each, and maps of three classes."""
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    lines = []
    for index in range(3):
        image = Image.new("RGB", (96, 64))
        for third in range(3):
            image.paste(colours[(index + third) % 3], (32 * third, 0, 32 * third + 32, 64))
        image.save(tmp_path / f"{index}.png")
        Image.new("L", (96, 64), index).save(tmp_path / f"map{index}.png")
        line = {"file_name": f"{index}.png", "text": f"picture {index}", "map_file_name": f"map{index}.png"}
        lines.append(json.dumps(line))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines) + "\n\n")
    return tmp_path


def test_rows_are_the_lines_in_order(folder):
    rows = read_rows(folder, maps=True)
    assert [(row.image.name, row.text, row.segmentation.name, row.line) for row in rows] == [
        ("0.png", "picture 0", "map0.png", 1),
        ("1.png", "picture 1", "map1.png", 2),
        ("2.png", "picture 2", "map2.png", 3),
    ]
    assert read_rows(folder)[0].segmentation is None


def test_a_train_folder_is_found(folder, tmp_path_factory):
    parent = tmp_path_factory.mktemp("split")
    folder.rename(parent / "train")
    assert len(read_rows(parent)) == 3


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2: not JSON"),
        ("[]", "line 2: not a JSON object"),
        ('{"text": "x"}', 'line 2: no "file_name"'),
        ('{"file_name": "0.png"}', 'line 2: no "text"'),
        ('{"file_name": "0.png", "text": 3}', 'line 2: "text" is not a string'),
        ('{"file_name": "9.png", "text": "x"}', "line 2: there is no file"),
        ('{"file_name": "0.png", "text": "x"}', 'line 2: no "map_file_name"'),
    ],
)
def test_an_invalid_line_is_an_error_with_its_number(folder, line, said):
    metadata = folder / "metadata.jsonl"
    lines = metadata.read_text().splitlines()
    metadata.write_text("\n".join([lines[0], line, lines[2]]))
    with pytest.raises(InputError) as caught:
        read_rows(folder, maps=True)
    assert f"metadata.jsonl {said}" in caught.value.message
    assert caught.value.exit_status == ExitStatus.INPUT


def test_missing_empty_or_undecodable_metadata_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"no metadata\.jsonl"):
        read_rows(tmp_path)
    (tmp_path / "metadata.jsonl").write_text("\n")
    with pytest.raises(InputError, match="no lines"):
        read_rows(tmp_path)
    (tmp_path / "metadata.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="cannot read"):
        read_rows(tmp_path)


def test_pictures_are_cropped_and_resized(folder):
    source = ImageFolder(read_rows(folder, maps=True), 32, seed=1, classes=3)
    first = source.rows[0]
    picture = source.picture(first)
    # Of 96×64 the middle 64×64 is kept: half of each outer third.
    assert picture.image.shape == (32, 32, 3)
    assert picture.image[16, 2].tolist() == [255, 0, 0]
    assert picture.image[16, 16].tolist() == [0, 255, 0]
    assert picture.image[16, 29].tolist() == [0, 0, 255]
    assert picture.segmentation.shape == (32, 32)
    assert set(picture.segmentation.flat) == {0}
    assert source.caption(first, np.random.default_rng(0)) == "picture 0"


def test_each_picture_is_used_once_before_any_repeats(folder):
    source = ImageFolder(read_rows(folder), 32, seed=1)
    items = source.items()
    drawn = [next(items).text for _ in range(6)]
    assert sorted(drawn[:3]) == ["picture 0", "picture 1", "picture 2"]
    assert drawn[:3] == drawn[3:]
    firsts = [next(source.items(process, 2)).text for process in range(2)]
    assert firsts[0] != firsts[1]


def test_a_truncated_image_is_an_error_with_its_line(folder):
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:80])
    source = ImageFolder(read_rows(folder), 32, seed=1)
    with pytest.raises(InputError, match=r"line 2: cannot read the image 1\.png"):
        source.picture(source.rows[1])


@pytest.mark.parametrize(("mode", "value", "said"), [("L", 3, "has the index 3"), ("RGB", 0, "has mode RGB")])
def test_an_invalid_map_is_an_error_with_its_line(folder, mode, value, said):
    Image.new(mode, (96, 64), value).save(folder / "map2.png")
    source = ImageFolder(read_rows(folder, maps=True), 32, seed=1, classes=3)
    with pytest.raises(InputError, match=f"line 3: the map map2.png {said}"):
        source.picture(source.rows[2])


def test_texts_next_to_the_pictures_or_one_for_all(folder):
    (folder / "metadata.jsonl").unlink()
    for path in folder.glob("map*"):
        path.unlink()
    assert [row.text for row in read_rows(folder, text="a flag")] == ["a flag"] * 3
    with pytest.raises(InputError, match=r"0.png has no text: there is no 0.txt next to it"):
        read_rows(folder)
    for index in range(3):
        (folder / f"{index}.txt").write_text(f" picture {index},\n striped\n")
    rows = read_rows(folder)
    assert [(row.image.name, row.text, row.line) for row in rows][2] == ("2.png", "picture 2, striped", 0)
    (folder / "1.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"^\S+1.png: cannot read the image 1.png"):
        ImageFolder(rows, 64, 0).picture(rows[1])
