"""What is done at the end of a batch, however it ends."""

import pytest
from PIL import Image

from sdcli.errors import JobsFailed, OutputError
from sdcli.jobs.ending import Ending, Tally, at_the_end
from sdcli.making.sheets.writing import Sheet
from sdcli.terminal.signals import Terminated

TELL = 'echo "$BATCH_STATUS $BATCH_DONE $BATCH_CACHED $BATCH_FAILED $BATCH_LEFT $BATCH_DIRECTORY $BATCH_SHEET" > told'


@pytest.fixture
def tally(tmp_path, monkeypatch):
    """Five jobs: one made, one cached, one failed, and two left."""
    monkeypatch.chdir(tmp_path)
    tally = Tally(["a", "b", "c", "d", "e"])
    for name, status in (("b", "done"), ("a", "cached")):
        Image.new("RGB", (64, 64), "red").save(f"{name}.png")
        tally.count({"id": name, "status": status, "path": f"{name}.png"})
    tally.count({"id": "c", "status": "failed", "path": None})
    return tally


@pytest.mark.parametrize(
    ("failure", "status", "has_sheet"),
    [
        (None, 0, True),
        (JobsFailed("1 of 5 jobs failed", "see"), 7, True),
        (KeyboardInterrupt(), 130, True),
        (OutputError("the disk is full", "see"), 8, True),
        (Terminated(), 143, False),
        (BrokenPipeError(), 1, False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_sheet_and_a_command_whatever_ends_the_batch(tally, tmp_path, failure, status, has_sheet):
    def end():
        with at_the_end(Ending(Sheet(("sheet.png",), renew=True), TELL), tally, "out/"):
            if failure is not None:
                raise failure

    if failure is None:
        end()
    else:
        with pytest.raises(type(failure)):
            end()
    assert (tmp_path / "sheet.png").exists() == has_sheet
    assert (tmp_path / "told").read_text() == f"{status} 1 1 1 2 out/ sheet.png\n"


def test_pictures_are_in_the_order_of_the_jobs(tally):
    assert tally.pictures == ["a.png", "b.png"]


def test_the_error_of_the_sheet_ends_a_batch_that_is_complete_and_hides_no_other(tally, tmp_path, capfd):
    (tmp_path / "sheet.png").write_bytes(b"mine")
    ending = Ending(Sheet(("sheet.png",), renew=True, option="--sheet"), f"{TELL}; exit 3")
    with pytest.raises(OutputError, match=r"sheet.png already exists"), at_the_end(ending, tally, "out"):
        pass
    assert (tmp_path / "told").read_text().startswith("8 ")
    with pytest.raises(KeyboardInterrupt), at_the_end(ending, tally, "out"):
        raise KeyboardInterrupt
    told = capfd.readouterr().err
    assert "error: sheet.png already exists" in told
    assert "warning: --notify: the command failed with the exit status 3" in told
    assert (tmp_path / "sheet.png").read_bytes() == b"mine"
