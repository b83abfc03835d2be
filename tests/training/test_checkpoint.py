import pytest
import torch

from sdcli.errors import ModelCorrupt, ModelNotFound, OutputError
from sdcli.training import checkpoint


class Unpicklable:
    def __reduce__(self):
        raise RuntimeError("no")


def test_a_saved_checkpoint_is_loaded(tmp_path):
    file = tmp_path / "new" / "run.pt"
    checkpoint.save(file, {"step": 3, "weights": torch.arange(4)})
    state = checkpoint.load(file)
    assert state["step"] == 3
    assert torch.equal(state["weights"], torch.arange(4))
    assert [f.name for f in file.parent.iterdir()] == ["run.pt"]


def test_a_failed_save_keeps_the_previous_checkpoint(tmp_path):
    file = tmp_path / "run.pt"
    checkpoint.save(file, {"step": 1})
    with pytest.raises(RuntimeError):
        checkpoint.save(file, {"step": Unpicklable()})
    assert checkpoint.load(file) == {"step": 1}


def test_missing_and_truncated_checkpoints_raise_errors(tmp_path):
    with pytest.raises(ModelNotFound):
        checkpoint.load(tmp_path / "run.pt")
    checkpoint.save(tmp_path / "run.pt", {"weights": torch.zeros(1000)})
    (tmp_path / "torn.pt").write_bytes((tmp_path / "run.pt").read_bytes()[:2000])
    with pytest.raises(ModelCorrupt, match=r"torn\.pt"):
        checkpoint.load(tmp_path / "torn.pt")


def test_an_unwritable_path_raises_an_output_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        checkpoint.save(tmp_path / "file" / "run.pt", {})
