import pytest
import torch

from sdcli.errors import ModelCorrupt, ModelNotFound, OutputError
from sdcli.training import checkpoint


class Unpicklable:
    def __reduce__(self):
        raise RuntimeError("no")


def test_what_was_saved_is_loaded(tmp_path):
    file = tmp_path / "new" / "run.pt"
    checkpoint.save(file, {"step": 3, "weights": torch.arange(4)})
    state = checkpoint.load(file)
    assert state["step"] == 3
    assert torch.equal(state["weights"], torch.arange(4))
    assert [f.name for f in file.parent.iterdir()] == ["run.pt"]


def test_a_failing_save_leaves_the_last_checkpoint(tmp_path):
    file = tmp_path / "run.pt"
    checkpoint.save(file, {"step": 1})
    with pytest.raises(RuntimeError):
        checkpoint.save(file, {"step": Unpicklable()})
    assert checkpoint.load(file) == {"step": 1}


def test_a_missing_and_a_torn_checkpoint_are_named(tmp_path):
    with pytest.raises(ModelNotFound):
        checkpoint.load(tmp_path / "run.pt")
    checkpoint.save(tmp_path / "run.pt", {"weights": torch.zeros(1000)})
    (tmp_path / "torn.pt").write_bytes((tmp_path / "run.pt").read_bytes()[:2000])
    with pytest.raises(ModelCorrupt, match=r"torn\.pt"):
        checkpoint.load(tmp_path / "torn.pt")


def test_a_place_that_cannot_be_written_is_an_error_of_output(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        checkpoint.save(tmp_path / "file" / "run.pt", {})
