"""Helpers that several packages share: atomic writes, bounded JSON files, the dtype of `auto`."""

import pytest

from sdcli.diffusion import hardware
from sdcli.files import atomic
from sdcli.files.json_files import load_json


def test_a_file_is_replaced_at_the_end_of_the_block(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with atomic.replacing(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_raises_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(TypeError), atomic.replacing(path) as file:
        file.writelines([b"new", None])
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_named_temporary_file_of_a_killed_process_is_overwritten(tmp_path):
    path = tmp_path / "file"
    (tmp_path / "file.partial").write_bytes(b"longer than what comes")
    with atomic.replacing(path, "file.partial") as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b'"123456789"', "larger than 10 bytes"), (b"\xff", "codec"), (b"{", "Expecting")],
)
def test_json_that_cannot_be_read(tmp_path, data, reason):
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(ValueError, match=reason):
        load_json(tmp_path / "x.json", max_bytes=10)


def test_json_nested_too_deeply(tmp_path):
    (tmp_path / "x.json").write_bytes(b"[" * 100_000)
    with pytest.raises(ValueError, match="nested too deeply"):
        load_json(tmp_path / "x.json")


def test_a_byte_order_mark_is_ignored(tmp_path):
    (tmp_path / "x.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert load_json(tmp_path / "x.json") == {"a": 1}


@pytest.mark.parametrize(
    ("device", "bfloat16", "dtype"),
    [
        ("mps", False, "float16"),
        ("cuda", True, "bfloat16"),
        ("cuda", False, "float16"),
        ("cpu", True, "bfloat16"),
        ("cpu", False, "float32"),
    ],
)
def test_the_dtype_of_auto(device, bfloat16, dtype):
    assert hardware.dtype_for(device, bfloat16=bfloat16) == dtype
    assert hardware.by_preference(cuda=True, mps=True) == ("cuda", "mps", "cpu")
    assert hardware.by_preference(cuda=False, mps=False) == ("cpu",)
