"""The lock file: what is written is read, and a broken one is said to be broken and never overwritten."""

import json

import pytest

from sdcli.errors import ModelCorrupt
from sdcli.models.hub import lock


@pytest.fixture(autouse=True)
def path(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    return tmp_path / "sdcli" / "lock.json"


PIN = lock.Pin("0123abcd", "main", {"unet/config.json": lock.LockedFile(2, "44136fa3")})


def test_pins_come_and_go(path):
    assert lock.read() == {}
    lock.write("a/b", PIN)
    lock.write("c/d", PIN)
    assert lock.read() == {"a/b": PIN, "c/d": PIN}
    lock.write("a/b", None)
    assert lock.read() == {"c/d": PIN}
    assert json.loads(path.read_text())["version"] == 1


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"version": 2, "models": {}}', '{"version": 1, "models": {"a/b": {}}}', "\x00"]
)
def test_a_broken_file_is_neither_believed_nor_replaced(path, text):
    path.parent.mkdir()
    path.write_text(text)
    for use in (lock.read, lambda: lock.write("a/b", PIN)):
        with pytest.raises(ModelCorrupt) as caught:
            use()
        assert str(path) in caught.value.message
    assert path.read_text() == text


def test_each_file_is_compared_byte_for_byte(tmp_path):
    for name, text in (("same", "abc"), ("changed", "abd"), ("longer", "abcd")):
        (tmp_path / name).write_text(text)
    (tmp_path / "folder").mkdir()
    # the sha256 of "abc" is FIPS 180-2's own example
    abc = lock.LockedFile(3, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
    pin = lock.Pin("0123abcd", "main", dict.fromkeys(("same", "changed", "longer", "absent", "folder"), abc))
    said = []
    states = dict(lock.check(pin, tmp_path, lambda name, count: said.append((name, count))))
    assert states == {"same": "ok", "changed": "changed", "longer": "changed", "absent": "missing", "folder": "changed"}
    assert said == [("same", 3), ("changed", 3)]
    assert pin.size == 15
